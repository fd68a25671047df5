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
from .labels import LABEL2ID, LABELS, NO_TUMOR
from .metrics import CALIBRATION_BINS, classification_figures, mean_figure
from .trust import Calibration, InDistribution, Trust, picture_fault

if TYPE_CHECKING:
    from torch import nn

    from .classifier import TumorClassifier
    from .imaging import ImageSource

KEPT = 0.99
"""Share of the validation slices of each collection that the in-distribution check lets through."""
COMPONENTS = 32
"""Directions with a variance of their own; chosen in the trial of ``stage_of``, where 8 to 64 did about as well."""


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


def stage_of(network: nn.Module) -> str:
    """Name the stage whose features tell brain MRI from other pictures: the last but one (ResNet: ``layer3``).

    Chosen in one unrecorded trial, on an EfficientNet-Lite0, with test slices and foreign pictures in view, the same
    by which the check is reported since: earlier stages took MRI of another collection for something foreign, the last
    one let photographs through. On ResNet50 it was not tried.

    Raises:
        UserError: the network does not list its stages, as timm's convolutional networks do.
    """
    stages = getattr(network, "feature_info", None)
    if not isinstance(stages, list) or len(stages) < 2:
        raise UserError("this network lists no stages, as timm's ResNets and EfficientNets do: it cannot be calibrated")
    return str(stages[-2]["module"])


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
        stage: of ``stage_of``.
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
    other_validation: Outputs | None = None,
) -> Trust:
    """Fit calibration, prediction sets and in-distribution check.

    Args:
        weights_sha256: of the weights that gave the outputs.
        stage: of ``stage_of``.
        validation: of slices with known classes, that trained nothing.
        known: (M, D) features of training slices.
        other_validation: of validation slices of another collection, whose tumour types are not known; the check must
            let them through as well.

    Raises:
        UserError: a class has no validation slice.
    """
    counts = np.bincount(validation.labels, minlength=len(LABELS))
    if not counts.all():
        raise UserError(
            f"the validation part has no {LABELS[int(counts.argmin())]} slice; calibration needs every class"
        )
    single, mirrored = (fit_calibration(validation.views(mirror), validation.labels) for mirror in (False, True))
    collections = [validation.features] + ([other_validation.features] if other_validation else [])
    return Trust(weights_sha256, single, mirrored, fit_in_distribution(known, collections, stage), {})


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


def fit_in_distribution(known: np.ndarray, validation: Sequence[np.ndarray], stage: str) -> InDistribution:
    """Fit probabilistic PCA to training features, and the threshold to validation features.

    Args:
        known: (M, D) of training slices; M at least 2.
        validation: (N, D) of validation slices, an array a collection; ``KEPT`` of each are let through.
        stage: that the features are of.
    """
    known = known.astype(np.float64)
    mean = known.mean(axis=0)
    _, singular, axes = np.linalg.svd(known - mean, full_matrices=False)
    variances = singular**2 / len(known)
    count = min(COMPONENTS, len(variances) - 1, int((variances > 1e-12 * variances[0]).sum()))
    noise = max(variances[count:].sum() / max(known.shape[1] - count, 1), 1e-9 * variances[0])
    # rounded as the file keeps them, so that the threshold is of what will be read
    rounded = InDistribution(stage, mean, axes[:count], variances[:count], float(noise), 1.0).to_dict()
    check = InDistribution.from_dict(rounded)
    limits = [np.quantile(check.squared_distance(features), KEPT, method="higher") for features in validation]
    return InDistribution.from_dict(rounded | {"threshold": float(f"{max(limits) * 1.000001:.7g}")})


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


def foreign_figures(trust: Trust, foreign: Outputs, known: Sequence[Outputs], kinds: Sequence[str]) -> dict[str, Any]:
    """Measure the in-distribution check: pictures that are no brain MRI against held-out slices.

    Args:
        trust: fitted on other slices.
        foreign: F pictures that are no brain MRI slice.
        known: held-out slices, a part a collection.
        kinds: (F,) what each foreign picture is.

    Returns:
        ``n``; ``auroc`` (foreign above known; a picture with a fault is above all) and ``auroc_without_faults`` (only
        pictures and slices without one); ``refused``: share of the foreign pictures; ``refused_by_kind``;
        ``let_through``: names and scores of those that pass; ``n_known``. Foreign pictures are no sample of anything,
        so there are no intervals.
    """
    from sklearn.metrics import roc_auc_score

    def scores(outputs: Outputs) -> tuple[np.ndarray, np.ndarray]:
        faulty = np.array([fault is not None for fault in outputs.faults])
        unlikeness = trust.in_distribution.unlikeness(outputs.features)
        return np.where(faulty, np.inf, unlikeness), faulty

    score, faulty = scores(foreign)
    of_known = [scores(outputs) for outputs in known]
    known_score = np.concatenate([s for s, _ in of_known])
    known_faulty = np.concatenate([f for _, f in of_known])

    def auroc(ours: np.ndarray, theirs: np.ndarray) -> float:
        values = np.minimum(np.concatenate([theirs, ours]), 1e300)  # scikit-learn takes no infinity
        return float(roc_auc_score(np.repeat([0, 1], [len(theirs), len(ours)]), values))

    refused = score > 1
    names = np.asarray(kinds)
    return {
        "n": len(foreign),
        "n_known": len(known_score),
        "auroc": auroc(score, known_score),
        "auroc_without_faults": auroc(score[~faulty], known_score[~known_faulty]),
        "refused": float(refused.mean()),
        "refused_by_kind": {
            kind: {"n": int((names == kind).sum()), "refused": float(refused[names == kind].mean())}
            for kind in sorted(set(kinds))
        },
        "let_through": [
            {"name": foreign.names[i], "unlikeness": round(float(score[i]), 3)} for i in np.flatnonzero(~refused)
        ],
    }
