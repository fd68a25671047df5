"""The plots of a training run, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..labels import TITLES
from .tables import model_title


def plot_training_curves(rows: Sequence[dict[str, float]], path: Path, title: str) -> None:
    """Draw loss and accuracy by epoch, training and validation, into a PNG."""
    figure = Figure(figsize=(10, 4), layout="constrained")
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
    counts = np.asarray(figures["confusion_matrix"])
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    names = [TITLES[name] for name in figures["per_class"]]
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    for (i, j), n in np.ndenumerate(counts):
        colour = "white" if share[i, j] > 0.5 else "black"
        axes.text(j, i, f"{n}\n{100 * share[i, j]:.1f} %", ha="center", va="center", color=colour)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    figure.savefig(path, dpi=120)


def plot_stress(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw accuracy by strength into a PNG: a panel a disturbance, undisturbed dashed, share of ``answer`` dotted."""
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    figure.suptitle(f"{records[0]['stress']['n']} disturbed slices, {records[0]['protocol']}, test")
    panels = figure.subplots(3, 4, sharey=True).flat
    for axes, (name, disturbance) in zip(panels, records[0]["data"]["sample"]["disturbances"].items(), strict=False):
        for number, record in enumerate(records):
            colour, stress = f"C{number}", record["stress"]
            levels = stress["disturbances"][name]["levels"]
            strengths = [x["strength"] for x in levels]
            low, value, high = ([100 * x["accuracy"][key] for x in levels] for key in ("low", "value", "high"))
            axes.plot(strengths, value, f"{colour}o-", markersize=3, label=fill(f"{model_title(record)}: accuracy", 34))
            axes.fill_between(strengths, low, high, color=colour, alpha=0.15, linewidth=0)
            clean = 100 * stress["clean"]["accuracy"]["value"]
            axes.axhline(clean, color=colour, linestyle="--", linewidth=1, label=f"undisturbed, {clean:.1f} %")
            if all(x["decisions"] for x in levels):
                shares = [100 * x["decisions"]["answer"] for x in levels]
                axes.plot(strengths, shares, f"{colour}:", label="share decided `answer`")
        ticks = [f"{strength}\n{level:g}" for strength, level in zip(strengths, disturbance["levels"], strict=True)]
        axes.set_xticks(strengths, ticks, fontsize=8)
        axes.set(title=disturbance["title"], ylim=(0, 102))
        axes.grid(alpha=0.3)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.axes[-1].axis("off")
    legend = figure.axes[-1].legend(handles, names, loc="center", fontsize=8, title="%, over strength and parameter")
    legend.set_in_layout(False)  # else a long name pushes the panels together
    figure.savefig(path, dpi=120)


def plot_reliability(figures: dict[str, Any], path: Path, title: str) -> None:
    """Draw the reliability diagram before and after: accuracy against mean confidence of the 15 bins."""
    figure = Figure(figsize=(8.4, 4.2), dpi=120, layout="constrained")
    for place, (when, words) in enumerate((("before", "softmax"), ("after", "calibrated")), start=1):
        axes = figure.add_subplot(1, 2, place)
        bins = figures[when]["reliability"]
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
        axes.plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], color="#0072B2", linewidth=1)
        sizes = [12 + 160 * b["n"] / figures["n"] for b in bins]
        axes.scatter(
            [b["confidence"] for b in bins], [b["accuracy"] for b in bins], s=sizes, color="#0072B2", alpha=0.7
        )
        axes.set(xlim=(0, 1.02), ylim=(0, 1.04), xlabel="mean confidence", ylabel="accuracy" if place == 1 else "")
        axes.set_title(f"{words}: ECE {100 * figures[when]['ece']['value']:.1f} %", fontsize=10)
        axes.set_aspect("equal")
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
    figure.suptitle(f"{title}, test: {figures['n']} slices; area of a point: share of the slices", fontsize=10)
    figure.savefig(path)


def plot_unseen(figures: Mapping[str, dict[str, Any]], path: Path, title: str) -> None:
    """Draw coverage and answers of the ``collections`` of ``evaluation.trust.unseen_figures`` into a PNG."""
    names = list(figures)[::-1]
    figure = Figure(figsize=(9, 1.2 + 0.34 * len(names)), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=10)
    left, right = figure.subplots(1, 2, sharey=True)
    for place, name in enumerate(names):
        covered = figures[name]["covered"]
        left.plot([100 * covered["low"], 100 * covered["high"]], [place, place], color="#0072B2", linewidth=2)
        left.plot(100 * covered["value"], place, "o", color="#0072B2")
    left.axvline(95, color="0.4", linestyle="--", linewidth=1)
    left.set(xlim=(0, 101), xlabel="% of 95 % sets that hold the true class", yticks=range(len(names)))
    left.set_yticklabels([f"{name} ({figures[name]['n']})" for name in names])
    shares = {
        key: np.array([100 * figures[name][key]["value"] for name in names]) for key in ("unfamiliar", "answered")
    }
    rights = np.array([(figures[name]["right"] or {"value": 0})["value"] for name in names]) * shares["answered"]
    parts = {
        "answered, right": (rights, "#009E73"),
        "answered, wrong": (shares["answered"] - rights, "#D55E00"),
        "uncertain": (100 - shares["unfamiliar"] - shares["answered"], "#F0E442"),
        "unfamiliar": (shares["unfamiliar"], "0.8"),
    }
    start = np.zeros(len(names))
    for label, (share, colour) in parts.items():
        right.barh(range(len(names)), share, left=start, color=colour, label=label, height=0.6)
        start += share
    right.set(xlim=(0, 100), xlabel="% of slices")
    figure.legend(loc="outside lower center", ncols=len(parts), fontsize=8, frameon=False)
    figure.savefig(path)
