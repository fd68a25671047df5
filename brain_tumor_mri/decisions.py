"""Whether an answer is to be used: the three decisions, and the coverages of the prediction sets; imports nothing."""

from __future__ import annotations

from collections.abc import Sequence

ANSWER = "answer"
UNCERTAIN = "uncertain"
NOT_A_BRAIN_MRI = "not-a-brain-mri"
DECISIONS = {ANSWER: "answer", UNCERTAIN: "uncertain", NOT_A_BRAIN_MRI: "not a brain MRI"}
"""Decision -> as people read it."""

COVERAGES = (90, 95)
"""Percent of slices whose prediction set is to hold the true class."""
DEFAULT_COVERAGE = 95


def decide(prediction_set: Sequence[str], unlikeness: float, fault: str | None) -> tuple[str, str | None]:
    """Return the decision, one of ``DECISIONS``, and the reason for a refusal.

    Args:
        prediction_set: the classes left; more than one makes the answer uncertain.
        unlikeness: of ``trust.InDistribution.unlikeness``; above 1 the picture is refused.
        fault: of ``trust.picture_fault``; a fault is a refusal.
    """
    if fault:
        return NOT_A_BRAIN_MRI, fault
    if not unlikeness <= 1:  # NaN, as of a network that overflowed, is no likeness
        return NOT_A_BRAIN_MRI, f"it is unlike the slices that the model knows ({unlikeness:.2f}, at most 1 is allowed)"
    return (ANSWER if len(prediction_set) == 1 else UNCERTAIN), None
