"""Pixels deeper than 8 bits, what stands around the pixels of a file, and small files that would cost much."""

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brain_tumor_mri.images.archive import Archive
from brain_tumor_mri.images.formats import MAX_BYTES, MAX_PIXELS, MAX_SIDE
from brain_tumor_mri.images.read import UnreadableImageError, load_image

FAULTS = Path(__file__).parents[3] / "shared" / "faults"
with_faults = pytest.mark.skipif(not FAULTS.is_dir(), reason=f"the files of public bug reports are not in {FAULTS}")


def slice_of_12_bits() -> np.ndarray:
    """A smooth picture with a corner mark, (H, W) uint16, up to 3790."""
    y, x = np.mgrid[0:40, 0:56]
    values = (3790 * (x + y) // 94).astype(np.uint16)
    values[:6, :9] = 3000
    return values


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png(values: np.ndarray, *extras: bytes, interlace: int = 0) -> bytes:
    """A PNG of (H, W) or (H, W, C) uint8 or uint16, with further chunks before the pixels."""
    shaped = values.reshape(*values.shape[:2], -1)
    height, width, channels = shaped.shape
    header = struct.pack(">LLBBBBB", width, height, 8 * values.itemsize, (0, 4, 2, 6)[channels - 1], 0, 0, interlace)
    rows = b"".join(b"\0" + row.astype(values.dtype.newbyteorder(">")).tobytes() for row in shaped)
    parts = [chunk(b"IHDR", header), *extras, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(values: np.ndarray, order: str = "<", packed: bool = False, planes: bool = False, **tags: object) -> bytes:
    """A TIFF of one strip (or one a plane) of (H, W) or (H, W, C); tags by number, as in ``t262=0``."""
    shaped = values.reshape(*values.shape[:2], -1)
    height, width, channels = shaped.shape
    parts = [shaped[..., c] for c in range(channels)] if planes else [shaped]
    strips = [part.astype(values.dtype.newbyteorder(order)).tobytes() for part in parts]
    strips = [zlib.compress(strip) for strip in strips] if packed else strips
    starts = np.cumsum([8, *map(len, strips)]).tolist()
    extra = {2: (2,), 4: (2,)}.get(channels, ())
    given = {
        256: (width,), 257: (height,), 258: (8 * values.itemsize,) * channels, 259: (8 if packed else 1,),
        262: (2 if channels > 2 else 1,), 273: starts[:-1], 277: (channels,), 278: (height,),
        279: [len(strip) for strip in strips], 284: (2 if planes else 1,), 338: extra,
        339: ({"u": 1, "i": 2, "f": 3}[values.dtype.kind],) * channels,
    } | {int(tag[1:]): value for tag, value in tags.items()}  # fmt: skip
    body, directory, at = b"".join(strips), b"", 0
    entries = sorted((tag, numbers) for tag, numbers in given.items() if numbers)
    after = starts[-1] + 2 + 12 * len(entries) + 4
    late = b""
    for tag, numbers in entries:
        data = struct.pack(f"{order}{len(numbers)}L", *numbers) if tag in (273, 279) else None
        data = data or struct.pack(f"{order}{len(numbers)}H", *numbers)
        if len(data) > 4:
            at, late = after + len(late), late + data
            data = struct.pack(order + "L", at)
        kind = 4 if tag in (273, 279) else 3
        directory += struct.pack(order + "HHL", tag, kind, len(numbers)) + data.ljust(4, b"\0")
    magic = b"II*\0" if order == "<" else b"MM\0*"
    head = magic + struct.pack(order + "L", starts[-1])
    return head + body + struct.pack(order + "H", len(entries)) + directory + bytes(4) + late


def pixels(source: object) -> np.ndarray:
    return np.asarray(load_image(source))


def reason(source: object) -> str:
    with pytest.raises(UnreadableImageError) as told:
        load_image(source, name="picture")
    assert "\n" not in str(told.value)
    return told.value.reason


# --- deeper than 8 bits ---


GREY = slice_of_12_bits()
FULL = np.full_like(GREY, 65535)
COLOURS = [GREY] * 3
DEEP = {
    "grey": np.stack([GREY], -1),
    "grey and alpha": np.stack([GREY, FULL], -1),
    "colour": np.stack(COLOURS, -1),
    "colour and alpha": np.stack([*COLOURS, FULL], -1),
}


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize(
    "encode",
    [
        png,
        tiff,
        lambda v: tiff(v, ">"),
        lambda v: tiff(v, planes=True),
        pytest.param(lambda v: v, id="array"),
    ],
    ids=["png", "tiff", "tiff-big-endian", "tiff-planes", "array"],
)
def test_a_file_of_16_bits_that_holds_12_is_as_bright_as_its_grey_twin(kind: str, encode: object):
    if kind == "grey and alpha" and not isinstance(encode(DEEP[kind]), bytes):
        pytest.skip("arrays have one channel, three or four")
    np.testing.assert_array_equal(pixels(encode(DEEP[kind])), pixels(GREY))


@pytest.mark.parametrize("order", ["<", ">"])
def test_compressed_colour_of_16_bits_is_read_whole_or_refused(order: str):
    np.testing.assert_array_equal(pixels(tiff(DEEP["colour"], order, packed=True)), pixels(GREY))
    assert "a compressed TIFF file of 16 bits" in reason(tiff(DEEP["colour"], order, packed=True, planes=True))


@pytest.mark.parametrize("kind", DEEP)
def test_8_bits_widened_to_16_come_back_exactly_in_every_layout(kind: str):
    eight = np.rint(DEEP[kind] / 65535 * 255 if "alpha" in kind else DEEP[kind] / 16).astype(np.uint8)
    eight[..., 0] = np.arange(eight[..., 0].size).reshape(eight.shape[:2]) % 256
    for encode in (png, tiff):
        np.testing.assert_array_equal(pixels(encode(eight.astype(np.uint16) * 257)), pixels(png(eight)))


def test_colour_of_16_bits_keeps_its_colours_and_half_transparent_parts_their_share():
    values = np.stack([GREY, GREY // 2, GREY // 4, FULL], -1)
    shown = pixels(png(values)).astype(int)
    for channel, share in enumerate((1, 2, 4)):
        np.testing.assert_allclose(shown[..., channel], GREY / 4095 * 255 / share, atol=1)
    values[..., 3] = 32768
    np.testing.assert_allclose(pixels(png(values)), shown / 2, atol=1.5)


def test_the_level_that_stands_for_no_pixel_is_black_in_16_bits():
    hidden = chunk(b"tRNS", struct.pack(">H", 3000))
    expected = np.where(GREY == 3000, 0, pixels(GREY)[..., 0])
    np.testing.assert_array_equal(pixels(png(GREY, hidden))[..., 0], expected)
    hidden = chunk(b"tRNS", struct.pack(">HHH", 3000, 3000, 3000))
    np.testing.assert_array_equal(pixels(png(DEEP["colour"], hidden))[..., 0], expected)


@pytest.mark.parametrize("order", ["<", ">"])
def test_where_0_is_white_black_is_what_the_depth_can_hold(order: str):
    for top in (4095, 65535):
        np.testing.assert_array_equal(pixels(tiff(np.uint16(top) - GREY, order, t262=(0,))), pixels(GREY))
    unit = (GREY / 4095).astype(np.float32)
    np.testing.assert_allclose(pixels(tiff(1 - unit, order, t262=(0,))), pixels(GREY), atol=1)


@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("order", ["<", ">"])
def test_floats_of_any_width_are_read(width: int, order: str):
    unit = (GREY / 4095).astype(f"f{width}")
    np.testing.assert_allclose(pixels(tiff(unit, order)), pixels(GREY), atol=1)
    turned = np.asarray(load_image(tiff(unit, order, t274=(6,))))
    np.testing.assert_allclose(turned, np.rot90(pixels(GREY), -1), atol=1)


def test_a_tiff_of_rare_numbers_that_is_packed_cut_or_too_large_is_said():
    values = GREY.astype(np.float64)
    assert "compressed TIFF file of 64 bits" in reason(tiff(values, packed=True))
    assert "truncated" in reason(tiff(values, t257=(80,)))
    assert "too large" in reason(tiff(values, t256=(60_000,), t257=(60_000,)))
    assert "not read" in reason(tiff(values, t262=(5,)))


@with_faults
def test_files_of_public_bug_reports_give_the_picture_of_their_grey_twin():
    twin = pixels(FAULTS / "images" / "g16_12.png")
    for path in sorted((FAULTS / "images").iterdir()):
        if path.name != "noeoi.jpg":
            np.testing.assert_allclose(pixels(path).astype(int), twin.astype(int), atol=1, err_msg=path.name)
    assert "truncated" in reason(FAULTS / "images" / "noeoi.jpg")


# --- around the pixels ---


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP", b"tEXt"])
def test_text_and_profiles_of_any_size_do_not_matter(kind: bytes):
    packed = zlib.compress(bytes(3_000_000))
    data = {
        b"zTXt": b"Comment\0\0" + packed,
        b"iTXt": b"XML:com.adobe.xmp\0\1\0\0\0" + packed,
        b"iCCP": b"ICC\0\0" + packed,
        b"tEXt": b"Comment\0" + b"x" * 3_000_000,
    }[kind]
    eight = pixels(GREY)[..., 0]
    np.testing.assert_array_equal(pixels(png(eight, chunk(kind, data)))[..., 0], eight)
    many = [chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(900_000)))] * 100
    np.testing.assert_array_equal(pixels(png(eight, *many))[..., 0], eight)


def test_a_wrong_check_sum_beside_the_pixels_is_passed_over_and_one_of_the_pixels_is_said():
    eight = pixels(GREY)[..., 0]
    spoiled = chunk(b"tEXt", b"a\0b")[:-1] + b"?"
    np.testing.assert_array_equal(pixels(png(eight, spoiled))[..., 0], eight)
    whole = bytearray(png(eight))
    whole[whole.index(b"IDAT") + 20] ^= 0xFF
    assert "a check sum is wrong" in reason(bytes(whole))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\0\0\0\x18ftypheic" + bytes(400), "a HEIC photo"),
        (b"\0\0\0\x18ftypmif1" + bytes(400), "a HEIC photo"),
        (b"\0\0\0\x1cftypavif" + bytes(400), "an AVIF image"),
        (bytes(344) + b"n+1\0" + bytes(100), "a NIfTI volume"),
        (gzip.compress(bytes(344) + b"n+1\0" + os.urandom(5000)), "a NIfTI volume"),
        (gzip.compress(b"text" * 300, mtime=0), "a gzip archive"),
        (b"NRRD0004\n" + bytes(400), "an NRRD volume"),
    ],
)
def test_what_is_no_picture_for_this_project_is_named(content: bytes, said: str):
    assert said in reason(content)


# --- small files that would cost much ---


def test_a_line_of_pixels_is_refused_however_it_comes():
    line = np.zeros((1, MAX_SIDE + 1), np.uint8)
    for source in (png(line), Image.fromarray(line), line):
        assert f"the limit is {MAX_SIDE:,} pixels a side" in reason(source)
    assert f"the limit is {MAX_PIXELS:,} pixels" in reason(np.broadcast_to(np.uint8(0), (6000, 6000)))


def test_a_progressive_jpeg_of_endless_scans_is_refused_and_a_usual_one_is_not():
    buffer = io.BytesIO()
    Image.fromarray(pixels(GREY)).save(buffer, "JPEG", progressive=True)
    usual = buffer.getvalue()
    assert pixels(usual).shape == (40, 56, 3)
    scan = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0\0"
    assert "1,0" in reason(usual[:-2] + scan * 1000 + b"\xff\xd9")


def test_a_tiff_of_countless_strips_or_of_a_fax_is_refused_before_it_is_opened():
    eight = pixels(GREY)[..., 0].copy()
    assert "30,000 strips" in reason(tiff(eight, t273=[8] * 30_000, t279=[1] * 30_000))
    assert "too many values" in reason(tiff(eight, t282=[1] * 300_000))
    for fax in (2, 3, 4, 32809):
        assert f"number {fax}" in reason(tiff(eight, t259=(fax,)))
    assert "unusual kind" in reason(b"MM\0+" + bytes(100))


def test_a_tiff_of_one_bit_is_refused_and_one_of_two_levels_is_not():
    for packing in ("raw", "tiff_adobe_deflate", "packbits"):
        for dtype, told in ((bool, "1 bit"), (np.uint8, "")):
            buffer = io.BytesIO()
            Image.fromarray((GREY > 1000).astype(dtype)).save(buffer, "TIFF", compression=packing)
            assert (told in reason(buffer.getvalue())) if told else pixels(buffer.getvalue()).any()


def test_strips_that_are_the_same_bytes_again_and_again_are_refused_by_what_they_add_up_to():
    few = tiff(np.zeros((4, 4, 4), np.float64), t256=(4000,), t257=(4000,), t273=[8] * 9000, t279=[60_000] * 9000)
    assert "256 MB of pixels" in reason(few)


def test_a_length_that_lies_reserves_no_memory(tmp_path: Path):
    path = tmp_path / "lies.png"
    path.write_bytes(png(pixels(GREY)[..., 0].copy(), struct.pack(">L", 2**32 - 1) + b"tEXt"))
    tracemalloc.start()
    reason(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"}])
def test_a_webp_is_refused_by_the_size_that_its_header_announces(options: dict[str, object]):
    for width, refused in ((60, False), (16_000, True)):
        buffer = io.BytesIO()
        Image.new("L", (width, 40)).save(buffer, "WEBP", **options)
        content = buffer.getvalue()
        if not refused:
            assert load_image(content).size == (width, 40)
        else:
            tall = {b"VP8X": content[:27] + b"\xff\xff\0", b"VP8 ": content[:28] + b"\xff\x3f"}
            changed = tall.get(content[12:16], content[:23] + b"\xff\xff")
            assert "too large" in reason(changed + content[len(changed) :])


def test_an_exif_of_a_png_that_is_larger_than_any_is_passed_over():
    eight = pixels(GREY)[..., 0]
    turned = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHLLL", 0x112, 3, 1, 6, 0)
    assert pixels(png(eight, chunk(b"eXIf", turned))).shape == (56, 40, 3)
    assert pixels(png(eight, chunk(b"eXIf", turned + bytes(70_000)))).shape == (40, 56, 3)


def test_a_file_of_any_size_is_refused_by_its_size(tmp_path: Path):
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.write(png(pixels(GREY)[..., 0].copy()))
        file.truncate(MAX_BYTES + 1)
    assert "256 MB" in reason(path)


@with_faults
def test_hostile_files_end_in_a_line_within_little_time_and_memory(tmp_path: Path):
    files = [path for path in sorted((FAULTS / "hostile").iterdir()) if path.is_file()]
    for number, path in enumerate(files):
        if path.suffix == ".gz":
            files[number] = tmp_path / path.stem
            files[number].write_bytes(gzip.decompress(path.read_bytes()))
    code = """if True:
        import json, resource, sys, time
        import PIL.Image
        import pydicom.pixels
        from brain_tumor_mri.errors import UserError
        from brain_tumor_mri.images import quiet
        from brain_tumor_mri.images.read import load_image
        quiet.quiet_decoders()
        PIL.Image.init()
        said = {}
        for file in sys.argv[1:]:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            start = time.process_time()
            try:
                load_image(file)
                reason = ""
            except UserError as error:
                reason = error.reason
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
            said[file] = [reason, time.process_time() - start, grown]
        print(json.dumps(said))
    """
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, files)],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2], timeout=120,
    )  # fmt: skip
    assert done.stderr == ""
    said = json.loads(done.stdout)
    assert len(said) == 8
    for file, (why, seconds, megabytes) in said.items():
        assert why and seconds < 2 and megabytes < 100, (file, why, seconds, megabytes)


@with_faults
def test_an_archive_with_a_member_without_a_name_is_read():
    with Archive(FAULTS / "hostile" / "empty-name.zip") as archive:
        assert archive.members == ["good.png", "(no name)"]
        assert load_image(archive.read(0)).size == (256, 256)
