"""What trust.json is worth on slices not seen yet: calibration, coverage, decisions, and what is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from ..images.read import ImageSource, load_image
from ..inference.run_pytorch import StageFeatures
from ..labels import LABEL2ID, LABELS, NO_TUMOR
from ..trust.calibration import Outputs, fit_calibration
from ..trust.decision import COVERAGES, DECISIONS, DEFAULT_COVERAGE, FOREIGN_LIMIT, decide, is_unfamiliar, picture_fault
from ..trust.trust_file import Trust, softmax
from .metrics import (
    CALIBRATION_BINS,
    alike_weights,
    bootstrap,
    classification_figures,
    figure,
    mean_figure,
    weighted_calibration_error,
    weighted_share,
)

if TYPE_CHECKING:
    from ..inference.classifier import TumorClassifier
    from ..trust.calibration import Outputs


def network_outputs(
    classifier: TumorClassifier,
    images: Iterable[ImageSource],
    labels: Sequence[int],
    groups: Sequence[str],
    kinds: Sequence[str],
    *,
    stage: str,
    names: Sequence[str] = (),
    mirror: bool = True,
) -> Outputs:
    """Run the network over images and their mirror images.

    Args:
        classifier: a single model; its ``trust``, if any, is not used.
        images: N of them, all readable.
        labels: (N,) class indices or ``ANY_TUMOR``.
        groups: (N,) groups.
        kinds: (N,) the collection, or what a picture is.
        stage: of ``run_pytorch.stage_of``.
        names: (N,) names, where they matter.
        mirror: False leaves the mirror images out, where only the features matter: logits are (N, 1, 4) then.
    """
    tap = StageFeatures(getattr(classifier.model, "timm_model", classifier.model), stage)
    logits: list[np.ndarray] = []
    features: list[np.ndarray] = []
    faults: list[str | None] = []
    try:
        for batch in _batches(images, 16):
            pictures = [load_image(image) for image in batch]
            faults += [picture_fault(picture) for picture in pictures]
            pixels = torch.from_numpy(np.stack([classifier.preprocess(picture) for picture in pictures]))
            pixels = pixels.to(next(classifier.model.parameters()).device, memory_format=torch.channels_last)
            with torch.inference_mode():
                plain = classifier.model(pixel_values=pixels).logits
                features.append(tap.take())
                views = [plain, classifier.model(pixel_values=pixels.flip(-1)).logits] if mirror else [plain]
            logits.append(torch.stack(views, dim=1).float().cpu().numpy())
    finally:
        tap.remove()
    values, means = np.concatenate(logits), np.concatenate(features)
    return Outputs(values, means, faults, np.asarray(labels), list(groups), list(kinds), list(names))


def _batches(images: Iterable[ImageSource], size: int) -> Iterable[list[ImageSource]]:
    batch: list[ImageSource] = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


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
    unlike = trust.in_distribution.unlikeness(outputs.features)
    probabilities = calibration.probabilities(outputs.views(mirror), unlike)
    typed = bool((outputs.labels >= 0).all())
    groups = outputs.groups
    right = _is_right(probabilities.argmax(1), outputs.labels)
    sets = {coverage: calibration.prediction_sets(probabilities, unlike, coverage) for coverage in COVERAGES}
    decisions = np.array(decisions_of(trust, outputs, sets[DEFAULT_COVERAGE]))
    figures: dict[str, Any] = {"n": len(outputs)}
    if typed:
        figures |= {
            "before": _calibration_figures(softmax(outputs.views(mirror)), outputs, calibration.labels),
            "after": _calibration_figures(probabilities, outputs, calibration.labels),
        }
    figures["coverage"] = {str(c): _coverage(left, outputs, calibration.labels) for c, left in sets.items()}
    figures["decisions"] = {name: mean_figure(decisions == name, groups) for name in DECISIONS}
    figures["correct"] = {"all": mean_figure(right, groups)}
    figures["correct"] |= {name: mean_figure(right, groups, among=decisions == name) for name in DECISIONS}
    return figures


def decisions_of(trust: Trust, outputs: Outputs, left: np.ndarray) -> list[str]:
    """Return each slice's decision; ``left`` (N, 4) bool are the prediction sets."""
    checks = trust.in_distribution.unlikeness(outputs.features).tolist(), trust.foreign(outputs.features).tolist()
    names = [[trust.single.labels[c] for c in np.flatnonzero(row)] for row in left]
    return [decide(*row)[0] for row in zip(names, *checks, outputs.faults, strict=True)]


def _is_right(answered: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.where(labels >= 0, answered == labels, answered != LABEL2ID[NO_TUMOR])


def _calibration_figures(probabilities: np.ndarray, outputs: Outputs, names: Sequence[str]) -> dict[str, Any]:
    figures = classification_figures(probabilities, outputs.labels, groups=outputs.groups, names=names)
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


def _coverage(left: np.ndarray, outputs: Outputs, names: Sequence[str] = LABELS) -> dict[str, Any]:
    rows = np.arange(len(outputs))
    tumours = [c for c in range(len(names)) if c != LABEL2ID[NO_TUMOR]]
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
            for c, name in enumerate(names)
        }
    return figures


def foreign_figures(trust: Trust, foreign: Outputs, known: Sequence[Outputs]) -> dict[str, Any]:
    """Measure the check for brain MRI: pictures that are none against held-out slices.

    Args:
        trust: fitted on other slices, and on pictures of other kinds.
        foreign: F pictures that are no brain MRI slice.
        known: held-out slices, a part a collection.

    Returns:
        ``n``; ``auroc`` (foreign above known; a picture with a fault is above all) and ``auroc_without_faults`` (only
        pictures and slices without one); ``refused``: share of the foreign pictures; ``n_without_faults`` and
        ``refused_without_faults``; ``refused_by_kind``; ``let_through``: names and scores of those that pass;
        ``n_known``. Foreign pictures are no sample of anything, so there are no intervals.
    """
    score, faulty = _scores(trust, foreign)
    of_known = [_scores(trust, outputs) for outputs in known]
    known_score = np.concatenate([s for s, _ in of_known])
    known_faulty = np.concatenate([f for _, f in of_known])

    def auroc(ours: np.ndarray, theirs: np.ndarray) -> float | None:
        if not len(ours) or not len(theirs):
            return None
        return float(roc_auc_score(np.repeat([0, 1], [len(theirs), len(ours)]), np.concatenate([theirs, ours])))

    refused = score > FOREIGN_LIMIT
    return {
        "n": len(foreign),
        "n_known": len(known_score),
        "auroc": auroc(score, known_score),
        "auroc_without_faults": auroc(score[~faulty], known_score[~known_faulty]),
        "refused": float(refused.mean()),
        "n_without_faults": int((~faulty).sum()),
        "refused_without_faults": float(refused[~faulty].mean()) if not faulty.all() else None,
        "refused_by_kind": _refused_by_kind(refused, faulty, foreign.kinds),
        "let_through": [
            {"name": foreign.names[i], "foreign": round(float(score[i]), 3)} for i in np.flatnonzero(~refused)
        ],
    }


def familiar_figures(trust: Trust, familiar: Outputs) -> dict[str, Any]:
    """Measure what the checks do to brain MRI slices of collections that trained nothing: a refusal is an error.

    Args:
        trust: fitted on other slices.
        familiar: F brain MRI slices.

    Returns:
        ``n``; ``refused`` and ``unfamiliar`` (shares), ``refused_by_kind``, and ``refused_names``: each with its
        score, or its fault.
    """
    score, faulty = _scores(trust, familiar)
    refused = score > FOREIGN_LIMIT
    unfamiliar = ~refused & (trust.in_distribution.unlikeness(familiar.features) > 1)
    return {
        "n": len(familiar),
        "refused": float(refused.mean()),
        "unfamiliar": float(unfamiliar.mean()),
        "refused_by_kind": _refused_by_kind(refused, faulty, familiar.kinds),
        "refused_names": [
            {"name": familiar.names[i]}
            | ({"fault": familiar.faults[i]} if faulty[i] else {"foreign": round(float(score[i]), 3)})
            for i in np.flatnonzero(refused)
        ],
    }


def unseen_figures(
    validation: Outputs, unseen: Outputs, unlikeness: np.ndarray, unseen_unlikeness: np.ndarray
) -> dict[str, Any]:
    """Measure sets and answers on collections that neither trained the model that answers nor fitted the sets.

    Args:
        validation: of ``fit_trust``.
        unseen: of ``fit_trust``; one collection after the other is left out of the fit, and measured.
        unlikeness: (N,) of the validation slices.
        unseen_unlikeness: of ``fit_trust``.

    Returns:
        ``pooled``, collections weighing alike, and ``collections``, collection -> figures: ``n``, ``covered`` (share of
        slices whose ``DEFAULT_COVERAGE`` % set holds the true class), ``size`` (classes in a set), ``unfamiliar``
        (share), ``answered`` (share of familiar slices with one class left, of all), ``right`` (of these; None where
        there is none), ``ece`` and ``ece_before`` (calibrated or not), with intervals over groups. Slices of unknown
        type are left out.
    """
    typed = unseen.labels >= 0
    unseen, unseen_unlikeness = unseen.select(typed), unseen_unlikeness[typed]
    kinds, plain = np.array(unseen.kinds), softmax(unseen.views(mirror=False))
    probabilities, sets = np.empty_like(plain), np.empty(plain.shape, dtype=bool)
    for kind in np.unique(kinds):
        own, others = kinds == kind, np.array(validation.kinds) != kind
        calibration = fit_calibration(
            validation.select(others), unseen.select(~own), unlikeness[others], unseen_unlikeness[~own], mirror=False
        )
        probabilities[own] = calibration.probabilities(unseen.views(mirror=False)[own], unseen_unlikeness[own])
        sets[own] = calibration.prediction_sets(probabilities[own], unseen_unlikeness[own], DEFAULT_COVERAGE)
    unfamiliar, right = is_unfamiliar(unseen_unlikeness), probabilities.argmax(1) == unseen.labels
    answered = (sets.sum(1) == 1) & ~unfamiliar
    values = {
        "covered": sets[np.arange(len(sets)), unseen.labels],
        "size": sets.sum(1),
        "unfamiliar": unfamiliar,
        "answered": answered,
    }
    draws = bootstrap(len(kinds), unseen.groups, n_resamples=1000)

    def figures(own: np.ndarray) -> dict[str, Any]:
        weights = alike_weights(draws[:, own], kinds[own])
        shares = {name: figure(weighted_share(value[own].astype(float), weights)) for name, value in values.items()}
        sure = answered[own]
        shares["right"] = figure(weighted_share(right[own][sure], weights[:, sure])) if sure.any() else None
        for name, given in (("ece_before", plain), ("ece", probabilities)):
            shares[name] = figure(weighted_calibration_error(given[own].max(1), right[own], weights))
        return {"n": int(own.sum()), **shares}

    of_each = {str(kind): figures(kinds == kind) for kind in np.unique(kinds)}
    return {"pooled": figures(np.ones(len(kinds), dtype=bool)), "collections": of_each}


def left_out_figures(parts: Mapping[str, tuple[Outputs, np.ndarray]]) -> dict[str, dict[str, dict[str, float]]]:
    """Summarise what the check for brain MRI says of each kind when its fit did not see that kind.

    Args:
        parts: name (``brain``, ``foreign``) -> N pictures, and what ``fit_trust`` gave for them, (N,) in 0..1.

    Returns:
        Name -> kind -> ``{"n", "refused"}``; a picture's fault counts as a refusal.
    """
    result: dict[str, dict[str, dict[str, float]]] = {}
    for name, (outputs, scores) in parts.items():
        kinds = np.array(outputs.kinds)
        refused = (scores > FOREIGN_LIMIT) | [fault is not None for fault in outputs.faults]
        result[name] = {
            kind: {"n": int((kinds == kind).sum()), "refused": float(refused[kinds == kind].mean())}
            for kind in np.unique(kinds).tolist()
        }
    return result


def _scores(trust: Trust, outputs: Outputs) -> tuple[np.ndarray, np.ndarray]:
    """Return ``foreign`` (N,), 1 where there is a fault, and where there is one (N,)."""
    faulty = np.array([fault is not None for fault in outputs.faults], dtype=bool)
    return np.where(faulty, 1.0, trust.foreign(outputs.features)), faulty


def _refused_by_kind(refused: np.ndarray, faulty: np.ndarray, kinds: Sequence[str]) -> dict[str, dict[str, float]]:
    names = np.asarray(kinds)
    return {
        kind: {
            "n": int((names == kind).sum()),
            "refused": float(refused[names == kind].mean()),
            "faults": int(faulty[names == kind].sum()),
        }
        for kind in sorted(set(kinds))
    }
