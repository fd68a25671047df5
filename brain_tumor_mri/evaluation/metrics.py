"""The project's ``evaluate.Metric``: accuracy, per-class figures, AUROC and calibration, with bootstrap intervals.

Works offline (``evaluate.load`` fetches code at run time). A figure is ``{"value", "low", "high"}``; low and high are
the percentile bootstrap interval, drawn over groups (patients) where groups are given, else over images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from ..labels import LABEL2ID, LABELS, NO_TUMOR

CALIBRATION_BINS = 15
TARGET_SPECIFICITY = 0.95
_DESCRIPTION = "Four-class slice classification: accuracy, per-class figures, AUROC, calibration, bootstrap intervals."
_INPUTS = """
Args:
    predictions: probabilities, (N, 4) float in [0, 1], rows summing to 1, in label order.
    references: class indices, (N,) int in 0..3.
    groups: optional (N,) group names (patients); the bootstrap then resamples groups.
    n_resamples: bootstrap resamples; 0 leaves the intervals out.
    confidence: of the intervals.
    seed: of the bootstrap.
"""
Figure = dict[str, float]


class TumorClassificationMetric(evaluate.Metric):
    """``compute(predictions=probabilities, references=labels)`` gives :func:`classification_figures`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions: Any, references: Any, **options: Any) -> dict[str, Any]:
        return classification_figures(np.asarray(predictions), np.asarray(references), **options)


def measured(predictions: np.ndarray, references: np.ndarray, **options: Any) -> dict[str, Any]:
    """Return what the metric computes, without the cache in a home folder, which may not be there."""
    with tempfile.TemporaryDirectory(prefix="metric-") as scratch:
        metric = TumorClassificationMetric(cache_dir=scratch, keep_in_memory=True)
        return metric.compute(predictions=predictions, references=references, **options)


def classification_figures(
    probabilities: np.ndarray,
    labels: np.ndarray,
    *,
    groups: Sequence[Any] | None = None,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    names: Sequence[str] = LABELS,
) -> dict[str, Any]:
    """Compute every figure of a classification run.

    Args:
        probabilities: (N, C) float in [0, 1], in label order.
        labels: (N,) int, class indices.
        groups: (N,) group of each image; None means that every image is its own.
        n_resamples: bootstrap resamples, 0 for none.
        confidence: of the percentile interval (Efron 1979).
        seed: of the bootstrap.
        names: of the C classes.

    Returns:
        ``n``, ``interval`` (how the intervals were drawn), ``accuracy``, ``balanced_accuracy``, ``macro_f1``, ``auroc``
        (mean of the classes, one against the rest), ``log_loss``, ``brier`` (sum over classes, 0..2), ``ece`` (15 equal
        bins, Guo et al. 2017), ``per_class`` (precision, recall, f1, auroc, support), ``confusion_matrix`` (rows true,
        columns predicted). Precision of a class never predicted is 0; what has no meaning (the recall of a class
        without images) is NaN in the arithmetic, left out of means, and None here.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    labels = np.asarray(labels, dtype=np.int64)
    if probabilities.ndim != 2 or probabilities.shape != (len(labels), len(names)) or len(labels) == 0:
        raise ValueError(
            f"predictions {probabilities.shape} and references {labels.shape} do not match (N, {len(names)}) and (N,)"
        )
    if groups is not None and len(set(groups)) == len(groups):
        groups = None
    totals, of_classes = _weighted_figures(probabilities, labels, bootstrap(len(labels), groups, n_resamples, seed))
    over = "image" if groups is None else "group"
    return {
        "n": len(labels),
        "interval": describe_interval(n_resamples, confidence, over) if n_resamples else None,
        **{key: figure(samples, confidence) for key, samples in totals.items()},
        "per_class": {
            name: {key: figure(samples[:, c], confidence) for key, samples in of_classes.items()}
            | {"support": int((labels == c).sum())}
            for c, name in enumerate(names)
        },
        "confusion_matrix": confusion_matrix(labels, probabilities.argmax(1), len(names)).tolist(),
    }


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int = len(LABELS)) -> np.ndarray:
    """Return counts (classes, classes) int: rows are true classes, columns predicted ones."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def bootstrap_weights(n: int, groups: Sequence[Any] | None, n_resamples: int, seed: int) -> np.ndarray:
    """Return (n_resamples, n) float: how often each image is drawn when groups are resampled with replacement."""
    members = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    n_groups = int(members.max()) + 1
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_resamples)
    return draws[:, members].astype(np.float64)


def bootstrap(n: int, groups: Sequence[Any] | None, n_resamples: int, seed: int = 0) -> np.ndarray:
    """Return (1 + n_resamples, n) float: the images as they are, then :func:`bootstrap_weights`."""
    plain = np.ones((1, n))
    return np.vstack([plain, bootstrap_weights(n, groups, n_resamples, seed)]) if n_resamples else plain


def figure(samples: np.ndarray, confidence: float = 0.95) -> Figure | None:
    """Return a figure with its percentile interval; without one where there are no resamples.

    Args:
        samples: (1 + R,) the value, then that of each resample, by the rows of :func:`bootstrap`.
        confidence: of the interval.

    Returns:
        ``{"value", "low", "high"}``; None where the value is NaN.
    """
    if np.isnan(samples[0]):
        return None
    if len(samples) == 1:
        return {"value": float(samples[0])}
    low, high = np.nanpercentile(samples[1:], (50 * (1 - confidence), 50 * (1 + confidence)))
    return {"value": float(samples[0]), "low": float(low), "high": float(high)}


def describe_interval(n_resamples: int = 2000, confidence: float = 0.95, over: str = "group") -> dict[str, Any]:
    """Return what a record says of its intervals."""
    return {"method": "percentile bootstrap", "confidence": confidence, "resamples": n_resamples, "over": over}


def alike_weights(draws: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Return ``draws`` (R, N) of :func:`bootstrap`, scaled so that every kind, (N,), weighs alike in each."""
    weights = draws.copy()
    for kind in np.unique(kinds):
        weights[:, kinds == kind] /= np.maximum(weights[:, kinds == kind].sum(1, keepdims=True), 1e-9)
    return weights


def weighted_share(hits: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean of ``hits`` (N,), or (R, N), for each row of ``weights`` (R, N); NaN where a row is all 0."""
    total = weights.sum(1)
    found = np.einsum("rn,rn->r", weights, hits) if hits.ndim == 2 else weights @ hits
    return np.divide(found, total, out=np.full(len(total), np.nan), where=total > 0)


def mean_figure(
    values: np.ndarray,
    groups: Sequence[Any] | None,
    *,
    among: np.ndarray | None = None,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Figure | None:
    """Return a mean (of hits: a share) with its percentile bootstrap interval over groups.

    Args:
        values: (N,) numbers or bools.
        groups: (N,) group of each image; None means that every image is its own.
        among: (N,) bool, the images that count; None means all.
        n_resamples: bootstrap resamples.
        confidence: of the interval.
        seed: of the bootstrap.

    Returns:
        ``{"value", "low", "high"}``; None when no image counts.
    """
    draws = bootstrap(len(values), groups, n_resamples, seed)
    if among is not None:
        values, draws = np.asarray(values)[among], draws[:, among]
    return figure(weighted_share(np.asarray(values, dtype=np.float64), draws), confidence)


def _weighted_figures(
    probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return every figure for each row of ``weights`` (R, N): arrays (R,), and those of classes (R, C)."""
    predicted, classes = probabilities.argmax(1), probabilities.shape[1]
    is_true = np.eye(classes)[labels]
    is_predicted = np.eye(classes)[predicted]
    total = weights.sum(1)
    true = weights @ is_true
    guessed = weights @ is_predicted
    hits = weights @ (is_true * is_predicted)
    with np.errstate(divide="ignore", invalid="ignore"):
        recall = np.where(true > 0, hits / true, np.nan)
        precision = np.where(guessed > 0, hits / guessed, np.where(true > 0, 0.0, np.nan))
        f1 = np.where(true + guessed > 0, 2 * hits / (true + guessed), np.nan)
    auroc = np.column_stack([weighted_auroc(probabilities[:, c], labels == c, weights) for c in range(classes)])
    picked = np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, 1)
    totals = {
        "accuracy": hits.sum(1) / total,
        "balanced_accuracy": _mean_of_defined(recall),
        "macro_f1": _mean_of_defined(f1),
        "auroc": _mean_of_defined(auroc),
        "log_loss": weights @ -np.log(picked) / total,
        "brier": weights @ ((probabilities - is_true) ** 2).sum(1) / total,
        "ece": weighted_calibration_error(probabilities.max(1), predicted == labels, weights),
    }
    return totals, {"precision": precision, "recall": recall, "f1": f1, "auroc": auroc}


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    defined = ~np.isnan(values)
    count = defined.sum(1)
    return np.where(count > 0, np.where(defined, values, 0).sum(1) / np.maximum(count, 1), np.nan)


def weighted_auroc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve for each row of ``weights``, as the Mann-Whitney statistic with ties counted half."""
    order = np.argsort(scores, kind="stable")
    ties = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
    sorted_weights = weights[:, order]
    up = np.add.reduceat(sorted_weights * positive[order], ties, axis=1)
    down = np.add.reduceat(sorted_weights * ~positive[order], ties, axis=1)
    below = np.cumsum(down, axis=1) - down
    pairs = up.sum(1) * down.sum(1)
    wins = (up * (below + down / 2)).sum(1)
    return np.divide(wins, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def weighted_calibration_error(confidence: np.ndarray, correct: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error: mean |accuracy - confidence| over equal-width bins, weighted by their share."""
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    in_bin = np.eye(CALIBRATION_BINS)[bins]
    gap = weights @ (in_bin * (correct - confidence)[:, None])
    total = weights.sum(1)
    return np.divide(np.abs(gap).sum(1), total, out=np.full(len(total), np.nan), where=total > 0)


def weighted_threshold(scores: np.ndarray, weights: np.ndarray, specificity: float) -> np.ndarray:
    """Return, for each row of ``weights``, the lowest score with at least ``specificity`` of the weight up to it."""
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(weights[:, order], axis=1)
    return scores[order][(reached >= specificity * reached[:, -1:] - 1e-9).argmax(1)]


def external_figures(
    tumours: np.ndarray,
    healthy: np.ndarray,
    *,
    tumour_groups: Sequence[str],
    healthy_groups: Sequence[str],
    validation_healthy: np.ndarray | None = None,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute what the ``external`` protocol reports; the score of a slice is P(tumour) = 1 - P(notumor).

    Args:
        tumours: (T, 4) probabilities of external tumours, in label order.
        healthy: (H, 4) probabilities of held-out ``notumor`` slices.
        tumour_groups: (T,) group of each tumour slice.
        healthy_groups: (H,) group of each healthy slice.
        validation_healthy: (V, 4) of ``notumor`` slices that only choose the threshold; None leaves that out.
        n_resamples: bootstrap resamples over groups, tumours and healthy ones each on their own.
        confidence: of the percentile intervals.
        seed: of the bootstrap.

    Returns:
        ``sensitivity`` and ``specificity`` of the plain answer (the most probable class is, or is not, a tumour);
        ``sensitivity_at_95_specificity``, at the lowest threshold that keeps 95 % of ``healthy`` below it (redrawn in
        each resample); ``auroc``; and with ``validation_healthy`` the ``validation_threshold``: its value, and the
        sensitivity and specificity reached with it. Shares are ``{"value", "low", "high"}`` in [0, 1].
    """
    score_t, score_h = 1 - tumours[:, LABEL2ID[NO_TUMOR]], 1 - healthy[:, LABEL2ID[NO_TUMOR]]
    plain_t, plain_h = (p.argmax(1) != LABEL2ID[NO_TUMOR] for p in (tumours, healthy))
    draws_t = bootstrap(len(score_t), tumour_groups, n_resamples, seed)
    draws_h = bootstrap(len(score_h), healthy_groups, n_resamples, seed + 1)

    def share(hits: np.ndarray, draws: np.ndarray) -> Figure | None:
        return figure(weighted_share(hits, draws), confidence)

    thresholds = weighted_threshold(score_h, draws_h, TARGET_SPECIFICITY)
    positive = np.arange(len(score_t) + len(score_h)) < len(score_t)
    auroc = weighted_auroc(np.concatenate([score_t, score_h]), positive, np.hstack([draws_t, draws_h]))
    result = {
        "n_tumour": len(score_t),
        "n_notumor": len(score_h),
        "interval": describe_interval(n_resamples, confidence),
        "sensitivity": share(plain_t, draws_t),
        "specificity": share(~plain_h, draws_h),
        "sensitivity_at_95_specificity": share(score_t > thresholds[:, None], draws_t),
        "auroc": figure(auroc, confidence),
    }
    if validation_healthy is not None and len(validation_healthy):
        validation = 1 - validation_healthy[:, LABEL2ID[NO_TUMOR]]
        (threshold,) = weighted_threshold(validation, np.ones((1, len(validation))), TARGET_SPECIFICITY)
        result["validation_threshold"] = {
            "threshold": float(threshold),
            "n_validation": len(validation),
            "sensitivity": share(score_t > threshold, draws_t),
            "specificity": share(score_h <= threshold, draws_h),
        }
    return result
