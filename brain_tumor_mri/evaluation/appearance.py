"""Fits and measures the heads of appearance.json: each collection is judged by a fit that saw nothing of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from ..inference.appearance import Head

STRENGTH = 0.03
"""Inverse of the L2 penalty on weights of standardised features; weak fits carry over to other collections."""
MAIN_AXES = 500
"""Principal axes of features of more values, to which a fit keeps."""
PRECISION = 0.98
"""Share of right answers among those told, on collections left out, that each class's limit asks for; on one that the
limit saw nothing of, it is less."""
NEVER = 2.0
"""Limit of a class that is never told."""


def fit_head(features: np.ndarray, labels: Sequence[str], collections: Sequence[str]) -> tuple[Head, dict[str, Any]]:
    """Fit a head, set its limits on collections left out, and return what was measured there.

    Args:
        features: (N, D).
        labels: (N,) class of each.
        collections: (N,) collection of each.
    """
    names, groups = np.asarray(labels), np.asarray(collections)
    classes = tuple(np.unique(names).tolist())
    left_out = np.full((len(names), len(classes)), np.nan)
    for collection in np.unique(groups):
        own = groups == collection
        if len(set(names[~own])) == len(classes):  # without it every class is still known
            fit = _fit(features[~own], names[~own], groups[~own], classes)
            left_out[own] = fit.probabilities(features[own])
    judged = np.isfinite(left_out[:, 0])
    limits = _limits(left_out[judged], names[judged], groups[judged], classes)
    whole = _fit(features, names, groups, classes)
    # rounded as the file keeps it
    head = Head.from_dict(Head(classes, whole.weights, whole.biases, limits).to_dict())
    return head, _figures(left_out[judged], names[judged], groups[judged], classes)


def _fit(features: np.ndarray, names: np.ndarray, groups: np.ndarray, classes: tuple[str, ...]) -> Head:
    mean, deviation = features.mean(0), features.std(0) + 1e-6
    weights = _alike(names, groups)
    scaled = (features - mean) / deviation
    axes = np.eye(scaled.shape[1])
    if len(axes) > MAIN_AXES:  # as of a ResNet50, on which a fit takes minutes
        values, of_slices = np.linalg.eigh(scaled @ scaled.T)
        kept = np.flatnonzero(values > 1e-6 * values[-1])[-MAIN_AXES:]
        axes = scaled.T @ of_slices[:, kept] / np.sqrt(values[kept])
    fitted = LogisticRegression(C=STRENGTH, tol=1e-3, max_iter=200).fit(scaled @ axes, names, weights)
    slopes, biases = fitted.coef_ @ axes.T / deviation, fitted.intercept_
    if len(classes) == 2:  # scikit-learn keeps one row, of the second class
        slopes, biases = np.concatenate([0 * slopes, slopes]), np.array([0.0, biases[0]])
    return Head(classes, slopes, biases - slopes @ mean, np.zeros(len(classes)))


def _alike(names: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Classes weigh alike; within one, a collection as the root of its size. The mean is 1."""
    strata = Counter(zip(names.tolist(), groups.tolist(), strict=True))
    weights = np.array([strata[key] ** -0.5 for key in zip(names.tolist(), groups.tolist(), strict=True)])
    for name in np.unique(names):
        weights[names == name] /= weights[names == name].sum()
    return weights * len(weights) / weights.sum()


def _limits(probabilities: np.ndarray, names: np.ndarray, groups: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    """The least limit of each class at which ``PRECISION`` of what is told is right; weights as in the fit."""
    weights, best = _alike(names, groups), probabilities.argmax(1)
    limits = np.full(len(classes), NEVER)
    for k, name in enumerate(classes):
        ours = best == k
        order = np.argsort(-probabilities[ours, k])
        sure = probabilities[ours, k][order]
        weight = weights[ours][order]
        right = np.cumsum(weight * (names[ours][order] == name)) / np.cumsum(weight)
        enough = np.flatnonzero((right >= PRECISION) & (np.arange(len(right)) >= 19))
        if len(enough):
            limits[k] = max(float(sure[enough[-1]]), 0.5)
    return limits


def _figures(
    probabilities: np.ndarray, names: np.ndarray, groups: np.ndarray, classes: tuple[str, ...]
) -> dict[str, Any]:
    """Right answers of each collection left out: when made to say something, and when it may say nothing.

    Neither the fit nor the limits saw anything of the collection.
    """
    best, told = np.array(classes)[probabilities.argmax(1)], np.zeros(len(names), bool)
    for collection in np.unique(groups):
        own = groups == collection
        limits = _limits(probabilities[~own], names[~own], groups[~own], classes)
        told[own] = probabilities[own].max(1) >= limits[probabilities[own].argmax(1)]
    rows = {}
    for collection in np.unique(groups).tolist():
        for name in np.unique(names[groups == collection]).tolist():
            ours = (groups == collection) & (names == name)
            rows[f"{collection} {name}"] = {
                "n": int(ours.sum()),
                "right": float((best[ours] == name).mean()),
                "told": float(told[ours].mean()),
                "right_when_told": float((best[ours & told] == name).mean()) if (ours & told).any() else None,
            }
    shares = [(row["told"], row["told"] * (row["right_when_told"] or 0)) for row in rows.values()]
    all_told, all_right = map(float, np.mean(shares, axis=0))
    return {
        "n": len(names),
        "right": float((best == names).mean()),
        "right_by_collection": float(np.mean([row["right"] for row in rows.values()])),
        "told_by_collection": all_told,
        "right_when_told": float((best[told] == names[told]).mean()) if told.any() else None,
        "right_when_told_by_collection": all_right / all_told if all_told else None,
        "collections": rows,
    }
