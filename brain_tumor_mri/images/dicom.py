"""One slice out of a DICOM file: ``read_slice(file)`` -> grey or RGB pixels as a viewer shows them, and its sequence.

Pixel values go through the chain of PS3.3 C.11: modality (rescale slope and intercept, or its table), value of interest
(the file's first window or table; where there is none, the slice's own range), photometric interpretation. No text of
a file reaches an error, a warning or a log: its header names a patient, and pydicom quotes values in its messages.
"""

from __future__ import annotations

import re
from contextlib import suppress
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydicom import Dataset, dcmread
from pydicom.encaps import get_frame
from pydicom.multival import MultiValue
from pydicom.pixels import apply_color_lut, get_decoder
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGExtended12Bit, RLELossless

from .formats import ImageFault, check_scans, size_fault
from .quiet import quiet_pydicom
from .sequence import dicom_physics, tell_sequence

MAX_BYTES = 128 * 2**20
"""Largest file that is read, which takes twice as much memory; a single slice has about 0.5 MB."""
MAX_RLE = 2048 * 2048
"""Most samples that are decoded from run-length coding, which makes gigabytes of megabytes."""
_MAX_READS = 200_000  # of a file while it is parsed, two an element: pydicom makes Python objects of each
_MAX_BESIDE = 2 * 2**20  # bytes of a header, without private elements: as numbers they take two hundred times as much
_MAX_FRAGMENTS = 20_000  # of packed pixels

_PIXEL_DATA = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_PIXEL_TAGS = (0x7FE00010, 0x7FE00008, 0x7FE00009)
_TRANSFORMATION, _VALUE_OF_INTEREST = "PixelValueTransformationSequence", "FrameVOILUTSequence"
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_GREY = ("MONOCHROME1", "MONOCHROME2")
_PALETTE = "PALETTE COLOR"
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", _PALETTE)

# PS3.3 C.7.3.1.1.1: the modalities whose names errors may give, as no other text of a header goes out
_MODALITIES = {
    "CT": "CT", "PT": "PET", "NM": "nuclear medicine", "US": "ultrasound", "CR": "X-ray", "DX": "X-ray", "RG": "X-ray",
    "MG": "mammography", "XA": "angiography", "RF": "fluoroscopy", "XC": "photograph", "ES": "endoscopy",
    "SM": "microscopy", "OP": "eye", "OPT": "eye", "SEG": "segmentation", "RTDOSE": "dose", "RTIMAGE": "X-ray",
    "OT": "captured",
}  # fmt: skip
# PS3.16, annex L, and what scanners write instead of its terms
_HEAD = re.compile(r"HEAD|BRAIN|SKULL|CEREB|CRAN|NEURO|PITUIT|SELLA|ORBIT|FACE(?!T)|WHOLE")
_ELSEWHERE = (
    "ABDOMEN", "ANKLE", "AORTA", "ARM", "BACK", "BLADDER", "BREAST", "BRONCHUS", "BUTTOCK", "CALF", "CARDIAC",
    "CERVICAL", "CHEST", "COCCYX", "COLON", "ELBOW", "EXTREMITY", "FEMUR", "FINGER", "FOOT", "FOREARM", "GALLBLADDER",
    "HAND", "HEART", "HIP", "HUMERUS", "KIDNEY", "KNEE", "LEG", "LIVER", "LUMBAR", "LUNG", "NECK", "PANCREAS", "PELVIS",
    "PROSTATE", "RECTUM", "SACRUM", "SHOULDER", "SPINE", "SPLEEN", "STERNUM", "THIGH", "THORAX", "THUMB", "TIBIA",
    "TOE", "UTERUS", "WRIST",
)  # fmt: skip


class DicomError(Exception):
    """The file has no slice that can be shown; the text says why and holds nothing of the file's header but numbers."""


class _Counted(BytesIO):
    """A file's bytes, which pydicom may ask for only so often."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > _MAX_READS:
            raise DicomError("a DICOM file of more elements than a slice has; export the slice again")
        return super().read(size)


def read_slice(file: BinaryIO) -> tuple[np.ndarray, str]:
    """Read the only image of a DICOM file.

    Args:
        file: open for reading, with the preamble and ``DICM`` of part 10 or without.

    Returns:
        uint8 (H, W), or (H, W, 3) for colour, 0 is black; and one of ``sequence.SEQUENCES``, by the header's numbers
        alone, as a single file's description is often of the whole examination.

    Raises:
        DicomError: no image, several frames, of another modality or part of the body, too large, an encoding that
            cannot be decoded here, or damage.
    """
    if file.seek(0, 2) > MAX_BYTES:
        raise DicomError(f"a DICOM file of over {MAX_BYTES // 2**20} MB, which is no single slice; export one slice")
    file.seek(0)
    content = file.read()
    # pydicom inflates such a file whole and without a limit; the UID stands in clear in the head of one
    if _DEFLATED in content:
        raise DicomError("a deflated DICOM file, which is not read; export the slice without compression")
    with quiet_pydicom():
        try:
            dataset = dcmread(_Counted(content), force=True)  # without its preamble a file is as readable
            _check_size(dataset, len(content))
            kind = _checked_kind(dataset)
            pixels = _pixels(dataset)
            if pixels.ndim not in (2, 3) or pixels.shape[:2] != (dataset.Rows, dataset.Columns):
                raise DicomError("a DICOM file whose pixels do not fit its rows and columns; export it again")
            shown = _grey(pixels, dataset, kind) if kind in _GREY else _colour(pixels, dataset)
            return shown, tell_sequence(dicom_physics(dataset)).name
        except (DicomError, ImageFault):
            raise
        except MemoryError:
            raise DicomError("decoding this DICOM file needs more memory than there is") from None
        except Exception as error:  # damaged headers raise nearly anything; its text could quote the header
            raise DicomError(f"the DICOM file is damaged or of an unsupported kind ({type(error).__name__})") from None


def _check_size(dataset: Dataset, size: int) -> None:
    """Refuse a header of megabytes, and pixels that say they are numbers, before pydicom makes objects of them."""
    elements = list(map(dataset.get_item, dataset.keys()))  # as they are in the file; iterating would convert them
    pixels = [element for element in elements if element.tag in _PIXEL_TAGS]
    if any(element.VR not in (None, "OB", "OW", "OF", "OD", "UN") for element in pixels):
        raise DicomError("the DICOM file is damaged (its pixels are of the wrong kind); copy or export it again")
    apart = [len(e.value or b"") for e in elements if e in pixels or (e.tag.is_private and isinstance(e.value, bytes))]
    if size - sum(apart) > _MAX_BESIDE:
        raise DicomError(f"a DICOM file whose header is over {_MAX_BESIDE // 2**20} MB; export the slice again")


def _checked_kind(dataset: Dataset) -> str:
    """Return the photometric interpretation, after refusing what is no single slice before a pixel is decoded."""
    if not any(name in dataset for name in _PIXEL_DATA):
        named = UID(str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or ""))
        if "Image Storage" in named.name or not dataset:
            raise DicomError("the DICOM file is cut off before its pixels; copy or export it again")
        raise DicomError("a DICOM file without an image (a report, plan or index); choose the slice's own file")
    _check_subject(dataset)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise DicomError(
            f"a DICOM file of {frames} frames, not one slice; give it as a volume (--volume), or export a slice"
        )
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if fault := size_fault(columns, rows):
        raise DicomError(fault)
    kind = str(dataset.get("PhotometricInterpretation") or "")
    if kind not in _GREY + _COLOUR or int(dataset.SamplesPerPixel) != (1 if kind in (*_GREY, _PALETTE) else 3):
        raise DicomError("a DICOM file whose photometric interpretation is not supported; export it as PNG")
    return kind


def _check_subject(dataset: Dataset) -> None:
    """Refuse what the header says is no MR image, or none of the head; where it says nothing, the pixels decide."""
    modality = str(dataset.get("Modality") or "MR").strip().upper()
    if modality != "MR":
        name = _MODALITIES.get(modality)
        what = f"a DICOM image of modality {modality} ({name})" if name else "a DICOM image of a modality other than MR"
        raise DicomError(f"{what}, and the model reads MR alone; if it is an MR slice all the same, export it as PNG")
    anatomy = _attribute(dataset, "FrameAnatomySequence", "AnatomicRegionSequence") or [{}]
    part = f"{dataset.get('BodyPartExamined') or ''} {anatomy[0].get('CodeMeaning') or ''}".upper()
    # written together as in CHESTABDOMEN and LSPINE; short ones are words alone, as HIP is no hippocampus
    elsewhere = next((n for n in _ELSEWHERE if re.search(n if len(n) > 4 else rf"(?<![A-Z]){n}S?(?![A-Z])", part)), "")
    if elsewhere and not _HEAD.search(part):
        raise DicomError(
            f"a DICOM image of another part of the body ({elsewhere.lower()}), and the model reads the brain alone; "
            "if it is the brain all the same, export it as PNG"
        )


def _pixels(dataset: Dataset) -> np.ndarray:
    """Decode; colour that is stored as luminance and chrominance comes back as RGB."""
    if "TransferSyntaxUID" not in dataset.file_meta:
        _guess_syntax(dataset)
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        if len(next(dataset[name].value for name in _PIXEL_DATA if name in dataset)) < _expected_bytes(dataset):
            raise DicomError("the DICOM file is cut off within its pixels; copy or export it again")
        # Old files keep 12 bits at the upper end of 16; pydicom takes the lower end whatever HighBit says.
        spare = int(dataset.get("HighBit", 0)) + 1 - int(dataset.get("BitsStored", 0))
        if spare > 0 and "PixelData" in dataset:
            dataset.BitsStored += spare
            return dataset.pixel_array >> spare
        return dataset.pixel_array
    if dataset.PixelData.count(b"\xfe\xff\x00\xe0") > _MAX_FRAGMENTS:
        raise DicomError("a DICOM file whose pixels are in too many pieces; export the slice again")
    # Two bytes of run-length coding stand for 128: what the runs may fill is bounded by what they may be.
    samples = int(dataset.Rows) * int(dataset.Columns) * int(dataset.SamplesPerPixel)
    if syntax == RLELossless and (samples > MAX_RLE or len(dataset.PixelData) > 2 * _expected_bytes(dataset) + 2**16):
        raise DicomError("a run-length coded DICOM file larger than a slice; export the slice without compression")
    # the UID's registered name: an unregistered one could say anything
    name = syntax.name if syntax.name != str(syntax) else "a private syntax"
    _check_codestream(dataset)
    unknown = DicomError(f"a DICOM file compressed as {name}, which cannot be decoded here; export it as PNG")
    try:
        if not get_decoder(syntax).is_available:
            raise unknown
        return dataset.pixel_array
    except NotImplementedError:  # no image's syntax, such as video
        raise unknown from None
    except RuntimeError:  # every decoder gave up; of 12 bits because none can cope
        if syntax == JPEGExtended12Bit and int(dataset.BitsStored) > 8:
            raise unknown from None
        damaged = f"the DICOM file is damaged within its pixels (compressed as {name}); copy or export it again"
        raise DicomError(damaged) from None


def _check_codestream(dataset: Dataset) -> None:
    """Refuse JPEG and JPEG 2000 that are larger than rows and columns say, before a decoder makes room for them."""
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    check_scans(frame)
    # Pillow does not know JPEG-LS, which a plugin may decode: its frame header has rows and columns after the depth
    header = re.search(rb"\xff\xf7...(....)", frame, re.DOTALL)
    if header and header[1] != int(dataset.Rows).to_bytes(2, "big") + int(dataset.Columns).to_bytes(2, "big"):
        raise DicomError("a DICOM file whose pixels do not fit its rows and columns; export it again")
    with suppress(UnidentifiedImageError), Image.open(BytesIO(frame), formats=("JPEG", "JPEG2000")) as image:
        if image.size != (dataset.Columns, dataset.Rows):
            raise DicomError("a DICOM file whose pixels do not fit its rows and columns; export it again")


def _expected_bytes(dataset: Dataset) -> int:
    """Bytes of one uncompressed frame, without the byte that fills it up to an even number."""
    samples = int(dataset.Rows) * int(dataset.Columns) * int(dataset.SamplesPerPixel)
    if str(dataset.get("PhotometricInterpretation")) == "YBR_FULL_422":
        samples = samples * 2 // 3
    return samples * int(dataset.BitsAllocated) // 8


def _guess_syntax(dataset: Dataset) -> None:
    """Give a file without transfer syntax the one that it was parsed by, if its pixels have the uncompressed length."""
    implicit, little = dataset.original_encoding
    pixels = dataset.get("PixelData") or b""
    if len(pixels) - _expected_bytes(dataset) not in (0, 1) or not little:
        raise DicomError("a DICOM file that does not say how its pixels are packed (transfer syntax); export it again")
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian


def _grey(pixels: np.ndarray, dataset: Dataset, kind: str) -> np.ndarray:
    """Modality, value of interest, and the sense of grey: (H, W) of stored values to uint8, 0 and padding black."""
    inside = _inside(pixels, dataset)
    table = _table(dataset.get("ModalityLUTSequence"))
    if table is not None:
        values = _looked_up(pixels, *table[:2])
    else:
        slope = _first(_attribute(dataset, _TRANSFORMATION, "RescaleSlope")) or 1.0
        intercept = _first(_attribute(dataset, _TRANSFORMATION, "RescaleIntercept")) or 0.0
        values = (pixels * slope + intercept).astype(np.float32)
    if not np.isfinite(values[inside]).all():
        raise DicomError("pixel values are not all finite (NaN or infinity)")
    shares = _of_interest(values, dataset, inside)
    if kind == "MONOCHROME1":
        shares = 1 - shares
    return np.rint(255 * np.where(inside, shares, 0)).astype(np.uint8)


def _of_interest(values: np.ndarray, dataset: Dataset, inside: np.ndarray) -> np.ndarray:
    """Return the values in 0..1, by the file's table, its first window, or the range of the slice itself."""
    table = _table(_attribute(dataset, _VALUE_OF_INTEREST, "VOILUTSequence"))
    if table is not None:
        return np.clip(_looked_up(values, *table[:2]) / (2 ** table[2] - 1), 0, 1)
    centre = _first(_attribute(dataset, _VALUE_OF_INTEREST, "WindowCenter"))
    width = _first(_attribute(dataset, _VALUE_OF_INTEREST, "WindowWidth"))
    function = str(_attribute(dataset, _VALUE_OF_INTEREST, "VOILUTFunction") or "LINEAR").upper()
    if centre is not None and width is not None and width >= (1 if function == "LINEAR" else 1e-9):
        return windowed(values, centre, width, function)
    low, high = (values[inside].min(), values[inside].max()) if inside.any() else (0.0, 0.0)
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)


def _attribute(dataset: Dataset, group: str, keyword: str) -> Any:
    """A value of the only frame: from its functional group, the shared one, or the root, as in classic files."""
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for holder in (dataset.get(groups) or [])[:1]:
            for item in (holder.get(group) or [])[:1]:
                if item.get(keyword) not in (None, ""):
                    return item[keyword].value
    return dataset.get(keyword)


def _table(sequence: Any) -> tuple[np.ndarray, int, int] | None:
    """The first look-up table of a sequence: entries (N,), the value that the first stands for, bits an entry; or None.

    Entries of 8 bits are stored one a byte or one a word, as PS3.3 C.11.1.1.1 once allowed both.
    """
    item = sequence[0] if sequence else {}
    descriptor, data = item.get("LUTDescriptor"), item.get("LUTData")
    if not isinstance(descriptor, MultiValue | list) or len(descriptor) != 3 or data is None:
        return None
    count, first, bits = int(descriptor[0]) or 65536, int(descriptor[1]), int(descriptor[2])
    if isinstance(data, bytes):
        entries = np.frombuffer(data[: len(data) // 2 * 2], "<u2" if len(data) >= 2 * count else np.uint8)
    else:
        entries = np.atleast_1d(np.asarray(data, np.int64)) & 0xFFFF
    if not 1 <= bits <= 16 or len(entries) < count:
        raise DicomError("a DICOM file whose look-up table is cut off; export the slice as PNG")
    return entries[:count].astype(np.float32), first, bits


def _looked_up(values: np.ndarray, entries: np.ndarray, first: int) -> np.ndarray:
    if first > 32767 and values.min() < 0:  # a negative number that was written as an unsigned one
        first -= 65536
    return entries[np.clip(np.rint(values).astype(np.int64) - first, 0, len(entries) - 1)]


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
    ends = [
        value
        for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")
        for value in (dataset.get(f"{kind}{name}") for kind in ("", "Float", "DoubleFloat"))
        if isinstance(value, int | float)
    ]
    if not ends:
        return np.ones(pixels.shape, bool)
    if pixels.dtype.kind in "iu":  # signed and unsigned are mixed up in files: the bits are what is meant
        ends = [int(np.int64(end).astype(pixels.dtype)) for end in ends]
    return (pixels < min(ends)) | (pixels > max(ends))


def _colour(pixels: np.ndarray, dataset: Dataset) -> np.ndarray:
    """(H, W, 3), or palette indices (H, W), to uint8 RGB."""
    bits = int(dataset.BitsStored)
    if dataset.PhotometricInterpretation == _PALETTE:
        pixels = apply_color_lut(pixels, dataset)
        bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])  # of 8, one a byte or one a word
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise DicomError("a DICOM file with other than three colours; export it as PNG")
    if bits == 8 and pixels.dtype == np.uint8:
        return pixels
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
