"""Fits ``trust.json`` on the slices that validated a model.

``fit_trust`` gives a ``Trust``; ``evaluation/trust.py`` measures one on slices not seen yet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from ..labels import LABELS
from .decision import COVERAGES
from .in_distribution import OtherCollection, fit_in_distribution
from .trust_file import Calibration, Trust

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Outputs:
    """What the network gave for the slices of one part.

    Attributes:
        logits: (N, 2, 4): of the slice and of its mirror image.
        features: (N, D) of ``StageFeatures``.
        faults: (N,) of ``trust.picture_fault``.
        labels: (N,) int; ``ANY_TUMOR`` where the type is not known.
        groups: (N,) patients, or groups of copies.
        names: (N,) of the images.
    """

    logits: np.ndarray
    features: np.ndarray
    faults: Sequence[str | None]
    labels: np.ndarray
    groups: Sequence[str]
    names: Sequence[str] = field(default=())

    def __len__(self) -> int:
        return len(self.labels)

    def views(self, mirror: bool) -> np.ndarray:
        """Logits of the views that an answer averages: (N, 1, 4), or (N, 2, 4) with ``mirror``."""
        return self.logits if mirror else self.logits[:, :1]


def fit_trust(
    weights_sha256: str,
    stage: str,
    *,
    validation: Outputs,
    known: np.ndarray,
    other: OtherCollection | None = None,
) -> Trust:
    """Fit calibration, prediction sets and in-distribution check.

    Args:
        weights_sha256: of the weights that gave the outputs.
        stage: of ``in_distribution.stage_of``.
        validation: of slices with known classes, that trained nothing.
        known: (M, D) features of training slices.
        other: slices of another collection, whose tumour types are not known; the check must let them through as well.

    Raises:
        UserError: a class has no validation slice.
    """
    counts = np.bincount(validation.labels, minlength=len(LABELS))
    if not counts.all():
        raise UserError(
            f"the validation part has no {LABELS[int(counts.argmin())]} slice; calibration needs every class"
        )
    single, mirrored = (fit_calibration(validation.views(mirror), validation.labels) for mirror in (False, True))
    return Trust(
        weights_sha256, single, mirrored, fit_in_distribution(known, validation.features, stage, other=other), {}
    )


def fit_calibration(logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """Fit the temperature by maximum likelihood, then the conformal thresholds of the calibrated probabilities.

    Args:
        logits: (N, V, 4), V views a slice.
        labels: (N,) class indices; every class occurs.
    """
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        probabilities = Calibration(math.exp(log_temperature), {}).probabilities(logits)
        return float(-np.log(np.maximum(probabilities[rows, labels], 1e-12)).mean())

    best = minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded")
    temperature = math.exp(best.x)
    probabilities = Calibration(temperature, {}).probabilities(logits)
    thresholds = {
        coverage: np.array(
            [conformal_threshold(1 - probabilities[labels == c, c], coverage / 100) for c in range(len(LABELS))]
        )
        for coverage in COVERAGES
    }
    return Calibration(temperature, thresholds)


def conformal_threshold(scores: np.ndarray, coverage: float) -> float:
    """Return the ceil((n + 1) coverage)-th smallest of n scores; 1, which leaves every class in, when n is too small.

    A new slice exchangeable with the n has a score at most this with a probability of at least ``coverage``
    (Papadopoulos et al. 2002). Slices of one patient are alike, so that here it holds on average over patients only.
    """
    # 1e-9: 0.9 * 20 is 18.000000000000004 and must not count as above 18
    place = math.ceil((len(scores) + 1) * coverage - 1e-9)
    return float(np.sort(scores)[place - 1]) if place <= len(scores) else 1.0
