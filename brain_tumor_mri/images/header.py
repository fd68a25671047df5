"""Values of a DICOM header, without importing pydicom: ``number_of(of_frame(header, 0, GROUP, KEYWORD))``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pydicom import Dataset


def of_frame(header: Dataset, number: int, group: str, keyword: str) -> Any:
    """A value of a frame: from its functional group, the shared one, or the root, as in classic files."""
    per_frame = (header.get("PerFrameFunctionalGroupsSequence") or [])[number : number + 1]
    for holder in (*per_frame, *(header.get("SharedFunctionalGroupsSequence") or [])[:1]):
        for item in (holder.get(group) or [])[:1]:
            if item.get(keyword) not in (None, ""):
                return item[keyword].value
    return header.get(keyword)


def number_of(value: Any) -> float | None:
    """The first of one or several decimal numbers; None where there is none."""
    try:
        number = float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)
    except (TypeError, ValueError, IndexError):
        return None
    return number if np.isfinite(number) else None
