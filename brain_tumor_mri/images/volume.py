"""A volume in: ``read_volume("scan.nii.gz" or "series_folder" or "study.zip")`` -> ``Volume``, voxels with their place.

NIfTI, MGZ, NRRD, MHA and DICOM (a folder, a zip, a multi-frame file) leave here in one form. The voxels stay in the
input's own order, so that what is said of slice k, or of a voxel, holds for the input as it is.
"""

from __future__ import annotations

import math
import re
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from io import BytesIO
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK
from pydicom import Dataset, dcmread
from pydicom.pixels import get_decoder
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ..errors import first_line
from .archive import EXAMINATIONS, Archive, ArchiveError
from .frames import Frame
from .header import number_of, of_frame
from .quiet import quiet_pydicom
from .sequence import SequenceGuess
from .series import Series, UnreadableVolumeError, find_series
from .stack import LPS_TO_RAS, stack_of

MAX_VOXELS = 400_000_000
"""Of a volume that is read: 1.6 GB as float32."""
_LABEL_VALUES = 8
"""A volume of no more different values is a mask, not a scan."""
_NIBABEL = (".nii", ".nii.gz", ".mgz", ".mgh")
_KINDS = (nibabel.Nifti1Image, nibabel.Nifti2Image)
_HEADER_BYTES = 540
_MAX_OFFSET = 2**24
_DEFLATE = 1032
"""Most that a file can be smaller than what it unpacks to."""
_MAX_HEADER = 2**20
_NRRD_END, _NRRD_ELSEWHERE = re.compile(rb"\r?\n\r?\n"), re.compile(rb"(?i)data\s?file\s*:")
_MHA_VOXELS, _MHA_HERE = b"ElementDataFile", re.compile(rb"\nElementDataFile\s*[=:]\s*LOCAL\s*\n")


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
            sorted by position along the slices' normal. Slices that are missing in a series are there, all 0.
        affine: float64 (4, 4), from indices (i, j, k) to millimetres, x to the patient's right, y anterior, z superior
            (RAS+, as of nibabel).
        slice_files: of DICOM one a slice, in the order of the last axis, None for one that is missing; else empty.
        sequence: what the header, the description or the file's name says it is.
        study_uid: StudyInstanceUID; None of other formats.
        series_uid: SeriesInstanceUID; None of other formats.
        warnings: what was odd about the input and how it was taken, a line each; no patient's name in it.
        doubt: why the geometry cannot be relied on, after "because"; None where it can.
    """

    name: str
    array: np.ndarray
    affine: np.ndarray
    slice_files: tuple[SliceFile | None, ...] = ()
    sequence: SequenceGuess = field(default_factory=SequenceGuess)
    study_uid: str | None = None
    series_uid: str | None = None
    warnings: tuple[str, ...] = ()
    doubt: str | None = None

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres from voxel to voxel along each axis of ``array``."""
        return tuple(float(step) for step in np.linalg.norm(self.affine[:3, :3], axis=0))


def read_volume(source: str | Path | Series, *, series_uid: str | None = None, max_voxels: int = MAX_VOXELS) -> Volume:
    """Read the one volume that a path holds.

    Args:
        source: ``.nii``, ``.nii.gz``, ``.mgz``, ``.nrrd`` or ``.mha``; a DICOM file, folder or zip; or one of
            ``find_series``.
        series_uid: which series of a folder or zip that holds several.
        max_voxels: a larger one is refused before it is decoded.

    Raises:
        UnreadableVolumeError: it cannot be read, is no volume of one head, or holds several and none is named.
    """
    series = source if isinstance(source, Series) else _only_series(source, series_uid)
    if series.fault:
        raise UnreadableVolumeError(series.name, series.fault)
    try:
        volume = (_from_dicom if series.frames else _from_file)(series, max_voxels)
    except UnreadableVolumeError:
        raise
    except ArchiveError as error:
        raise UnreadableVolumeError(series.name, error.reason) from None
    except MemoryError:
        raise UnreadableVolumeError(series.name, "reading it needs more memory than there is") from None
    except (OSError, EOFError, zlib.error, nibabel.wrapstruct.WrapStructError) as error:
        raise UnreadableVolumeError(series.name, f"damaged or cut off ({first_line(error)})") from None
    except Exception as error:  # damaged files raise nearly anything; the text could quote a header
        raise UnreadableVolumeError(
            series.name, f"damaged or of an unsupported kind ({type(error).__name__})"
        ) from None
    return _checked(volume)


def nifti_of(array: np.ndarray, affine: np.ndarray) -> nibabel.Nifti1Image:
    """Return an array (I, J, K) as NIfTI, in millimetres of scanner space."""
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    return image


def _only_series(path: str | Path, series_uid: str | None) -> Series:
    found = find_series(path)
    if series_uid is not None:
        found = [series for series in found if series.series_uid == series_uid]
        if not found:
            raise UnreadableVolumeError(str(path), "holds no series of that series_uid")
    usable = [series for series in found if not series.fault] or found
    if len(usable) > 1:
        raise UnreadableVolumeError(str(path), f"holds {len(usable)} series; name one by series_uid, or ask for all")
    return usable[0]


def _archive_of(series: Series) -> AbstractContextManager[Archive | None]:
    return Archive(series.path, limits=EXAMINATIONS) if series.members else nullcontext()


def _from_file(series: Series, max_voxels: int) -> Volume:
    """A volume in one file: NIfTI and MGZ by nibabel, NRRD and MHA by SimpleITK."""
    if series.members:
        return _from_member(series, max_voxels)
    if str(series.path).lower().endswith(_NIBABEL):
        array, affine, notes, doubt = _by_nibabel(series, max_voxels)
    else:
        array, affine, notes, doubt = _by_simpleitk(series, max_voxels)
    return Volume(series.name, array, affine, (), series.sequence, warnings=tuple(notes), doubt=doubt)


def _from_member(series: Series, max_voxels: int) -> Volume:
    """A volume in a zip: by a copy beside, which is gone again before it is answered."""
    ((name, number),) = series.members.items()
    with tempfile.TemporaryDirectory() as folder, _archive_of(series) as archive:
        file = Path(folder, "volume" + "".join(Path(name.lower()).suffixes[-2:]))
        file.write_bytes(archive.read(number))
        return _from_file(replace(series, path=file, members={}), max_voxels)


def _by_nibabel(series: Series, max_voxels: int) -> tuple[np.ndarray, np.ndarray, list[str], str | None]:
    header, data = _proxy(series)
    notes, doubt = [], None
    dtype = header.get_data_dtype()
    if dtype.fields or dtype.kind not in "iufb":
        raise UnreadableVolumeError(series.name, "colour or complex voxels, not a scan's grey values")
    shape = header.get_data_shape()
    if len(shape) < 3:
        raise UnreadableVolumeError(series.name, "one slice, not a volume; give it as a picture")
    _check_size(series, max_voxels, shape[:3], dtype.itemsize)
    for count in shape[3:]:
        if count > 1:
            notes.append(f"4D: the first of {np.prod(shape[3:]):,} volumes was taken")
            break
    data = data[(slice(None),) * 3 + (0,) * (len(shape) - 3)] if len(shape) > 3 else data
    array = np.asarray(data, dtype=np.float32)
    affine = np.array(header.get_best_affine(), dtype=float)
    if hasattr(header, "get_xyzt_units"):
        affine[:3] *= {"meter": 1000.0, "micron": 0.001}.get(header.get_xyzt_units()[0], 1.0)
        if not int(header["sform_code"]) and not int(header["qform_code"]):
            notes.append("the file stores no orientation (sform and qform code 0); the usual one was taken")
            doubt = "the file does not say which way the head lies"
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        zooms = [float(z) if np.isfinite(z) and z > 0 else 1.0 for z in header.get_zooms()[:3]]
        affine = np.diag([*zooms, 1.0])
        notes.append("the file's affine is not usable; the voxel sizes alone were taken")
        doubt = "the file does not say which way the head lies"
    elif not affine[:3, 3].any() and np.array_equal(affine[:3, :3], np.diag(np.diag(affine)[:3])):
        # scanners never put the first voxel at exactly 0, 0, 0: this is what software writes that knows no geometry
        notes.append("the affine is a bare diagonal with its origin at 0, as of software that knows no orientation")
        doubt = doubt or "the file's orientation looks made up"
    return array, affine, notes, doubt


def _proxy(series: Series) -> tuple[Any, Any]:
    """Header and voxels, which are read when they are asked for.

    The header has a fixed length. What may follow it (extensions, which CIFTI holds its XML in) is never read: a small
    file can declare gigabytes of it.
    """
    with nibabel.openers.ImageOpener(str(series.path)) as file:
        start = file.read(_HEADER_BYTES)
    kind = next((kind for kind in _KINDS if kind.header_class.may_contain_header(start)), nibabel.MGHImage)
    header = kind.header_class(start[: kind.header_class.template_dtype.itemsize])
    if header.get_data_offset() > _MAX_OFFSET:
        raise UnreadableVolumeError(series.name, "damaged: by its header the voxels begin far behind it")
    return header, kind.ImageArrayProxy(str(series.path), header)


def _by_simpleitk(series: Series, max_voxels: int) -> tuple[np.ndarray, np.ndarray, list[str], str | None]:
    kind = _attached_kind(series)
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO(kind)
    reader.SetFileName(str(series.path))
    reader.ReadImageInformation()
    size = reader.GetSize()
    if len(size) < 3:
        raise UnreadableVolumeError(series.name, "one slice, not a volume; give it as a picture")
    if reader.GetNumberOfComponents() > 1 and len(size) == 3 and reader.GetNumberOfComponents() <= 4:
        raise UnreadableVolumeError(series.name, "colour or complex voxels, not a scan's grey values")
    _check_size(series, max_voxels, size[:3], 1)
    notes = []
    if np.prod(size[3:], dtype=int) * reader.GetNumberOfComponents() > 1:
        raise UnreadableVolumeError(series.name, "several volumes in one file; save one of them alone")
    image = reader.Execute()
    # (x, y, z) as stored, without a copy of the transposed array
    array = SimpleITK.GetArrayFromImage(image).astype(np.float32).reshape(size[:3][::-1]).T
    affine = np.eye(4)
    dimensions = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(dimensions, dimensions)[:3, :3]
    affine[:3, :3] = direction * np.array(image.GetSpacing()[:3])
    affine[:3, 3] = image.GetOrigin()[:3]
    doubt = None
    if not affine[:3, 3].any() and np.array_equal(direction, np.eye(3)):
        notes.append("no orientation is stored, or a bare one with its origin at 0")
        doubt = "the file does not say which way the head lies"
    return array, LPS_TO_RAS @ affine, notes, doubt


def _attached_kind(series: Series) -> str:
    """Name SimpleITK's reader of a file that holds its voxels itself: else it opens whatever file the header names.

    Keys of NRRD have any case, and a bare carriage return ends a line; so the words are refused wherever they stand.
    """
    with series.path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        if content[:4] == b"NRRD":
            kind, end = "NrrdImageIO", _NRRD_END.search(content[:_MAX_HEADER])
            attached = end and not _NRRD_ELSEWHERE.search(content[: end.start() + 1])
        else:
            kind, place = "MetaImageIO", content.find(_MHA_VOXELS)
            attached = place > 0 and _MHA_HERE.match(content, place - 1) and content.rfind(_MHA_VOXELS) == place
    if not attached:
        raise UnreadableVolumeError(series.name, "only a header, the voxels are in another file; save it as one file")
    return kind


def _from_dicom(series: Series, max_voxels: int) -> Volume:
    stack = stack_of(series)
    rows, columns = stack.shape
    _check_size(series, max_voxels, (columns, rows, len(stack.frames)))
    array = np.zeros((columns, rows, len(stack.frames)), np.float32, order="F")
    _decode(series, stack.frames, array)
    return Volume(
        series.name,
        array,
        stack.affine,
        tuple(None if f is None else SliceFile(f.file, f.uid, f.number) for f in stack.frames),
        series.sequence,
        series.study_uid,
        series.series_uid,
        stack.notes,
        stack.doubt,
    )


def _decode(series: Series, order: Sequence[Frame | None], array: np.ndarray) -> None:
    """Fill (column, row, slice) with modality values; each file is opened once, one at a time."""
    wanted: dict[str, list[tuple[int, Frame]]] = defaultdict(list)
    for k, frame in enumerate(order):
        if frame is not None:
            wanted[frame.file].append((k, frame))
    with quiet_pydicom(), _archive_of(series) as archive:
        for file, places in wanted.items():
            content = archive.read(series.members[file]) if archive else None
            dataset = dcmread(BytesIO(content) if content is not None else file, force=True)
            pixels, rescaled = _pixels(dataset, file, content)
            for k, frame in places:
                values = np.asarray(pixels[frame.number] if frame.number is not None else pixels, np.float32)
                if values.shape != frame.shape:
                    raise UnreadableVolumeError(series.name, "pixels that do not fit the rows and columns")
                if not rescaled:
                    values = _rescaled(values, dataset, frame.number or 0)
                if str(dataset.get("PhotometricInterpretation")) == "MONOCHROME1":
                    values = -values
                array[:, :, k] = values.T


def _pixels(dataset: Dataset, file: str, content: bytes | None) -> tuple[np.ndarray, bool]:
    """Values (rows, columns) or (frames, rows, columns), and whether slope and intercept are in them already.

    By pydicom; compressed ones by SimpleITK, as the decoders that pydicom could use are GPL.
    """
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, _ = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = UID(ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian)
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated or get_decoder(syntax).is_available:
        return dataset.pixel_array, False
    if content is None:
        return _by_gdcm(file), True
    with tempfile.NamedTemporaryFile(suffix=".dcm") as beside:
        beside.write(content)
        beside.flush()
        return _by_gdcm(beside.name), True


def _by_gdcm(file: str) -> np.ndarray:
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    values = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(file, imageIO="GDCMImageIO"))
    return values[0] if values.ndim == 3 and len(values) == 1 else values


def _rescaled(values: np.ndarray, dataset: Dataset, frame: int) -> np.ndarray:
    """Modality values of a frame; values that are not finite do no harm until ``_checked``."""
    group = "PixelValueTransformationSequence"
    slope = number_of(of_frame(dataset, frame, group, "RescaleSlope"))
    intercept = number_of(of_frame(dataset, frame, group, "RescaleIntercept"))
    return values * np.float32(slope or 1.0) + np.float32(intercept or 0.0)


def _check_size(series: Series, max_voxels: int, shape: Sequence[int], itemsize: int = 0) -> None:
    """Refuse what is no head or costs too much, before memory is taken; of a file, what it cannot hold, too."""
    name = series.name
    if min(shape) < 2:
        raise UnreadableVolumeError(name, "one slice, not a volume; give it as a picture")
    if min(sorted(shape)[1:]) < 32:
        raise UnreadableVolumeError(name, f"{' x '.join(map(str, shape))} voxels are too few to show a brain")
    voxels = math.prod(map(int, shape))
    if voxels > max_voxels:
        raise UnreadableVolumeError(name, f"over {max_voxels / 1e6:,.0f} million voxels")
    if voxels * itemsize > _DEFLATE * series.path.stat().st_size:
        raise UnreadableVolumeError(name, "damaged or cut off (its header tells of more voxels than it can hold)")


def _checked(volume: Volume) -> Volume:
    """Refuse what is no scan; name what is odd about the values."""
    array, notes = volume.array, list(volume.warnings)
    bad = int(array.size - np.isfinite(array).sum())
    if bad:
        array = np.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0)
        notes.append(f"{bad:,} voxels are not finite (NaN or infinity); taken as 0")
    low, high = float(array.min()), float(array.max())
    if low == high:
        raise UnreadableVolumeError(volume.name, "all voxels have one value")
    # a thin sample tells masks from scans at once; only what looks like a mask is counted whole
    if len(np.unique(array.ravel(order="K")[::97])) <= _LABEL_VALUES and len(np.unique(array)) <= _LABEL_VALUES:
        raise UnreadableVolumeError(volume.name, f"a mask or label map of {len(np.unique(array))} values, not a scan")
    if low < 0:
        notes.append(f"values go below 0 (to {low:g}); what lies around the head was taken for black")
    if volume.slice_files and len(volume.slice_files) < 8:
        notes.append(f"only {len(volume.slice_files)} slices")
    return replace(volume, array=array, warnings=tuple(notes))
