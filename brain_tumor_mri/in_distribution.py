"""The check that a picture is a brain MRI slice at all: how it is fitted, and what it refuses.

``fit_in_distribution`` gives the :class:`~brain_tumor_mri.trust.InDistribution` of trust.json; ``foreign_figures`` and
``familiar_figures`` measure one on pictures that it should refuse and on slices that it should not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import UserError
from .trust import InDistribution, Trust

if TYPE_CHECKING:
    from torch import nn

    from .calibration import Outputs

KEPT = 0.99
"""Share of slices, each judged by a fit that did not see it, that the check lets through."""
FOLDS = 5
"""In which a second collection's slices are left out in turn to place its limit."""
COMPONENTS = 32
"""Directions with a variance of their own; chosen in the trial of ``stage_of``, where 8 to 64 did about as well."""


@dataclass(frozen=True)
class OtherCollection:
    """Slices of a second collection, without those of its test part.

    Attributes:
        train: those that trained the model; None where none did.
        validation: those that trained nothing.
        repeats: how often an epoch drew each of ``train``; the check weighs them alike.
    """

    train: Outputs | None
    validation: Outputs
    repeats: int = 1


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


def fit_in_distribution(
    known: np.ndarray, validation: np.ndarray, stage: str, *, other: OtherCollection | None = None
) -> InDistribution:
    """Fit probabilistic PCA to training features, and the threshold so that ``KEPT`` of the slices not in it pass.

    Args:
        known: (M, D) of training slices; M at least 2.
        validation: (N, D) of validation slices.
        stage: that the features are of.
        other: a second collection. Its validation part alone is too small to say much about its last percents, so its
            training slices count too, each scored by a fit that saw none of its group.
    """
    check = _fit_ppca(known, stage, other.train.features if other and other.train else None, other)
    distances = [check.squared_distance(validation)]
    if other:
        distances.append(_left_out_distances(known, stage, other))
    limit = np.quantile(np.concatenate(distances), KEPT, method="higher")
    return replace(check, threshold=float(f"{limit * 1.000001:.7g}"))


def _fit_ppca(
    known: np.ndarray, stage: str, trained: np.ndarray | None, other: OtherCollection | None
) -> InDistribution:
    """Fit to ``known`` (M, D) and to ``trained`` (T, D), each of these ``other.repeats`` times; the threshold is 1."""
    rows = [known] + ([trained] * other.repeats if other is not None and trained is not None else [])
    together = np.concatenate(rows).astype(np.float64)
    mean = together.mean(axis=0)
    _, singular, axes = np.linalg.svd(together - mean, full_matrices=False)
    variances = singular**2 / len(together)
    count = min(COMPONENTS, len(variances) - 1, int((variances > 1e-12 * variances[0]).sum()))
    noise = max(variances[count:].sum() / max(together.shape[1] - count, 1), 1e-9 * variances[0])
    # rounded as the file keeps them, so that the threshold is of what will be read
    rounded = InDistribution(stage, mean, axes[:count], variances[:count], float(noise), 1.0).to_dict()
    return InDistribution.from_dict(rounded)


def _left_out_distances(known: np.ndarray, stage: str, other: OtherCollection) -> np.ndarray:
    """Return the squared distance of each of the collection's slices from a fit without its fold of groups."""
    if other.train is None:
        return _fit_ppca(known, stage, None, None).squared_distance(other.validation.features)
    features = np.concatenate([other.train.features, other.validation.features])
    trains = np.arange(len(features)) < len(other.train)
    groups = np.array([*other.train.groups, *other.validation.groups])
    fold = np.unique(groups, return_inverse=True)[1] % FOLDS
    distances = np.empty(len(features))
    for left_out in (fold == k for k in np.unique(fold)):
        check = _fit_ppca(known, stage, features[trains & ~left_out], other)
        distances[left_out] = check.squared_distance(features[left_out])
    return distances


def foreign_figures(trust: Trust, foreign: Outputs, known: Sequence[Outputs], kinds: Sequence[str]) -> dict[str, Any]:
    """Measure the in-distribution check: pictures that are no brain MRI against held-out slices.

    Args:
        trust: fitted on other slices.
        foreign: F pictures that are no brain MRI slice.
        known: held-out slices, a part a collection.
        kinds: (F,) what each foreign picture is.

    Returns:
        ``n``; ``auroc`` (foreign above known; a picture with a fault is above all) and ``auroc_without_faults`` (only
        pictures and slices without one); ``refused``: share of the foreign pictures; ``n_without_faults`` and
        ``refused_without_faults``; ``refused_by_kind``; ``let_through``: names and scores of those that pass;
        ``n_known``. Foreign pictures are no sample of anything, so there are no intervals.
    """
    from sklearn.metrics import roc_auc_score

    score, faulty = _scores(trust, foreign)
    of_known = [_scores(trust, outputs) for outputs in known]
    known_score = np.concatenate([s for s, _ in of_known])
    known_faulty = np.concatenate([f for _, f in of_known])

    def auroc(ours: np.ndarray, theirs: np.ndarray) -> float | None:
        if not len(ours) or not len(theirs):
            return None
        values = np.minimum(np.concatenate([theirs, ours]), 1e300)  # scikit-learn takes no infinity
        return float(roc_auc_score(np.repeat([0, 1], [len(theirs), len(ours)]), values))

    refused = score > 1
    return {
        "n": len(foreign),
        "n_known": len(known_score),
        "auroc": auroc(score, known_score),
        "auroc_without_faults": auroc(score[~faulty], known_score[~known_faulty]),
        "refused": float(refused.mean()),
        "n_without_faults": int((~faulty).sum()),
        "refused_without_faults": float(refused[~faulty].mean()) if not faulty.all() else None,
        "refused_by_kind": _refused_by_kind(refused, faulty, kinds),
        "let_through": [
            {"name": foreign.names[i], "unlikeness": round(float(score[i]), 3)} for i in np.flatnonzero(~refused)
        ],
    }


def familiar_figures(trust: Trust, familiar: Outputs, kinds: Sequence[str]) -> dict[str, Any]:
    """Measure what the check does to brain MRI slices of other collections: whatever it refuses is an error.

    Args:
        trust: fitted on other slices.
        familiar: F brain MRI slices.
        kinds: (F,) the collection of each.

    Returns:
        ``n``, ``refused`` (share), ``refused_by_kind``, and ``refused_names``: each with its score, or its fault.
    """
    score, faulty = _scores(trust, familiar)
    refused = score > 1
    return {
        "n": len(familiar),
        "refused": float(refused.mean()),
        "refused_by_kind": _refused_by_kind(refused, faulty, kinds),
        "refused_names": [
            {"name": familiar.names[i]}
            | ({"fault": familiar.faults[i]} if faulty[i] else {"unlikeness": round(float(score[i]), 3)})
            for i in np.flatnonzero(refused)
        ],
    }


def _scores(trust: Trust, outputs: Outputs) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores (N,), infinite where there is a fault, and where there is one (N,)."""
    faulty = np.array([fault is not None for fault in outputs.faults], dtype=bool)
    return np.where(faulty, np.inf, trust.in_distribution.unlikeness(outputs.features)), faulty


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
