"""What the pixels say of a slice's sequence and skull: ``appearance.json`` beside the weights, read and applied.

``brain-tumor-mri appearance`` writes the file. Each head is a logistic regression on the features that trust.json's
checks read and on a profile of grey values from the head's middle outwards. What no head is sure of is not told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from .beside import read_beside, record_of
from .model_folder import ModelFolder

FILE_NAME = "appearance.json"
SCHEMA = 1
TASKS = ("sequence", "skull_stripped")
_RINGS = (0.0, 0.25, 0.45, 0.6, 0.72, 0.84, 0.95, 1.1)
"""Borders, as shares of the way from the middle of the head's box to its sides."""


@dataclass(frozen=True)
class Head:
    """A multinomial logistic regression that says nothing where it is not sure.

    Attributes:
        classes: K names.
        weights: (K, D).
        biases: (K,).
        limits: (K,) the least probability with which each class is told; over 1 for one that never is.
    """

    classes: tuple[str, ...]
    weights: np.ndarray
    biases: np.ndarray
    limits: np.ndarray

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return (N, K) of features (N, D)."""
        scores = features.astype(np.float64) @ self.weights.T + self.biases
        exponents = np.exp(scores - scores.max(1, keepdims=True))
        return exponents / exponents.sum(1, keepdims=True)

    def told(self, probabilities: np.ndarray) -> tuple[str | None, float]:
        """Return the class of probabilities (K,), None where it is not sure enough, and its probability."""
        best = int(probabilities.argmax())
        sure = probabilities[best] >= self.limits[best]
        return (self.classes[best] if sure else None), float(probabilities[best])

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as in the file, with six digits a number."""
        return {
            "classes": list(self.classes),
            "weights": [[float(f"{value:.6g}") for value in row] for row in self.weights],
            "biases": [float(f"{value:.6g}") for value in self.biases],
            "limits": [float(f"{value:.6g}") for value in self.limits],
        }

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Head:
        """Read what ``to_dict`` gave.

        Raises:
            KeyError, TypeError, ValueError: something is missing or of the wrong kind.
        """
        classes = tuple(str(name) for name in entry["classes"])
        weights, biases, limits = (np.asarray(entry[key], np.float64) for key in ("weights", "biases", "limits"))
        if weights.ndim != 2 or not (len(classes) == len(weights) == len(biases) == len(limits) > 1):
            raise ValueError("a head whose parts do not fit")
        if not all(np.isfinite(array).all() for array in (weights, biases, limits)):
            raise ValueError("a number that is not finite")
        return cls(classes, weights, biases, limits)


@dataclass(frozen=True)
class Appearance:
    """What the pixels of one volume say; None where no head is sure.

    Attributes:
        slices: how many were looked at.
        sequence: ``t1``, ``t1c``, ``t2`` or ``flair``.
        sequence_probability: of the likeliest sequence, in [0, 1].
        skull_stripped: whether the skull was removed.
    """

    slices: int
    sequence: str | None
    sequence_probability: float
    skull_stripped: bool | None


@dataclass(frozen=True)
class AppearanceHeads:
    """The content of ``appearance.json``.

    Attributes:
        weights_sha256: of the weights that it was fitted to.
        heads: a head for each of ``TASKS``.
        record: what it was fitted on and what was measured, as in the file.
    """

    weights_sha256: str
    heads: Mapping[str, Head]
    record: Mapping[str, Any]

    def tell(self, features: np.ndarray, pictures: Sequence[Image.Image]) -> Appearance:
        """Say what slices of one volume look like, by the mean over them.

        Args:
            features: (N, D) of the network.
            pictures: the N slices.
        """
        inputs = np.concatenate([features, np.array([grey_profile(picture) for picture in pictures])], axis=1)
        told = {task: head.told(head.probabilities(inputs).mean(0)) for task, head in self.heads.items()}
        stripped = told["skull_stripped"][0]
        return Appearance(len(pictures), *told["sequence"], None if stripped is None else stripped == "yes")

    def to_dict(self) -> dict[str, Any]:
        """The content of the file."""
        heads = {task: head.to_dict() for task, head in self.heads.items()}
        return {"schema": SCHEMA, "weights_sha256": self.weights_sha256, "heads": heads, **self.record}


def load_appearance(folder: ModelFolder) -> AppearanceHeads | None:
    """Read the ``appearance.json`` of a model folder; None when it has none, or one of other weights."""

    def parse(content: Mapping[str, Any]) -> AppearanceHeads:
        heads = {task: Head.from_dict(content["heads"][task]) for task in TASKS}
        return AppearanceHeads(content["weights_sha256"], heads, record_of(content, "heads"))

    return read_beside(folder, FILE_NAME, SCHEMA, parse, "brain-tumor-mri appearance")


def grey_profile(picture: Image.Image) -> np.ndarray:
    """Return how grey values run from the middle of the head outwards, (40,) float32; turns do not change it.

    Values are multiples of the median within the brain, so neither brightness nor size matters.
    """
    grey = np.asarray(picture.convert("L").resize((64, 64), Image.Resampling.BOX), np.float32)
    head = grey > max(0.12 * float(np.percentile(grey, 99)), 4)
    rows, columns = np.flatnonzero(head.any(1)), np.flatnonzero(head.any(0))
    if min(len(rows), len(columns)) < 4:
        return np.zeros(40, np.float32)
    half = (rows[-1] - rows[0] + 1) / 2, (columns[-1] - columns[0] + 1) / 2
    y, x = np.indices(grey.shape)
    radius = np.hypot((y - (rows[0] + rows[-1]) / 2) / half[0], (x - (columns[0] + columns[-1]) / 2) / half[1])
    median = max(float(np.median(grey[radius < 0.65])), 1.0)
    values = np.clip(grey / median, 0, 4)
    found: list[float] = []
    for inner, outer in pairwise(_RINGS):
        ring = values[(radius >= inner) & (radius < outer)]
        ring = ring if ring.size else np.zeros(1, np.float32)  # of a head much longer than wide
        found += [float(ring.mean()), *np.percentile(ring, (10, 50, 90)).tolist()]
    brain, outside = values[radius < 0.7], values[radius > 1.1]
    found += [float((brain < limit).mean()) for limit in (0.2, 0.4, 0.6, 0.8)]
    found += [float((brain > limit).mean()) for limit in (1.2, 1.5, 1.8, 2.2)]
    found += [float(brain.std()), half[1] / half[0], float(head[radius < 1].mean())]
    return np.array([*found, float(outside.mean()) if outside.size else 0.0], np.float32)
