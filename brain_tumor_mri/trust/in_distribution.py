"""The check that a slice is like those that the model knows: how it is fitted.

``fit_in_distribution`` gives the ``InDistribution`` of trust.json; ``evaluation/trust.py`` measures what it flags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .brain_mri import alike, weighted_quantile
from .trust_file import InDistribution

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
) -> InDistribution:
    """Fit probabilistic PCA to training features, and the threshold so that ``KEPT`` of other slices are familiar.

    Args:
        known: (M, D) of training slices; M at least 2.
        known_kinds: (M,) collection of each; collections weigh alike.
        validation: (N, D) of slices that trained nothing.
        validation_kinds: (N,) collection of each.
        stage: that the features are of.
    """
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
