"""What the page and the report say of a volume's answer, in the same words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..labels import CLASSES, TITLES
from ..trust.decision import ANSWER, NOT_A_BRAIN_MRI, UNCERTAIN, UNFAMILIAR
from .fragments import percent

if TYPE_CHECKING:
    from ..inference.study import StudyPrediction
    from ..inference.volume import SliceAnswer, VolumePrediction

KEY_SLICES = 3
"""Of the slices that speak for the answer, shown; the command line names as many."""
SIDES_HIDDEN = "left and right are not marked, as the file does not tell them reliably"
_HEADINGS = {
    ANSWER: "Model's answer for the whole volume",
    UNCERTAIN: "Uncertain",
    UNFAMILIAR: "Unfamiliar: an answer not to rely on",
    NOT_A_BRAIN_MRI: "No answer",
    None: "Most probable of the four; not checked",
}
_DIRECTIONS = {"sagittal": ("left", "right"), "coronal": ("posterior", "anterior"), "axial": ("inferior", "superior")}
_DESCRIPTIONS = {c.name: c.description for c in CLASSES}


def heading(prediction: VolumePrediction) -> str:
    """How far to trust the answer."""
    return _HEADINGS[prediction.decision]


def finding(prediction: VolumePrediction | StudyPrediction) -> str:
    """The answer in a few words."""
    return "Not a brain MRI" if prediction.decision == NOT_A_BRAIN_MRI else TITLES[str(prediction.label)]


def why(prediction: VolumePrediction | StudyPrediction) -> str:
    """The reason for a decision that is no plain answer, else what the class is."""
    if prediction.decision is None:
        return "These weights come without a trust.json: nothing checks whether this is a brain MRI."
    if prediction.decision == ANSWER:
        return _DESCRIPTIONS[str(prediction.label)]
    start = {
        UNCERTAIN: "Not sure",
        UNFAMILIAR: "Do not rely on this",
        NOT_A_BRAIN_MRI: "The model refuses this volume",
    }[prediction.decision]
    return f"{start}: {prediction.reason}."


def position(prediction: VolumePrediction, slice_: SliceAnswer | None = None) -> str:
    """``slice 12, 34 mm superior, on the left`` of a slice, by default of the first key slice."""
    by_index = {s.index: s for s in prediction.slices}
    slice_ = slice_ or by_index[prediction.key_slices[0]]
    low, high = _DIRECTIONS[str(prediction.plane)]
    words = [f"slice {slice_.index}"]
    if prediction.volume is None or prediction.volume.doubt is None:
        where = f"{abs(slice_.position_mm):.0f} mm {high if slice_.position_mm >= 0 else low}"
        # the scanner's centre need not be the head's: a side of the one could be taken for a side of the other
        words.append(f"{where} of the scanner's centre" if prediction.plane == "sagittal" else where)
        if slice_.side:
            words.append("in the middle" if slice_.side == "middle" else f"on the {slice_.side}")
    return ", ".join(words)


def slice_words(slice_: SliceAnswer, prediction: VolumePrediction) -> str:
    """A slice's place and what the model gives it."""
    return f"{position(prediction, slice_).capitalize()}: tumour {percent(slice_.p_tumour)}"
