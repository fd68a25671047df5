"""The only module that opens image files: whatever comes in leaves as an upright RGB image or as one readable error.

``load_image("slice.png")`` takes a path, bytes, a PIL image or an array. Everything that can be wrong with a file
becomes :class:`UnreadableImageError` here and nowhere else.
"""

import os
import stat
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import PIL.Image
from PIL import Image

from ..errors import UserError, missing_package, safe_line
from .depth import to_8bit, top
from .formats import (
    MAX_PIXELS,
    TIFF_STARTS,
    ImageFault,
    deep_pixels,
    has_deep_planes,
    looks_bare,
    plain_tiff,
    prepared,
    size_fault,
)
from .sequence import SEQUENCES

ImageSource: TypeAlias = str | Path | bytes | PIL.Image.Image | np.ndarray

SEQUENCE = "mr-sequence"
"""Key in ``Image.info``: one of ``sequence.SEQUENCES``, what a DICOM slice's header says it is."""
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
_ACCEPTED_FORMATS = "JPEG, PNG, BMP, TIFF, WebP or DICOM"
_ACCEPTED_ARRAYS = (
    "accepted are shapes (H, W), (H, W, 1), (H, W, 3), (H, W, 4) of bool, integers (0..65535) or float (0..1 or 0..255)"
)
_ORIENTATION_TAG = 0x0112
_PHOTOMETRIC_TAG = 262

_VOLUME = "volume, not a slice; name it .{0}, by which it is answered as a whole, or export its slices as PNG"
_NIFTI = "a NIfTI " + _VOLUME.format("nii")
# First bytes of files that people try by mistake; (offset, magic, what to say).
_FOREIGN = (
    *((344, magic, _NIFTI) for magic in (b"n+1\0", b"ni1\0")),
    *((4, magic, _NIFTI) for magic in (b"n+2\0", b"ni2\0")),
    (0, b"\x1f\x8b", "a gzip archive, not an image"),
    *((4, b"ftyp" + brand, "a HEIC photo; save it as JPEG or PNG") for brand in (b"hei", b"hev", b"mif1", b"msf1")),
    (4, b"ftypavi", "an AVIF image; save it as JPEG or PNG"),
    (4, b"jP  \r\n", "a JPEG 2000 image; save it as PNG"),
    (0, b"NRRD", "an NRRD " + _VOLUME.format("nrrd")),
    (0, b"PK\x03\x04", "a zip archive, not an image"),
    (0, b"%PDF", "a PDF document, not an image"),
    (0, b"GIF8", f"a GIF image; accepted are {_ACCEPTED_FORMATS}"),
)
_SNIFF_BYTES = 512
_DICOM_MAGIC = (128, b"DICM")
"""Offset and bytes by which a DICOM file (PS3.10, 7.1) is known; its suffix may be any."""


class UnreadableImageError(UserError):
    """An image cannot be read; ``str(error)`` is the one line ``NAME: reason``.

    Attributes:
        name: the file as it was given, or ``<bytes>``, ``<array>``, ``<image>``.
        reason: what is wrong with it, for a person.
    """

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = safe_line(reason)
        super().__init__(f"{safe_line(name)}: {self.reason}")

    def __reduce__(self) -> tuple[type["UnreadableImageError"], tuple[str, str]]:
        # Without this the error could not come back from a worker process: Exception pickles only its message.
        return type(self), (self.name, self.reason)


def load_image(source: ImageSource, name: str | None = None) -> PIL.Image.Image:
    """Read one image and give it the single form that the rest of the project works with.

    Every kind of file gives the pixels of its plain 8-bit RGB twin: EXIF orientation is applied, grey is repeated in
    three channels, transparent parts become black (the background of an MRI slice), of several frames or pages the
    first is taken, and deeper pixels are brought to 8 bits by :func:`to_8bit`. Embedded colour profiles are ignored.
    A DICOM slice comes as its own window and photometric interpretation show it (:mod:`.dicom`).

    Args:
        source: a path; the bytes of a file; a PIL image (left unchanged); or an array of shape (H, W), (H, W, 1),
            (H, W, 3) or (H, W, 4, the last being alpha) and dtype bool, integer or float (see :func:`to_8bit`).
        name: what errors call the image; by default the path as given, ``<bytes>``, ``<array>`` or ``<image>``.

    Returns:
        The decoded image in mode "RGB", without metadata but a DICOM slice's ``info[SEQUENCE]``, and with no file left
        open.

    Raises:
        UnreadableImageError: the file is missing, empty, truncated, damaged, larger than ``formats.MAX_PIXELS``, not
            one of JPEG, PNG, BMP, TIFF, WebP and DICOM of a single slice, or the array is of another kind.
    """
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        label = name if name is not None else os.fsdecode(path)
        with _open_regular_file(path, label) as file:
            return _decode(file, label)
    if isinstance(source, bytes | bytearray | memoryview):
        label = name if name is not None else "<bytes>"
        if not source:
            raise UnreadableImageError(label, "there are no bytes to read")
        return _decode(BytesIO(source), label)
    if isinstance(source, Image.Image):
        label = name if name is not None else str(getattr(source, "filename", "") or "<image>")
        return _to_rgb(source, label)
    if isinstance(source, np.ndarray):
        label = name if name is not None else "<array>"
        return _from_array(source, label)
    raise UnreadableImageError(
        name if name is not None else f"<{type(source).__name__}>",
        "not an image; accepted are a path, bytes, a PIL image or a numpy array",
    )


def is_single(images: object) -> bool:
    """Whether this is one image; strings, bytes and open files are iterable too, but never a list of images."""
    if isinstance(images, np.ndarray):
        return images.ndim != 4
    return isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image) or hasattr(
        images, "read"
    )


def name_of(source: object, number: int) -> str:
    """Return an image's name: its path, or ``image-0001`` by its place in the call."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else f"image-{number:04d}"


def _open_regular_file(path: str, label: str) -> BinaryIO:
    """Open a file for reading; pipes and devices are refused because reading them could wait for ever."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise UnreadableImageError(label, "this is a folder, not an image file")
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableImageError(label, "this is not a regular file")
        if status.st_size == 0:
            raise UnreadableImageError(label, "the file is empty")
        return open(path, "rb")
    except FileNotFoundError as error:
        raise UnreadableImageError(label, "no such file") from error
    except OSError as error:
        raise UnreadableImageError(label, error.strerror or str(error)) from error
    except ValueError as error:  # a NUL character in the path
        raise UnreadableImageError(label, f"not a valid path ({error})") from error


def _decode(file: BinaryIO, label: str) -> Image.Image:
    """Decode an open file; the allow-list keeps Pillow's rarely tested decoders away from untrusted bytes."""
    if file.read(_DICOM_MAGIC[0] + len(_DICOM_MAGIC[1]))[_DICOM_MAGIC[0] :] == _DICOM_MAGIC[1]:
        return _decode_dicom(file, label)
    try:
        file = prepared(file)
        image = Image.open(file, formats=_FORMATS)
    except PIL.UnidentifiedImageError as error:
        return _decode_otherwise(file, label, error)
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(label, f"the image is too large; the limit is {MAX_PIXELS:,} pixels") from error
    except ImageFault as fault:
        raise UnreadableImageError(label, str(fault)) from fault
    except Exception as error:  # on damaged headers decoders raise nearly anything: struct.error, KeyError, ...
        raise UnreadableImageError(label, damage(error)) from error
    with image:
        if image.format == "TIFF" and image.mode == "1":
            raise UnreadableImageError(
                label, "a TIFF file of black and white alone (1 bit), as of a fax, and no MRI slice"
            )
        return _plain_tiff(file, label) if has_deep_planes(image) else _to_rgb(image, label, file)


def _decode_otherwise(file: BinaryIO, label: str, error: Exception) -> Image.Image:
    """What Pillow does not know: DICOM without its preamble, a TIFF of rare numbers, or no image."""
    file.seek(0)
    head = file.read(9)
    if looks_bare(head):
        return _decode_dicom(file, label)
    if head[:4] not in TIFF_STARTS:
        raise UnreadableImageError(label, _describe_foreign(file)) from error
    return _plain_tiff(file, label)


def _plain_tiff(file: BinaryIO, label: str) -> Image.Image:
    try:
        values, orientation, white_zero = plain_tiff(file)
        rgb = _rgb_of(values, white_zero)
    except (ImageFault, ValueError) as fault:
        raise UnreadableImageError(label, str(fault)) from fault
    except Exception as error:  # as of Pillow's decoders
        raise UnreadableImageError(label, damage(error)) from error
    return rgb.transpose(_TURNS[orientation]) if orientation in _TURNS else rgb


def _decode_dicom(file: BinaryIO, label: str) -> Image.Image:
    """Decode a DICOM file's single slice; ``from None`` keeps pydicom's messages, which quote headers, out of logs."""
    try:
        from .dicom import DicomError, read_slice  # pydicom: 0.2 s that other files do not need
    except ModuleNotFoundError as error:
        raise UnreadableImageError(label, f"DICOM: {missing_package(error) or error}") from error

    try:
        pixels, sequence = read_slice(file)
        image = Image.fromarray(pixels).convert("RGB")
        image.info[SEQUENCE] = sequence
        return image
    except (DicomError, ImageFault) as error:
        raise UnreadableImageError(label, str(error)) from None


def _to_rgb(image: Image.Image, label: str, file: BinaryIO | None = None) -> Image.Image:
    """Decode, turn upright and convert; ``image`` may be lazy, of ``file``, and is not changed otherwise."""
    if fault := size_fault(*image.size):
        raise UnreadableImageError(label, fault)
    try:
        deep = deep_pixels(file, image) if file else None
        if deep is None:
            image.load()
            rgb = _convert(image)
        else:
            rgb = _rgb_of(deep, hidden=image.info.get("transparency"))
        # Turned after conversion, as Pillow cannot turn every mode; metadata would only mislead from here on.
        orientation = _orientation(image)
        sequence = None if file else image.info.get(SEQUENCE)  # of a picture from here, not of a file's own text
        rgb.info = {SEQUENCE: sequence} if sequence in SEQUENCES else {}
        return rgb if orientation is None else rgb.transpose(orientation)
    except ImageFault as fault:
        raise UnreadableImageError(label, str(fault)) from fault
    except Exception as error:  # as above: damaged data surfaces as any kind of error
        raise UnreadableImageError(label, damage(error)) from error


def _convert(image: Image.Image) -> Image.Image:
    """Any decoded mode to a new image in mode "RGB"."""
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image.convert("RGB")
    if mode == "F" or mode.startswith("I"):
        return _rgb_of(np.asarray(image)[..., None], _is_white_zero(image), image.info.get("transparency"))
    if mode in ("LAB", "HSV"):
        raise ImageFault(f"pixels in the {mode} colour space are not supported; save the image as RGB")
    if image.has_transparency_data:
        return _on_black(image.convert("LA") if mode == "La" else image)
    return image.convert("RGB")


def _rgb_of(values: np.ndarray, white_zero: bool = False, hidden: object = None) -> Image.Image:
    """Pixel values of any depth, (H, W, C) with C = 1 to 4, an even C with alpha, to mode "RGB".

    Args:
        values: as for :func:`to_8bit`. Alpha has a depth of its own: of colours of 12 bits it may have 16.
        white_zero: whether 0 is white; the brightest is then what the depth of the values can hold.
        hidden: the colour that stands for no pixel, as in ``Image.info["transparency"]``; it becomes black.

    Raises:
        ImageFault: as ValueError of :func:`to_8bit`.
    """
    channels = values.shape[2]
    colours, alpha = (values[..., :-1], values[..., -1]) if channels in (2, 4) else (values, None)
    try:
        if white_zero:
            colours = top(colours) - colours
        eight = to_8bit(colours)
        if hidden is not None and values.dtype.kind in "iu":
            eight = np.where((values == np.asarray(hidden)).all(axis=2, keepdims=True), np.uint8(0), eight)
        rgb = Image.fromarray(np.ascontiguousarray(eight[..., 0] if eight.shape[2] == 1 else eight)).convert("RGB")
        if alpha is not None:
            rgb.putalpha(Image.fromarray(np.ascontiguousarray(to_8bit(alpha))))
    except ValueError as error:
        raise ImageFault(str(error)) from error
    return _on_black(rgb) if alpha is not None else rgb


def _on_black(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")


def _is_white_zero(image: Image.Image) -> bool:
    """Whether a TIFF counts from white to black; Pillow honours that for 8-bit pixels but not for 16-bit ones."""
    tags = getattr(image, "tag_v2", None)
    return tags is not None and tags.get(_PHOTOMETRIC_TAG) == 0


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """The turn that EXIF asks for, or None; metadata too damaged to read does not make the pixels unreadable."""
    with suppress(Exception):
        return _TURNS.get(image.getexif().get(_ORIENTATION_TAG, 1))
    return None


# EXIF 2.32, table 6: how rows and columns of the stored image lie.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _from_array(array: np.ndarray, label: str) -> Image.Image:
    """An array of the accepted kinds to mode "RGB"; see :func:`load_image`."""
    kind = f"an array of shape {array.shape} and dtype {array.dtype} is not an image"
    shape_ok = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    dtype_ok = array.dtype == np.bool_ or array.dtype.kind in "iuf"
    if not (shape_ok and dtype_ok):
        raise UnreadableImageError(label, f"{kind}; {_ACCEPTED_ARRAYS}")
    height, width = array.shape[:2]
    if fault := size_fault(width, height):
        raise UnreadableImageError(label, fault)
    try:
        return _rgb_of(array.reshape(height, width, -1))
    except ImageFault as fault:
        raise UnreadableImageError(label, str(fault)) from fault


def damage(error: Exception) -> str:
    """Return the reason, for a person, of a file that looked like an image and could not be decoded or prepared."""
    if isinstance(error, MemoryError):
        return "decoding it needs more memory than there is"
    detail = str(error) or type(error).__name__
    if "truncated" in detail.lower():
        return "the file is truncated; copy or download it again"
    return f"the file is damaged or of an unsupported kind ({detail[:120]})"


def _describe_foreign(file: BinaryIO) -> str:
    """A reason for a file that is none of the accepted formats, naming what it is where its first bytes tell."""
    file.seek(0)
    head = file.read(_SNIFF_BYTES)
    if head.startswith(b"\x1f\x8b"):
        with suppress(zlib.error):
            inside = zlib.decompressobj(wbits=31).decompress(head, _SNIFF_BYTES)
            head = inside if any(inside[at : at + len(magic)] == magic for at, magic, _ in _FOREIGN) else head
    for offset, magic, what in _FOREIGN:
        if head[offset : offset + len(magic)] == magic:
            return f"this is {what}"
    if b"<svg" in head.lower():
        return f"this is an SVG drawing; accepted are {_ACCEPTED_FORMATS}"
    return f"not a readable {_ACCEPTED_FORMATS} image"
