"""Evaluation protocols: which slice trains, which validates, which tests. Every figure of this project names one.

- ``official``: the published folders. Patients and copies leak from Training to Testing; kept for comparison. A part of
  Training validates, or a folder Validation where there is one.
- ``patient-disjoint``: fold k of ``splits/patient_disjoint.csv`` tests, fold k+1 validates, the rest
  trains. No patient and no near-copy is in two parts; four labels are corrected to those of the source.
- ``figshare-5fold``: the Figshare slices (three classes, no ``notumor``) in their published patient-disjoint folds.
- ``external``: measures only. Br35H's tumours, of which the Kaggle set has next to none, against the ``notumor`` slices
  of the test fold of ``patient-disjoint``; see br35h.py.
- ``leave-collection-out``: all of one family of further collections tests; those that remain train beside the training
  part of ``patient-disjoint``; see collections.py.

``assign(...)`` needs no image: a slice is known by its published path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import UserError
from ..settings import setting
from .folders import PARTS, FoundSlice
from .tables import SplitRow, split_rows

OFFICIAL, PATIENT_DISJOINT, FIGSHARE_5FOLD, EXTERNAL, LEAVE_COLLECTION_OUT = PROTOCOLS = (
    "official", "patient-disjoint", "figshare-5fold", "external", "leave-collection-out",
)  # fmt: skip
FOLDS = (1, 2, 3, 4, 5)

NOTES = {
    OFFICIAL: "published folders; patients and copies leak from training to test, so it flatters every model",
    PATIENT_DISJOINT: "no patient and no near-copy in two parts; four source labels corrected",
    FIGSHARE_5FOLD: "three classes, the data set's published patient-disjoint folds",
    EXTERNAL: "tumours of Br35H, in groups that train no model of this project, against held-out notumor slices",
    LEAVE_COLLECTION_OUT: "a family of collections tests that trained nothing: scanners never seen",
}


@dataclass
class ProtocolArguments:
    """Which protocol, and what it needs to know."""

    protocol: str = setting(OFFICIAL, f"One of {', '.join(PROTOCOLS)}.")
    fold: int = setting(1, "Test fold, 1 to 5, of a protocol with folds; the next one validates.")
    collection: str | None = setting(None, "leave-collection-out: the family, or several (a,b), that only tests.")
    validation_fraction: float = setting(0.1, "official: share of the training images kept for validation.")
    random_validation: bool = setting(
        False, "official: draw validation images one by one, so that patients and copies leak into it."
    )

    train_on_validation: bool = setting(
        False, "The validation part trains as well, so that nothing but the test part is held out."
    )

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise UserError(f"--protocol {self.protocol}: give one of {', '.join(PROTOCOLS)}")
        if self.fold not in FOLDS:
            raise UserError(f"--fold {self.fold}: give a fold from {FOLDS[0]} to {FOLDS[-1]}")
        if (self.protocol == LEAVE_COLLECTION_OUT) != bool(self.collection):
            raise UserError(
                f"--protocol {LEAVE_COLLECTION_OUT} and --collection FAMILY go together: give both or neither"
            )
        if not 0 < self.validation_fraction < 1:
            raise UserError(f"--validation_fraction {self.validation_fraction}: give a number between 0 and 1")

    @property
    def title(self) -> str:
        """The protocol's name for tables and plots, with its fold where it has folds."""
        if self.protocol == LEAVE_COLLECTION_OUT:
            return f"{self.protocol}: {self.collection}"
        return self.protocol if self.protocol == OFFICIAL else f"{self.protocol} fold {self.fold}"


@dataclass(frozen=True)
class AssignedSlice:
    """A slice with its part (train, validation or test), its label and group under the protocol."""

    relative: str
    label: str
    group: str
    part: str


@dataclass
class Assignment:
    """What a protocol makes of the files that were found.

    Attributes:
        slices: every slice that is used.
        unlisted: files that the versioned splits do not know (used under ``official`` as groups of their own, left
            out under ``patient-disjoint``), when they know others.
        missing: files that the splits list and the folder lacks.
        corrected: files whose label differs from their folder's.
    """

    slices: list[AssignedSlice]
    unlisted: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    corrected: list[str] = field(default_factory=list)


def assign(found: Sequence[FoundSlice], arguments: ProtocolArguments, seed: int) -> Assignment:
    """Give every slice its part.

    Args:
        found: what the data folder holds.
        arguments: the protocol.
        seed: of the validation draw under ``official``.
    """
    if arguments.protocol == FIGSHARE_5FOLD:
        result = Assignment([_by_fold(f.relative, f.label, f.group, f.fold, arguments.fold) for f in found])
    else:
        rows = split_rows()
        known = [f for f in found if f.relative in rows]
        by_patient = arguments.protocol in (PATIENT_DISJOINT, EXTERNAL, LEAVE_COLLECTION_OUT)
        result = _patient_disjoint(known, rows, arguments) if by_patient else None
        if result is None:
            result = _official(found, rows, arguments, seed)
        if known:
            paths = {f.relative for f in found}
            result.unlisted = sorted(paths - rows.keys())
            result.missing = sorted(rows.keys() - paths)
    if arguments.train_on_validation:
        result.slices += [replace(s, part="train") for s in result.slices if s.part == "validation"]
    sizes = Counter(s.part for s in result.slices)
    if empty := [part for part in PARTS if not sizes[part]]:
        raise UserError(f"--protocol {arguments.protocol}: no images for {' and '.join(empty)} in this folder")
    return result


def draw_seed(settings: Mapping[str, Any]) -> int:
    """Return the seed of the validation draw from a run's settings: ``data_seed`` where it is given, else ``seed``."""
    return int(settings["seed"] if settings.get("data_seed") is None else settings["data_seed"])


def leaking_share(train_groups: Sequence[str], test_groups: Sequence[str]) -> float:
    """Return the share of test slices, in 0..1, whose group (a patient, or a slice and its copies) is in training."""
    seen = set(train_groups)
    return sum(group in seen for group in test_groups) / len(test_groups)


def _official(
    found: Sequence[FoundSlice], rows: dict[str, SplitRow], arguments: ProtocolArguments, seed: int
) -> Assignment:
    def group_of(f: FoundSlice) -> str:
        return rows[f.relative].group if f.relative in rows else f.relative

    parts = {f.relative: f.split for f in found}
    if "validation" not in parts.values():  # else a folder of its own validates, and nothing is drawn
        train = [f for f in found if f.split == "train"]
        from .draws import group_draw, random_draw  # scikit-learn and datasets: seconds that other protocols save

        draw = random_draw if arguments.random_validation else group_draw
        held_out = draw(train, [group_of(f) for f in train], arguments.validation_fraction, seed)
        parts |= {f.relative: "validation" for f, chosen in zip(train, held_out, strict=True) if chosen}
    return Assignment([AssignedSlice(f.relative, f.label, group_of(f), parts[f.relative]) for f in found])


def _patient_disjoint(
    known: Sequence[FoundSlice], rows: dict[str, SplitRow], arguments: ProtocolArguments
) -> Assignment:
    if not known:
        raise UserError(
            f"--protocol {PATIENT_DISJOINT}: no file here is in the versioned splits, which are for the published "
            "Kaggle set; for other data use --protocol official"
        )
    slices = []
    for f in known:
        row = rows[f.relative]
        slices.append(_by_fold(f.relative, row.label, row.group, row.fold, arguments.fold))
    return Assignment(slices, corrected=sorted(f.relative for f in known if rows[f.relative].label != f.label))


def _by_fold(relative: str, label: str, group: str, fold: int, test_fold: int) -> AssignedSlice:
    validation_fold = test_fold % len(FOLDS) + 1
    part = "test" if fold == test_fold else "validation" if fold == validation_fold else "train"
    return AssignedSlice(relative, label, group, part)
