"""The answer for a volume on one page of PDF: no name, no date, no identifier of the patient or of the examination.

``report_pdf(prediction, shown, model_name)`` gives the file's bytes.
"""

from __future__ import annotations

import hashlib
import textwrap
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from ..images.sequence import SEQUENCE_TITLES
from ..labels import NO_TUMOR
from ..trust.decision import DECISIONS, NOT_A_BRAIN_MRI
from .examination_words import KEY_SLICES, SIDES_HIDDEN, finding, heading, position, slice_words, why
from .report_page import ACCENT, GREY, INK, PALE, draw_bars, new_page, page_pdf, write, write_facts, write_lines

if TYPE_CHECKING:
    from ..inference.study import StudyPrediction
    from ..inference.volume import VolumePrediction
    from .examination_picture import Shown

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
    return page_pdf(lambda: report_figure(prediction, shown, model_name, together), "Examination")


def report_figure(
    prediction: VolumePrediction, shown: Shown, model_name: str, together: StudyPrediction | None = None
) -> Figure:
    """Draw the page; arguments as of ``report_pdf``."""
    figure = new_page("examination")
    write(figure, 0.885, heading(prediction), 9, colour=GREY)
    write(figure, 0.853, finding(prediction), 20, bold=True)
    bottom = write_lines(figure, 0.828, [why(prediction)])
    draw_bars(figure, prediction, bottom)
    _facts(figure, prediction, model_name, bottom)
    _profile(figure, prediction)
    if prediction.decision != NOT_A_BRAIN_MRI:
        _pictures(figure, prediction, shown)
    write_lines(figure, 0.165, [*_together(together), *_warnings(prediction)], size=8)
    return figure


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
    write_facts(figure, bottom, facts)


def _profile(figure: Figure, prediction: VolumePrediction) -> None:
    axes = figure.add_axes((0.08, 0.47, 0.84, 0.12))
    axes.set_title("P(tumour) of each slice; pale slices do not count, key slices are dark", fontsize=8.5, loc="left",
                   color=GREY)  # fmt: skip
    key = prediction.key_slices
    colours = [ACCENT if s.index in key else "#94a3b8" if s.used else PALE for s in prediction.slices]
    axes.bar([s.index for s in prediction.slices], [s.p_tumour for s in prediction.slices], 0.9, color=colours)
    axes.set_xlim(-0.5, prediction.volume.array.shape[prediction.slice_axis] - 0.5)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    axes.set_xlabel("slice, counted from 0", fontsize=8, color=GREY)
    axes.tick_params(labelsize=7.5, colors=GREY)
    axes.spines[["top", "right"]].set_visible(False)


def _pictures(figure: Figure, prediction: VolumePrediction, shown: Shown) -> None:
    by_index = {slice_.index: slice_ for slice_ in prediction.slices}
    for column, index in enumerate(prediction.key_slices[:KEY_SLICES]):
        axes = figure.add_axes((0.08 + 0.29 * column, 0.2, 0.26, 0.2))
        axes.imshow(shown.picture(shown.place(index)), interpolation="bilinear")
        axes.set_axis_off()
        words = slice_words(by_index[index], prediction)
        axes.set_title(textwrap.fill(words, 36), fontsize=7.5, loc="left", color=INK)
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
