"""One slice out of a DICOM file: ``read_slice(file)`` -> grey or RGB pixels as a viewer shows them; for ``imaging``.

Pixel values go through the chain of PS3.3 C.11: modality (rescale slope and intercept, or its table), value of interest
(the file's first window or table; where there is none, the slice's own range), photometric interpretation. No text of
a file reaches an error, a warning or a log: its header names a patient, and pydicom quotes values in its messages.
"""

from __future__ import annotations

import logging
import threading
import warnings
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from pydicom import Dataset

MAX_BYTES = 256 * 2**20
"""Largest file that is read; a single slice has about 0.5 MB."""
MAX_PIXELS = 25_000_000
"""Most rows x columns that are decoded: no MR slice has as many, and run-length coding makes large ones of little."""

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_GREY = ("MONOCHROME1", "MONOCHROME2")
_PALETTE = "PALETTE COLOR"
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", _PALETTE)

# pydicom's warnings quote values of the header. The filters are set once, as in imaging: changing them around each file
# is not safe with threads. Its log is silent only where this module reads; other users of pydicom keep theirs.
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
_here = threading.local()
logging.getLogger("pydicom").addFilter(lambda record: not getattr(_here, "reading", False))


class DicomError(Exception):
    """The file has no slice that can be shown; the text says why and holds nothing of the file's header but numbers."""


def read_slice(file: BinaryIO) -> np.ndarray:
    """Read the only image of a DICOM file.

    Args:
        file: open for reading, with the preamble and ``DICM`` of part 10.

    Returns:
        uint8 (H, W), or (H, W, 3) for colour; 0 is black.

    Raises:
        DicomError: no image, several frames, too large, an encoding that cannot be decoded here, or damage.
    """
    file.seek(0)
    content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise DicomError(f"a DICOM file of over {MAX_BYTES // 2**20} MB, which is no single slice; export one slice")
    # pydicom inflates such a file whole and without a limit; the UID stands in clear in the head of one
    if _DEFLATED in content:
        raise DicomError("a deflated DICOM file, which is not read; export the slice without compression")
    _here.reading = True
    try:
        dataset = _parse(content)
        kind = _checked_kind(dataset)
        pixels = _pixels(dataset)
        if pixels.ndim not in (2, 3) or pixels.shape[:2] != (dataset.Rows, dataset.Columns):
            raise DicomError("a DICOM file whose pixels do not fit its rows and columns; export it again")
        return _grey(pixels, dataset, kind) if kind in _GREY else _colour(pixels, dataset, kind)
    except DicomError:
        raise
    except MemoryError:
        raise DicomError("decoding this DICOM file needs more memory than there is") from None
    except Exception as error:  # damaged headers raise nearly anything; its text could quote the header
        raise DicomError(f"the DICOM file is damaged or of an unsupported kind ({type(error).__name__})") from None
    finally:
        _here.reading = False


def _parse(content: bytes) -> Dataset:
    from io import BytesIO

    from pydicom import dcmread

    return dcmread(BytesIO(content))


def _checked_kind(dataset: Dataset) -> str:
    """Return the photometric interpretation, after refusing what is no single slice before a pixel is decoded."""
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise DicomError("a DICOM file without an image (a report, plan or index); choose the slice's own file")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise DicomError(f"a DICOM file of {frames} frames; export the one slice that is meant")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows < 1 or columns < 1:
        raise DicomError(f"the image has no pixels ({columns} x {rows})")
    if rows * columns > MAX_PIXELS:
        raise DicomError(f"{columns} x {rows} pixels is too large; the limit is {MAX_PIXELS:,} pixels")
    kind = str(dataset.get("PhotometricInterpretation") or "")
    if kind not in _GREY + _COLOUR or int(dataset.SamplesPerPixel) != (1 if kind in (*_GREY, _PALETTE) else 3):
        raise DicomError("a DICOM file whose photometric interpretation is not supported; export it as PNG")
    return kind


def _pixels(dataset: Dataset) -> np.ndarray:
    """Decode; colour that is stored as luminance and chrominance comes back as RGB."""
    from pydicom.pixels import get_decoder

    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return dataset.pixel_array
    # the UID's registered name: an unregistered one could say anything
    name = syntax.name if syntax.name != str(syntax) else "a private syntax"
    try:
        if get_decoder(syntax).is_available:
            return dataset.pixel_array
    except (NotImplementedError, RuntimeError):  # no image's syntax, such as video; or no decoder can cope
        pass
    raise DicomError(f"a DICOM file compressed as {name}, which cannot be decoded here; export it as PNG")


def _grey(pixels: np.ndarray, dataset: Dataset, kind: str) -> np.ndarray:
    """Modality, value of interest, and the sense of grey: (H, W) of stored values to uint8, 0 black."""
    from pydicom.pixels import apply_modality_lut

    values = apply_modality_lut(pixels, dataset).astype(np.float32)
    if not np.isfinite(values).all():
        raise DicomError("pixel values are not all finite (NaN or infinity)")
    shares = _of_interest(values, dataset, _inside(pixels, dataset))
    if kind == "MONOCHROME1":
        shares = 1 - shares
    return np.rint(255 * shares).astype(np.uint8)


def _of_interest(values: np.ndarray, dataset: Dataset, inside: np.ndarray) -> np.ndarray:
    """Return the values in 0..1, by the file's table, its first window, or the range of the slice itself."""
    from pydicom.pixels import apply_voi

    if dataset.get("VOILUTSequence"):
        descriptor = dataset.VOILUTSequence[0].LUTDescriptor
        table = np.rint(values).astype(np.int64)
        return np.clip(apply_voi(table, dataset).astype(np.float32) / (2 ** int(descriptor[2]) - 1), 0, 1)
    centre, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if centre is not None and width is not None and width >= (1 if function == "LINEAR" else 1e-9):
        return windowed(values, centre, width, function)
    low, high = (values[inside].min(), values[inside].max()) if inside.any() else (0.0, 0.0)
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)


def windowed(values: np.ndarray, centre: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Return the share of white, 0..1, that a window gives to each value (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    Args:
        values: after the modality's transformation, any shape.
        centre: Window Center.
        width: Window Width; at least 1 for LINEAR, above 0 otherwise.
        function: VOI LUT Function: LINEAR, LINEAR_EXACT or SIGMOID; any other is taken for LINEAR.
    """
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -80, 80)))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if width <= 1:  # a threshold: the formula would divide by zero
        return (values > centre - 0.5).astype(np.float32)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def _inside(pixels: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Where stored values are pixels of the slice, not padding around it (PS3.3 C.7.5.1.1.2): bool of their shape."""
    padding = dataset.get("PixelPaddingValue")
    if not isinstance(padding, int):
        return np.ones(pixels.shape, bool)
    other = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((padding, other if isinstance(other, int) else padding))
    return (pixels < low) | (pixels > high)


def _colour(pixels: np.ndarray, dataset: Dataset, kind: str) -> np.ndarray:
    """(H, W, 3), or palette indices (H, W), to uint8 RGB."""
    from pydicom.pixels import apply_color_lut

    bits = int(dataset.BitsStored)
    if kind == _PALETTE:
        pixels = apply_color_lut(pixels, dataset)
        bits = 8 * pixels.dtype.itemsize
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise DicomError("a DICOM file with other than three colours; export it as PNG")
    shares = np.clip(pixels.astype(np.float32) / (2**bits - 1), 0, 1)
    return np.rint(255 * shares).astype(np.uint8)


def _first(value: Any) -> float | None:
    """The first of one or several decimal numbers; None where there is none."""
    if value is None or isinstance(value, str):
        return None
    try:
        number = float(value[0] if hasattr(value, "__len__") else value)
    except (TypeError, ValueError, IndexError):
        return None
    return number if np.isfinite(number) else None
