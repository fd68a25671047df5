"""The plots of a training run, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .labels import LABELS, TITLES


def plot_training_curves(rows: Sequence[dict[str, float]], path: Path, title: str) -> None:
    """Draw loss and accuracy by epoch, training and validation, into a PNG."""
    figure_class = matplotlib_figure()
    figure = figure_class(figsize=(10, 4), layout="constrained")
    figure.suptitle(title)
    epochs = [row["epoch"] for row in rows]
    for axes, kind in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part, style in (("train", "C0o--"), ("validation", "C1o-")):
            axes.plot(epochs, [row[f"{part}_{kind}"] for row in rows], style, markersize=3, label=part)
        axes.set(xlabel="epoch", ylabel=kind)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def plot_confusion_matrix(figures: dict[str, Any], path: Path, title: str) -> None:
    """Draw counts and row percentages of ``figures['confusion_matrix']`` into a PNG."""
    import numpy as np

    counts = np.asarray(figures["confusion_matrix"])
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = matplotlib_figure()(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    names = [TITLES[name] for name in LABELS]
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    for (i, j), n in np.ndenumerate(counts):
        colour = "white" if share[i, j] > 0.5 else "black"
        axes.text(j, i, f"{n}\n{100 * share[i, j]:.1f} %", ha="center", va="center", color=colour)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    figure.savefig(path, dpi=120)


def matplotlib_figure() -> type:
    """Return matplotlib's ``Figure``, which draws without pyplot's global state or a display."""
    from matplotlib.figure import Figure

    return Figure
