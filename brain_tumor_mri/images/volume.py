"""A volume in: ``read_volume("scan.nii.gz" or "series_folder" or "study.zip")`` -> ``Volume``, voxels with their place.

NIfTI, MGZ, NRRD, MHA and DICOM (a folder, a zip, a multi-frame file) leave here in one form. The voxels stay in the
input's own order, so that what is said of slice k, or of a voxel, holds for the input as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import UserError


class UnreadableVolumeError(UserError):
    """A volume cannot be read, or is none that can be answered; one line that says why."""


@dataclass(frozen=True)
class SliceFile:
    """Where one slice of a DICOM series is stored.

    Attributes:
        name: path of the file; of a zip, the member's name.
        sop_instance_uid: of the file.
        frame: from 0, of a multi-frame file; None of a file with one frame.
    """

    name: str
    sop_instance_uid: str
    frame: int | None = None


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels in the input's own order, and where they lie.

    Attributes:
        name: the input as it was given; of one of several series, with the series' number.
        array: float32 (I, J, K). Of NIfTI, NRRD and so on as stored; of DICOM (column, row, slice), the slices
            sorted by position.
        affine: float64 (4, 4), from indices (i, j, k) to millimetres, x to the patient's right, y anterior, z superior
            (RAS+, as of nibabel).
        slice_files: of DICOM one a slice, in the order of the last axis; else empty.
        study_uid: StudyInstanceUID; None of other formats.
        series_uid: SeriesInstanceUID; None of other formats.
        warnings: what was odd about the input and how it was taken, a line each; no patient's name in it.
    """

    name: str
    array: np.ndarray
    affine: np.ndarray
    slice_files: tuple[SliceFile, ...] = ()
    study_uid: str | None = None
    series_uid: str | None = None
    warnings: tuple[str, ...] = field(default=())


def read_volume(path: str | Path, *, series_uid: str | None = None) -> Volume:
    """Read the one volume that a path holds.

    Args:
        path: ``.nii``, ``.nii.gz``, ``.mgz``, ``.nrrd`` or ``.mha``; a DICOM file, folder or zip.
        series_uid: which series of a folder or zip that holds several.

    Raises:
        UnreadableVolumeError: it cannot be read, is no volume of one brain, or holds several and none is named.
    """
    raise NotImplementedError
