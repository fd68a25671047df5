"""The answer for a volume on one page of PDF: no name, no date, no identifier of the patient or of the examination.

By matplotlib, as it is there for the plots; ``report_pdf(prediction, shown, model_name)`` gives the file's bytes.
"""

from __future__ import annotations

import hashlib
import io
import textwrap
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure

from ..images.sequence import SEQUENCE_TITLES
from ..labels import NO_TUMOR, RESEARCH_NOTICE, TITLES
from ..trust.decision import DECISIONS, NOT_A_BRAIN_MRI, UNFAMILIAR
from .examination_words import KEY_SLICES, SIDES_HIDDEN, finding, heading, position, slice_words, why

if TYPE_CHECKING:
    from ..inference.study import StudyPrediction
    from ..inference.volume import VolumePrediction
    from .examination_picture import Shown

_A4 = (8.27, 11.69)  # inches
_INK, _GREY, _ACCENT, _PALE = "#1e293b", "#526075", "#0e7490", "#cbd5e1"
_MOST_WARNINGS = 6


def report_pdf(
    prediction: VolumePrediction, shown: Shown, model_name: str, together: StudyPrediction | None = None
) -> bytes:
    """Return the page as a PDF.

    Args:
        prediction: of a volume that was answered.
        shown: the same.
        model_name: the weights that answered.
        together: the answer for all series of the patient, where there are several.
    """
    buffer = io.BytesIO()
    # text that can be searched and copied; no time in the file
    with matplotlib.rc_context({"pdf.fonttype": 42, "font.family": "DejaVu Sans", "text.parse_math": False}):
        figure = report_figure(prediction, shown, model_name, together)
        figure.savefig(
            buffer, format="pdf", metadata={"CreationDate": None, "Title": "Examination (research use only)"}
        )
    return buffer.getvalue()


def report_figure(
    prediction: VolumePrediction, shown: Shown, model_name: str, together: StudyPrediction | None = None
) -> Figure:
    """Draw the page; arguments as of ``report_pdf``."""
    figure = Figure(figsize=_A4, facecolor="white")
    FigureCanvasPdf(figure)
    _write(figure, 0.955, "Brain tumour MRI classifier: examination", 15, bold=True)
    _write(figure, 0.928, RESEARCH_NOTICE, 8.5, colour="#5c3d00", box=True)
    _write(figure, 0.885, heading(prediction), 9, colour=_GREY)
    _write(figure, 0.853, finding(prediction), 20, bold=True)
    bottom = _lines(figure, 0.828, [why(prediction)])
    _bars(figure, prediction, bottom)
    _facts(figure, prediction, model_name, bottom)
    _profile(figure, prediction)
    if prediction.decision != NOT_A_BRAIN_MRI:
        _pictures(figure, prediction, shown)
    _lines(figure, 0.165, [*_together(together), *_warnings(prediction)], size=8)
    _write(figure, 0.03, "Made by brain-tumor-mri. No names, dates or identifiers are in this file.", 7.5, colour=_GREY)
    return figure


def _write(
    figure: Figure, y: float, text: str, size: float, *, x: float = 0.08, colour: str = _INK, bold: bool = False,
    box: bool = False,
) -> None:  # fmt: skip
    back = {"facecolor": "#fdf3d7", "edgecolor": "#ecd59a", "boxstyle": "round,pad=0.5"} if box else None
    weight = "bold" if bold else "normal"
    figure.text(x, y, text, fontsize=size, color=colour, weight=weight, va="center", bbox=back)


def _lines(figure: Figure, y: float, lines: list[str], size: float = 9) -> float:
    """Write lines from y downwards, wrapped; return where they end."""
    for line in lines:
        for part in textwrap.wrap(line, int(108 * 9 / size)) or [""]:
            _write(figure, y, part, size)
            y -= 0.0017 * size
    return y


def _bars(figure: Figure, prediction: VolumePrediction, bottom: float) -> None:
    axes = figure.add_axes((0.23, bottom - 0.125, 0.22, 0.11))
    if prediction.decision in (UNFAMILIAR, NOT_A_BRAIN_MRI):
        axes.set_title("Nobody measured what these numbers are worth here", fontsize=7.5, color=_GREY, x=0.2)
    values = [100 * prediction.probabilities[name] for name in TITLES]
    colours = [_ACCENT if name == prediction.label else "#94a3b8" for name in TITLES]
    axes.barh(list(TITLES.values()), values, color=colours, height=0.5)
    for row, value in enumerate(values):
        axes.text(value + 2, row, f"{value:.1f} %", va="center", fontsize=8, color=_INK)
    axes.set_xlim(0, 125)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0, labelsize=8.5, labelcolor=_INK)
    axes.xaxis.set_visible(False)
    axes.spines[:].set_visible(False)


def _facts(figure: Figure, prediction: VolumePrediction, model_name: str, bottom: float) -> None:
    volume = prediction.volume
    skull = {True: "removed", False: "present", None: "not told"}[prediction.skull_stripped]
    digest = hashlib.sha256(volume.array.tobytes("F")).hexdigest()
    facts = [
        ("P(tumour)", f"{100 * (1 - prediction.probabilities[NO_TUMOR]):.1f} %"),
        ("Sequence", SEQUENCE_TITLES.get(prediction.sequence, prediction.sequence)),
        ("Slices", f"{volume.array.shape[prediction.slice_axis]}, {prediction.plane}"),
        ("Skull", skull),
        ("Voxels", " × ".join(map(str, volume.array.shape))),
        ("Spacing", " × ".join(f"{step:.2f}" for step in volume.spacing) + " mm"),
        ("Model", textwrap.shorten(model_name, 40, placeholder="...")),
        ("SHA-256", f"{digest[:16]} (of the voxels)"),
    ]
    for row, (name, value) in enumerate(facts):
        y = bottom - 0.022 - 0.0145 * row
        _write(figure, y, name, 8, x=0.55, colour=_GREY)
        _write(figure, y, value, 8, x=0.64)


def _profile(figure: Figure, prediction: VolumePrediction) -> None:
    axes = figure.add_axes((0.08, 0.47, 0.84, 0.12))
    axes.set_title("P(tumour) of each slice; pale slices do not count, key slices are dark", fontsize=8.5, loc="left",
                   color=_GREY)  # fmt: skip
    key = prediction.key_slices
    colours = [_ACCENT if s.index in key else "#94a3b8" if s.used else _PALE for s in prediction.slices]
    axes.bar([s.index for s in prediction.slices], [s.p_tumour for s in prediction.slices], 0.9, color=colours)
    axes.set_xlim(-0.5, prediction.volume.array.shape[prediction.slice_axis] - 0.5)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    axes.set_xlabel("slice, counted from 0", fontsize=8, color=_GREY)
    axes.tick_params(labelsize=7.5, colors=_GREY)
    axes.spines[["top", "right"]].set_visible(False)


def _pictures(figure: Figure, prediction: VolumePrediction, shown: Shown) -> None:
    by_index = {slice_.index: slice_ for slice_ in prediction.slices}
    for column, index in enumerate(prediction.key_slices[:KEY_SLICES]):
        axes = figure.add_axes((0.08 + 0.29 * column, 0.2, 0.26, 0.2))
        axes.imshow(shown.picture(shown.place(index)), interpolation="bilinear")
        axes.set_axis_off()
        words = slice_words(by_index[index], prediction)
        axes.set_title(textwrap.fill(words, 36), fontsize=7.5, loc="left", color=_INK)
        if prediction.volume.doubt is None:
            left, right = ("A", "P") if shown.axis == 0 else ("R", "L")
            for x, ha, letter in ((0.02, "left", left), (0.98, "right", right)):
                axes.text(x, 0.5, letter, transform=axes.transAxes, color="white", weight="bold", ha=ha, fontsize=9)


def _together(study: StudyPrediction | None) -> list[str]:
    if study is None or study.error is not None:
        return []
    reason = f": {study.reason}" if study.reason else ""
    decision = f" ({DECISIONS[study.decision]}{reason})" if study.decision else ""
    return [f"All {len(study.volumes)} series of the patient together: {finding(study).lower()}{decision}."]


def _warnings(prediction: VolumePrediction) -> list[str]:
    given = [*prediction.warnings, *([SIDES_HIDDEN] if prediction.volume.doubt else [])]
    more = [f"and {len(given) - _MOST_WARNINGS} more"] if len(given) > _MOST_WARNINGS else []
    shows_tumour = prediction.label != NO_TUMOR and prediction.decision != NOT_A_BRAIN_MRI
    where = [f"Most suspicious at {position(prediction)}."] if shows_tumour else []
    return [*where, *(f"Warning: {line}" for line in given[:_MOST_WARNINGS]), *more]
