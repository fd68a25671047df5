"""Files to feed to the reader: whole ones of every kind, mutations of them by a seed, and the costliest that pass."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO

import numpy as np
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    MRImageStorage,
    RLELossless,
)

from brain_tumor_mri.images.formats import MAX_PIXELS
from data_scripts.draw_phantoms import make_phantom

_PNG = b"\x89PNG\r\n\x1a\n"
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1)
_SIDE = int(MAX_PIXELS**0.5)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of an image file."""
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def dicom(
    pixels: np.ndarray, syntax: str = ExplicitVRLittleEndian, packed: bytes | None = None, **tags: object
) -> bytes:
    """The bytes of a DICOM slice of (H, W) uint8 or uint16; ``packed`` stands for the pixels in another syntax."""
    data, data.file_meta = Dataset(), FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = MRImageStorage, "1.2.3"
    data.file_meta.TransferSyntaxUID = syntax
    bits = 8 * pixels.dtype.itemsize
    given = {
        "Modality": "MR", "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "Rows": pixels.shape[0],
        "Columns": pixels.shape[1], "BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1,
        "PixelRepresentation": 0, "PixelData": pixels.tobytes() if packed is None else encapsulate([packed]),
    }  # fmt: skip
    for tag, value in (given | tags).items():
        setattr(data, tag, value)
    data["PixelData"].VR = "OW" if bits > 8 else "OB"
    data["PixelData"].is_undefined_length = packed is not None
    buffer = BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def whole_files(rng: np.random.Generator) -> dict[str, bytes]:
    """Kind -> a synthetic slice of 96 x 96 pixels in it."""
    grey = make_phantom("glioma", rng, 96)
    rgb, values = grey.convert("RGB"), np.asarray(grey)
    deep = Image.fromarray(values.astype(np.uint16) * 257)
    window = {"WindowCenter": "600", "WindowWidth": "1200", "RescaleSlope": "2", "RescaleIntercept": "-9"}
    rle = struct.pack("<16L", 1, 64, *[0] * 14) + b"".join(b"\x5f" + row.tobytes() for row in values)  # 96 bytes a run
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(zipfile.ZipInfo("a.png"), encoded(grey, "PNG"), zipfile.ZIP_DEFLATED)  # without the time of day
        file.writestr(zipfile.ZipInfo("b/c.jpg"), encoded(grey, "JPEG"), zipfile.ZIP_DEFLATED)
    tiffs = {f"TIFF, {name}": encoded(grey, "TIFF", compression=name)
             for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd")}  # fmt: skip
    return tiffs | {
        "PNG": encoded(grey, "PNG"),
        "PNG, 16 bits": encoded(deep, "PNG"),
        "PNG, palette": encoded(rgb.quantize(16), "PNG"),
        "PNG, alpha": encoded(grey.convert("RGBA"), "PNG"),
        "JPEG": encoded(grey, "JPEG"),
        "JPEG, progressive": encoded(rgb, "JPEG", progressive=True),
        "JPEG, CMYK": encoded(rgb.convert("CMYK"), "JPEG"),
        "BMP": encoded(grey, "BMP"),
        "BMP, colour": encoded(rgb, "BMP"),
        "TIFF, 16 bits": encoded(deep, "TIFF"),
        "TIFF, floats": encoded(Image.fromarray(values.astype(np.float32) / 255), "TIFF"),
        "TIFF, colour": encoded(rgb, "TIFF", compression="tiff_lzw"),
        "WebP": encoded(rgb, "WEBP"),
        "WebP, lossless": encoded(grey.convert("RGBA"), "WEBP", lossless=True),
        "WebP, animated": encoded(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(9)]),
        "DICOM": dicom(values.astype(np.uint16) * 5, **window),
        "DICOM, implicit": dicom(values.astype(np.uint16) * 5, ImplicitVRLittleEndian, **window),
        "DICOM, RLE": dicom(values, RLELossless, rle),
        "DICOM, JPEG": dicom(values, JPEGBaseline8Bit, encoded(grey, "JPEG")),
        "DICOM, JPEG 2000": dicom(values, JPEG2000Lossless, encoded(grey, "JPEG2000")),
        "zip": archive.getvalue(),
    }


def mutations(seed: int) -> Iterator[tuple[str, bytes]]:
    """Kind and content of one spoiled file after the other, without end; the same for the same seed."""
    rng = np.random.default_rng(seed)
    files = whole_files(rng)
    kinds = list(files)
    while True:
        kind = kinds[rng.integers(len(kinds))]
        content = bytearray(files[kind])
        for _ in range(rng.integers(1, 4)):
            content = _CHANGES[rng.integers(len(_CHANGES))](content, rng, files[kinds[rng.integers(len(kinds))]])
        # else every second PNG ends at its first check sum
        yield kind, (with_check_sums(bytes(content)) if rng.random() < 0.7 else bytes(content))


def _flip(content: bytearray, rng: np.random.Generator, other: bytes) -> bytearray:
    for _ in range(rng.integers(1, 17)):
        content[rng.integers(len(content))] = rng.integers(256)
    return content


def _extreme(content: bytearray, rng: np.random.Generator, other: bytes) -> bytearray:
    """Put the least or the largest that a field can hold somewhere, mostly near the start, where sizes stand."""
    width, order = int(2 ** rng.integers(3)), "<" if rng.random() < 0.5 else ">"
    at = int(rng.integers(min(len(content), 512) if rng.random() < 0.8 else len(content)))
    value = _EXTREMES[rng.integers(len(_EXTREMES))] % 256**width
    content[at : at + width] = struct.pack(order + {1: "B", 2: "H", 4: "L"}[width], value)
    return content


def _cut(content: bytearray, rng: np.random.Generator, other: bytes) -> bytearray:
    return content[: max(1, rng.integers(len(content)))]


def _run(content: bytearray, rng: np.random.Generator) -> slice:
    start = int(rng.integers(len(content)))
    return slice(start, start + int(2 ** rng.integers(12)))


def _drop(content: bytearray, rng: np.random.Generator, other: bytes) -> bytearray:
    del content[_run(content, rng)]
    return content or bytearray(1)


def _repeat(content: bytearray, rng: np.random.Generator, other: bytes) -> bytearray:
    run = _run(content, rng)
    content[run] = content[run] * int(2 ** rng.integers(1, 7))
    return content


def _zero(content: bytearray, rng: np.random.Generator, other: bytes) -> bytearray:
    run = _run(content, rng)
    content[run] = bytes(len(content[run]))
    return content


def _splice(content: bytearray, rng: np.random.Generator, other: bytes) -> bytearray:
    return content[: rng.integers(1, len(content) + 1)] + other[rng.integers(len(other)) :]


_CHANGES: tuple[Callable[[bytearray, np.random.Generator, bytes], bytearray], ...] = (
    _flip, _flip, _extreme, _extreme, _cut, _drop, _repeat, _zero, _splice,
)  # fmt: skip


def with_check_sums(png: bytes) -> bytes:
    """A PNG whose chunks have the check sums of what they hold; anything else as it is."""
    if not png.startswith(_PNG):
        return png
    parts, at = [_PNG], len(_PNG)
    while at + 12 <= len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        body = png[at + 4 : at + 8 + length]
        parts += [png[at : at + 4], body, zlib.crc32(body).to_bytes(4, "big")]
        at += 12 + length
    return b"".join(parts) + png[at:]


def _png(channels: int, bits: int) -> bytes:
    """The largest PNG that is read."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + bytes(4)

    head = struct.pack(">LLBBBBB", _SIDE, _SIDE, bits, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    packer = zlib.compressobj(1)
    row = b"\0" + struct.pack(f">{_SIDE * channels}H", *[3001] * _SIDE * channels)[: _SIDE * channels * bits // 8]
    packed = b"".join([packer.compress(row) for _ in range(_SIDE)]) + packer.flush()
    return with_check_sums(_PNG + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b""))


def _strips() -> bytes:
    return encoded(Image.new("L", (MAX_PIXELS // 20_000, 20_000)), "TIFF", compression="tiff_lzw", strip_size=1)


def _scans(number: int) -> bytes:
    """A progressive JPEG of so many scans, each an empty refinement of all blocks, at the largest size."""
    image = encoded(Image.new("L", (_SIDE, _SIDE), 90), "JPEG", progressive=True)
    first = image.index(b"\xff\xda")
    blocks = (_SIDE // 8) ** 2
    # end-of-band runs of 2**14 blocks each, in a table of that code alone
    table = b"\xff\xc4" + struct.pack(">HB", 2 + 1 + 16 + 1, 0x10) + b"\1" + bytes(15) + b"\xe0"
    runs = "".join("0" + "0" * 14 for _ in range(-(-blocks // 2**14)))
    data = int(runs.ljust(-(-len(runs) // 8) * 8, "1"), 2).to_bytes(-(-len(runs) // 8), "big")
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0x00, 1, 63, 0x00) + data.replace(b"\xff", b"\xff\0")
    return image[:first] + image[first:-2] + table + scan * (number - image.count(b"\xff\xda")) + image[-2:]


def _in_header(extra: bytes, syntax: str = ExplicitVRLittleEndian) -> bytes:
    content = dicom(np.zeros((64, 64), np.uint8), syntax)
    at = content.index(struct.pack("<HH", 0x7FE0, 0x10))
    return content[:at] + extra + content[at:]


def costly_files() -> Iterator[tuple[str, bytes]]:
    """Name and content of files at the limits of what is read, or just over, one after the other."""
    colour = Image.new("RGBA", (_SIDE, _SIDE), (1, 2, 3, 4))
    zeros = np.zeros((_SIDE, _SIDE), np.uint16)
    numbers = b"1\\" * 999_999 + b"1 "
    empty = struct.pack("<HH2sH", 0x0029, 0x1000, b"LO", 0)
    item = struct.pack("<HH2sHLHHL", 0x0028, 0x3010, b"SQ", 0, 2_000_008, 0xFFFE, 0xE000, 2_000_000)
    for name, make in {
        "PNG, 25 million pixels, RGBA, 16 bits": lambda: _png(4, 16),
        "PNG, 25 million pixels, RGB, 16 bits": lambda: _png(3, 16),
        "PNG, 25 million pixels, RGBA": lambda: _png(4, 8),
        "JPEG, 25 million pixels, 100 scans": lambda: _scans(100),
        "JPEG, 25 million pixels, 5,000 scans": lambda: _scans(5_000),
        "TIFF, 20,000 strips": _strips,
        "WebP, 25 million pixels, RGBA": lambda: encoded(colour, "WEBP", quality=1, method=0),
        "DICOM, 25 million pixels, 16 bits": lambda: dicom(zeros),
        "DICOM, 25 million pixels, JPEG 2000": lambda: dicom(
            zeros.astype(np.uint8), JPEG2000Lossless, encoded(Image.new("L", (_SIDE, _SIDE)), "JPEG2000")
        ),
        "DICOM, 2 MB of numbers in a tag": lambda: _in_header(
            struct.pack("<HHL", 0x0028, 0x1053, len(numbers)) + numbers, ImplicitVRLittleEndian
        ),
        "DICOM, 250,000 elements in an item": lambda: _in_header(item + empty * 250_000),
        "DICOM, 4 million elements": lambda: _in_header(empty * 4_000_000),
    }.items():  # fmt: skip
        yield name, make()
