"""One DICOM file's header, read for volumes: ``header_of(path)``, and the slices it holds, ``frames_of``."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pydicom import Dataset

from .header import number_of, of_frame

MAX_FRAMES = 20_000
"""Of one file."""
_DEFLATED = b"1.2.840.10008.1.2.1.99"


@dataclass(frozen=True)
class Frame:
    """One slice of a DICOM file, before its pixels are decoded.

    Attributes:
        file: path, or the member's name in a zip.
        number: from 0, of a multi-frame file; None of a file with one frame.
        uid: SOPInstanceUID.
        shape: (rows, columns).
        spacing: millimetres between (rows, columns).
        orientation: of rows and columns, six cosines in LPS; None where it is missing.
        position: of the first pixel in LPS millimetres; None where it is missing.
        location: Slice Location in mm.
        instance: Instance Number.
        part: what tells volumes of one series apart: echo, b-value, time, image type.
        thickness: mm from slice to slice by the header, where it says so.
    """

    file: str
    number: int | None
    uid: str
    shape: tuple[int, int]
    spacing: tuple[float, float]
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    location: float | None
    instance: int
    part: tuple[Any, ...]
    thickness: float | None


def header_of(content: Path | bytes) -> Dataset | None:
    """The header of a DICOM image; None of any other file."""
    if isinstance(content, bytes):
        head = content[:4096]
    else:
        with content.open("rb") as file:
            head = file.read(4096)
    if head[128:132] != b"DICM" and head[:2] not in (b"\x02\0", b"\x08\0"):
        return None
    if _DEFLATED in head:
        return None
    from pydicom import dcmread  # 0.2 s, which the page and its reader of pictures need for DICOM alone

    try:
        source = BytesIO(content) if isinstance(content, bytes) else content
        header = dcmread(source, stop_before_pixels=True, force=True)
        return header if header.get("Rows") and header.get("Columns") else None
    except Exception:  # damaged headers raise nearly anything
        return None


def frames_of(file: str, header: Dataset, uid: str) -> list[Frame]:
    """List the slices of a file; ValueError of a number of them that no scan has."""
    count = int(header.get("NumberOfFrames") or 1)
    if not 0 < count <= MAX_FRAMES:  # each becomes an object before a pixel is looked at
        raise ValueError(f"{count} frames")
    numbers: list[int | None] = [None] if count == 1 else list(range(count))
    return [_frame(file, header, uid, number) for number in numbers]


def _frame(file: str, header: Dataset, uid: str, number: int | None) -> Frame:
    def get(group: str, keyword: str) -> Any:
        return of_frame(header, number or 0, group, keyword)

    spacing = _numbers(get("PixelMeasuresSequence", "PixelSpacing"), 2) or (1.0, 1.0)
    content = "FrameContentSequence"
    part = tuple(
        number_of(value)
        for value in (
            get("MREchoSequence", "EffectiveEchoTime") or header.get("EchoTime"),
            get("MRDiffusionSequence", "DiffusionBValue"),
            get(content, "TemporalPositionIndex") or header.get("TemporalPositionIdentifier"),
        )
    )
    instance = get(content, "InStackPositionNumber") or header.get("InstanceNumber")
    gap = number_of(get("PixelMeasuresSequence", "SpacingBetweenSlices"))
    return Frame(
        file,
        number,
        uid,
        (int(header.Rows), int(header.Columns)),
        spacing,
        _numbers(get("PlaneOrientationSequence", "ImageOrientationPatient"), 6),
        _numbers(get("PlanePositionSequence", "ImagePositionPatient"), 3),
        number_of(header.get("SliceLocation")),
        int(number_of(instance) or 0) if number is None else int(number_of(instance) or number),
        part,
        gap or number_of(get("PixelMeasuresSequence", "SliceThickness")),
    )


def _numbers(values: Any, count: int) -> tuple[float, ...] | None:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None
