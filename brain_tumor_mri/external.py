"""Tumours of a collection that the Kaggle set has none of: the ``external`` protocol, and training on half of them.

Br35H gives the Kaggle set three quarters of its published ``notumor`` images and, of its tumours, next to none: only a
model that sees tumours, rather than collections, finds these. Their type is unknown: every label is ``ANY_TUMOR``.
``load_external(folder)`` gives the parts of ``data_scripts/splits/br35h.csv``; ``external_figures`` the protocol's.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import UserError
from .labels import ANY_TUMOR, LABEL2ID, NO_TUMOR
from .protocols import PARTS

if TYPE_CHECKING:
    import datasets

SPLIT_FILE = Path(__file__).parents[1] / "data_scripts" / "splits" / "br35h.csv"
IN_KAGGLE = "in-kaggle"
"""Part of slices that are, or are grouped with, a copy of a Kaggle image: neither trained on nor measured."""
TEST_SHARE, VALIDATION_SHARE = 0.5, 0.1
TARGET_SPECIFICITY = 0.95


@dataclass
class ExternalArguments:
    """Tumours of unknown type from another collection, added to the training part."""

    external_dir: str | None = field(
        default=None, metadata={"help": "The Br35H tumours (images/): some train as 'some tumour', half only measure."}
    )
    external_train: bool = field(
        default=True, metadata={"help": "Train on the training part of --external_dir; else only measure on it."}
    )
    external_repeats: int = field(default=3, metadata={"help": "How often an epoch draws each of them."})

    def __post_init__(self) -> None:
        if self.external_repeats < 1:
            raise UserError(f"--external_repeats {self.external_repeats}: give 1 or more")


@dataclass(frozen=True)
class ExternalRow:
    """A line of br35h.csv: the group of near-copies, and the part: train, validation, test or in-kaggle."""

    group: str
    part: str


def load_external(folder: str | Path) -> datasets.DatasetDict:
    """Load the external tumours.

    Args:
        folder: holds ``images/``, with the file names as published.

    Returns:
        ``train``, ``validation`` and ``test``; columns ``image``, ``label`` (int64, all ``ANY_TUMOR``), ``path`` and
        ``group`` (near-copies, never in two parts). Files that the versioned split does not list are left out.

    Raises:
        UserError: the folder holds none of the listed files.
    """
    import datasets

    root = Path(folder)
    rows = external_rows()
    found = {path: row for path, row in rows.items() if (root / path).is_file()}
    if not found:
        raise UserError(
            f"{root}: holds none of the tumours of {SPLIT_FILE.name}; give --external_dir the folder above images/"
        )
    parts = {}
    for part in PARTS:
        ours = [path for path, row in found.items() if row.part == part]
        table = {
            "image": [str((root / path).resolve()) for path in ours],
            "label": [ANY_TUMOR] * len(ours),
            "path": ours,
            "group": [found[path].group for path in ours],
        }
        parts[part] = datasets.Dataset.from_dict(table).cast_column("image", datasets.Image())
    return datasets.DatasetDict(parts)


def with_external(split: datasets.Dataset, tumours: datasets.Dataset, repeats: int = 1) -> datasets.Dataset:
    """Return a split (of :func:`~brain_tumor_mri.data.load_slices`) followed by ``repeats`` times the tumours.

    The column ``label`` becomes a plain int64, as ``ANY_TUMOR`` names no class.
    """
    import datasets

    plain = split.cast_column("label", datasets.Value("int64"))
    same = tumours.select_columns(plain.column_names).cast(plain.features)
    return datasets.concatenate_datasets([plain, *[same] * repeats])


@cache
def external_rows() -> dict[str, ExternalRow]:
    """Return the versioned split by path; empty where the package is installed without it."""
    if not SPLIT_FILE.is_file():
        return {}
    with SPLIT_FILE.open(newline="", encoding="utf-8") as file:
        return {row["path"]: ExternalRow(row["group"], row["part"]) for row in csv.DictReader(file)}


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
    from .metrics import bootstrap_weights

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


def make_external_split(
    external_dir: str | Path,
    kaggle_dir: str | Path,
    *,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[dict[str, str]]:
    """Group the external tumours by near-copies and deal whole groups to the parts.

    A group with a near-copy in the Kaggle set is left out (``IN_KAGGLE``): its image has a fold there.

    Args:
        external_dir: holds ``images/``.
        kaggle_dir: the Kaggle data set.
        seed: of the order in which groups are dealt.
        progress: as of :func:`~brain_tumor_mri.inventory.take_inventory`.

    Returns:
        Rows of br35h.csv: ``path``, ``group``, ``part``.

    Raises:
        UserError: a folder is missing or holds no image.
    """
    from .duplicates import connected_groups, find_copies
    from .inventory import take_inventory
    from .provenance import LINK_SCORE

    ours = take_inventory(Path(external_dir) / "images", progress=progress)
    kaggle = take_inventory(kaggle_dir, progress=progress)
    count = len(ours.thumbnails)
    pairs = find_copies(np.concatenate([ours.thumbnails, kaggle.thumbnails]), min_score=LINK_SCORE)
    inside = pairs.select(pairs.second < count)
    groups = connected_groups(count, inside.first, inside.second)
    across = pairs.select((pairs.first < count) & (pairs.second >= count))
    linked = set(groups[across.first].tolist())

    images = np.bincount(groups[ours.pixels])
    free = [group for group in range(len(images)) if group not in linked]
    order = np.random.default_rng(seed).permutation(free).tolist()
    part_of = dict.fromkeys(linked, IN_KAGGLE)
    wanted = {"test": TEST_SHARE, "validation": VALIDATION_SHARE, "train": 1 - TEST_SHARE - VALIDATION_SHARE}
    dealt = dict.fromkeys(wanted, 0)
    for group in sorted(order, key=lambda group: -images[group]):  # stable: shuffled among groups of one size
        part_of[group] = max(wanted, key=lambda part: wanted[part] * images[free].sum() - dealt[part])
        dealt[part_of[group]] += int(images[group])
    return [
        {"path": f"images/{path}", "group": f"b{groups[pixel] + 1:03d}", "part": part_of[int(groups[pixel])]}
        for path, pixel in zip(ours.paths, ours.pixels, strict=True)
    ]
