import copy
import io
import os
import random
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from brain_tumor_mri.errors import UserError
from brain_tumor_mri.images.quiet import quiet_decoders
from brain_tumor_mri.images.read import MAX_PIXELS, UnreadableImageError, load_image, to_8bit

# pytest shows all warnings whatever filters the code set; that they stay unseen is tested in a process of its own.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\..*")


def grey_twin(height: int = 40, width: int = 56) -> np.ndarray:
    """A smooth picture with a corner mark, (H, W) uint8, that uses the range 0..255."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.rint(255 * (x + y) / (height + width - 2)).astype(np.uint8)
    pixels[:6, :9] = 200
    return pixels


def colour_twin() -> np.ndarray:
    grey = grey_twin()
    return np.stack([grey, 255 - grey, grey // 2], axis=-1)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels_of(source: object) -> np.ndarray:
    image = load_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def as_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


# --- every kind of picture gives the pixels of its plain RGB twin ---


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_rgb_formats_come_back_exactly(kind):
    assert np.array_equal(pixels_of(encode(Image.fromarray(colour_twin()), kind)), colour_twin())


def test_lossless_webp_comes_back_exactly():
    assert np.array_equal(pixels_of(encode(Image.fromarray(colour_twin()), "WEBP", lossless=True)), colour_twin())


def test_jpeg_is_what_pillow_decodes():
    data = encode(Image.fromarray(colour_twin()), "JPEG", quality=90)
    assert np.array_equal(pixels_of(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_eight_bit_grey_is_repeated_in_three_channels(kind):
    assert np.array_equal(pixels_of(encode(Image.fromarray(grey_twin()), kind)), as_rgb(grey_twin()))


def test_grey_jpeg_equals_its_rgb_conversion():
    data = encode(Image.fromarray(grey_twin()), "JPEG")
    assert np.array_equal(pixels_of(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(
    ("widen", "tolerance"),
    [
        (lambda v: v * np.uint16(257), 0),
        (lambda v: v << np.uint16(8), 0),
        (lambda v: v, 0),
        (lambda v: v << np.uint16(2), 1),
        (lambda v: v << np.uint16(4), 1),
        (lambda v: np.rint(v * (4095 / 255)).astype(np.uint16), 0),
        (lambda v: np.rint(v * (65535 / 255)).astype(np.uint16), 0),
    ],
    ids=["x257", "shift8", "plain", "10bit", "12bit", "12bit-scaled", "16bit-scaled"],
)
def test_sixteen_bit_twins_of_an_eight_bit_slice_come_back(kind, widen, tolerance):
    wide = widen(grey_twin().astype(np.uint16))
    difference = pixels_of(encode(Image.fromarray(wide), kind)).astype(int) - as_rgb(grey_twin())
    assert np.abs(difference).max() <= tolerance


@pytest.mark.parametrize("factor", [256, 257])
def test_a_dark_eight_bit_slice_widened_to_sixteen_stays_dark(factor):
    dark = (grey_twin() // 32).astype(np.uint16)
    assert np.array_equal(pixels_of(dark * np.uint16(factor)), as_rgb(dark.astype(np.uint8)))


def test_sixteen_bit_conversion_keeps_relative_contrast_and_never_stretches():
    values = np.linspace(20_000, 40_000, 400).reshape(20, 20).astype(np.uint16)
    out = to_8bit(values).astype(float)
    assert np.allclose(out, values / 257, atol=0.51)
    assert out.min() > 70 and out.max() < 160


def test_big_endian_and_inverted_sixteen_bit_tiff_come_back(tmp_path):
    grey = grey_twin().astype(np.uint16) * np.uint16(257)
    big = encode(Image.frombytes("I;16B", grey.shape[::-1], grey.astype(">u2").tobytes()), "TIFF")
    assert np.array_equal(pixels_of(big), as_rgb(grey_twin()))
    white_is_zero = encode(Image.fromarray(np.uint16(65535) - grey), "TIFF", tiffinfo={262: 0})
    with Image.open(io.BytesIO(white_is_zero)) as image:
        assert image.tag_v2[262] == 0
    assert np.array_equal(pixels_of(white_is_zero), as_rgb(grey_twin()))


def test_thirty_two_bit_integer_and_float_tiff_come_back():
    grey = grey_twin()
    assert np.array_equal(pixels_of(encode(Image.fromarray(grey.astype(np.int32)), "TIFF")), as_rgb(grey))
    assert np.array_equal(pixels_of(encode(Image.fromarray(grey.astype(np.float32)), "TIFF")), as_rgb(grey))
    unit = encode(Image.fromarray((grey / 255).astype(np.float32)), "TIFF")
    assert np.array_equal(pixels_of(unit), as_rgb(grey))


def test_one_bit_image_is_black_and_white():
    bits = grey_twin() > 128
    assert np.array_equal(pixels_of(encode(Image.fromarray(bits), "PNG")), as_rgb(bits * np.uint8(255)))


def test_palette_image_equals_its_rgb_conversion():
    palette = Image.fromarray(colour_twin()).quantize(32)
    assert np.array_equal(pixels_of(encode(palette, "PNG")), np.asarray(palette.convert("RGB")))


def test_transparent_palette_entries_become_black():
    palette = Image.new("P", (4, 2), 0)
    palette.putpalette([250, 250, 250, 10, 120, 30])
    palette.putpixel((1, 0), 1)
    out = pixels_of(encode(palette, "PNG", transparency=0))
    assert out[0, 1].tolist() == [10, 120, 30]
    assert out[1].max() == 0


def test_palette_with_a_table_of_alphas_is_composited_on_black():
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([200, 200, 200, 100, 100, 100])
    palette.putpixel((1, 0), 1)
    out = pixels_of(encode(palette, "PNG", transparency=bytes([255, 128])))
    assert out[0, 0].tolist() == [200, 200, 200]
    assert abs(int(out[0, 1, 0]) - 50) <= 1


def test_grey_png_with_a_transparent_level_becomes_black_there():
    grey = np.full((3, 3), 90, np.uint8)
    grey[0, 0] = 255
    out = pixels_of(encode(Image.fromarray(grey), "PNG", transparency=255))
    assert out[0, 0].max() == 0 and out[1, 1].tolist() == [90, 90, 90]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_rgba_is_composited_on_black(kind):
    rgba = np.dstack([colour_twin(), np.full(grey_twin().shape, 255, np.uint8)])
    rgba[:10, :, 3] = 0
    rgba[10:20, :, 3] = 128
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    out = pixels_of(encode(Image.fromarray(rgba), kind, **options))
    assert out[:10].max() == 0
    assert np.array_equal(out[20:], colour_twin()[20:])
    assert np.abs(out[10:20].astype(int) - colour_twin()[10:20] * (128 / 255)).max() <= 1


def test_opaque_alpha_changes_nothing():
    grey = Image.fromarray(grey_twin())
    la = Image.merge("LA", (grey, Image.new("L", grey.size, 255)))
    assert np.array_equal(pixels_of(encode(la, "PNG")), as_rgb(grey_twin()))


def test_premultiplied_alpha_images_are_accepted():
    rgba = Image.fromarray(colour_twin()).convert("RGBA")
    assert np.array_equal(pixels_of(rgba.convert("RGBa")), colour_twin())
    la = Image.fromarray(grey_twin()).convert("LA")
    assert np.array_equal(pixels_of(la.convert("La")), as_rgb(grey_twin()))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_converted(kind):
    cmyk = Image.fromarray(colour_twin()).convert("CMYK")
    out = pixels_of(encode(cmyk, kind, **({"quality": 95} if kind == "JPEG" else {})))
    assert np.abs(out.astype(int) - colour_twin()).mean() < 4


def test_ycbcr_image_is_converted():
    assert np.abs(pixels_of(Image.fromarray(colour_twin()).convert("YCbCr")).astype(int) - colour_twin()).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(colour_twin()), kind, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    out = load_image(data)
    assert np.array_equal(np.asarray(out), expected)
    assert out.size == ((40, 56) if orientation >= 5 else (56, 40))
    assert out.getexif().get(0x0112, 1) == 1
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(np.asarray(load_image(image)), expected)


def test_damaged_exif_does_not_make_the_pixels_unreadable():
    data = encode(Image.fromarray(colour_twin()), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert pixels_of(data).shape == (40, 56, 3)


@pytest.mark.parametrize(("kind", "options"), [("WEBP", {"lossless": True}), ("TIFF", {}), ("PNG", {})])
def test_of_several_frames_the_first_is_taken(kind, options):
    first, second = Image.fromarray(colour_twin()), Image.new("RGB", (56, 40), (9, 200, 7))
    data = encode(first, kind, save_all=True, append_images=[second, second], **options)
    assert np.array_equal(pixels_of(data), colour_twin())


# --- sources ---


def test_path_string_bytes_and_pil_image_agree_and_no_file_stays_open(tmp_path):
    path = tmp_path / "slice.png"
    Image.fromarray(colour_twin()).save(path, exif=Image.Exif())
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    outs = [load_image(path), load_image(str(path)), load_image(path.read_bytes())]
    with Image.open(path) as image:
        outs.append(load_image(image))
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
    for out in outs:
        assert type(out) is Image.Image and out.info == {}
        assert np.array_equal(np.asarray(out), colour_twin())


def test_a_pil_image_given_is_left_unchanged():
    image = Image.fromarray(colour_twin())
    image.info["note"] = "kept"
    out = load_image(image)
    out.paste((0, 0, 0), (0, 0, 5, 5))
    assert np.array_equal(np.asarray(image), colour_twin()) and image.info == {"note": "kept"}


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_arrays_of_accepted_shapes_and_dtypes(dtype, channels):
    grey = grey_twin()
    array = grey if channels is None else np.repeat(grey[:, :, None], channels, axis=2)
    if channels == 4:
        array[:, :, 3] = 255
    array = array.astype(dtype) if dtype == np.uint8 else (array / 255).astype(dtype)
    assert np.abs(pixels_of(array).astype(int) - as_rgb(grey)).max() <= (1 if dtype == np.float16 else 0)


def test_float_array_on_the_scale_of_255_and_uint16_colour_and_bool_and_views():
    assert np.array_equal(pixels_of(colour_twin().astype(np.float64)), colour_twin())
    assert np.array_equal(pixels_of(colour_twin().astype(np.uint16) * np.uint16(257)), colour_twin())
    assert pixels_of(grey_twin() > 99).max() == 255
    assert np.array_equal(pixels_of(colour_twin()[::-1, ::2]), colour_twin()[::-1, ::2])
    assert np.array_equal(pixels_of(grey_twin().astype(">u2") * 257), as_rgb(grey_twin()))


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((4,), np.uint8), "accepted are shapes"),
        (np.zeros((4, 4, 2), np.uint8), "(4, 4, 2)"),
        (np.zeros((3, 8, 8), np.uint8), "(3, 8, 8)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "accepted are shapes"),
        (np.full((4, 4), -1, np.int64), "below 0"),
        (np.full((4, 4), 70_000, np.int32), "65535"),
        (np.zeros((4, 4), np.complex64), "complex64"),
        (np.array([["a", "b"]]), "accepted are shapes"),
        (np.zeros((0, 4), np.uint8), "no pixels"),
        (np.full((4, 4), np.nan, np.float32), "finite"),
        (np.full((4, 4), np.inf), "finite"),
        (np.full((4, 4), -0.2), "below 0"),
        (np.full((4, 4), 1.4), "neither 0..1 nor 0..255"),
        (np.full((4, 4), 1e6), "65535"),
        (np.broadcast_to(np.uint8(0), (20_000, 20_000)), "too large"),
    ],
)
def test_other_arrays_are_refused_with_what_is_accepted(array, reason):
    with pytest.raises(UnreadableImageError) as caught:
        load_image(array)
    assert caught.value.name == "<array>" and reason in caught.value.reason


@pytest.mark.parametrize("source", [None, 7, ["a.png"], io.BytesIO(b"x")])
def test_other_types_are_refused(source):
    with pytest.raises(UnreadableImageError, match="accepted are a path, bytes"):
        load_image(source)


# --- unreadable files: one error, one line, with the name and the reason ---


def broken_files(folder: Path) -> dict[str, tuple[Path, str]]:
    png = encode(Image.fromarray(colour_twin()), "PNG")
    contents = {
        "empty.png": (b"", "empty"),
        "text.jpg": (b"this is not an image at all, only words", "not a readable JPEG"),
        "drawing.png": (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        "scan.dcm": (b"\0" * 128 + b"DICM" + b"\0" * 50, "DICOM"),
        "anim.gif": (encode(Image.fromarray(grey_twin()), "GIF"), "GIF"),
        "cut.png": (png[: len(png) // 2], "truncated"),
        "cut.jpg": (encode(Image.fromarray(colour_twin()), "JPEG", quality=95)[:-200], "truncated"),
        "header.png": (png[:20], ""),
        "signature.png": (b"\x89PNG\r\n\x1a\n", ""),
    }
    cases = {}
    for name, (content, reason) in contents.items():
        (folder / name).write_bytes(content)
        cases[name] = (folder / name, reason)
    (folder / "folder.png").mkdir()
    cases["folder.png"] = (folder / "folder.png", "folder")
    cases["missing.png"] = (folder / "missing.png", "no such file")
    cases["nul"] = (Path(f"{folder}/a\0b.png"), "not a valid path")
    cases["long"] = (folder / ("x" * 4000), "")
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.png")
        cases["pipe.png"] = (folder / "pipe.png", "not a regular file")
    return cases


def test_every_unreadable_file_gives_one_line_with_its_name_and_reason(tmp_path):
    for case, (path, reason) in broken_files(tmp_path).items():
        with pytest.raises(UnreadableImageError) as caught:
            load_image(path)
        assert isinstance(caught.value, UserError)
        assert caught.value.name == str(path)
        assert reason in caught.value.reason, case
        assert caught.value.reason and "\n" not in str(caught.value)
        assert str(caught.value).endswith(f": {caught.value.reason}")


def test_empty_bytes_and_a_name_of_ones_own():
    with pytest.raises(UnreadableImageError, match=r"^<bytes>: "):
        load_image(b"")
    with pytest.raises(UnreadableImageError, match=r"^upload\.png: "):
        load_image(b"junk", name="upload.png")


def test_a_name_with_line_breaks_and_escapes_is_printed_on_one_plain_line(tmp_path):
    with pytest.raises(UnreadableImageError) as caught:
        load_image(tmp_path / "a\nb\x1b[31m\udcff.png")
    line = str(caught.value)
    assert line.isprintable() and line.encode()


def test_the_error_survives_a_trip_between_processes():
    error = copy.copy(UnreadableImageError("a.png", "the file is empty"))
    assert (error.name, error.reason, str(error)) == ("a.png", "the file is empty", "a.png: the file is empty")


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png_of_size(width: int, height: int, rows: bytes = b"") -> bytes:
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(20_000, 20_000), (12_000, 9_000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_from_its_header_alone(size, tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of_size(*size))
    start = time.perf_counter()
    with pytest.raises(UnreadableImageError, match=f"too large; the limit is {MAX_PIXELS:,} pixels"):
        load_image(path)
    assert time.perf_counter() - start < 0.5


def test_an_image_without_pixels_is_refused():
    for source in (png_of_size(0, 5), Image.new("RGB", (0, 5))):
        with pytest.raises(UnreadableImageError):
            load_image(source)


def test_negative_or_huge_integer_pixels_are_refused_with_a_reason():
    for value, reason in ((-5, "below 0"), (100_000, "at most 65535")):
        with pytest.raises(UnreadableImageError, match=reason):
            load_image(encode(Image.fromarray(np.full((4, 4), value, np.int32)), "TIFF"))


def fuzz_seeds() -> list[bytes]:
    colour, grey = Image.fromarray(colour_twin()), Image.fromarray(grey_twin())
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a slice"
    return [
        encode(colour, "JPEG", exif=exif),
        encode(colour, "JPEG", progressive=True),
        encode(colour, "PNG", exif=exif),
        encode(colour.quantize(16), "PNG", transparency=3),
        encode(Image.fromarray(grey_twin().astype(np.uint16) * np.uint16(257)), "PNG"),
        encode(colour, "BMP"),
        encode(grey.quantize(16), "BMP"),
        encode(colour, "TIFF"),
        encode(colour, "TIFF", compression="tiff_lzw"),
        encode(colour, "TIFF", compression="jpeg"),
        encode(Image.fromarray(grey_twin().astype(np.float32)), "TIFF", compression="tiff_deflate"),
        encode(colour, "WEBP"),
        encode(colour, "WEBP", lossless=True, save_all=True, append_images=[colour.rotate(90)]),
    ]


def test_damaged_files_of_every_format_raise_nothing_but_unreadable_image_error(capfd):
    quiet_decoders()
    rng = random.Random(0)
    seeds = fuzz_seeds()
    refused = 0
    for case in range(600):
        data = bytearray(seeds[case % len(seeds)])
        if rng.random() < 0.4:
            del data[rng.randrange(1, len(data)) :]
        for _ in range(rng.choice([0, 1, 3, 20])):
            # Headers are where the decoders' own checks are, so half of the damage goes there.
            reach = min(len(data), 120) if rng.random() < 0.5 else len(data)
            data[rng.randrange(reach)] = rng.randrange(256)
        try:
            image = load_image(bytes(data))
        except UnreadableImageError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            assert image.mode == "RGB" and min(image.size) >= 1
    assert refused > 150
    assert capfd.readouterr() == ("", "")


def test_importing_the_library_changes_nothing_of_the_process():
    code = """if True:
        import logging, warnings
        import numpy, PIL.Image  # which have filters of their own
        before = list(warnings.filters), list(logging.getLogger("PIL").handlers)
        import brain_tumor_mri.images.read
        assert before == (warnings.filters, logging.getLogger("PIL").handlers)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_is_printed_about_odd_metadata_even_with_warnings_shown(tmp_path):
    data = encode(Image.fromarray(colour_twin()), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\xff\xff")
    (tmp_path / "odd.jpg").write_bytes(data)
    code = "import sys; from brain_tumor_mri.images import quiet, read; "
    code += "quiet.quiet_decoders(); read.load_image(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code, str(tmp_path / "odd.jpg")], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
