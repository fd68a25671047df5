"""DICOM slices: grey values as a viewer shows them, what is no single slice, and that no patient's data gets out."""

import io
import logging
import struct
import time
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    MRImageStorage,
    RLELossless,
)

from brain_tumor_mri.images.dicom import MAX_BYTES, windowed
from brain_tumor_mri.images.read import SEQUENCE, UnreadableImageError, load_image

pytestmark = pytest.mark.filterwarnings(r"ignore:::pydicom\..*")

NAME = "Secret^Patient"
VALUES = np.array([[0, 100, 200], [300, 400, 1000]], np.uint16)


def dicom(pixels: np.ndarray = VALUES, **tags: object) -> bytes:
    """A slice with these tags as a file's bytes; a tag of None is left out."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = Dataset()
    data.file_meta = meta
    bits = 8 * pixels.dtype.itemsize
    given = {
        "PatientName": NAME,
        "PatientID": "ID-12345",
        "SamplesPerPixel": 1 if pixels.ndim == 2 else pixels.shape[2],
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(np.issubdtype(pixels.dtype, np.signedinteger)),
        "PlanarConfiguration": 0,
        "PixelData": pixels.tobytes() + b"\0" * (pixels.nbytes % 2),
    } | tags
    for tag, value in given.items():
        if value is not None:
            setattr(data, tag, value)
    if "PixelData" in data:
        data["PixelData"].VR = "OW" if bits > 8 else "OB"
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def as_mr(name: str) -> bytes:
    """A file of pydicom's tests whose header says that it is MR."""
    data = pydicom.dcmread(get_testdata_file(name))
    data.Modality = "MR"
    buffer = io.BytesIO()
    data.save_as(buffer)
    return buffer.getvalue()


def grey(content: bytes | Path) -> np.ndarray:
    pixels = np.asarray(load_image(content, name="slice.dcm"))
    assert pixels.ndim == 3 and (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def reason(content: bytes | str) -> str:
    with pytest.raises(UnreadableImageError) as told:
        load_image(content, name="slice.dcm")
    assert "\n" not in str(told.value) and str(told.value).startswith("slice.dcm: ")
    assert told.value.__cause__ is None and told.value.__suppress_context__
    return told.value.reason


def test_without_a_window_the_slice_fills_the_range_by_itself():
    np.testing.assert_array_equal(grey(dicom()), np.rint(VALUES / 1000 * 255))


def test_the_window_is_that_of_the_standards_formula():
    # PS3.3 C.11.2.1.2.1: centre 200, width 201 maps 100..300 to 0..255
    expected = [[0, 1, 128], [255, 255, 255]]
    np.testing.assert_array_equal(grey(dicom(WindowCenter="200", WindowWidth="201")), expected)
    np.testing.assert_array_equal(grey(dicom(WindowCenter=["200", "900"], WindowWidth=["201", "9"])), expected)


def test_the_three_window_functions_agree_with_pydicom():
    values = np.linspace(-100, 1100, 50)
    for function in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        data = Dataset()
        data.WindowCenter, data.WindowWidth, data.VOILUTFunction = 400, 300, function
        data.BitsStored, data.PixelRepresentation, data.PhotometricInterpretation = 16, 0, "MONOCHROME2"
        expected = pydicom.pixels.apply_windowing(values, data) / 65535
        np.testing.assert_allclose(windowed(values, 400, 300, function), expected, atol=1e-6)
    assert windowed(np.array([9.4, 9.6]), 10, 1).tolist() == [0, 1]


def test_rescaling_comes_before_the_window():
    stored = dicom(RescaleSlope="2", RescaleIntercept="-100", WindowCenter="300", WindowWidth="401")
    # 100..500 after rescaling is 100..300 as stored
    np.testing.assert_array_equal(grey(stored), [[0, 0, 128], [255, 255, 255]])


def test_negative_values_are_read():
    np.testing.assert_array_equal(grey(dicom(VALUES.astype(np.int16) - 500)), np.rint(VALUES / 1000 * 255))


def test_monochrome1_is_the_negative():
    for tags in ({}, {"WindowCenter": "200", "WindowWidth": "201"}):
        shown = grey(dicom(PhotometricInterpretation="MONOCHROME1", **tags)).astype(int)
        np.testing.assert_allclose(shown, 255 - grey(dicom(**tags)).astype(int), atol=1)


def test_padding_outside_the_slice_does_not_set_the_range():
    padded = VALUES.copy()
    padded[0, 0] = 65535
    shown = grey(dicom(padded, PixelPaddingValue=65535))
    assert shown[0, 1] == 0 and shown[1, 2] == 255 and 0 < shown[0, 2] < 40


def test_a_table_of_values_of_interest_is_applied():
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4, 0, 8], [0, 50, 100, 255]
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "US"
    pixels = np.array([[0, 1], [2, 3]], np.uint16)
    np.testing.assert_array_equal(grey(dicom(pixels, VOILUTSequence=[table])), [[0, 50], [100, 255]])


@pytest.mark.parametrize("width", ["0", "-5", "nan"])
def test_a_window_without_meaning_is_left_aside(width: str):
    np.testing.assert_array_equal(grey(dicom(WindowCenter="200", WindowWidth=width)), grey(dicom()))


def test_a_slice_of_one_value_is_black():
    assert not grey(dicom(np.full((4, 5), 77, np.uint16))).any()


def test_colour_comes_as_it_is():
    colours = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    shown = np.asarray(load_image(dicom(colours, PhotometricInterpretation="RGB")))
    np.testing.assert_array_equal(shown, colours)


@pytest.mark.parametrize(
    ("name", "size", "coloured"),
    [
        ("MR_small.dcm", (64, 64), False),
        ("MR_small_RLE.dcm", (64, 64), False),
        ("MR_small_bigendian.dcm", (64, 64), False),
        ("MR_small_jp2klossless.dcm", (64, 64), False),
        ("CT_small.dcm", (128, 128), False),
        ("examples_palette.dcm", (800, 350), True),
        ("SC_rgb_rle.dcm", (100, 100), True),
        ("SC_rgb_dcmtk_+eb+cr.dcm", (100, 100), True),
        ("SC_ybr_full_422_uncompressed.dcm", (100, 100), True),
        ("SC_rgb_jpeg_dcmtk.dcm", (100, 100), True),
    ],
)
def test_files_of_pydicoms_own_tests_are_read(name: str, size: tuple[int, int], coloured: bool):
    image = load_image(as_mr(name))
    pixels = np.asarray(image).astype(int)
    assert image.size == size and pixels.max() > 200
    assert (np.ptp(pixels, axis=2).max() > 20) == coloured


def test_every_encoding_of_one_slice_gives_the_same_pixels():
    plain = np.asarray(load_image(get_testdata_file("MR_small.dcm")))
    for name in ("MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_jp2klossless.dcm"):
        np.testing.assert_array_equal(np.asarray(load_image(get_testdata_file(name))), plain)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("examples_ybr_color.dcm", "modality US (ultrasound)"),
        ("rtdose.dcm", "modality RTDOSE (dose)"),
        ("reportsi.dcm", "without an image"),
        ("rtplan.dcm", "without an image"),
        ("waveform_ecg.dcm", "without an image"),
        ("MR_truncated.dcm", "cut off"),
        ("image_dfl.dcm", "deflated"),
    ],
)
def test_what_is_no_single_slice_is_refused_in_words(name: str, said: str):
    assert said in reason(str(get_testdata_file(name)))


def test_jpeg_ls_is_read_where_its_decoder_is_installed_and_else_named():
    path = str(get_testdata_file("MR_small_jpeg_ls_lossless.dcm"))
    if pydicom.pixels.get_decoder(pydicom.uid.JPEGLSLossless).is_available:
        np.testing.assert_array_equal(grey(path), grey(str(get_testdata_file("MR_small.dcm"))))
        assert "do not fit" in reason(
            Path(path).read_bytes().replace(b"\xff\xf7\0\x0b\x10\0\x40", b"\xff\xf7\0\x0b\x10\xff\x40")
        )
    else:
        assert "compressed as JPEG-LS" in reason(path)


def test_a_file_of_many_frames_is_no_slice():
    assert "30 frames" in reason(as_mr("examples_ybr_color.dcm"))
    assert "15 frames" in reason(as_mr("rtdose.dcm"))


def test_a_deflate_bomb_is_not_inflated():
    content = dicom().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    assert "deflated" in reason(content)


def test_a_picture_that_claims_too_many_pixels_is_refused_before_it_is_decoded():
    assert "too large" in reason(dicom(Rows=60000, Columns=60000))
    assert "no pixels" in reason(dicom(Rows=0))
    assert "not supported" in reason(dicom(SamplesPerPixel=255))


def test_no_patients_data_reaches_messages_warnings_or_logs(caplog, capfd):
    content = dicom(WindowCenter="200", WindowWidth="201")
    chance = np.random.default_rng(0)
    told = 0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")  # as the module sets it; pytest resets filters
        caplog.set_level(logging.DEBUG)
        for number in range(120):
            spoiled = bytearray(content)
            if number % 4 == 0:
                spoiled = spoiled[: int(chance.integers(140, len(spoiled)))]
            for _ in range(int(chance.integers(1, 8))):
                spoiled[int(chance.integers(132, len(spoiled)))] = int(chance.integers(256))
            try:
                load_image(bytes(spoiled), name="slice.dcm")
            except UnreadableImageError as error:
                told += 1
                assert "Secret" not in str(error) and "12345" not in str(error) and "\n" not in str(error)
    out, err = capfd.readouterr()
    assert told > 20
    assert "Secret" not in caplog.text + out + err and "12345" not in caplog.text + out + err


def test_the_picture_carries_no_metadata_but_the_sequence_that_the_headers_numbers_tell(tmp_path: Path):
    assert load_image(dicom(SeriesDescription="T2")).info == {SEQUENCE: "unknown"}
    numbers = {"ScanningSequence": ["SE", "IR"], "RepetitionTime": 9000, "EchoTime": 120, "InversionTime": 2500}
    picture = load_image(dicom(**numbers))
    assert picture.info == load_image(picture).info == {SEQUENCE: "flair"}
    written = PngInfo()
    written.add_text(SEQUENCE, "flair")
    picture.save(tmp_path / "text.png", pnginfo=written)
    assert load_image(tmp_path / "text.png").info == {}


def test_a_dicom_file_is_known_by_its_content_not_its_name(tmp_path: Path):
    path = tmp_path / "slice.png"
    path.write_bytes(dicom())
    np.testing.assert_array_equal(np.asarray(load_image(path))[..., 0], grey(dicom()))


def item(**tags: object) -> Dataset:
    data = Dataset()
    for tag, value in tags.items():
        setattr(data, tag, value)
    return data


WINDOW = {"WindowCenter": 200, "WindowWidth": 201}


@pytest.mark.parametrize("groups", ["PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"])
def test_window_and_rescale_of_functional_groups_are_those_of_the_root(groups: str):
    held = item(
        FrameVOILUTSequence=[item(**WINDOW)],
        PixelValueTransformationSequence=[item(RescaleSlope=2, RescaleIntercept=-100)],
    )
    classic = dicom(RescaleSlope=2, RescaleIntercept=-100, **WINDOW)
    np.testing.assert_array_equal(grey(dicom(NumberOfFrames=1, **{groups: [held]})), grey(classic))


def test_a_frames_own_window_goes_before_the_shared_one():
    shared, own = item(FrameVOILUTSequence=[item(WindowCenter=9, WindowWidth=9)]), [item(**WINDOW)]
    both = dicom(
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=[item(FrameVOILUTSequence=own)],
    )
    np.testing.assert_array_equal(grey(both), grey(dicom(**WINDOW)))


@pytest.mark.parametrize("empty", [("RescaleSlope",), ("RescaleIntercept",), ("RescaleSlope", "RescaleIntercept")])
def test_an_empty_rescale_value_is_as_if_absent(empty: tuple[str, ...]):
    rescale = {"RescaleSlope": 1, "RescaleIntercept": 0} | dict.fromkeys(empty, "")
    np.testing.assert_array_equal(grey(dicom(**rescale, **WINDOW)), grey(dicom(**WINDOW)))


def test_padding_is_black_and_left_out_of_the_scale_whatever_sign_it_was_written_with():
    padded = VALUES.astype(np.int16)
    padded[0, 0] = -2000
    expected = np.rint(np.clip((padded - 100) / 900, 0, 1) * 255)
    content = dicom(padded, PixelPaddingValue=-2000)
    np.testing.assert_array_equal(grey(content), expected)
    data = pydicom.dcmread(io.BytesIO(content))
    data["PixelPaddingValue"] = pydicom.DataElement(0x00280120, "US", 65536 - 2000)
    buffer = io.BytesIO()
    data.save_as(buffer)
    np.testing.assert_array_equal(grey(buffer.getvalue()), expected)


def test_padding_of_a_negative_is_black():
    assert grey(dicom(PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0))[0, 0] == 0


@pytest.mark.parametrize("data", [bytes(range(255, -1, -1)), np.arange(255, -1, -1, dtype="<u2").tobytes()])
def test_a_table_of_8_bits_is_read_by_bytes_or_by_words(data: bytes):
    table = item(LUTDescriptor=[256, 0, 8])
    table["LUTData"] = pydicom.DataElement(0x00283006, "OW", data)
    pixels = np.array([[0, 10], [200, 400]], np.uint16)
    np.testing.assert_array_equal(grey(dicom(pixels, VOILUTSequence=[table])), [[255, 245], [55, 0]])


def test_an_empty_table_is_passed_over():
    np.testing.assert_array_equal(grey(dicom(VOILUTSequence=[item()], **WINDOW)), grey(dicom(**WINDOW)))


def test_12_bits_at_the_upper_end_of_16_are_read_from_there():
    shifted = dicom(VALUES << 4, BitsStored=12, HighBit=15, **WINDOW)
    np.testing.assert_array_equal(grey(shifted), grey(dicom(**WINDOW)))


def test_a_file_without_preamble_or_transfer_syntax_is_read():
    whole = dicom(**WINDOW)
    np.testing.assert_array_equal(grey(whole[132:]), grey(whole))
    data = pydicom.dcmread(io.BytesIO(whole))
    data.SOPClassUID = MRImageStorage
    for implicit in (True, False):
        bare = io.BytesIO()
        pydicom.dcmwrite(bare, Dataset(data), implicit_vr=implicit, little_endian=True)
        np.testing.assert_array_equal(grey(bare.getvalue()), grey(whole))


def test_a_file_that_ends_in_its_header_is_cut_off_and_no_report():
    assert "cut off" in reason(dicom()[:420])


FAULTS = Path(__file__).parents[3] / "shared" / "faults" / "dicom"


@pytest.mark.skipif(not FAULTS.is_dir(), reason=f"the files of public bug reports are not in {FAULTS}")
@pytest.mark.parametrize(
    ("names", "apart"),
    [
        # the same slice, window and rescale, wherever they stand and however the file is packed
        (("window", "enhanced1_shared", "enhanced1_perframe", "hb15", "no_ts", "nopreamble", "bare_implicit"), 0),
        (("window", "rescale_both_empty", "rescale_intercept_empty", "voi_emptyitem"), 0),
        (("enh_both", "enh_rescale"), 0),
        (("window", "enh_both", "rescale_slope_empty"), 2),  # one has half the levels, one an intercept of 5
        (("classic_hot", "enhanced1_hot"), 0),
        (("pad", "pad_us"), 0),
        (("pad", "float_pad", "mono1_pad0"), 1),
        (("voi12", "voi8b", "voi8w"), 1),
    ],
)
def test_files_of_public_bug_reports_that_hold_one_slice_give_one_picture(names: tuple[str, ...], apart: int):
    first, *others = (grey(FAULTS / f"{name}.dcm").astype(int) for name in names)
    for name, other in zip(names[1:], others, strict=True):
        assert np.abs(first - other).max() <= apart, name


def test_tables_of_12_and_16_bits_agree_with_pydicom():
    pixels = np.array([[0, 10], [2000, 4095]], np.uint16)
    for bits in (12, 16):
        table = item(LUTDescriptor=[4096, 0, bits])
        entries = np.arange(4096)[::-1] * (2**bits - 1) // 4095
        table["LUTData"] = pydicom.DataElement(0x00283006, "OW", entries.astype("<u2").tobytes())
        content = dicom(pixels, VOILUTSequence=[table], BitsStored=12, HighBit=11)
        expected = pydicom.pixels.apply_voi_lut(pixels, pydicom.dcmread(io.BytesIO(content)))
        np.testing.assert_allclose(grey(content), expected / (2**bits - 1) * 255, atol=0.51)


def test_padding_of_floats_is_left_out_of_the_scale():
    values = np.array([[-9999, 0.25], [0.5, 1.25]], np.float32)
    tags = {"PixelData": None, "BitsStored": None, "HighBit": None, "PixelRepresentation": None}
    content = dicom(values, **tags, FloatPixelData=values.tobytes(), FloatPixelPaddingValue=-9999.0)
    np.testing.assert_array_equal(grey(content), [[0, 0], [64, 255]])


@pytest.mark.parametrize("packed", [np.uint8, np.uint16])
def test_a_palette_of_8_bits_gives_the_greys_that_it_holds(packed: type):
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    colours = {}
    for name in ("Red", "Green", "Blue"):
        colours[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        colours[f"{name}PaletteColorLookupTableData"] = np.arange(255, -1, -1, dtype=packed).tobytes()
    shown = grey(dicom(pixels, PhotometricInterpretation="PALETTE COLOR", **colours))
    np.testing.assert_array_equal(shown, 255 - pixels)


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"Modality": "CT"}, "modality CT (CT)"),
        ({"Modality": "PT"}, "modality PT (PET)"),
        ({"Modality": "OT"}, "modality OT (captured)"),
        ({"Modality": NAME}, "a modality other than MR"),
        ({"Modality": "CT", "BodyPartExamined": "ABDOMEN"}, "modality CT"),
        ({"Modality": "MR", "BodyPartExamined": "ABDOMEN"}, "another part of the body (abdomen)"),
        ({"Modality": "MR", "BodyPartExamined": "LSPINE"}, "(spine)"),
        ({"BodyPartExamined": "lumbar spine"}, "(lumbar)"),
        ({"BodyPartExamined": "KNEE_LEFT"}, "(knee)"),
        ({"BodyPartExamined": "CHESTABDOMEN"}, "(abdomen)"),
        ({"AnatomicRegionSequence": [Dataset()]}, ""),
    ],
)
def test_another_modality_or_part_of_the_body_is_refused_by_name(tags: dict[str, object], said: str):
    if "AnatomicRegionSequence" in tags:
        region = item(CodeMeaning="Breast")
        groups = item(FrameAnatomySequence=[item(AnatomicRegionSequence=[region])])
        for held in ({"AnatomicRegionSequence": [region]}, {"SharedFunctionalGroupsSequence": [groups]}):
            assert "(breast)" in reason(dicom(**held))
    else:
        told = reason(dicom(**tags))
        assert said in told and "Secret" not in told and "export it as PNG" in told


@pytest.mark.parametrize(
    "part",
    ["", "HEAD", "BRAIN", "Head and Neck", "HEADNECK", "SKULL", "Hippocampus", "KOPF", "PITUITARY", "CRANIOSPINAL"],
)
def test_a_head_and_what_the_header_does_not_say_are_read(part: str):
    np.testing.assert_array_equal(grey(dicom(Modality="MR", BodyPartExamined=part)), grey(dicom()))


def encapsulated(frame: bytes, syntax: str, **tags: object) -> bytes:
    data = pydicom.dcmread(io.BytesIO(dicom(np.zeros((40, 56), np.uint8), **tags)))
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = pydicom.encaps.encapsulate([frame])
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.parametrize(("kind", "syntax"), [("JPEG", JPEGBaseline8Bit), ("JPEG2000", JPEG2000Lossless)])
def test_a_packed_picture_larger_than_its_rows_and_columns_is_not_decoded(kind: str, syntax: str):
    for size, fits in (((56, 40), True), ((5600, 4000), False)):
        buffer = io.BytesIO()
        Image.new("L", size, 90).save(buffer, kind)
        content = encapsulated(buffer.getvalue(), syntax)
        if fits:
            assert load_image(content).size == size
        else:
            assert "do not fit its rows and columns" in reason(content)


def test_run_length_coding_larger_than_a_slice_is_refused_before_it_is_decoded():
    frame = b"\x01" + bytes(63) + b"\x81\x07" * 100_000
    assert "larger than a slice" in reason(encapsulated(frame, RLELossless))


def test_a_file_too_large_for_a_slice_is_not_read_into_memory(tmp_path: Path):
    path = tmp_path / "large.dcm"
    with path.open("wb") as file:
        file.write(dicom())
        file.truncate(MAX_BYTES + 1)
    assert "128 MB" in reason(str(path)).replace("slice.dcm", "")


def elements(count: int, inside: str = "") -> bytes:
    """So many empty elements, explicit, little endian, in the root or within a sequence of known or unknown length."""
    many = struct.pack("<HH2sH", 0x0029, 0x1000, b"LO", 0) * count
    if not inside:
        return many
    head = struct.pack("<HH2sHL", 0x0028, 0x3010, b"SQ", 0, 2**32 - 1 if inside == "unknown" else len(many) + 8)
    if inside == "unknown":
        ends = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
        return head + struct.pack("<HHL", 0xFFFE, 0xE000, 2**32 - 1) + many + ends
    return head + struct.pack("<HHL", 0xFFFE, 0xE000, len(many)) + many


def with_elements(extra: bytes) -> bytes:
    content = dicom()
    at = content.index(struct.pack("<HH", 0x7FE0, 0x10))
    return content[:at] + extra + content[at:]


@pytest.mark.parametrize(("inside", "said"), [("", "elements"), ("unknown", "elements"), ("known", "header is over")])
def test_a_file_of_endless_elements_is_refused_within_a_second(inside: str, said: str):
    began = time.process_time()
    assert said in reason(with_elements(elements(600_000, inside)))
    assert time.process_time() - began < 2
    np.testing.assert_array_equal(grey(with_elements(elements(2_000, inside))), grey(dicom()))


def test_a_private_element_of_megabytes_does_not_matter_and_another_one_does():
    for group, refused in ((0x0029, False), (0x0028, True)):
        content = with_elements(struct.pack("<HH2sHL", group, 0x1101, b"OB", 0, 3 * 2**20) + bytes(3 * 2**20))
        if refused:
            assert "header is over 2 MB" in reason(content)
        else:
            np.testing.assert_array_equal(grey(content), grey(dicom()))


@pytest.mark.parametrize("kind", [b"DS", b"UT", b"UL", b"SQ"])
def test_pixels_that_say_they_are_numbers_or_text_are_refused(kind: bytes):
    assert "of the wrong kind" in reason(
        dicom().replace(struct.pack("<HH", 0x7FE0, 0x10) + b"OW", b"\xe0\x7f\x10\0" + kind)
    )


def test_an_extended_offset_table_stands_in_the_way_of_nothing():
    buffer = io.BytesIO()
    Image.new("L", (56, 40), 90).save(buffer, "JPEG")
    content = encapsulated(buffer.getvalue(), JPEGBaseline8Bit)
    at = content.index(struct.pack("<HH", 0x7FE0, 0x10))
    table = struct.pack("<HH2sHLQ", 0x7FE0, 1, b"OV", 0, 8, 0)
    lengths = struct.pack("<HH2sHLQ", 0x7FE0, 2, b"OV", 0, 8, len(buffer.getvalue()))
    np.testing.assert_array_equal(grey(content[:at] + table + lengths + content[at:]), grey(content))


def test_pixels_in_endless_pieces_are_refused():
    content = encapsulated(b"\x01" + bytes(63), RLELossless)
    end = content.rindex(struct.pack("<HH", 0xFFFE, 0xE0DD))
    assert "in too many pieces" in reason(
        content[:end] + struct.pack("<HHL", 0xFFFE, 0xE000, 0) * 30_000 + content[end:]
    )


@pytest.mark.parametrize(("kind", "syntax"), [("JPEG", JPEGBaseline8Bit), ("JPEG2000", JPEG2000Lossless)])
def test_damage_within_compressed_pixels_is_told_as_damage_and_not_logged(kind: str, syntax: str, caplog):
    buffer = io.BytesIO()
    Image.fromarray(np.arange(40 * 56, dtype=np.uint8).reshape(40, 56)).save(buffer, kind)
    cut = buffer.getvalue()[: len(buffer.getvalue()) // 2]
    assert "damaged within its pixels (compressed as JPEG" in reason(encapsulated(cut, syntax))
    assert "damaged within its pixels (compressed as RLE" in reason(encapsulated(b"\x01" + bytes(90), RLELossless))
    assert "cannot be decoded here" in reason(as_mr("JPEG-lossy.dcm"))  # 12 bits
    assert not caplog.records
