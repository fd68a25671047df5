"""Whether an answer is to be used: the four decisions, and the coverages of the prediction sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

ANSWER = "answer"
UNCERTAIN = "uncertain"
UNFAMILIAR = "unfamiliar"
NOT_A_BRAIN_MRI = "not-a-brain-mri"
DECISIONS = {
    ANSWER: "answer", UNCERTAIN: "uncertain", UNFAMILIAR: "unfamiliar", NOT_A_BRAIN_MRI: "not a brain MRI",
}  # fmt: skip
"""Decision -> as people read it."""
COVERAGES = (90, 95)
"""Percent of slices whose prediction set is to hold the true class."""
DEFAULT_COVERAGE = 95
FOREIGN_LIMIT = 0.5
"""Of ``BrainMriCheck.foreign``; above it a picture is refused."""


def is_unfamiliar(unlikeness: Any) -> Any:
    """Whether an unlikeness, a number or an array, is above 1; NaN, as of an overflow, counts as that."""
    return ~np.less_equal(unlikeness, 1)


def decide(
    prediction_set: Sequence[str], unlikeness: float, foreign: float, fault: str | None
) -> tuple[str, str | None]:
    """Return the decision, one of ``DECISIONS``, and the reason for a refusal or a warning.

    Two questions, two answers: what is no brain MRI is refused; a brain MRI unlike those that the model knows is
    answered and flagged, as nothing was measured on its like.

    Args:
        prediction_set: the classes left; more than one makes the answer uncertain.
        unlikeness: of ``Trust.in_distribution``; above 1 the slice is unfamiliar.
        foreign: of ``BrainMriCheck.foreign``; above ``FOREIGN_LIMIT`` the picture is refused.
        fault: of ``picture_fault``; a fault is a refusal.
    """
    if fault:
        return NOT_A_BRAIN_MRI, fault
    if not foreign <= FOREIGN_LIMIT:  # NaN, as of a network that overflowed, is no brain
        return NOT_A_BRAIN_MRI, "it does not look like a brain MRI slice"
    if is_unfamiliar(unlikeness):
        return UNFAMILIAR, "it is unlike the brain MRI that the model knows"
    return (ANSWER if len(prediction_set) == 1 else UNCERTAIN), None


MIN_SIDE = 32
"""Pixels; a smaller picture shows no brain that anyone could read."""
MIN_CONTRAST = 4.0
"""Standard deviation of grey values, 0..255; 700 validation slices had at least 21."""
MAX_COLOUR = 8.0
"""Mean difference of a pixel's red, green and blue from their mean, 0..255; 700 validation slices had at most 2."""


def picture_fault(image: Image.Image) -> str | None:
    """Say why a picture can be no MRI slice whatever the network makes of it: tiny, blank, or in colour; else None.

    Args:
        image: RGB, as ``imaging.load_image`` returns it.
    """
    if min(image.size) < MIN_SIDE:
        return f"it is tiny ({image.width} x {image.height} pixels)"
    pixels = np.asarray(image.resize((64, 64), Image.Resampling.BOX).convert("RGB"), dtype=np.float32)
    grey = pixels.mean(axis=2)
    if grey.std() < MIN_CONTRAST:
        return "it is blank"
    if np.abs(pixels - grey[..., None]).mean() > MAX_COLOUR:
        return "it is in colour"
    return None
