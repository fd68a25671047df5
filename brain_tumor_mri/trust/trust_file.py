"""What an answer is worth: calibrated probabilities, prediction sets, and whether the picture is a brain MRI slice.

``Trust`` is what ``trust.json`` beside the weights holds; ``calibration.py`` fits it on validation slices. The
classifier applies it to each answer. NumPy only, so that every backend can use it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..labels import LABELS
from .decision import COVERAGES, is_unfamiliar

FILE_NAME = "trust.json"
SCHEMA = 5
_WHO = ("familiar", "unfamiliar")


def softmax(logits: np.ndarray, temperature: float | np.ndarray = 1.0) -> np.ndarray:
    """Return probabilities (N, 4) of logits (N, V, 4) over a temperature: the mean over the V views of one slice."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=-1, keepdims=True)
    exponents = np.exp(scaled)
    return (exponents / exponents.sum(axis=-1, keepdims=True)).mean(axis=1)


@dataclass(frozen=True)
class Calibration:
    """Turns logits into probabilities that mean what they say, and these into prediction sets.

    Attributes:
        temperatures: (2,), of familiar and of unfamiliar slices; logits are divided by them (Guo et al. 2017, On
            Calibration of Modern Neural Networks).
        thresholds: coverage in percent -> (2, 4): of familiar and of unfamiliar slices, per class in label order. A
            class is in the set when 1 - p is at most its threshold (class-conditional and Mondrian split conformal
            prediction; Vovk 2012, Sadinle et al. 2019).
        labels: the classes, in output order.
    """

    temperatures: np.ndarray
    thresholds: Mapping[int, np.ndarray]
    labels: Sequence[str] = LABELS

    def probabilities(self, logits: np.ndarray, unlikeness: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities (N, 4) of logits (N, V, 4) of slices of an ``unlikeness`` (N,)."""
        return softmax(logits, self.temperatures[is_unfamiliar(unlikeness).astype(int), None, None])

    def prediction_sets(self, probabilities: np.ndarray, unlikeness: np.ndarray, coverage: int) -> np.ndarray:
        """Return which classes are in the sets, (N, 4) bool; the most probable class always is.

        Args:
            probabilities: (N, 4), calibrated.
            unlikeness: (N,) of ``in_distribution``.
            coverage: one of ``decisions.COVERAGES``.
        """
        inside = 1 - probabilities <= self.thresholds[coverage][is_unfamiliar(unlikeness).astype(int)]
        inside[np.arange(len(inside)), probabilities.argmax(1)] = True
        return inside

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as in trust.json."""
        named = {
            str(c): {who: dict(zip(self.labels, row, strict=True)) for who, row in zip(_WHO, q.tolist(), strict=True)}
            for c, q in self.thresholds.items()
        }
        return {"temperature": dict(zip(_WHO, self.temperatures.tolist(), strict=True)), "thresholds": named}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any], labels: Sequence[str] = LABELS) -> Calibration:
        """Read what ``to_dict`` gave of these classes.

        Raises:
            KeyError, TypeError, ValueError: something is missing or of the wrong kind.
        """
        temperatures = np.array([_positive(entry["temperature"][who]) for who in _WHO])
        named = {c: entry["thresholds"][str(c)] for c in COVERAGES}
        thresholds = {c: [[rows[who][name] for name in labels] for who in _WHO] for c, rows in named.items()}
        return cls(temperatures, {c: _floats(rows, (2, len(labels))) for c, rows in thresholds.items()}, labels)


@dataclass(frozen=True)
class InDistribution:
    """How unlike the training slices a picture is, from the means of one stage's feature maps.

    The score is the Mahalanobis distance (squared) under probabilistic PCA: a Gaussian with a few directions of their
    own variance and one noise variance for all others (Tipping & Bishop 1999). It is given as a multiple of the
    threshold.

    Attributes:
        stage: names of the network's modules whose outputs are averaged over their pixels, such as ``layer3+layer4``.
        mean: (D,) of the training slices' features.
        components: (Q, D), orthonormal rows.
        variances: (Q,) along the components.
        noise: variance along every other direction.
        threshold: of the squared distance; 1 in the scores that are given.
    """

    stage: str
    mean: np.ndarray
    components: np.ndarray
    variances: np.ndarray
    noise: float
    threshold: float

    @property
    def width(self) -> int:
        """Features that it reads."""
        return len(self.mean)

    def unlikeness(self, features: np.ndarray) -> np.ndarray:
        """Return the scores (N,) of features (N, D): above 1 is unlike the slices that the model knows."""
        return self.squared_distance(features) / self.threshold

    def squared_distance(self, features: np.ndarray) -> np.ndarray:
        """Return the squared Mahalanobis distance (N,) of features (N, D) from the training slices."""
        centred = features.astype(np.float64) - self.mean
        along = centred @ self.components.T
        rest = np.maximum((centred**2).sum(1) - (along**2).sum(1), 0)
        return (along**2 / self.variances).sum(1) + rest / self.noise

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as in trust.json, with six digits a number."""
        return {
            "score": "squared Mahalanobis distance of the stage's means under probabilistic PCA, over the threshold",
            "stage": self.stage,
            "threshold": self.threshold,
            "noise": self.noise,
            "variances": _rounded(self.variances),
            "mean": _rounded(self.mean),
            "components": [_rounded(row) for row in self.components],
        }

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> InDistribution:
        """Read what ``to_dict`` gave.

        Raises:
            KeyError, TypeError, ValueError: something is missing or of the wrong kind.
        """
        mean, variances = _floats(entry["mean"], (-1,)), _floats(entry["variances"], (-1,))
        components = _floats(entry["components"], (len(variances), len(mean)))
        if not (variances > 0).all():
            raise ValueError("a variance is not above 0")
        noise, threshold = _positive(entry["noise"]), _positive(entry["threshold"])
        return cls(str(entry["stage"]), mean, components, variances, noise, threshold)


@dataclass(frozen=True)
class KnownCollections:
    """How unlike the slices of every collection that trained a picture is: a logistic regression for each collection.

    A distance to all of them at once tells little of a new scanner; what tells one known scanner from the others does.

    Attributes:
        stage: as of ``InDistribution``.
        names: (K,) of the collections.
        weights: (K, D) on the stage's means; each tells its collection from all others.
        biases: (K,); they place the limit of each at 0.
    """

    stage: str
    names: Sequence[str]
    weights: np.ndarray
    biases: np.ndarray

    @property
    def width(self) -> int:
        """Features that it reads."""
        return self.weights.shape[1]

    def unlikeness(self, features: np.ndarray) -> np.ndarray:
        """Return the odds (N,) against the nearest collection, over its limit, of features (N, D): above 1 unlike."""
        values = features.astype(np.float64) @ self.weights.T + self.biases
        return np.exp(np.clip(-values.max(1), -7, 7))  # 0.001 to 1100 is enough to read

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as in trust.json, with six digits a number."""
        rows = [_rounded(row) for row in self.weights]
        return {"stage": self.stage, "names": list(self.names), "weights": rows, "biases": self.biases.tolist()}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> KnownCollections:
        """Read what ``to_dict`` gave.

        Raises:
            KeyError, TypeError, ValueError: something is missing or of the wrong kind.
        """
        names = [str(name) for name in entry["names"]]
        return cls(
            str(entry["stage"]),
            names,
            _floats(entry["weights"], (len(names), -1)),
            _floats(entry["biases"], (len(names),)),
        )


@dataclass(frozen=True)
class BrainMriCheck:
    """Whether a picture is a brain MRI slice at all: logistic regressions on the features of ``InDistribution``.

    Each tells brain MRI from another group of pictures, such as head CT; one that calls a picture foreign is enough.

    Attributes:
        weights: (K, D), a row a group.
        biases: (K,); they place the limit, ``decision.FOREIGN_LIMIT``.
    """

    weights: np.ndarray
    biases: np.ndarray

    def foreign(self, features: np.ndarray) -> np.ndarray:
        """Return how foreign the pictures of features (N, D) are, (N,) in 0..1: above 0.5 no brain MRI."""
        values = features.astype(np.float64) @ self.weights.T + self.biases
        return 1 / (1 + np.exp(-np.clip(values.max(1), -500, 500)))

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as in trust.json, with six digits a number."""
        return {"weights": [_rounded(row) for row in self.weights], "biases": self.biases.tolist()}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> BrainMriCheck:
        """Read what ``to_dict`` gave.

        Raises:
            KeyError, TypeError, ValueError: something is missing or of the wrong kind.
        """
        biases = _floats(entry["biases"], (-1,))
        return cls(_floats(entry["weights"], (len(biases), -1)), biases)


@dataclass(frozen=True)
class Trust:
    """The content of ``trust.json``.

    Attributes:
        weights_sha256: of the weights that it was fitted to.
        single: calibration of the plain answer.
        mirrored: calibration of the mean of the slice's and its mirror image's answers.
        in_distribution: the check that a slice is like those that the model knows.
        brain_mri: the check that a picture is a brain MRI slice at all; None where no other pictures were at hand.
        record: what it was fitted on and what was measured with it, as in the file.
    """

    weights_sha256: str
    single: Calibration
    mirrored: Calibration
    in_distribution: InDistribution | KnownCollections
    brain_mri: BrainMriCheck | None
    record: Mapping[str, Any]

    def calibration(self, mirror: bool) -> Calibration:
        """The calibration of the plain, or the mirrored answer."""
        return self.mirrored if mirror else self.single

    def foreign(self, features: np.ndarray) -> np.ndarray:
        """Return ``BrainMriCheck.foreign`` of features (N, D), (N,); 0 where there is no check."""
        return self.brain_mri.foreign(features) if self.brain_mri else np.zeros(len(features))

    def fingerprint(self) -> str:
        """Twelve hex digits that change with anything that decides an answer."""
        decisive = {key: value for key, value in self.to_dict().items() if key not in self.record}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """The content of the file."""
        return {
            "schema": SCHEMA,
            "weights_sha256": self.weights_sha256,
            "calibration": {"single": self.single.to_dict(), "mirrored": self.mirrored.to_dict()},
            "in_distribution": self.in_distribution.to_dict(),
            "brain_mri": self.brain_mri.to_dict() if self.brain_mri else None,
            **self.record,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], labels: Sequence[str] = LABELS) -> Trust:
        """Read what ``to_dict`` gave of a model with these classes.

        Raises:
            KeyError, TypeError, ValueError: something is missing or of the wrong kind.
        """
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}, not {SCHEMA}")
        known = {"schema", "weights_sha256", "calibration", "in_distribution", "brain_mri"}
        entry = content["in_distribution"]
        in_distribution = (KnownCollections if "names" in entry else InDistribution).from_dict(entry)
        brain_mri = BrainMriCheck.from_dict(content["brain_mri"]) if content["brain_mri"] else None
        if brain_mri and brain_mri.weights.shape[1] != in_distribution.width:
            raise ValueError("its two checks read different features")
        return cls(
            str(content["weights_sha256"]),
            Calibration.from_dict(content["calibration"]["single"], labels),
            Calibration.from_dict(content["calibration"]["mirrored"], labels),
            in_distribution,
            brain_mri,
            {key: value for key, value in content.items() if key not in known},
        )


def load_trust(folder: Path, sha256: Callable[[], str], labels: Sequence[str] = LABELS) -> Trust | None:
    """Read the ``trust.json`` of a model folder; None when it has none.

    Args:
        folder: holds the weights.
        sha256: gives the fingerprint of the weights; asked only where there is a trust.json, as it reads them all.
        labels: the model's classes, in output order.
    """
    file = folder / FILE_NAME
    content = read_trust_file(file)
    if content is None:
        return None
    try:
        trust = Trust.from_dict(content, labels)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{file} is damaged ({reason}); write it anew with `brain-tumor-mri calibrate`") from error
    if trust.weights_sha256 != sha256():
        raise UserError(
            f"{file} belongs to other weights; write it anew with `brain-tumor-mri calibrate`, or remove it"
        )
    return trust


def read_trust_file(file: Path) -> dict[str, Any] | None:
    """The object in a trust.json; None when there is no such file."""
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not a JSON file; write it anew with `brain-tumor-mri calibrate`") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no JSON object; write it anew with `brain-tumor-mri calibrate`")
    return content


def _positive(value: Any) -> float:
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{value} is not above 0")
    return number


def _floats(values: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != len(shape) or any(want not in (-1, has) for want, has in zip(shape, array.shape, strict=True)):
        raise ValueError(f"an array of shape {array.shape}, not {shape}")
    if not np.isfinite(array).all():
        raise ValueError("a number that is not finite")
    return array


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values]
