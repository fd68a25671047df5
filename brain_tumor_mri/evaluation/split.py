"""A model's figures on one part of a data set: those of ``brain-tumor-mri evaluate``, and those that end a training.

All go through ``TumorClassifier``, so a figure is of what users run: float32, the model's own preprocessing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from rich.console import Console
from rich.progress import track

from ..errors import UserError
from ..labels import LABEL2ID, LABELS, NO_TUMOR
from .collections import collection_figures
from .metrics import external_figures, measured

if TYPE_CHECKING:
    from ..inference.classifier import TumorClassifier
    from ..inference.prediction import Prediction


def predict_split(
    classifier: TumorClassifier, split: datasets.Dataset, *, progress: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Run the classifier over one split.

    Returns:
        Probabilities (N, C) float64 and labels (N,) int64, in the split's order.
    """
    probabilities = [_row(prediction) for prediction in _predictions(classifier, split, progress)]
    return np.asarray(probabilities), np.asarray(split["label"][:])


def _predictions(
    classifier: TumorClassifier, split: datasets.Dataset, progress: bool, on_error: str = "raise"
) -> Iterator[Prediction]:
    images = split.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    sources = (row["image"]["bytes"] or row["image"]["path"] for row in images)
    return iter(
        track(
            classifier.predict_stream(sources, on_error=on_error),
            "Evaluating",
            total=len(split),
            disable=not progress,
            console=Console(stderr=True),
            transient=True,
        )
    )


def _row(prediction: Prediction) -> list[float]:
    return list(prediction.probabilities.values())


def split_figures(
    probabilities: np.ndarray, labels: np.ndarray, groups: Sequence[str], names: Sequence[str] = LABELS
) -> dict[str, Any]:
    """Return :func:`~.metrics.classification_figures` by the project's metric, intervals over groups."""
    return measured(probabilities, labels, groups=groups, names=names)


def evaluate_split(classifier: TumorClassifier, split: datasets.Dataset, *, progress: bool = False) -> dict[str, Any]:
    """Return :func:`~.metrics.classification_figures` on one split, intervals over its groups."""
    answers = predict_split(classifier, split, progress=progress)
    return split_figures(*answers, split["group"][:], classifier.labels)


def evaluate_external(
    classifier: TumorClassifier,
    tumours: datasets.DatasetDict,
    splits: datasets.DatasetDict,
    *,
    with_threshold: bool = True,
    progress: bool = False,
) -> dict[str, Any]:
    """Return :func:`~.metrics.external_figures` of the test parts; validation slices choose a threshold."""

    def healthy(part: str) -> datasets.Dataset:
        labels = np.asarray(splits[part]["label"][:])
        return splits[part].select(np.flatnonzero(labels == LABEL2ID[NO_TUMOR]))

    parts = {"tumours": tumours["test"], "healthy": healthy("test")}
    if with_threshold:
        parts["validation_healthy"] = healthy("validation")
    probabilities = {name: predict_split(classifier, part, progress=progress)[0] for name, part in parts.items()}
    return external_figures(
        **probabilities, tumour_groups=parts["tumours"]["group"][:], healthy_groups=parts["healthy"]["group"][:]
    )


def evaluate_collections(
    asked: Iterable[tuple[TumorClassifier, datasets.Dataset]], folder: str | Path, *, progress: bool = False
) -> dict[str, Any]:
    """Measure models on slices of further collections, pooled; a slice that cannot be read is left out and listed.

    Returns:
        :func:`~brain_tumor_mri.evaluation.collections.collection_figures`, with ``data``: ``name`` of the folder,
        ``fingerprint`` (SHA-256 over paths, labels, groups and contents of the slices), ``counts`` by collection and
        label, and ``unreadable`` (``path``, ``reason``).
    """
    root, digest = Path(folder), hashlib.sha256()
    parts: list[datasets.Dataset] = []
    rows: list[list[float]] = []
    unreadable: list[dict[str, str]] = []
    for classifier, slices in asked:
        kept = []
        for i, prediction in enumerate(_predictions(classifier, slices, progress, on_error="record")):
            if prediction.error is None:
                kept.append(i)
                rows.append(_row(prediction))
            else:
                unreadable.append({"path": slices["path"][i], "reason": prediction.error})
        parts.append(slices.select(kept))
    if not rows:
        first = f": {unreadable[0]['path']}: {unreadable[0]['reason']}" if unreadable else ""
        raise UserError(
            f"{root}: none of its slices of a class can be read{first}; give --collections_dir another folder"
        )
    answered = datasets.concatenate_datasets(parts)
    columns = (answered[name][:] for name in ("path", "true_label", "group"))
    for path, label, group in sorted(zip(*columns, strict=True)):
        content = hashlib.sha256((root / path).read_bytes()).hexdigest()
        digest.update(f"{path}|{label}|{group}|{content}\n".encode())
    counts: dict[str, Counter[str]] = {}
    for name, label in zip(answered["collection"][:], answered["true_label"][:], strict=True):
        counts.setdefault(name, Counter())[label] += 1
    data = {"name": root.resolve().name, "fingerprint": digest.hexdigest(), "counts": counts, "unreadable": unreadable}
    return collection_figures(np.asarray(rows), answered) | {"data": data}
