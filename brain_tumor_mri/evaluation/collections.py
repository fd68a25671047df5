"""What the protocol ``leave-collection-out`` reports: figures of slices from collections that trained nothing.

``collection_figures(probabilities, slices)`` takes the answers to a part of ``data.collections.load_collections``.
Pooled figures let every collection weigh alike, so that the largest does not decide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.collections import CLEAR
from ..labels import ANY_TUMOR, LABEL2ID, LABELS, NO_TUMOR
from .metrics import (
    alike_weights,
    bootstrap,
    describe_interval,
    figure,
    weighted_auroc,
    weighted_calibration_error,
    weighted_share,
    weighted_threshold,
)

if TYPE_CHECKING:
    import datasets

SPECIFICITY = 0.9
BREAKDOWNS = ("family", "collection", "sequence", "plane", "skull_stripped")


def collection_figures(
    probabilities: np.ndarray,
    slices: datasets.Dataset,
    *,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute the figures of all slices, and of those of each family, collection, sequence, plane and kind of skull.

    Args:
        probabilities: (N, 4) float in [0, 1], in label order.
        slices: N slices, with the columns of ``load_collections``.
        n_resamples: bootstrap resamples over groups (patients, near-copies).
        confidence: of the percentile intervals.
        seed: of the bootstrap.

    Returns:
        ``n``, ``interval`` (how the intervals were drawn), ``pooled``, and for each of ``BREAKDOWNS`` the figures by
        value. A set of figures has ``n``, and, each None where no slice tells it: ``tumours_found`` (share of tumour
        slices whose most probable class is one), ``type_right`` (share of slices of known tumour type that are given
        it), ``healthy_called_tumour``, ``clear_called_tumour`` (of slices without tumour of people who have one),
        ``found_at_90_specificity`` (at the lowest threshold on P(tumour) that leaves 90 % of healthy slices below it)
        and ``auroc`` (of P(tumour), tumour slices against healthy ones), ``ece`` (of slices of known class). A figure
        is ``{"value", "low", "high"}`` in [0, 1].
    """
    columns = {name: np.asarray(slices[name][:]) for name in ("true_label", "label", "group", *BREAKDOWNS)}
    draws = bootstrap(len(probabilities), columns["group"], n_resamples, seed)

    def figures(chosen: np.ndarray) -> dict[str, Any]:
        own = {name: values[chosen] for name, values in columns.items()}
        return _figures(probabilities[chosen], own, draws[:, chosen], confidence)

    return {
        "n": len(probabilities),
        "interval": describe_interval(n_resamples, confidence),
        "pooled": figures(np.full(len(probabilities), True)),
        **{
            f"by_{name}": {
                value or "unknown": figures(columns[name] == value) for value in np.unique(columns[name]).tolist()
            }
            for name in BREAKDOWNS
        },
    }


def _figures(
    probabilities: np.ndarray, columns: dict[str, np.ndarray], draws: np.ndarray, confidence: float
) -> dict[str, Any]:
    labels, classes = columns["true_label"], columns["label"]
    called = probabilities.argmax(1)
    score = 1 - probabilities[:, LABEL2ID[NO_TUMOR]]
    tumour = (classes == ANY_TUMOR) | ((classes != LABEL2ID[NO_TUMOR]) & (classes >= 0))
    healthy, clear = labels == NO_TUMOR, labels == CLEAR
    known = np.isin(labels, LABELS)

    def known_by(samples: Callable[[], np.ndarray], *needed: np.ndarray) -> dict[str, float] | None:
        return figure(samples(), confidence) if all(mask.any() for mask in needed) else None

    def weights(among: np.ndarray) -> np.ndarray:
        """Draws of the slices ``among``, every collection weighing alike."""
        return alike_weights(draws * among, columns["collection"])

    def share(hits: np.ndarray, among: np.ndarray) -> dict[str, float] | None:
        return known_by(lambda: weighted_share(hits, weights(among)), among)

    def found() -> np.ndarray:
        thresholds = weighted_threshold(score[healthy], weights(healthy)[:, healthy], SPECIFICITY)
        return weighted_share(score[tumour] > thresholds[:, None], weights(tumour)[:, tumour])

    def auroc() -> np.ndarray:
        either = tumour | healthy
        return weighted_auroc(score[either], tumour[either], (weights(tumour) + weights(healthy))[:, either])

    def ece() -> np.ndarray:
        return weighted_calibration_error(
            probabilities[known].max(1), (called == classes)[known], weights(known)[:, known]
        )

    return {
        "n": len(labels),
        "tumours_found": share(called != LABEL2ID[NO_TUMOR], tumour),
        "type_right": share(called == classes, known & tumour),
        "healthy_called_tumour": share(called != LABEL2ID[NO_TUMOR], healthy),
        "clear_called_tumour": share(called != LABEL2ID[NO_TUMOR], clear),
        "found_at_90_specificity": known_by(found, tumour, healthy),
        "auroc": known_by(auroc, tumour, healthy),
        "ece": known_by(ece, known),
    }
