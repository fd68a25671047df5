"""A model's figures on one part of a data set: those of ``brain-tumor-mri evaluate``, and those that end a training.

Both go through ``TumorClassifier``, so a figure is of what users run: float32, the model's own preprocessing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets
    import numpy as np

    from ..inference.classifier import TumorClassifier


def predict_split(
    classifier: TumorClassifier, split: datasets.Dataset, *, progress: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Run the classifier over one split.

    Returns:
        Probabilities (N, 4) float64 and labels (N,) int64, in the split's order.
    """
    import datasets
    import numpy as np
    from rich.console import Console
    from rich.progress import track

    from ..labels import LABELS

    images = split.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    sources = (row["image"]["bytes"] or row["image"]["path"] for row in images)
    predictions = track(
        classifier.predict_stream(sources),
        "Evaluating",
        total=len(split),
        disable=not progress,
        console=Console(stderr=True),
        transient=True,
    )
    probabilities = [[prediction.probabilities[label] for label in LABELS] for prediction in predictions]
    return np.asarray(probabilities), np.asarray(split["label"][:])


def split_figures(probabilities: np.ndarray, labels: np.ndarray, groups: Sequence[str]) -> dict[str, Any]:
    """Return :func:`~.metrics.classification_figures` by the project's metric, intervals over groups."""
    from .metrics import TumorClassificationMetric

    return TumorClassificationMetric().compute(predictions=probabilities, references=labels, groups=groups)


def evaluate_split(classifier: TumorClassifier, split: datasets.Dataset, *, progress: bool = False) -> dict[str, Any]:
    """Return :func:`~.metrics.classification_figures` on one split, intervals over its groups."""
    probabilities, labels = predict_split(classifier, split, progress=progress)
    return split_figures(probabilities, labels, split["group"][:])


def evaluate_external(
    classifier: TumorClassifier,
    tumours: datasets.DatasetDict,
    splits: datasets.DatasetDict,
    *,
    with_threshold: bool = True,
    progress: bool = False,
) -> dict[str, Any]:
    """Return :func:`~brain_tumor_mri.evaluation.metrics.external_figures`, the threshold chosen on validation slices.

    Args:
        classifier: the model.
        tumours: of :func:`~brain_tumor_mri.data.br35h.load_external`; its test part is measured.
        splits: of :func:`~brain_tumor_mri.data.slices.load_slices`; their ``notumor`` slices are the healthy ones.
        with_threshold: whether the validation part, which did not train, may choose a threshold.
        progress: show a bar on stderr.
    """
    import numpy as np

    from ..labels import LABEL2ID, NO_TUMOR
    from .metrics import external_figures

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
