"""Fits ``trust.json`` on the slices that validated a model.

``fit_trust`` gives a ``Trust``; ``evaluation/trust.py`` measures one on slices not seen yet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from ..errors import UserError
from ..labels import LABELS
from .brain_mri import alike, fit_brain_mri
from .decision import COVERAGES, is_unfamiliar
from .in_distribution import fit_in_distribution
from .trust_file import Calibration, InDistribution, KnownCollections, Trust, softmax

HEAD_CT = "head-ct"
"""How the kinds of head CT begin."""


@dataclass(frozen=True)
class Outputs:
    """What the network gave for the slices of one part.

    Attributes:
        logits: (N, 2, 4): of the slice and of its mirror image; (N, 1, 4) where only the features matter.
        features: (N, D) of ``StageFeatures``.
        faults: (N,) of ``trust.picture_fault``.
        labels: (N,) int; ``ANY_TUMOR`` where the type is not known.
        groups: (N,) patients, or groups of copies.
        kinds: (N,) the collection, or what a picture is.
        names: (N,) of the images.
    """

    logits: np.ndarray
    features: np.ndarray
    faults: Sequence[str | None]
    labels: np.ndarray
    groups: Sequence[str]
    kinds: Sequence[str]
    names: Sequence[str] = field(default=())

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, chosen: np.ndarray) -> Outputs:
        """Those of the pictures that are ``chosen``, (N,) bool."""

        def part(values: Any) -> Any:
            if isinstance(values, np.ndarray):
                return values[chosen]
            return [value for value, wanted in zip(values, chosen, strict=bool(values)) if wanted]

        return Outputs(**{column.name: part(getattr(self, column.name)) for column in fields(self)})

    def views(self, mirror: bool) -> np.ndarray:
        """Logits of the views that an answer averages: (N, 1, 4), or (N, 2, 4) with ``mirror``."""
        return self.logits if mirror else self.logits[:, :1]


def fit_trust(
    weights_sha256: str,
    stage: str,
    *,
    validation: Outputs,
    known: Outputs,
    unseen: Outputs | None = None,
    unseen_unlikeness: np.ndarray | None = None,
    disturbed: Outputs | None = None,
    foreign: Outputs | None = None,
    labels: Sequence[str] = LABELS,
) -> tuple[Trust, tuple[np.ndarray, np.ndarray] | None]:
    """Fit calibration, prediction sets and both checks.

    Args:
        weights_sha256: of the weights that gave the outputs.
        stage: of ``run_pytorch.stage_of``.
        validation: of slices that trained nothing, of every collection; those of unknown type calibrate nothing.
        known: of training slices of every collection.
        unseen: what models of the same recipe gave for families of collections that were left out of their training.
            They widen the prediction sets to what a scanner never seen needs.
        unseen_unlikeness: of these slices, (N,): of the checks of the models that gave them.
        disturbed: of slices with artefacts, which are brain MRI all the same.
        foreign: of pictures that are no brain MRI; None leaves that check out. Kinds whose name begins with
            ``head-ct`` are one group, all others another.
        labels: the classes, in output order.

    Returns:
        The trust, and of ``fit_brain_mri`` what is said of known, validation and disturbed slices, (N,), and of foreign
        pictures, (M,), by fits without their kinds; None without foreign pictures.
    """
    counts = np.bincount(validation.labels[validation.labels >= 0], minlength=len(labels))
    if not counts.all():
        raise UserError(
            f"the validation part has no {labels[int(counts.argmin())]} slice; calibration needs every class"
        )
    familiar = fit_familiar(known, validation, stage)
    unlikeness = familiar.unlikeness(validation.features), unseen_unlikeness
    fits = (fit_calibration(validation, unseen, *unlikeness, mirror=mirror) for mirror in (False, True))
    single, mirrored = (replace(fit, labels=labels) for fit in fits)
    brain_mri, left_out = None, None
    if foreign:
        brain = [part for part in (known, validation, disturbed) if part]
        features, kinds = np.concatenate([part.features for part in brain]), [k for part in brain for k in part.kinds]
        groups = [HEAD_CT if kind.lower().startswith(HEAD_CT) else "other" for kind in foreign.kinds]
        brain_mri, *left_out = fit_brain_mri(features, kinds, foreign.features, foreign.kinds, groups)
    return Trust(weights_sha256, single, mirrored, familiar, brain_mri, {}), left_out


def fit_familiar(known: Outputs, validation: Outputs, stage: str) -> InDistribution | KnownCollections:
    """Fit the check that a slice is like those that the model knows; arguments of ``fit_trust``."""
    return fit_in_distribution(known.features, known.kinds, validation.features, validation.kinds, stage)


def fit_calibration(
    validation: Outputs,
    unseen: Outputs | None,
    unlikeness: np.ndarray,
    unseen_unlikeness: np.ndarray | None,
    *,
    mirror: bool,
) -> Calibration:
    """Fit the calibration of the plain, or the mirrored answer; collections weigh alike.

    Familiar and unfamiliar slices have a temperature and thresholds of their own, so that the doubt about other
    scanners does not blur the answers on known ones. That of familiar slices is the temperature of ``validation``; the
    other is that of the unfamiliar slices of ``unseen``, and at least 1: what is known of some scanners must not make
    an answer on another surer than the network itself is. See ``fit_trust``.
    """
    typed = validation.labels >= 0
    ours = validation.select(typed)
    logits, labels, kinds, unlike = ours.views(mirror), ours.labels, list(ours.kinds), unlikeness[typed]
    temperatures = np.array([fit_temperature(logits, labels, alike(kinds))] * 2)
    if unseen:
        typed = unseen.labels >= 0
        theirs = unseen.select(typed)
        logits, labels = np.concatenate([logits, theirs.views(mirror)]), np.concatenate([labels, theirs.labels])
        kinds += [f"{kind}, unseen" for kind in theirs.kinds]
        unlike = np.concatenate([unlike, unseen_unlikeness[typed]])
        strange = theirs.select(is_unfamiliar(unseen_unlikeness[typed]))
        if len(strange):
            temperatures[1] = fit_temperature(strange.views(mirror), strange.labels, alike(strange.kinds))
    temperatures[1] = max(temperatures[1], 1.0)
    weights, unfamiliar = alike(kinds), is_unfamiliar(unlike)
    fits = [
        fit_thresholds(logits[own], labels[own], weights[own], temperature)
        for own, temperature in zip((~unfamiliar, unfamiliar), temperatures, strict=True)
    ]
    return Calibration(temperatures, {coverage: np.stack([fit[coverage] for fit in fits]) for coverage in COVERAGES})


def fit_temperature(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Return the temperature of the greatest likelihood.

    Args:
        logits: (N, V, 4), V views a slice.
        labels: (N,) class indices.
        weights: (N,) of the slices, above 0.
    """

    def loss(log_temperature: float) -> float:
        scores = _scores(logits, labels, math.exp(log_temperature))
        return float(-np.average(np.log(np.maximum(1 - scores, 1e-12)), weights=weights))

    return math.exp(minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded").x)


def fit_thresholds(
    logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, temperature: float
) -> dict[int, np.ndarray]:
    """Return for each of ``COVERAGES`` the conformal thresholds (4,), a class each; arguments as above."""
    scores = _scores(logits, labels, temperature)
    of_class = [labels == c for c in range(logits.shape[-1])]
    return {
        coverage: np.array([conformal_threshold(scores[own], coverage / 100, weights[own]) for own in of_class])
        for coverage in COVERAGES
    }


def _scores(logits: np.ndarray, labels: np.ndarray, temperature: float) -> np.ndarray:
    """1 - p of the true class, (N,)."""
    return 1 - softmax(logits, temperature)[np.arange(len(labels)), labels]


def conformal_threshold(scores: np.ndarray, coverage: float, weights: np.ndarray) -> float:
    """Return the lowest of n scores with ``coverage`` of the weight at or below it; 1 (always in) if n is too small.

    The new slice has the mean weight, so that with equal weights it is the ceil((n + 1) coverage)-th smallest: a slice
    exchangeable with the n has a score at most this with a probability of at least ``coverage`` (Papadopoulos et al.
    2002; weighted: Tibshirani et al. 2019). Slices of one patient are alike, so that here it holds on average over
    patients only.
    """
    if not len(scores):
        return 1.0
    order = np.argsort(scores)
    reached = np.cumsum(weights[order]) / (weights.sum() + weights.mean())
    # 1e-9: 0.9 * 20 is 18.000000000000004 and must not count as above 18
    enough = reached >= coverage - 1e-9
    return float(scores[order][np.argmax(enough)]) if enough.any() else 1.0
