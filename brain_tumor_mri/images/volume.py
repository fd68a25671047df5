"""A volume in: ``read_volume("scan.nii.gz" or "series_folder" or "study.zip")`` -> ``Volume``, voxels with their place.

NIfTI, MGZ, NRRD, MHA and DICOM (a folder, a zip, a multi-frame file) leave here in one form. The voxels stay in the
input's own order, so that what is said of slice k, or of a voxel, holds for the input as it is.
"""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK
from pydicom import Dataset, dcmread
from pydicom.pixels import get_decoder
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ..errors import first_line
from .archive import EXAMINATIONS, Archive, ArchiveError
from .series import Frame, SequenceGuess, Series, UnreadableVolumeError, find_series, number_of, of_frame, quiet

MAX_VOXELS = 400_000_000
"""Of a volume that is read: 1.6 GB as float32."""
MAX_GAP = 0.2
"""Largest share of slices that may be missing within a DICOM series."""
_LABEL_VALUES = 8
"""A volume of no more different values is a mask, not a scan."""
_NIBABEL = (".nii", ".nii.gz", ".mgz", ".mgh")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_DETACHED = (b"data file:", b"datafile:", b"ElementDataFile")


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


def read_volume(source: str | Path | Series, *, series_uid: str | None = None) -> Volume:
    """Read the one volume that a path holds.

    Args:
        source: ``.nii``, ``.nii.gz``, ``.mgz``, ``.nrrd`` or ``.mha``; a DICOM file, folder or zip; or one of
            ``find_series``.
        series_uid: which series of a folder or zip that holds several.

    Raises:
        UnreadableVolumeError: it cannot be read, is no volume of one head, or holds several and none is named.
    """
    series = source if isinstance(source, Series) else _only_series(source, series_uid)
    if series.fault:
        raise UnreadableVolumeError(series.name, series.fault)
    try:
        volume = _from_dicom(series) if series.frames else _from_file(series)
    except UnreadableVolumeError:
        raise
    except ArchiveError as error:
        raise UnreadableVolumeError(series.name, error.reason) from None
    except MemoryError:
        raise UnreadableVolumeError(series.name, "reading it needs more memory than there is") from None
    except OSError as error:
        raise UnreadableVolumeError(series.name, f"damaged or cut off ({first_line(error)})") from None
    except Exception as error:  # damaged files raise nearly anything; the text could quote a header
        raise UnreadableVolumeError(
            series.name, f"damaged or of an unsupported kind ({type(error).__name__})"
        ) from None
    return _checked(volume)


def write_nifti(path: str | Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write an array (I, J, K) as NIfTI, in millimetres of scanner space.

    Raises:
        OSError: it cannot be written.
    """
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    nibabel.save(image, str(path))


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


def _from_file(series: Series) -> Volume:
    """A volume in one file: NIfTI and MGZ by nibabel, NRRD and MHA by SimpleITK."""
    if series.members:
        return _from_member(series)
    if str(series.path).lower().endswith(_NIBABEL):
        array, affine, notes, doubt = _by_nibabel(series)
    else:
        array, affine, notes, doubt = _by_simpleitk(series)
    return Volume(series.name, array, affine, (), series.sequence, warnings=tuple(notes), doubt=doubt)


def _from_member(series: Series) -> Volume:
    """A volume in a zip: by a copy beside, which is gone again before it is answered."""
    ((name, number),) = series.members.items()
    with tempfile.TemporaryDirectory() as folder, _archive_of(series) as archive:
        file = Path(folder, "volume" + "".join(Path(name.lower()).suffixes[-2:]))
        file.write_bytes(archive.read(number))
        return _from_file(replace(series, path=file, members={}))


def _by_nibabel(series: Series) -> tuple[np.ndarray, np.ndarray, list[str], str | None]:
    image = nibabel.load(series.path)
    notes, doubt = [], None
    dtype = image.get_data_dtype()
    if dtype.fields or dtype.kind not in "iufb":
        raise UnreadableVolumeError(series.name, "colour or complex voxels, not a scan's grey values")
    shape = image.shape
    if len(shape) < 3:
        raise UnreadableVolumeError(series.name, "one slice, not a volume; give it as a picture")
    _check_size(series.name, shape[:3])
    data = image.dataobj
    for count in shape[3:]:
        if count > 1:
            notes.append(f"4D: the first of {np.prod(shape[3:]):,} volumes was taken")
            break
    data = data[(slice(None),) * 3 + (0,) * (len(shape) - 3)] if len(shape) > 3 else data
    array = np.asarray(data, dtype=np.float32)
    affine = np.array(image.affine, dtype=float)
    header = image.header
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


def _by_simpleitk(series: Series) -> tuple[np.ndarray, np.ndarray, list[str], str | None]:
    with series.path.open("rb") as file:
        head = file.read(8192)
    start = head.find(b"ElementDataFile")
    if any(mark in head for mark in _DETACHED[:2]) or (start >= 0 and b"LOCAL" not in head[start : start + 40]):
        raise UnreadableVolumeError(series.name, "only a header, the voxels are in another file; save it as one file")
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(series.path))
    reader.ReadImageInformation()
    size = reader.GetSize()
    if len(size) < 3:
        raise UnreadableVolumeError(series.name, "one slice, not a volume; give it as a picture")
    if reader.GetNumberOfComponents() > 1 and len(size) == 3 and reader.GetNumberOfComponents() <= 4:
        raise UnreadableVolumeError(series.name, "colour or complex voxels, not a scan's grey values")
    _check_size(series.name, size[:3])
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
    return array, _LPS_TO_RAS @ affine, notes, doubt


def _from_dicom(series: Series) -> Volume:
    """Sort, split off what is no part of the volume, decode."""
    notes = list(series.warnings)
    frames, normal = _one_orientation(series, notes)
    frames, positions = _placed(series, frames, normal, notes)
    order, positions = _filled(series, positions, frames, normal, notes)
    columns, rows = frames[0].shape[1], frames[0].shape[0]
    _check_size(series.name, (columns, rows, len(order)))
    array = np.zeros((columns, rows, len(order)), np.float32, order="F")
    _decode(series, order, array)
    affine = np.eye(4)
    orientation = frames[0].orientation or (1, 0, 0, 0, 1, 0)
    affine[:3, 0] = np.array(orientation[:3]) * frames[0].spacing[1]
    affine[:3, 1] = np.array(orientation[3:]) * frames[0].spacing[0]
    affine[:3, 2] = (positions[-1] - positions[0]) / (len(positions) - 1)
    affine[:3, 3] = positions[0]
    step = affine[:3, 2] / np.linalg.norm(affine[:3, 2])
    tilt = np.degrees(np.arccos(np.clip(step @ normal, -1, 1)))
    if tilt > 2:
        notes.append(
            f"slices are shifted against each other by {tilt:.0f} degrees (tilted gantry); each stays a true plane"
        )
    files = tuple(None if f is None else SliceFile(f.file, f.uid, f.number) for f in order)
    unplaced = any(f.orientation is None for f in frames) or any("in the order of" in note for note in notes)
    return Volume(
        series.name,
        array,
        _LPS_TO_RAS @ affine,
        files,
        series.sequence,
        series.study_uid,
        series.series_uid,
        tuple(notes),
        "the headers do not say where the slices lie" if unplaced else None,
    )


def _one_orientation(series: Series, notes: list[str]) -> tuple[list[Frame], np.ndarray]:
    """The frames of the main orientation and matrix, and their normal in LPS."""
    groups: dict[tuple, list[Frame]] = defaultdict(list)
    for frame in series.frames:
        groups[(frame.shape, *(round(c, 1) for c in frame.orientation or ()))].append(frame)
    main = max(groups.values(), key=len)
    others = len(series.frames) - len(main)
    if len(main) < 2:
        if len(series.frames) > 1:
            raise UnreadableVolumeError(series.name, f"a localiser: {len(series.frames)} slices in all directions")
        raise UnreadableVolumeError(series.name, "one slice, not a volume; give it as a picture")
    if others:
        if others > 0.2 * len(series.frames) or len(main) < 5:
            text = f"mixed: {len(series.frames)} slices of {len(groups)} orientations or sizes, as of a localiser"
            raise UnreadableVolumeError(series.name, text)
        notes.append(f"{others} slices of another orientation or size were left out")
    if main[0].orientation is None:
        notes.append("no orientation in the headers; taken as axial")
        return main, np.array([0.0, 0.0, 1.0])
    rows, columns = np.array(main[0].orientation[:3]), np.array(main[0].orientation[3:])
    normal = np.cross(rows, columns)
    if abs(np.linalg.norm(normal) - 1) > 0.05:
        raise UnreadableVolumeError(series.name, "the headers' orientation is no pair of right angles")
    return main, normal / np.linalg.norm(normal)


def _placed(
    series: Series, frames: list[Frame], normal: np.ndarray, notes: list[str]
) -> tuple[list[Frame], list[np.ndarray]]:
    """One frame a position, sorted along the normal, and the positions in LPS."""
    by_place: dict[float, list[Frame]] = defaultdict(list)
    for frame in sorted(frames, key=lambda f: (f.instance, f.number or 0, f.file)):
        by_place[round(float(normal @ frame.position), 2) if frame.position else 0.0].append(frame)
    if len(by_place) < max(2, 0.2 * len(frames)) and len({f.part for f in frames}) < len(frames) / 4:
        return _without_positions(frames, normal, notes)
    if len(by_place) < 2:
        raise UnreadableVolumeError(series.name, "all slices lie at one place; a series over time is no volume")
    most = Counter(len(group) for group in by_place.values()).most_common(1)[0][0]
    if most > 1:
        notes.append(f"4D: {most} slices at each position, the first volume was taken")
    elif any(len(group) > 1 for group in by_place.values()):
        double = sum(len(group) > 1 for group in by_place.values())
        notes.append(f"{double} positions hold two slices or more; the first of each was taken")
    kept = [min(by_place[place], key=_volume_order) for place in sorted(by_place)]
    return kept, [np.array(frame.position) for frame in kept]


def _volume_order(frame: Frame) -> tuple:
    return tuple((value is not None, value or 0.0) for value in frame.part), frame.instance


def _without_positions(
    frames: list[Frame], normal: np.ndarray, notes: list[str]
) -> tuple[list[Frame], list[np.ndarray]]:
    """Slices that share one position: told apart by Slice Location, else by their number."""
    origin = np.array(frames[0].position or (0.0, 0.0, 0.0))
    locations = [frame.location for frame in frames]
    if None not in locations and len(set(locations)) == len(frames):
        notes.append("all slices have one position (ImagePositionPatient); sorted by SliceLocation")
        pairs = sorted(zip(locations, frames, strict=True), key=lambda pair: pair[0])
        own = float(normal @ origin)
        start = own if pairs[0][0] - 1 <= own <= pairs[-1][0] + 1 else pairs[0][0]
        return [f for _, f in pairs], [origin + normal * (location - start) for location, _ in pairs]
    notes.append("the slices have no positions of their own; taken in the order of their numbers")
    kept = list({frame.instance: frame for frame in reversed(frames)}.values())
    kept = sorted(kept if len(kept) > 1 else frames, key=lambda f: (f.instance, f.file))
    step = frames[0].thickness or 1.0
    return kept, [origin + normal * step * k for k in range(len(kept))]


def _filled(
    series: Series, positions: list[np.ndarray], frames: list[Frame], normal: np.ndarray, notes: list[str]
) -> tuple[list[Frame | None], list[np.ndarray]]:
    """Put None where slices are missing, so that the grid is even."""
    gaps = np.diff([float(normal @ position) for position in positions])
    step = float(np.median(gaps))
    counts = np.maximum(1, np.rint(gaps / step)).astype(int)
    missing = int((counts - 1).sum())
    if np.abs(gaps / counts - step).max() > 0.1 * step:
        notes.append(f"distances between slices differ ({gaps.min():.1f} to {gaps.max():.1f} mm); taken as even")
        if gaps.max() > 3 * step:
            raise UnreadableVolumeError(series.name, f"a gap of {gaps.max():.0f} mm between slices {step:.1f} mm apart")
        return list(frames), positions
    if missing > MAX_GAP * len(frames):
        raise UnreadableVolumeError(series.name, f"{missing} of {missing + len(frames)} slices are missing")
    if not missing:
        return list(frames), positions
    order: list[Frame | None] = []
    even: list[np.ndarray] = []
    for k, frame in enumerate(frames):
        order.append(frame)
        even.append(positions[k])
        for empty in range(1, counts[k] if k < len(counts) else 1):
            order.append(None)
            even.append(positions[k] + (positions[k + 1] - positions[k]) * empty / counts[k])
    where = [k for k, frame in enumerate(order) if frame is None]
    notes.append(f"{missing} of {len(order)} slices are missing (from slice {where[0]} to {where[-1]}); left empty")
    return order, even


def _decode(series: Series, order: Sequence[Frame | None], array: np.ndarray) -> None:
    """Fill (column, row, slice) with modality values; each file is opened once, one at a time."""
    wanted: dict[str, list[tuple[int, Frame]]] = defaultdict(list)
    for k, frame in enumerate(order):
        if frame is not None:
            wanted[frame.file].append((k, frame))
    with quiet(), _archive_of(series) as archive:
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


def _check_size(name: str, shape: Sequence[int]) -> None:
    if min(shape) < 2:
        raise UnreadableVolumeError(name, "one slice, not a volume; give it as a picture")
    if min(sorted(shape)[1:]) < 32:
        raise UnreadableVolumeError(name, f"{' x '.join(map(str, shape))} voxels are too few to show a brain")
    if np.prod([float(side) for side in shape]) > MAX_VOXELS:
        raise UnreadableVolumeError(name, f"over {MAX_VOXELS / 1e6:,.0f} million voxels")


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
        notes.append(f"values go below 0 (to {low:g})")
    if volume.slice_files and len(volume.slice_files) < 8:
        notes.append(f"only {len(volume.slice_files)} slices")
    return replace(volume, array=array, warnings=tuple(notes))
