"""What a DICOM header says that a reader of the slice wants to know, and nothing that names a patient.

``slice_facts(path)`` gives sequence, plane, position and the letters that belong at the picture's edges.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from .sequence import SEQUENCE_TITLES
from .series import find_series

_ENDS = (("R", "L"), ("A", "P"), ("F", "H"))  # of the LPS axes, negative and positive end
_PLANES = ("sagittal", "coronal", "axial")


@dataclass(frozen=True)
class SliceFacts:
    """Of one slice.

    Attributes:
        lines: (what, value), for people.
        left: letter of the side of the patient at the picture's left edge; "" where the header does not say.
        right: at its right edge.
    """

    lines: tuple[tuple[str, str], ...] = ()
    left: str = ""
    right: str = ""


def slice_facts(source: str | bytes | Path) -> SliceFacts:
    """Read the header of a DICOM file; of any other file there are no facts.

    Args:
        source: path of the file; the content of a zip's member has no header that is read here.
    """
    if isinstance(source, bytes):
        return SliceFacts()
    try:
        series = find_series(source)[0]
    except (UserError, IndexError, OSError):
        return SliceFacts()
    if len(series.frames) != 1:
        return SliceFacts()
    frame, guess = series.frames[0], series.sequence
    name = SEQUENCE_TITLES[guess.name]
    lines = [("Sequence", f"{name} ({guess.evidence})" if guess.evidence and guess.source == "header" else name)]
    left = right = ""
    if frame.orientation is not None:
        row, column = np.array(frame.orientation[:3]), np.array(frame.orientation[3:])
        normal = np.cross(row, column)
        axis = int(np.abs(normal).argmax())
        oblique = "" if np.abs(normal[axis]) > 0.95 else ", oblique"
        lines.append(("Plane", _PLANES[axis] + oblique))
        along = int(np.abs(row).argmax())
        left, right = _ENDS[along] if row[along] > 0 else _ENDS[along][::-1]
        if frame.position is not None:
            place = float(np.dot(normal, frame.position)) * np.sign(normal[axis])
            lines.append(("Position", f"{_ENDS[axis][int(place > 0)]} {abs(place):.0f} mm"))
    if frame.thickness:
        lines.append(("Slice every", f"{frame.thickness:.1f} mm"))
    return SliceFacts(tuple(lines), left, right)
