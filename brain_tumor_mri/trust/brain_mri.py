"""Fits the check that a picture is a brain MRI slice at all: brain MRI of many collections against everything else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression

from .trust_file import BrainMriCheck

KEPT = 0.985
"""Share of brain MRI, each slice judged by a fit without its collection, that each regression lets through."""
STRENGTH = 0.001
"""Inverse of the L2 penalty on weights of standardised features; weak fits carry over to kinds never seen."""


def fit_brain_mri(
    brain: np.ndarray,
    brain_kinds: Sequence[str],
    foreign: np.ndarray,
    foreign_kinds: Sequence[str],
    foreign_groups: Sequence[str],
) -> tuple[BrainMriCheck, np.ndarray, np.ndarray]:
    """Fit a logistic regression for each group of other pictures; every kind of a side weighs alike, and both sides do.

    Args:
        brain: (N, D) features of brain MRI slices.
        brain_kinds: (N,) collection of each.
        foreign: (M, D) features of other pictures.
        foreign_kinds: (M,) what each is.
        foreign_groups: (M,) group of each; one regression for head CT, which is nearest to MRI, and one for all else
            refused more of kinds left out than one for both.

    Returns:
        The check, the limit of each regression placed so that ``KEPT`` of the brain MRI passes it, each slice judged by
        a fit that saw none of its collection (where there are two or more), collections weighing alike. And what it
        says when the slice's own kind is left out of the fit: ``foreign`` in 0..1 of the brain MRI (N,) and, by the
        regression of its own group, of the other pictures (M,).
    """
    kinds, other_kinds, groups = np.asarray(brain_kinds), np.asarray(foreign_kinds), np.asarray(foreign_groups)
    slopes, biases = [], []
    brain_scores, foreign_scores = np.full(len(brain), -np.inf), np.zeros(len(foreign))
    for group in np.unique(groups):
        ours = groups == group
        against, against_kinds = foreign[ours], other_kinds[ours]
        weights, bias = fit_logistic(brain, kinds, against, against_kinds)
        without = np.empty(len(brain))
        for own in _each(kinds):
            fit = (weights, bias) if own.all() else fit_logistic(brain[~own], kinds[~own], against, against_kinds)
            without[own] = brain[own] @ fit[0] + fit[1]
        limit = weighted_quantile(without, alike(kinds), KEPT)
        brain_scores = np.maximum(brain_scores, without - limit)
        own_scores = np.empty(len(against))
        for own in _each(against_kinds):
            fit = (weights, bias) if own.all() else fit_logistic(brain, kinds, against[~own], against_kinds[~own])
            own_scores[own] = against[own] @ fit[0] + fit[1] - limit
        foreign_scores[ours] = own_scores
        slopes.append(weights)
        biases.append(bias - limit)
    # rounded as the file keeps it
    check = BrainMriCheck.from_dict(BrainMriCheck(np.array(slopes), np.array(biases)).to_dict())
    return check, *(1 / (1 + np.exp(-np.clip(scores, -500, 500))) for scores in (brain_scores, foreign_scores))


def _each(kinds: np.ndarray) -> list[np.ndarray]:
    return [kinds == kind for kind in np.unique(kinds)]


def fit_logistic(
    these: np.ndarray,
    these_kinds: Sequence[str],
    those: np.ndarray,
    those_kinds: Sequence[str],
    strength: float = STRENGTH,
) -> tuple[np.ndarray, float]:
    """Weights (D,) and bias on the features as they are; positive is of ``those``. Kinds and both sides weigh alike."""
    features = np.concatenate([these, those]).astype(np.float64)
    mean, deviation = features.mean(0), features.std(0) + 1e-9
    weights = np.concatenate([alike(these_kinds), alike(those_kinds)]) * len(features) / 2
    labels = np.repeat([0, 1], [len(these), len(those)])
    fitted = LogisticRegression(C=strength, tol=1e-3).fit((features - mean) / deviation, labels, weights)
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
