"""What a model says: ``Prediction`` of an image, for people and programs; ``Answers`` to a batch, without names."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TextIO

import numpy as np

from ..images.sequence import SEQUENCE_TITLES
from ..labels import LABELS, TITLES
from ..trust.decision import DECISIONS, NOT_A_BRAIN_MRI

if TYPE_CHECKING:
    from ..images.read import UnreadableImageError

OnError = Literal["raise", "record"]
"""Of a bad image: raise its error, or record it in the answer."""
MEASURED_SEQUENCES = ("t1c",)
"""Sequences on which the kinds of tumour were measured; on others the decision is ``unfamiliar``."""


def unmeasured(sequence: str) -> str | None:
    """Why no class is to be relied on, after "because"; None of a measured sequence, and of one that nothing tells.

    Args:
        sequence: one of ``images.sequence.SEQUENCES``.
    """
    if sequence in (*MEASURED_SEQUENCES, "unknown"):
        return None
    return f"the kinds of tumour were not measured on this sequence ({SEQUENCE_TITLES[sequence]})"


@dataclass(frozen=True)
class Reading:
    """An image as it was read for the model, or why it cannot be read.

    Attributes:
        name: as in ``Prediction``.
        pixel_values: float32, of ``TumorClassifier.preprocess``; None when the image could not be read.
        size: (width, height) in pixels of the image, upright; None when it could not be read.
        fault: of ``trust.decision.picture_fault``.
        error: why it could not be read.
        sequence: one of ``images.sequence.SEQUENCES``, of a DICOM slice whose header tells it.
    """

    name: str
    pixel_values: np.ndarray | None = None
    size: tuple[int, int] | None = None
    fault: str | None = None
    error: UnreadableImageError | None = None
    sequence: str = "unknown"


def pixels_of(readings: Sequence[Reading], on_error: OnError = "record") -> np.ndarray | None:
    """Stack the inputs of those that could be read; None where none could.

    Raises:
        UnreadableImageError: of the first that could not be read, where ``on_error`` is ``"raise"``.
    """
    errors = [reading.error for reading in readings if reading.error]
    if errors and on_error == "raise":
        raise errors[0]
    pixels = [reading.pixel_values for reading in readings if reading.pixel_values is not None]
    return np.stack(pixels) if pixels else None


@dataclass(frozen=True)
class Prediction:
    """The answer for one image, or why there is none.

    Attributes:
        name: the path as it was given, or ``image-0001`` (its place in the call) for an image from memory.
        label: the class name, one of the model's; None when the image could not be read.
        confidence: the probability of ``label``, in [0, 1]; None when the image could not be read.
        probabilities: class name -> probability in [0, 1], in the model's order, summing to 1; empty
            when the image could not be read.
        error: why the image could not be read, without its name; None when there is an answer.
        decision: one of ``decision.DECISIONS``; None when the image could not be read or the model has no trust.json.
        reason: why the picture is refused as no brain MRI slice, or unfamiliar, after "because"; else None.
        prediction_set: those in the set at the classifier's coverage, in the model's order; empty where
            ``decision`` is None.
        prediction_sets: coverage in percent -> the classes in the set at that coverage.
        unlikeness: how unlike the slices that the model knows the picture is; above 1 it is unfamiliar.
        foreign: how sure it is that the picture is no brain MRI slice, in [0, 1]; above 0.5 it is refused.
    """

    name: str
    label: str | None
    confidence: float | None
    probabilities: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    decision: str | None = None
    reason: str | None = None
    prediction_set: tuple[str, ...] = ()
    prediction_sets: dict[int, tuple[str, ...]] = field(default_factory=dict)
    unlikeness: float | None = None
    foreign: float | None = None

    @property
    def refused(self) -> bool:
        """Whether the picture was read and is no brain MRI slice: its ``label`` is not to be used or counted."""
        return self.decision == NOT_A_BRAIN_MRI

    @property
    def title(self) -> str:
        """The class as shown to people, such as ``Pituitary tumour``; ``Not readable`` when there is no answer."""
        return TITLES[self.label] if self.label else "Not readable"

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for ``json.dumps``; the keys are the attributes' names, and ``top_class``.

        Of a refused picture ``label`` is None, so that no count takes it; ``top_class`` has the class that is most
        probable for the network all the same.
        """
        return {
            "name": self.name,
            "label": None if self.refused else self.label,
            "top_class": self.label,
            "confidence": self.confidence,
            "probabilities": dict(self.probabilities),
            "error": self.error,
            "decision": self.decision,
            "reason": self.reason,
            "prediction_set": list(self.prediction_set),
            "prediction_sets": {str(coverage): list(names) for coverage, names in self.prediction_sets.items()},
            "unlikeness": self.unlikeness,
            "foreign": self.foreign,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Prediction:
        """Return the prediction that ``to_dict`` gave; KeyError or TypeError where it did not."""
        fields = {name: value for name, value in record.items() if name != "top_class"}
        return cls(
            **fields
            | {
                "label": record["top_class"],
                "prediction_set": tuple(record["prediction_set"]),
                "prediction_sets": {int(c): tuple(names) for c, names in record["prediction_sets"].items()},
            }
        )


class Tally:
    """Counts predictions: how many were answered, refused, not readable, of each class and decision."""

    def __init__(self, names: Sequence[str] = LABELS) -> None:
        self.names = tuple(names)
        self.labels: Counter[str] = Counter()
        self.decisions: Counter[str] = Counter()
        self.seen = self.errors = self.refused = 0

    def add(self, prediction: Prediction) -> None:
        """Count one."""
        self.seen += 1
        self.errors += prediction.error is not None
        self.refused += prediction.refused
        self.decisions.update(filter(None, [prediction.decision]))
        if prediction.label and not prediction.refused:
            self.labels[prediction.label] += 1

    def to_dict(self, total: int) -> dict[str, Any]:
        """Return the summary of ``total`` images; it is ``complete`` when all were counted."""
        return {
            "images": total,
            "answered": self.labels.total(),
            "refused": self.refused,
            "errors": self.errors,
            "per_label": {label: self.labels[label] for label in self.names},
            "per_decision": {decision: self.decisions[decision] for decision in DECISIONS},
            "complete": self.seen == total,
        }


@dataclass(frozen=True)
class Answers:
    """The model's answers to a batch, before they have names.

    Attributes:
        probabilities: (N, 4) float64, calibrated where the model has a ``trust.json``; rows sum to 1.
        sets: coverage in percent -> (N, 4) bool, the classes in the set; empty without a ``trust.json``.
        unlikeness: (N,) of ``Trust.in_distribution``; None without a ``trust.json``.
        foreign: (N,) of ``BrainMriCheck.foreign``; None without a ``trust.json``.
    """

    probabilities: np.ndarray
    sets: Mapping[int, np.ndarray] = field(default_factory=dict)
    unlikeness: np.ndarray | None = None
    foreign: np.ndarray | None = None

    @classmethod
    def joined(cls, parts: Sequence[Answers]) -> Answers:
        """Return one batch of several, in order."""
        return cls._merged(parts, np.concatenate, np.concatenate, np.concatenate)

    @classmethod
    def combined(cls, of_members: Sequence[Answers]) -> Answers:
        """Return one answer of those of an ensemble's members to the same batch.

        Probabilities are the members' mean. A class is in a set when any member has it there, so that a set covers at
        least what each member's covers; a picture is as unlike, and as foreign, as the member says that finds it most
        so. Without a ``trust.json`` in every member there are only probabilities.
        """
        answers = cls._merged(of_members, _mean, _any, _max)
        for kept in answers.sets.values():
            kept[np.arange(len(kept)), answers.probabilities.argmax(1)] = True
        return answers

    @classmethod
    def _merged(cls, parts: Sequence[Answers], probabilities: _Merge, sets: _Merge, scores: _Merge) -> Answers:
        merged = probabilities([part.probabilities for part in parts])
        if any(part.unlikeness is None for part in parts):
            return cls(merged)
        return cls(
            merged,
            {coverage: sets([part.sets[coverage] for part in parts]) for coverage in parts[0].sets},
            *(scores([getattr(part, name) for part in parts]) for name in ("unlikeness", "foreign")),
        )


_Merge = Callable[[Sequence[np.ndarray]], np.ndarray]
_mean, _any, _max = (partial(merge, axis=0) for merge in (np.mean, np.any, np.max))


def csv_writer(file: TextIO) -> Any:
    """A writer of the standard library that quotes every cell.

    Else a name such as ``a;=x`` would begin a cell with a formula where a spreadsheet takes ``;`` to part cells.
    """
    return csv.writer(file, quoting=csv.QUOTE_ALL)


def csv_columns(names: Sequence[str] = LABELS) -> tuple[str, ...]:
    """The head of the CSV of a model with these classes."""
    return (
        "file", "label", "top_class", "confidence", *names, "decision", "prediction_set", "unlikeness", "foreign",
        "reason", "error", "schema_version",
    )  # fmt: skip


SCHEMA_VERSION = 2
"""Of the CSV and of JSON. 2: a refused picture has no ``label``, but a ``top_class``, and is no longer counted with
those answered."""


def csv_row(prediction: Prediction, names: Sequence[str] = LABELS) -> list[str]:
    """One row in the order of ``csv_columns``; numbers with six decimals, empty cells where there is no answer."""
    numbers = (prediction.confidence, *(prediction.probabilities.get(label) for label in names))
    scores = (prediction.unlikeness, prediction.foreign)
    return [
        harmless_name(prediction.name),
        ("" if prediction.refused else prediction.label) or "",
        prediction.label or "",
        *("" if number is None else f"{number:.6f}" for number in numbers),
        prediction.decision or "",
        " ".join(prediction.prediction_set),
        *("" if score is None else f"{score:.6f}" for score in scores),
        prediction.reason or "",
        prediction.error or "",
        str(SCHEMA_VERSION),
    ]


def harmless_name(name: str) -> str:
    """A path that no spreadsheet takes for a formula and that still names the same file.

    File names come from strangers, and a cell that starts with ``=``, ``+``, ``-`` or ``@`` is run by spreadsheets
    (CWE-1236), of full width, too. ``./=x.png`` is the same file as ``=x.png``; an apostrophe would break the path.
    """
    return f"./{name}" if name.startswith((*"=+-@＝＋－＠", "\t", "\r", "\n")) else name
