"""The check that a slice is like those that the model knows: how it is fitted.

``fit_in_distribution`` gives that of trust.json; ``evaluation/trust.py`` measures what it flags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .brain_mri import alike, fit_logistic, weighted_quantile
from .trust_file import InDistribution, KnownCollections

OWN_KEPT = 0.95
"""Share of a collection's slices that trained nothing which its own regression takes for its own."""
STRENGTH = 0.1
"""Inverse of the L2 penalty; weaker fits take more slices of scanners never seen for known ones."""
COLLECTIONS = 7
"""Collections from which on they are told from each other. What parts two or three says nothing of a scanner unlike
all of them; with seven and more it was measured on families left out."""
FEWEST = 30
"""Training slices of a collection that has a regression; with fewer it is only what the others are told from."""
KEPT = 0.99
"""Share of slices that trained nothing, of collections that did, that count as familiar; collections weigh alike."""
COMPONENTS = 32
"""Directions with a variance of their own; 8 to 64 did about as well in one unrecorded trial."""


def fit_in_distribution(
    known: np.ndarray,
    known_kinds: Sequence[str],
    validation: np.ndarray,
    validation_kinds: Sequence[str],
    stage: str,
) -> InDistribution | KnownCollections:
    """Fit what tells each collection's slices from all others; where few trained, how far a slice is from all of them.

    Args:
        known: (M, D) of training slices; M at least 2.
        known_kinds: (M,) collection of each; collections weigh alike.
        validation: (N, D) of slices that trained nothing; they place the limits.
        validation_kinds: (N,) collection of each.
        stage: that the features are of.
    """
    names, counts = np.unique(np.asarray(known_kinds), return_counts=True)
    held_kinds = np.asarray(validation_kinds)
    told = [str(name) for name in names[(counts >= FEWEST) & np.isin(names, held_kinds)]]
    if len(names) < COLLECTIONS or not told:
        return _fit_distance(known, known_kinds, validation, validation_kinds, stage)
    features, kinds = np.concatenate([known, validation]), np.array([*known_kinds, *validation_kinds])
    weights = [
        fit_logistic(features[~own], kinds[~own], features[own], kinds[own], STRENGTH)[0]
        for own in (kinds == name for name in told)
    ]
    # rounded as the file keeps them, so that the limits are of what will be read
    unlimited = KnownCollections(stage, told, np.array(weights), np.zeros(len(told)))
    check = KnownCollections.from_dict(unlimited.to_dict())
    values = validation.astype(np.float64) @ check.weights.T
    held = [values[held_kinds == name, k] for k, name in enumerate(told)]
    limits = [weighted_quantile(-own, np.ones(len(own)), OWN_KEPT) for own in held]
    return replace(check, biases=np.array(limits) + 1e-9)


def _fit_distance(
    known: np.ndarray,
    known_kinds: Sequence[str],
    validation: np.ndarray,
    validation_kinds: Sequence[str],
    stage: str,
) -> InDistribution:
    """Fit probabilistic PCA to training features, and the threshold so that ``KEPT`` of other slices are familiar."""
    weights = alike(known_kinds)
    rows = known.astype(np.float64)
    mean = weights @ rows
    _, singular, axes = np.linalg.svd((rows - mean) * np.sqrt(weights)[:, None], full_matrices=False)
    variances = singular**2
    count = min(COMPONENTS, len(variances) - 1, int((variances > 1e-12 * variances[0]).sum()))
    noise = max(variances[count:].sum() / max(rows.shape[1] - count, 1), 1e-9 * variances[0])
    # rounded as the file keeps them, so that the threshold is of what will be read
    rounded = InDistribution(stage, mean, axes[:count], variances[:count], float(noise), 1.0).to_dict()
    check = InDistribution.from_dict(rounded)
    limit = weighted_quantile(check.squared_distance(validation), alike(validation_kinds), KEPT)
    return replace(check, threshold=float(f"{limit * 1.000001:.7g}"))
