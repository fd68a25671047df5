"""A page of A4 that a report is drawn on, by matplotlib, as it is there for the plots; ``page_pdf`` gives the file."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure

from ..labels import RESEARCH_NOTICE, TITLES
from ..trust.decision import NOT_A_BRAIN_MRI, UNFAMILIAR

if TYPE_CHECKING:
    from ..inference.prediction import Prediction
    from ..inference.volume import VolumePrediction

A4 = (8.27, 11.69)
"""Inches."""
INK, GREY, ACCENT, PALE = "#1e293b", "#526075", "#0e7490", "#cbd5e1"


def new_page(title: str) -> Figure:
    """Return a page with its title, the notice, and at its foot that it names nobody."""
    figure = Figure(figsize=A4, facecolor="white")
    FigureCanvasPdf(figure)
    write(figure, 0.955, f"Brain tumour MRI classifier: {title}", 15, bold=True)
    write(figure, 0.928, RESEARCH_NOTICE, 8.5, colour="#5c3d00", box=True)
    write(figure, 0.03, "Made by brain-tumor-mri. No names, dates or identifiers are in this file.", 7.5, colour=GREY)
    return figure


def page_pdf(draw: Callable[[], Figure], title: str) -> bytes:
    """Return what ``draw`` draws as a PDF whose text can be searched and copied; no time is in it."""
    buffer = io.BytesIO()
    # a dollar sign in a name is a dollar sign
    settings = {"pdf.fonttype": 3, "font.family": "DejaVu Sans", "text.parse_math": False}
    with matplotlib.rc_context(settings):
        draw().savefig(buffer, format="pdf", metadata={"CreationDate": None, "Title": f"{title} (research use only)"})
    return buffer.getvalue()


def write(
    figure: Figure, y: float, text: str, size: float, *, x: float = 0.08, colour: str = INK, bold: bool = False,
    box: bool = False,
) -> None:  # fmt: skip
    """Write one line at a height of the page, 0..1 from its foot."""
    back = {"facecolor": "#fdf3d7", "edgecolor": "#ecd59a", "boxstyle": "round,pad=0.5"} if box else None
    weight = "bold" if bold else "normal"
    figure.text(x, y, text, fontsize=size, color=colour, weight=weight, va="center", bbox=back)


def write_lines(figure: Figure, y: float, lines: list[str], size: float = 9) -> float:
    """Write lines from y downwards, wrapped; return where they end."""
    for line in lines:
        for part in textwrap.wrap(line, int(108 * 9 / size)) or [""]:
            write(figure, y, part, size)
            y -= 0.0017 * size
    return y


def write_facts(figure: Figure, y: float, facts: list[tuple[str, str]]) -> None:
    """Write names and values in the right half of the page, from y downwards."""
    for row, (name, value) in enumerate(facts):
        write(figure, y - 0.022 - 0.0145 * row, name, 8, x=0.55, colour=GREY)
        write(figure, y - 0.022 - 0.0145 * row, value, 8, x=0.64)


def draw_bars(figure: Figure, prediction: Prediction | VolumePrediction, top: float) -> None:
    """Draw the probabilities in the left half of the page, from ``top`` downwards."""
    axes = figure.add_axes((0.23, top - 0.125, 0.22, 0.11))
    if prediction.decision in (UNFAMILIAR, NOT_A_BRAIN_MRI):
        axes.set_title("Nobody measured what these numbers are worth here", fontsize=7.5, color=GREY, x=0.2)
    values = [100 * value for value in prediction.probabilities.values()]
    colours = [ACCENT if name == prediction.label else "#94a3b8" for name in prediction.probabilities]
    axes.barh([TITLES[name] for name in prediction.probabilities], values, color=colours, height=0.5)
    for row, value in enumerate(values):
        axes.text(value + 2, row, f"{value:.1f} %", va="center", fontsize=8, color=INK)
    axes.set_xlim(0, 125)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0, labelsize=8.5, labelcolor=INK)
    axes.xaxis.set_visible(False)
    axes.spines[:].set_visible(False)
