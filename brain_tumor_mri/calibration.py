"""Fits ``trust.json`` on the slices that validated a model, and measures on its test part what that is worth.

``fit_trust`` gives a :class:`~brain_tumor_mri.trust.Trust`; ``trust_figures`` measures one on slices not seen yet.
``calibrating.py`` is the command around both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .decisions import COVERAGES, DECISIONS, DEFAULT_COVERAGE, decide
from .errors import UserError
from .in_distribution import OtherCollection, fit_in_distribution
from .labels import LABEL2ID, LABELS, NO_TUMOR
from .metrics import CALIBRATION_BINS, classification_figures, mean_figure
from .trust import Calibration, Trust, picture_fault

if TYPE_CHECKING:
    from .classifier import TumorClassifier
    from .imaging import ImageSource


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


def network_outputs(
    classifier: TumorClassifier,
    images: Iterable[ImageSource],
    labels: Sequence[int],
    groups: Sequence[str],
    *,
    stage: str,
    names: Sequence[str] = (),
) -> Outputs:
    """Run the network over images and their mirror images.

    Args:
        classifier: a single model; its ``trust``, if any, is not used.
        images: N of them, all readable.
        labels: (N,) class indices or ``ANY_TUMOR``.
        groups: (N,) groups.
        stage: of ``in_distribution.stage_of``.
        names: (N,) names, where they matter.
    """
    import torch

    from .features import StageFeatures
    from .imaging import load_image

    tap = StageFeatures(getattr(classifier.model, "timm_model", classifier.model), stage)
    logits: list[np.ndarray] = []
    features: list[np.ndarray] = []
    faults: list[str | None] = []
    try:
        for batch in _batches(images, 16):
            pictures = [load_image(image) for image in batch]
            faults += [picture_fault(picture) for picture in pictures]
            pixels = torch.stack([classifier.preprocess(picture) for picture in pictures])
            pixels = pixels.to(classifier.device, memory_format=torch.channels_last)
            with torch.inference_mode():
                plain = classifier.model(pixel_values=pixels).logits
                features.append(tap.take())
                mirrored = classifier.model(pixel_values=pixels.flip(-1)).logits
            logits.append(torch.stack([plain, mirrored], dim=1).float().cpu().numpy())
    finally:
        tap.remove()
    return Outputs(
        np.concatenate(logits), np.concatenate(features), faults, np.asarray(labels), list(groups), list(names)
    )


def _batches(images: Iterable[ImageSource], size: int) -> Iterable[list[ImageSource]]:
    batch: list[ImageSource] = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


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


def trust_figures(trust: Trust, outputs: Outputs, *, mirror: bool = False) -> dict[str, Any]:
    """Measure a fitted trust on slices that it was not fitted to.

    Args:
        trust: fitted on other slices.
        outputs: N slices. Where tumour types are not known (``ANY_TUMOR``), a set covers a slice when any tumour class
            is left, and an answer is right when it is any tumour.
        mirror: measure the answers averaged with the mirror image's.

    Returns:
        ``n``; ``before`` and ``after``, both ``{"ece", "brier", "log_loss", "reliability"}`` (left out where types are
        not known); ``coverage``: coverage in percent -> ``{"covered", "size", "per_class"}``; ``decisions`` -> share of
        each; ``correct`` -> share of right answers ``all`` and among each decision (None where there is none). Shares
        are ``{"value", "low", "high"}`` in [0, 1], sizes in classes.
    """
    calibration = trust.calibration(mirror)
    probabilities = calibration.probabilities(outputs.views(mirror))
    typed = bool((outputs.labels >= 0).all())
    groups = outputs.groups
    right = _is_right(probabilities.argmax(1), outputs.labels)
    sets = {coverage: calibration.prediction_sets(probabilities, coverage) for coverage in COVERAGES}
    decisions = np.array(decisions_of(trust, outputs, sets[DEFAULT_COVERAGE]))
    figures: dict[str, Any] = {"n": len(outputs)}
    if typed:
        plain = Calibration(1.0, {}).probabilities(outputs.views(mirror))
        figures |= {
            "before": _calibration_figures(plain, outputs),
            "after": _calibration_figures(probabilities, outputs),
        }
    figures["coverage"] = {str(c): _coverage(left, outputs) for c, left in sets.items()}
    figures["decisions"] = {name: mean_figure(decisions == name, groups) for name in DECISIONS}
    figures["correct"] = {"all": mean_figure(right, groups)}
    figures["correct"] |= {name: mean_figure(right, groups, among=decisions == name) for name in DECISIONS}
    return figures


def decisions_of(trust: Trust, outputs: Outputs, left: np.ndarray) -> list[str]:
    """Return each slice's decision; ``left`` (N, 4) bool are the prediction sets."""
    unlikeness = trust.in_distribution.unlikeness(outputs.features)
    names = [[LABELS[c] for c in np.flatnonzero(row)] for row in left]
    return [decide(*row)[0] for row in zip(names, unlikeness.tolist(), outputs.faults, strict=True)]


def _is_right(answered: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.where(labels >= 0, answered == labels, answered != LABEL2ID[NO_TUMOR])


def _calibration_figures(probabilities: np.ndarray, outputs: Outputs) -> dict[str, Any]:
    figures = classification_figures(probabilities, outputs.labels, groups=outputs.groups)
    kept = {key: figures[key] for key in ("ece", "brier", "log_loss")}
    return kept | {"reliability": reliability(probabilities, outputs.labels)}


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> list[dict[str, float]]:
    """Return the reliability diagram: ``confidence`` (mean), ``accuracy`` and ``n`` of each bin that is not empty."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    return [
        {
            "confidence": float(confidence[inside].mean()),
            "accuracy": float(right[inside].mean()),
            "n": int(inside.sum()),
        }
        for inside in (bins == b for b in range(CALIBRATION_BINS))
        if inside.any()
    ]


def _coverage(left: np.ndarray, outputs: Outputs) -> dict[str, Any]:
    rows = np.arange(len(outputs))
    tumours = [c for c in range(len(LABELS)) if c != LABEL2ID[NO_TUMOR]]
    covered = np.where(outputs.labels >= 0, left[rows, outputs.labels], left[:, tumours].any(axis=1))
    size = left.sum(axis=1)
    figures: dict[str, Any] = {
        "covered": mean_figure(covered, outputs.groups),
        "size": mean_figure(size, outputs.groups),
    }
    if (outputs.labels >= 0).all():
        figures["per_class"] = {
            name: {
                "covered": mean_figure(covered, outputs.groups, among=outputs.labels == c),
                "size": mean_figure(size, outputs.groups, among=outputs.labels == c),
            }
            for c, name in enumerate(LABELS)
        }
    return figures
