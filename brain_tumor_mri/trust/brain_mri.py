"""Fits the check that a picture is a brain MRI slice at all: brain MRI of many collections against everything else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .trust_file import BrainMriCheck

KEPT = 0.98
"""Share of brain MRI, each slice judged by a fit without its kind, that the check lets through."""
STRENGTH = 0.01
"""Inverse of the L2 penalty on weights of standardised features; weak fits carry over to kinds never seen."""


def fit_brain_mri(
    brain: np.ndarray, brain_kinds: Sequence[str], foreign: np.ndarray, foreign_kinds: Sequence[str]
) -> BrainMriCheck:
    """Fit a logistic regression in which every kind of a side weighs alike, and both sides do.

    Args:
        brain: (N, D) features of brain MRI slices.
        brain_kinds: (N,) collection of each.
        foreign: (M, D) features of other pictures.
        foreign_kinds: (M,) what each is.

    Returns:
        The check, its limit placed so that ``KEPT`` of the brain MRI passes, each slice judged by a fit that saw none
        of its collection (where there are two or more), collections weighing alike.
    """
    kinds = np.asarray(brain_kinds)
    weights, bias = _logistic(brain, kinds, foreign, foreign_kinds)
    scores = brain @ weights + bias
    collections = np.unique(kinds)
    for own in (kinds == kind for kind in collections if len(collections) > 1):
        own_weights, own_bias = _logistic(brain[~own], kinds[~own], foreign, foreign_kinds)
        scores[own] = brain[own] @ own_weights + own_bias
    limit = weighted_quantile(scores, alike(kinds), KEPT)
    return BrainMriCheck.from_dict(BrainMriCheck(weights, bias - limit).to_dict())


def _logistic(
    brain: np.ndarray, brain_kinds: Sequence[str], foreign: np.ndarray, foreign_kinds: Sequence[str]
) -> tuple[np.ndarray, float]:
    """Weights (D,) and bias on the features as they are; positive is foreign."""
    from sklearn.linear_model import LogisticRegression

    features = np.concatenate([brain, foreign]).astype(np.float64)
    mean, deviation = features.mean(0), features.std(0) + 1e-9
    weights = np.concatenate([alike(brain_kinds), alike(foreign_kinds)]) * len(features) / 2
    labels = np.repeat([0, 1], [len(brain), len(foreign)])
    regression = LogisticRegression(C=STRENGTH, solver="newton-cholesky")
    fitted = regression.fit((features - mean) / deviation, labels, weights)
    slopes = fitted.coef_[0] / deviation
    return slopes, float(fitted.intercept_[0] - slopes @ mean)


def alike(kinds: Sequence[str]) -> np.ndarray:
    """Return a weight for each of the (N,) ``kinds``; they sum to 1, and every kind weighs alike."""
    _, place, sizes = np.unique(np.asarray(kinds), return_inverse=True, return_counts=True)
    return 1 / (sizes[place] * len(sizes))


def weighted_quantile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    """Return the lowest of the ``values`` (N,) with at least ``share`` of the weight at or below it."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) >= share * weights.sum() - 1e-9
    return float(values[order][np.argmax(reached)])
