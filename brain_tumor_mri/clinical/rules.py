"""Which series the node answers, and why: ``judge(folder, first, rules)``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom import Dataset

from ..images.sequence import SEQUENCE_TITLES
from ..images.series import Series, find_series
from .config import PLANES, RULE_KEYS

_BODY_PARTS = ("BRAIN", "HEAD", "SKULL", "HEADNECK", "NECK")
"""Named in a reason; any other is free text, which could be anything."""


def judge(folder: Path, first: Dataset, rules: Sequence[dict[str, list[str]]]) -> tuple[bool, str]:
    """Whether a rule takes a series, and why: what it is, in words that quote no free text of its header.

    Args:
        folder: holds files of the series, one at least.
        first: one of them.
        rules: of ``NodeConfig.accept``.

    Raises:
        UnreadableVolumeError: the files are no images.
    """
    facts = {"modality": str(first.get("Modality") or ""), "body_part": str(first.get("BodyPartExamined") or "")}
    evidence = {}
    if any(_fits(rule, facts) for rule in rules):  # by the header alone, as reports and the like are no volumes
        series = find_series(folder)[0]
        if series.fault:
            return False, series.fault
        facts |= {"sequence": series.sequence.name, "orientation": plane_of(series)}
        evidence["sequence"] = series.sequence.evidence
    for number, rule in enumerate(rules, 1):
        if len(facts) == len(RULE_KEYS) and _fits(rule, facts):
            return True, f"rule {number} fits: {_described(facts, evidence)}"
    return False, f"no rule of accept fits: {_described(facts, evidence)}"


def plane_of(series: Series) -> str:
    """``axial``, ``coronal`` or ``sagittal``, the nearest to its slices; empty where the header does not say."""
    orientation = series.frames[0].orientation if series.frames else None
    if orientation is None:
        return ""
    normal = np.abs(np.cross(orientation[:3], orientation[3:]))
    return ("sagittal", "coronal", "axial")[int(normal.argmax())]


def _fits(rule: dict[str, list[str]], facts: dict[str, str]) -> bool:
    return all(facts[key].lower() in [v.lower() for v in values] for key, values in rule.items() if key in facts)


def _described(facts: dict[str, str], evidence: dict[str, str]) -> str:
    said = []
    for key, value in facts.items():
        known = value.upper() if value.upper() in _BODY_PARTS else "none" if not value else "another"
        if key == "modality":
            known = value if value.isalnum() and len(value) <= 4 else "none"
        elif key == "sequence":
            known = SEQUENCE_TITLES[value] + (f" ({evidence[key]})" if evidence.get(key) else "")
        elif key == "orientation":
            known = value if value in PLANES else "unknown"
        said.append(f"{key.replace('_', ' ')} {known}")
    return ", ".join(said)
