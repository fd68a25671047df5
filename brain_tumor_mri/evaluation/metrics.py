"""The project's ``evaluate.Metric``: accuracy, per-class figures, AUROC and calibration, with bootstrap intervals.

Works offline (``evaluate.load`` fetches code at run time). A figure is ``{"value", "low", "high"}``; low and high are
the percentile bootstrap interval, drawn over groups (patients) where groups are given, else over images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import datasets
import evaluate
import numpy as np

from ..labels import LABEL2ID, LABELS, NO_TUMOR, NUM_LABELS

if TYPE_CHECKING:
    import datasets


CALIBRATION_BINS = 15
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


def classification_figures(
    probabilities: np.ndarray,
    labels: np.ndarray,
    *,
    groups: Sequence[Any] | None = None,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute every figure of a classification run.

    Args:
        probabilities: (N, 4) float in [0, 1], in label order.
        labels: (N,) int, class indices.
        groups: (N,) group of each image; None means that every image is its own.
        n_resamples: bootstrap resamples, 0 for none.
        confidence: of the percentile interval (Efron 1979).
        seed: of the bootstrap.

    Returns:
        ``n``, ``interval`` (how the intervals were drawn), ``accuracy``, ``balanced_accuracy``, ``macro_f1``, ``auroc``
        (mean of the classes, one against the rest), ``log_loss``, ``brier`` (sum over classes, 0..2), ``ece`` (15 equal
        bins, Guo et al. 2017), ``per_class`` (precision, recall, f1, auroc, support), ``confusion_matrix`` (rows true,
        columns predicted). Precision of a class never predicted is 0; what has no meaning (the recall of a class
        without images) is NaN in the arithmetic, left out of means, and None here.

    Raises:
        ValueError: shapes differ, or nothing is given.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    labels = np.asarray(labels, dtype=np.int64)
    if probabilities.ndim != 2 or probabilities.shape != (len(labels), NUM_LABELS) or len(labels) == 0:
        raise ValueError(
            f"predictions {probabilities.shape} and references {labels.shape} do not match (N, {NUM_LABELS}) and (N,)"
        )
    if groups is not None and len(set(groups)) == len(groups):
        groups = None
    weights = np.ones((1, len(labels)))
    interval: dict[str, Any] | None = None
    if n_resamples:
        weights = np.vstack([weights, bootstrap_weights(len(labels), groups, n_resamples, seed)])
        unit = "image" if groups is None else "group"
        interval = {"method": "percentile bootstrap", "confidence": confidence, "resamples": n_resamples, "over": unit}

    values = _weighted_figures(probabilities, labels, weights)
    tails = (50 * (1 - confidence), 50 * (1 + confidence))

    def figure(samples: np.ndarray) -> Figure | None:
        if np.isnan(samples[0]):
            return None
        result = {"value": float(samples[0])}
        if n_resamples:
            low, high = np.nanpercentile(samples[1:], tails)
            result |= {"low": float(low), "high": float(high)}
        return result

    per_class = {
        name: {key: figure(values[key][:, c]) for key in ("precision", "recall", "f1", "class_auroc")}
        | {"support": int((labels == c).sum())}
        for c, name in enumerate(LABELS)
    }
    for entry in per_class.values():
        entry["auroc"] = entry.pop("class_auroc")
    totals = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "log_loss", "brier", "ece")
    return {
        "n": len(labels),
        "interval": interval,
        **{key: figure(values[key]) for key in totals},
        "per_class": per_class,
        "confusion_matrix": confusion_matrix(labels, probabilities.argmax(1)).tolist(),
    }


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return counts (4, 4) int: rows are true classes, columns predicted ones."""
    cells = np.bincount(labels * NUM_LABELS + predicted, minlength=NUM_LABELS**2)
    return cells.reshape(NUM_LABELS, NUM_LABELS)


def bootstrap_weights(n: int, groups: Sequence[Any] | None, n_resamples: int, seed: int) -> np.ndarray:
    """Return (n_resamples, n) float: how often each image is drawn when groups are resampled with replacement."""
    members = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    n_groups = int(members.max()) + 1
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_resamples)
    return draws[:, members].astype(np.float64)


def mean_figure(
    values: np.ndarray,
    groups: Sequence[Any],
    *,
    among: np.ndarray | None = None,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Figure | None:
    """Return a mean (of hits: a share) with its percentile bootstrap interval over groups.

    Args:
        values: (N,) numbers or bools.
        groups: (N,) group of each image.
        among: (N,) bool, the images that count; None means all.
        n_resamples: bootstrap resamples.
        confidence: of the interval.
        seed: of the bootstrap.

    Returns:
        ``{"value", "low", "high"}``; None when no image counts.
    """
    counts = np.ones(len(values)) if among is None else np.asarray(among, dtype=np.float64)
    if not counts.any():
        return None
    draws = np.vstack([np.ones(len(values)), bootstrap_weights(len(values), groups, n_resamples, seed)])
    with np.errstate(invalid="ignore"):
        means = draws @ (counts * np.asarray(values, dtype=np.float64)) / (draws @ counts)
    low, high = np.nanpercentile(means[1:], (50 * (1 - confidence), 50 * (1 + confidence)))
    return {"value": float(means[0]), "low": float(low), "high": float(high)}


def _weighted_figures(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return every figure for each row of ``weights`` (R, N): arrays (R,), per-class ones (R, 4)."""
    predicted = probabilities.argmax(1)
    is_true = np.eye(NUM_LABELS)[labels]
    is_predicted = np.eye(NUM_LABELS)[predicted]
    total = weights.sum(1)
    true = weights @ is_true
    guessed = weights @ is_predicted
    hits = weights @ (is_true * is_predicted)
    with np.errstate(divide="ignore", invalid="ignore"):
        recall = np.where(true > 0, hits / true, np.nan)
        precision = np.where(guessed > 0, hits / guessed, np.where(true > 0, 0.0, np.nan))
        f1 = np.where(true + guessed > 0, 2 * hits / (true + guessed), np.nan)
    auroc = np.column_stack([weighted_auroc(probabilities[:, c], labels == c, weights) for c in range(NUM_LABELS)])
    picked = np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, 1)
    return {
        "accuracy": hits.sum(1) / total,
        "balanced_accuracy": _mean_of_defined(recall),
        "macro_f1": _mean_of_defined(f1),
        "auroc": _mean_of_defined(auroc),
        "log_loss": weights @ -np.log(picked) / total,
        "brier": weights @ ((probabilities - is_true) ** 2).sum(1) / total,
        "ece": weighted_calibration_error(probabilities.max(1), predicted == labels, weights),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "class_auroc": auroc,
    }


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
    return np.abs(gap).sum(1) / weights.sum(1)


TARGET_SPECIFICITY = 0.95


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
    draws_t = np.vstack([np.ones(len(score_t)), bootstrap_weights(len(score_t), tumour_groups, n_resamples, seed)])
    draws_h = np.vstack([np.ones(len(score_h)), bootstrap_weights(len(score_h), healthy_groups, n_resamples, seed + 1)])

    def figure(samples: np.ndarray) -> dict[str, float]:
        low, high = np.percentile(samples[1:], (50 * (1 - confidence), 50 * (1 + confidence)))
        return {"value": float(samples[0]), "low": float(low), "high": float(high)}

    def share(draws: np.ndarray, hits: np.ndarray) -> dict[str, float]:
        return figure(draws @ hits / draws.sum(1))

    thresholds = np.array([_threshold(score_h, weights) for weights in draws_h])
    above = np.array([weights @ (score_t > t) / weights.sum() for weights, t in zip(draws_t, thresholds, strict=True)])
    result = {
        "n_tumour": len(score_t),
        "n_notumor": len(score_h),
        "interval": {
            "method": "percentile bootstrap",
            "confidence": confidence,
            "resamples": n_resamples,
            "over": "group",
        },
        "sensitivity": share(draws_t, plain_t),
        "specificity": share(draws_h, ~plain_h),
        "sensitivity_at_95_specificity": figure(above),
        "auroc": figure(np.array([_auroc(score_t, score_h, t, h) for t, h in zip(draws_t, draws_h, strict=True)])),
    }
    if validation_healthy is not None and len(validation_healthy):
        validation = 1 - validation_healthy[:, LABEL2ID[NO_TUMOR]]
        threshold = _threshold(validation, np.ones(len(validation)))
        result["validation_threshold"] = {
            "threshold": threshold,
            "n_validation": len(validation),
            "sensitivity": share(draws_t, score_t > threshold),
            "specificity": share(draws_h, score_h <= threshold),
        }
    return result


def _threshold(scores: np.ndarray, weights: np.ndarray) -> float:
    """Return the lowest score with at least ``TARGET_SPECIFICITY`` of the weight at or below it."""
    order = np.argsort(scores)
    reached = np.cumsum(weights[order]) >= TARGET_SPECIFICITY * weights.sum() - 1e-9
    return float(scores[order][np.argmax(reached)])


def _auroc(positive: np.ndarray, negative: np.ndarray, of_positive: np.ndarray, of_negative: np.ndarray) -> float:
    """Weighted Mann-Whitney statistic, ties counted half."""
    order = np.argsort(negative)
    below = np.concatenate([[0.0], np.cumsum(of_negative[order])])
    less = below[np.searchsorted(negative[order], positive, side="left")]
    less_or_tied = below[np.searchsorted(negative[order], positive, side="right")]
    return float(of_positive @ (less + less_or_tied) / 2 / (of_positive.sum() * of_negative.sum()))
