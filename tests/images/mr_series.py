"""A synthetic head as DICOM: any geometry, as single slices, a zip or one multi-frame file."""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
from clinical.synthetic_series import series
from pydicom import Dataset

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""Rows run to the patient's left, columns to the back: LPS."""


def head(shape: tuple[int, int, int] = (64, 72, 16)) -> np.ndarray:
    """Grey values (column, row, slice) of an uneven ellipsoid, so that no axis or direction is like another."""
    x, y, z = np.indices(shape)
    a, b, c = ((n - 1) / 2 for n in shape)
    inside = ((x - a) / (0.8 * a)) ** 2 + ((y - b) / (0.9 * b)) ** 2 + ((z - c) / (1.2 * c)) ** 2 < 1
    return np.where(inside, 200 + 2 * x + 3 * y + 5 * z, 0).astype(np.uint16)


def as_dicom(
    array: np.ndarray,
    *,
    orientation: tuple[float, ...] = AXIAL,
    step: tuple[float, float, float] = (0, 0, 5),
    name: str = "head",
    **header: object,
) -> list[Dataset]:
    """The slices of an array (column, row, slice); ``step`` is from slice to slice, in LPS millimetres."""
    made = series(name, array.shape[2], BitsStored=16, HighBit=15, PixelSpacing=[2, 2], **header)
    for k, d in enumerate(made):
        d.Rows, d.Columns, d.ImageOrientationPatient = array.shape[1], array.shape[0], list(orientation)
        d.ImagePositionPatient = [round(-60.0 + k * s, 6) for s in step]
        d.PixelData = np.ascontiguousarray(array[:, :, k].T).tobytes()
    return made


def zipped(datasets: list[Dataset], path: Path, prefix: str = "") -> Path:
    """Write slices as a zip."""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as target:
        for k, dataset in enumerate(datasets):
            buffer = BytesIO()
            dataset.save_as(buffer, enforce_file_format=True)
            target.writestr(f"{prefix}{k}.dcm", buffer.getvalue())
    return path


def enhanced(datasets: list[Dataset]) -> Dataset:
    """The slices as one enhanced multi-frame file: what is common in the shared groups, places in those of frames."""
    first = datasets[0]
    whole = Dataset()
    whole.file_meta = first.file_meta
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    for keyword in (
        "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "Rows", "Columns", "SamplesPerPixel",
        "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SeriesNumber",
    ):  # fmt: skip
        setattr(whole, keyword, first[keyword].value)
    whole.NumberOfFrames, whole.EchoPulseSequence = len(datasets), "SPIN"
    shared = Dataset()
    shared.PixelMeasuresSequence = [_item(PixelSpacing=first.PixelSpacing, SliceThickness=first.SliceThickness)]
    shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=first.ImageOrientationPatient)]
    shared.MRTimingAndRelatedParametersSequence = [_item(RepetitionTime=first.RepetitionTime)]
    shared.MREchoSequence = [_item(EffectiveEchoTime=float(first.EchoTime))]
    shared.PixelValueTransformationSequence = [_item(RescaleSlope=2, RescaleIntercept=-7)]
    whole.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for d in datasets:
        frame = Dataset()
        frame.PlanePositionSequence = [_item(ImagePositionPatient=d.ImagePositionPatient)]
        frames.append(frame)
    whole.PerFrameFunctionalGroupsSequence = frames
    whole.PixelData = b"".join(d.PixelData for d in datasets)
    return whole


def _item(**values: object) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item
