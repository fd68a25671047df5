"""What single formats need around Pillow: limits that their headers alone decide, and pixels deeper than 8 bits."""

from __future__ import annotations

import re
import struct
import sys
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

MAX_PIXELS = 25_000_000
"""Largest picture that is decoded, width x height: the header is asked before any pixel is. No MR slice has as many."""
MAX_SIDE = 20_000
"""Longest side, in pixels: resizing takes memory by it, so that a line of pixels would cost gigabytes."""
MAX_BYTES = 256 * 2**20
"""Largest file that is read: a picture of ``MAX_PIXELS`` with four channels of 16 bits has 200 MB."""
_MAX_SCANS = 100  # of a JPEG, each over all pixels; cameras and editors write about ten
_MAX_STRIPS, _MAX_NUMBERS = 20_000, 200_000  # of a TIFF: Pillow makes a Python object of each; a palette has 196,608
_MAX_TEXT, _MAX_TEXTS = 1_000, 60_000  # bytes: deflate makes at most 1,032 of one, and Pillow refuses over 1 MB
_MAX_EXIF = 2**16  # bytes, as in a JPEG: Pillow makes a Python object of each of its numbers

_PNG = b"\x89PNG\r\n\x1a\n"
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0")
_COMPRESSIONS = {
    1: "raw", 5: "LZW", 7: "JPEG", 8: "deflate", 32771: "raw", 32773: "PackBits", 32946: "deflate", 50000: "Zstandard",
    50001: "WebP",
}  # fmt: skip
"""Of TIFF. libtiff's decoders of fax pages leave what they do not fill as it was in memory, whoever's it was."""


class ImageFault(Exception):
    """A picture is refused; the text says why, for a person."""


def size_fault(width: int, height: int) -> str | None:
    """Say why a picture of so many pixels is not decoded; None when it may be."""
    if width < 1 or height < 1:
        return f"the image has no pixels ({width} x {height})"
    if width * height > MAX_PIXELS:
        return f"{width} x {height} pixels is too large; the limit is {MAX_PIXELS:,} pixels"
    if max(width, height) > MAX_SIDE:
        return f"{width} x {height} pixels is too long; the limit is {MAX_SIDE:,} pixels a side"
    return None


def looks_bare(head: bytes) -> bool:
    """Whether a file begins as DICOM without preamble does: an element of group 0002 or 0008, explicit or implicit."""
    group, element, length = head[:2], int.from_bytes(head[2:4], "little"), int.from_bytes(head[4:8], "little")
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return len(head) > 8 and group in (b"\x02\0", b"\x08\0") and element < 0x100 and (explicit or length <= 64)


def prepared(file: BinaryIO) -> BinaryIO:
    """Refuse what costs far more than its size lets expect, and return what Pillow is to open.

    Raises:
        ImageFault: the file is too large, a PNG's check sum is wrong, a JPEG has too many scans, or a TIFF too many
            strips or a compression that is not read.
    """
    size = file.seek(0, 2)
    if size > MAX_BYTES:
        raise ImageFault(f"a file of over {MAX_BYTES // 2**20} MB, which is no single slice")
    file.seek(0)
    head = file.read(30)
    if head.startswith(_PNG):
        return _without_texts(file, size)
    if head.startswith(b"\xff\xd8"):
        check_scans(head + file.read())
    elif head[:2] in (b"II", b"MM"):
        _check_directory(head, file)
    elif head[8:12] == b"WEBP" and (fault := size_fault(*_webp_size(head))):
        raise ImageFault(fault)  # its decoder reserves eight bytes a pixel before it says how many there are
    return file


def check_scans(jpeg: bytes) -> None:
    """Refuse a JPEG of endless scans, of which few bytes take seconds each; ImageFault."""
    if (scans := jpeg.count(b"\xff\xda")) > _MAX_SCANS:
        raise ImageFault(f"a JPEG image of {scans:,} scans, which is no picture of a scanner; save it again")


def _webp_size(head: bytes) -> tuple[int, int]:
    """Width and height that the first 30 bytes of a WebP announce; 1 x 1 where they are of no known kind."""
    kind = head[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF
    return 1, 1


def _without_texts(file: BinaryIO, size: int) -> BinaryIO:
    """A PNG without profile and long texts, which Pillow refuses over 1 MB, and without spoiled extras."""
    file.seek(len(_PNG))
    kept, room = [_PNG], _MAX_TEXTS
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">L4s", head)
        # bounded, as Python makes room for what is asked for before it sees that the file is shorter
        data, check = file.read(min(length, size)), file.read(4)
        extra = bool(kind[0] & 0x20)  # PNG 5.4: what starts in lower case is not needed for the pixels
        if len(check) == 4 and zlib.crc32(data, zlib.crc32(kind)) != int.from_bytes(check, "big"):
            if extra:
                continue
            raise ImageFault("the file is damaged (a check sum is wrong); copy or download it again")
        if kind == b"iCCP" or (kind == b"eXIf" and length > _MAX_EXIF):
            continue
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            room -= length
            if length > _MAX_TEXT or room < 0:
                continue
        kept += [head, data, check]
        if kind == b"IEND":
            break
    return BytesIO(b"".join(kept))


def _check_directory(head: bytes, file: BinaryIO) -> None:
    """Look at how many values a TIFF's first directory announces, before Pillow makes objects of them."""
    if not head.startswith(TIFF_STARTS):  # Pillow takes some that it then reads otherwise than libtiff
        raise ImageFault("a TIFF file of an unusual kind; save it as PNG")
    order, big = ("<" if head[:1] == b"I" else ">"), head[2:3] == b"+"
    entry = struct.Struct(order + ("HHQ8s" if big else "HHL4s"))
    file.seek(*struct.unpack(order + "Q" if big else order + "L", head[8:16] if big else head[4:8]))
    number = int.from_bytes(file.read(8 if big else 2), "little" if order == "<" else "big")
    if number > 4096:
        raise ImageFault("the file is damaged (a TIFF directory of too many tags); save it again")
    data = file.read(number * entry.size)
    for tag, kind, count, value in entry.iter_unpack(data[: len(data) // entry.size * entry.size]):
        if count > _MAX_STRIPS and tag in (273, 279, 324, 325):
            raise ImageFault(f"a TIFF file of {count:,} strips, which is no picture of a scanner; save it again")
        if count > _MAX_NUMBERS and kind not in (1, 2, 6, 7):
            raise ImageFault("the file is damaged (a TIFF tag of too many values); save it again")
        if tag == 259 and (used := struct.unpack_from(order + "H", value)[0]) not in _COMPRESSIONS:
            raise ImageFault(f"a TIFF file of a compression that is not read (number {used}); save it as PNG")


def deep_pixels(file: BinaryIO, image: Image.Image) -> np.ndarray | None:
    """Return all 16 bits of a picture in colour or with alpha, of which Pillow keeps the upper eight.

    Args:
        file: what ``image`` was opened from.
        image: as opened, not loaded yet.

    Returns:
        uint16 (H, W, 2) for grey and alpha, (H, W, 3) or (H, W, 4); None for any other picture.
    """
    layouts = {_layout(tile) for tile in getattr(image, "tile", [])}
    if image.mode not in ("RGB", "RGBA") or not layouts or not all(re.search(";16[BLN]$", name) for name in layouts):
        return None
    if layouts == {"LA;16B"}:
        both = _decoded_as(file, lambda layout: "RGBA").astype(np.uint16)  # the four bytes of a pixel, as they are
        return both[..., ::2] << 8 | both[..., 1::2]
    # the same bytes, taken for the other order, give the lower half; what is multiplied by alpha stays so
    high = _decoded_as(file, lambda layout: layout.replace("RGBa", "RGBA"))
    low = _decoded_as(file, lambda layout: _other_order(layout.replace("RGBa", "RGBA")))
    return high.astype(np.uint16) << 8 | low


def _layout(tile: Any) -> str:
    return tile[3] if isinstance(tile[3], str) else str(tile[3][0])


def _other_order(layout: str) -> str:
    native = "L" if sys.byteorder == "little" else "B"
    order = layout[-1].replace("N", native)
    return layout[:-1] + ("L" if order == "B" else "B")


def _decoded_as(file: BinaryIO, layout_of: Callable[[str], str]) -> np.ndarray:
    file.seek(0)
    with Image.open(file, formats=("PNG", "TIFF")) as image:
        image.tile = [
            tile._replace(args=new if isinstance(tile[3], str) else (new, *tile[3][1:]))
            for tile in image.tile
            for new in [layout_of(_layout(tile))]
        ]
        return np.asarray(image)


def has_deep_planes(image: Image.Image) -> bool:
    """Whether this is a TIFF of over 8 bits a value, plane after plane, of which Pillow takes every other byte."""
    tags = getattr(image, "tag_v2", {})
    planes = tags.get(284) == 2 and (tags.get(277, 1) > 1 or tags.get(259, 1) == 1)
    return planes and max(tags.get(258, (1,))) > 8


def plain_tiff(file: BinaryIO) -> tuple[np.ndarray, int, bool]:
    """Read an uncompressed TIFF that Pillow cannot: half and double floats, grey of 16 bits with alpha, deep planes.

    Returns:
        The pixels (H, W) or (H, W, C) as stored; the orientation, 1..8; whether 0 is white.

    Raises:
        ImageFault: it is compressed, or of some other kind.
    """
    file.seek(0)
    head = file.read(8)
    directory = ImageFileDirectory_v2(head + file.read(8) if head[2:3] == b"+" else head)
    file.seek(directory.next)
    directory.load(file)
    width, height, samples = directory[256], directory[257], directory.get(277, 1)
    bits, kinds = set(directory.get(258, (1,))), set(directory.get(339, (1,)))
    photometric = directory.get(262)
    kind = {1: "u", 2: "i", 3: "f"}.get(min(kinds), "")
    known = kind and len(bits) == len(kinds) == 1 and min(bits) in ((16, 32, 64) if kind == "f" else (8, 16, 32))
    if not known or photometric not in (0, 1, 2) or not 1 <= samples <= 4 or 273 not in directory:
        raise ImageFault("a TIFF file of a kind of pixels that is not read; save it as PNG")
    if directory.get(259, 1) != 1:
        raise ImageFault(f"a compressed TIFF file of {min(bits)} bits a value, which is not read; save it as PNG")
    if fault := size_fault(width, height):
        raise ImageFault(fault)
    dtype = np.dtype(f"{'<' if head[:1] == b'I' else '>'}{kind}{min(bits) // 8}")
    count = width * height * samples
    if count * dtype.itemsize > MAX_BYTES:  # strips may all be the same bytes of a small file
        raise ImageFault(f"a TIFF file of over {MAX_BYTES // 2**20} MB of pixels, which is no single slice")
    data = bytearray()
    for start, length in zip(directory[273], directory.get(279, (MAX_BYTES,)), strict=False):
        file.seek(start)
        data += file.read(min(length, count * dtype.itemsize - len(data)))
    if len(data) < count * dtype.itemsize:
        raise ImageFault("the file is truncated; copy or download it again")
    values = np.frombuffer(data, dtype, count).astype(dtype.newbyteorder("="))
    planes = directory.get(284, 1) == 2
    shaped = values.reshape(samples, height, width).transpose(1, 2, 0) if planes else values.reshape(height, width, -1)
    return shaped, directory.get(274, 1), photometric == 0
