"""The check that a picture is a brain MRI slice at all: how it is fitted.

``fit_in_distribution`` gives the ``InDistribution`` of trust.json; ``evaluation/trust.py`` measures what it refuses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .trust_file import InDistribution

if TYPE_CHECKING:
    from .calibration import Outputs


KEPT = 0.99
"""Share of slices, each judged by a fit that did not see it, that the check lets through."""
FOLDS = 5
"""In which a second collection's slices are left out in turn to place its limit."""
COMPONENTS = 32
"""Directions with a variance of their own; chosen in the trial of ``stage_of``, where 8 to 64 did about as well."""


@dataclass(frozen=True)
class OtherCollection:
    """Slices of a second collection, without those of its test part.

    Attributes:
        train: those that trained the model; None where none did.
        validation: those that trained nothing.
        repeats: how often an epoch drew each of ``train``; the check weighs them alike.
    """

    train: Outputs | None
    validation: Outputs
    repeats: int = 1


def fit_in_distribution(
    known: np.ndarray, validation: np.ndarray, stage: str, *, other: OtherCollection | None = None
) -> InDistribution:
    """Fit probabilistic PCA to training features, and the threshold so that ``KEPT`` of the slices not in it pass.

    Args:
        known: (M, D) of training slices; M at least 2.
        validation: (N, D) of validation slices.
        stage: that the features are of.
        other: a second collection. Its validation part alone is too small to say much about its last percents, so its
            training slices count too, each scored by a fit that saw none of its group.
    """
    check = _fit_ppca(known, stage, other.train.features if other and other.train else None, other)
    distances = [check.squared_distance(validation)]
    if other:
        distances.append(_left_out_distances(known, stage, other))
    limit = np.quantile(np.concatenate(distances), KEPT, method="higher")
    return replace(check, threshold=float(f"{limit * 1.000001:.7g}"))


def _fit_ppca(
    known: np.ndarray, stage: str, trained: np.ndarray | None, other: OtherCollection | None
) -> InDistribution:
    """Fit to ``known`` (M, D) and to ``trained`` (T, D), each of these ``other.repeats`` times; the threshold is 1."""
    rows = [known] + ([trained] * other.repeats if other is not None and trained is not None else [])
    together = np.concatenate(rows).astype(np.float64)
    mean = together.mean(axis=0)
    _, singular, axes = np.linalg.svd(together - mean, full_matrices=False)
    variances = singular**2 / len(together)
    count = min(COMPONENTS, len(variances) - 1, int((variances > 1e-12 * variances[0]).sum()))
    noise = max(variances[count:].sum() / max(together.shape[1] - count, 1), 1e-9 * variances[0])
    # rounded as the file keeps them, so that the threshold is of what will be read
    rounded = InDistribution(stage, mean, axes[:count], variances[:count], float(noise), 1.0).to_dict()
    return InDistribution.from_dict(rounded)


def _left_out_distances(known: np.ndarray, stage: str, other: OtherCollection) -> np.ndarray:
    """Return the squared distance of each of the collection's slices from a fit without its fold of groups."""
    if other.train is None:
        return _fit_ppca(known, stage, None, None).squared_distance(other.validation.features)
    features = np.concatenate([other.train.features, other.validation.features])
    trains = np.arange(len(features)) < len(other.train)
    groups = np.array([*other.train.groups, *other.validation.groups])
    fold = np.unique(groups, return_inverse=True)[1] % FOLDS
    distances = np.empty(len(features))
    for left_out in (fold == k for k in np.unique(fold)):
        check = _fit_ppca(known, stage, features[trains & ~left_out], other)
        distances[left_out] = check.squared_distance(features[left_out])
    return distances
