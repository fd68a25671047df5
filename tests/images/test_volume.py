"""Volumes in: every format gives one geometry, and what is odd about a series is named or refused."""

import gzip
import os
import re
import tracemalloc
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from clinical.synthetic_series import SECRETS, write
from images.mr_series import as_dicom, enhanced, head, zipped
from pydicom import DataElement, Dataset

from brain_tumor_mri.images import archive
from brain_tumor_mri.images.series import UnreadableVolumeError, find_series
from brain_tumor_mri.images.volume import Volume, read_volume

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
TILTED = (1.0, 0.0, 0.0, 0.0, 0.866025, -0.5)
"""Turned by 30 degrees about the axis from right to left."""


def read(datasets: list[Dataset], folder: Path) -> Volume:
    return read_volume(write(datasets, folder))


def refusal(source: Path) -> str:
    with pytest.raises(UnreadableVolumeError) as told:
        read_volume(source)
    line = str(told.value)
    assert "\n" not in line and not any(secret in line for secret in SECRETS)
    return told.value.reason


def test_a_folder_its_zip_its_multi_frame_file_and_its_nifti_are_one_volume(tmp_path: Path):
    slices = as_dicom(head())
    whole = tmp_path / "whole.dcm"
    enhanced(slices).save_as(whole, enforce_file_format=True)
    folder = read(slices[::-1], tmp_path / "dicom")  # files in another order than the slices
    packed, frames = read_volume(zipped(slices, tmp_path / "study.zip")), read_volume(whole)
    np.testing.assert_array_equal(folder.array, head())
    np.testing.assert_array_equal(packed.array, folder.array)
    np.testing.assert_array_equal(frames.array, 2 * folder.array - 7)  # slope and intercept of the shared group
    reference = SimpleITK.ReadImage(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "dicom")))
    at = reference.TransformIndexToPhysicalPoint((5, 9, 3))
    for volume in (folder, packed, frames):
        np.testing.assert_allclose((LPS @ volume.affine @ [5, 9, 3, 1])[:3], at, atol=1e-4)
        assert volume.sequence.name == "t1" and not volume.doubt and len(volume.slice_files) == 16
    assert [f.frame for f in frames.slice_files] == list(range(16)) and folder.slice_files[0].frame is None
    nibabel.save(nibabel.Nifti1Image(folder.array, folder.affine), tmp_path / "t1.nii.gz")
    SimpleITK.WriteImage(reference, str(tmp_path / "t1.nrrd"))
    SimpleITK.WriteImage(reference, str(tmp_path / "t1.mha"))
    nibabel.save(nibabel.MGHImage(folder.array, folder.affine.astype(np.float32)), tmp_path / "t1.mgz")
    for name in ("t1.nii.gz", "t1.nrrd", "t1.mha", "t1.mgz"):
        volume = read_volume(tmp_path / name)
        np.testing.assert_allclose(volume.array, folder.array, atol=1e-3)
        np.testing.assert_allclose(volume.affine, folder.affine, atol=1e-3)
        assert volume.sequence.name == "t1"


def test_a_zip_of_an_examination_may_hold_more_files_than_a_batch_of_slices(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_MEMBERS", 5)
    assert read_volume(zipped(as_dicom(head()), tmp_path / "study.zip")).array.shape == (64, 72, 16)


def test_a_zip_may_hold_volumes_in_one_file_and_what_is_none_is_left_out_with_a_word(tmp_path: Path):
    nibabel.save(nibabel.Nifti1Image(head().astype(np.float32), np.diag([1, 1, 3, 1])), tmp_path / "flair.nii.gz")
    zipped(as_dicom(head()), tmp_path / "study.zip", "study/")
    with zipfile.ZipFile(tmp_path / "study.zip", "a") as target:
        target.write(tmp_path / "flair.nii.gz", "x/flair.nii.gz")
        target.writestr("empty.txt", b"")
    dicom, nifti = find_series(tmp_path / "study.zip")
    assert dicom.sequence.name == "t1" and nifti.sequence.name == "flair" and nifti.name.endswith("x/flair.nii.gz")
    np.testing.assert_array_equal(read_volume(nifti).array, head())
    assert "1 files of the archive were left out" in read_volume(dicom).warnings[0]


def test_several_series_are_told_apart_and_one_is_chosen_by_its_uid(tmp_path: Path):
    t1 = as_dicom(head(), name="t1")
    flair = as_dicom(head(), name="flair", RepetitionTime=9000, EchoTime=110, InversionTime=2500, SeriesNumber=4)
    write(t1, tmp_path / "study" / "a")
    write(flair, tmp_path / "study" / "b")
    found = find_series(tmp_path / "study")
    assert [series.sequence.name for series in found] == ["t1", "flair"]
    assert "holds 2 series" in refusal(tmp_path / "study")
    chosen = read_volume(tmp_path / "study", series_uid=flair[0].SeriesInstanceUID)
    assert chosen.sequence.name == "flair" and chosen.series_uid == flair[0].SeriesInstanceUID


def test_a_missing_slice_keeps_its_place_empty_and_many_are_refused(tmp_path: Path):
    slices = as_dicom(head())
    volume = read(slices[:6] + slices[7:], tmp_path / "gap")
    assert volume.array.shape[2] == 16 and volume.slice_files[6] is None and not volume.array[:, :, 6].any()
    np.testing.assert_array_equal(volume.array[:, :, 7:], head()[:, :, 7:])
    assert any("1 of 16 slices are missing (from slice 6" in warning for warning in volume.warnings)
    assert "slices are missing" in refusal(write(slices[:3] + slices[7:], tmp_path / "half"))


def test_a_file_that_is_there_twice_and_a_second_slice_at_one_place_count_once(tmp_path: Path):
    slices = as_dicom(head())
    again = as_dicom(head() + np.uint16(1), name="again", SeriesInstanceUID=slices[0].SeriesInstanceUID,
                     StudyInstanceUID=slices[0].StudyInstanceUID)  # fmt: skip
    for k, dataset in enumerate(again):
        dataset.InstanceNumber = 100 + k
    twice = read(slices + slices[:3], tmp_path / "twice")
    np.testing.assert_array_equal(twice.array, head())
    assert "read once" in " ".join(twice.warnings)
    np.testing.assert_array_equal(read(slices + again[4:5], tmp_path / "one").array, head())
    volumes = read(slices + again, tmp_path / "4d")
    np.testing.assert_array_equal(volumes.array, head())
    assert "4D: 2 slices at each position" in " ".join(volumes.warnings)


def test_slices_that_share_a_position_are_sorted_by_their_location_or_number_and_told_so(tmp_path: Path):
    slices = as_dicom(head())
    for k, dataset in enumerate(slices):
        dataset.ImagePositionPatient, dataset.SliceLocation = [-60, -60, 0], 5.0 * k
    located = read(slices[::-1], tmp_path / "located")
    np.testing.assert_array_equal(located.array, head())
    assert "one position" in " ".join(located.warnings) and located.spacing[2] == pytest.approx(5)
    for dataset in slices:
        del dataset.SliceLocation
    numbered = read(slices[::-1], tmp_path / "numbered")
    np.testing.assert_array_equal(numbered.array, head())
    assert numbered.doubt and "order of their numbers" in " ".join(numbered.warnings)


def test_a_localiser_a_map_a_mask_one_slice_colour_and_another_modality_are_refused_in_a_line(tmp_path: Path):
    slices = as_dicom(head())
    three = as_dicom(head((72, 72, 3)))
    three[1].ImageOrientationPatient, three[2].ImageOrientationPatient = [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1]
    assert "localiser" in refusal(write(three, tmp_path / "scout"))
    named = as_dicom(head(), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert "localiser" in refusal(write(named, tmp_path / "named"))
    assert "one slice" in refusal(write(slices[:1], tmp_path / "one"))
    assert "mask or label map" in refusal(write(as_dicom((head() > 0).astype(np.uint16)), tmp_path / "mask"))
    assert "modality CT" in refusal(write(as_dicom(head(), Modality="CT"), tmp_path / "ct"))
    assert "colour" in refusal(write(as_dicom(head(), SamplesPerPixel=3), tmp_path / "colour"))
    flat = np.full((40, 40, 8), 3.0, np.float32)
    nibabel.save(nibabel.Nifti1Image(flat, np.eye(4)), tmp_path / "flat.nii")
    assert "one value" in refusal(tmp_path / "flat.nii")


@pytest.mark.parametrize("image_type", ["ADC", "FA", "PROJECTION IMAGE", "SUBTRACTION"])
def test_a_derived_map_is_named_so_that_no_class_is_answered_on_it(tmp_path: Path, image_type: str):
    volume = read(as_dicom(head(), ImageType=["DERIVED", "SECONDARY", image_type]), tmp_path)
    assert volume.sequence.name in ("adc", "other")


def test_some_slices_of_another_orientation_are_left_out_and_many_are_refused(tmp_path: Path):
    slices = as_dicom(head())
    slices[0].ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    volume = read(slices, tmp_path / "few")
    assert volume.array.shape[2] == 15 and "another orientation" in " ".join(volume.warnings)
    for dataset in slices[:7]:
        dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    assert "mixed" in refusal(write(slices, tmp_path / "many"))


def test_an_oblique_series_keeps_its_planes_and_a_tilted_gantry_is_named(tmp_path: Path):
    oblique = read(as_dicom(head(), orientation=TILTED, step=(0, 2.5, 4.330127)), tmp_path / "oblique")
    axes = oblique.affine[:3, :3] / oblique.spacing
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-4)  # turned, not sheared
    assert not oblique.warnings
    gantry = read(as_dicom(head(), step=(0, 2.0, 5)), tmp_path / "gantry")
    assert "tilted gantry" in " ".join(gantry.warnings)
    expected = np.array([-60 + 7 * 2, -60 + 3 * 2 + 2 * 9, -60 + 5 * 9, 1])
    np.testing.assert_allclose(gantry.affine @ [7, 3, 9, 1], LPS @ expected, atol=1e-4)


def test_without_orientation_or_position_the_series_is_taken_in_order_and_in_doubt(tmp_path: Path):
    slices = as_dicom(head())
    for dataset in slices:
        del dataset.ImageOrientationPatient, dataset.ImagePositionPatient
    volume = read(slices[::-1], tmp_path)
    np.testing.assert_array_equal(volume.array, head())
    assert volume.doubt == "the headers do not say where the slices lie"


def test_float_negative_and_damaged_values_are_taken_with_a_word(tmp_path: Path):
    values = head().astype(np.float32) / 3 - 100
    values[30, 30, 8] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 1, 4, 1.0])), tmp_path / "t1.nii.gz")
    volume = read_volume(tmp_path / "t1.nii.gz")
    assert np.isfinite(volume.array).all()
    assert "below 0 (to -100)" in " ".join(volume.warnings) and "1 voxels are not finite" in " ".join(volume.warnings)


def test_4d_nifti_gives_its_first_volume_and_says_so(tmp_path: Path):
    four = np.stack([head(), head() // 2], axis=-1).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(four, np.diag([1, 1, 4, 1.0])), tmp_path / "scan.nii.gz")
    volume = read_volume(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(volume.array, head())
    assert "4D: the first of 2 volumes was taken" in volume.warnings


@pytest.mark.parametrize(
    ("affine", "code"),
    [(np.eye(4), 0), (np.eye(4), 1), (np.zeros((4, 4)), 1), (np.full((4, 4), np.nan), 1)],
    ids=["no code", "bare", "zeros", "nan"],
)
def test_an_affine_that_says_nothing_or_lies_leaves_the_geometry_in_doubt(tmp_path: Path, affine, code: int):
    image = nibabel.Nifti1Image(head().astype(np.float32), np.eye(4))
    image.header["sform_code"], image.header["qform_code"] = code, 0
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
        image.header[name] = affine[row]
    image.to_filename(tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[280:328] = np.asarray(affine[:3], "<f4").tobytes()  # nibabel mends what it writes
    content[252:256] = np.array([0, code], "<i2").tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    volume = read_volume(tmp_path / "a.nii")
    assert volume.doubt and volume.warnings and np.isfinite(volume.affine).all()


def test_cut_off_and_damaged_files_are_one_line(tmp_path: Path):
    noise = np.random.default_rng(0).normal(100, 30, (64, 64, 12)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(noise, np.diag([1, 1, 4, 1.0])), tmp_path / "whole.nii.gz")
    content = (tmp_path / "whole.nii.gz").read_bytes()
    for share in (0.0, 0.01, 0.5, 0.99):
        (tmp_path / "cut.nii.gz").write_bytes(content[: int(share * len(content))])
        assert "cut off" in refusal(tmp_path / "cut.nii.gz")
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(noise), str(tmp_path / "whole.nrrd"))
    (tmp_path / "cut.nrrd").write_bytes((tmp_path / "whole.nrrd").read_bytes()[:5000])
    refusal(tmp_path / "cut.nrrd")
    slices = write(as_dicom(head()), tmp_path / "dicom")
    (slices / "5.dcm").write_bytes((slices / "5.dcm").read_bytes()[:3000])
    refusal(slices)
    (tmp_path / "no.zip").write_bytes(b"PK\x03\x04 no zip")
    refusal(tmp_path / "no.zip")
    assert "no such file" in refusal(tmp_path / "missing.nii")


NRRD = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 64 64 40\nencoding: raw\n"
MHA = "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 64 64 40\nElementType = MET_UCHAR\n"


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.nhdr", NRRD + "data file: secret.raw\n"),
        ("b.nrrd", NRRD + "DATA FILE: secret.raw\n\n"),
        ("c.nrrd", NRRD + "DataFile: FOLDER/secret.raw\n\n"),
        ("d.nrrd", NRRD + "# words\n" * 2000 + "data file: secret.raw\n\n"),
        ("e.nrrd", NRRD + "# words\rdata file: secret.raw\n\n"),
        ("f.mhd", MHA + "ElementDataFile = secret.raw\n"),
        ("g.mha", MHA + "Comment = words\n" * 1000 + "ElementDataFile = secret.raw\n"),
        ("h.mha", MHA + "Comment = ElementDataFile = LOCAL\nElementDataFile = secret.raw\n"),
        ("i.mha", MHA + "ElementDataFile: secret.raw\n"),
        ("j.mha", MHA + "Comment =\nElementDataFile = LOCAL\nElementDataFile = secret.raw\n"),
        ("k.mha", NRRD.replace("NRRD", " NRRD") + "data file: secret.raw\n\n"),
    ],
)
def test_a_header_without_its_voxels_never_opens_another_file(tmp_path: Path, name: str, header: str):
    (tmp_path / "secret.raw").write_bytes(np.random.default_rng(0).integers(0, 255, 64 * 64 * 40, np.uint8).tobytes())
    (tmp_path / name).write_bytes(header.replace("FOLDER", str(tmp_path)).encode() + bytes(10))
    assert "another file" in refusal(tmp_path / name)


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize(("name", "header"), [("a.nrrd", NRRD + "\n"), ("a.mha", MHA + "ElementDataFile = LOCAL\n")])
def test_a_header_with_its_voxels_is_read_whatever_ends_its_lines(
    tmp_path: Path, name: str, header: str, line_end: str
):
    voxels = np.random.default_rng(0).integers(0, 255, (64, 64, 40), np.uint8)
    (tmp_path / name).write_bytes(header.replace("\n", line_end).encode() + voxels.tobytes(order="F"))
    assert np.array_equal(read_volume(tmp_path / name).array, voxels)


def test_no_text_of_a_header_is_in_what_is_said_of_a_series(tmp_path: Path):
    slices = as_dicom(head(), SeriesDescription="Mustermann T1", ProtocolName="ACC4711")
    series = find_series(write(slices, tmp_path))[0]
    assert series.sequence.name == "t1"
    volume = read_volume(series)
    said = f"{series.sequence} {volume.warnings} {volume.sequence} {volume.doubt}"
    assert not any(secret in said for secret in SECRETS)


def bomb(folder: Path, offset: float, side: int, extension: int = 0) -> Path:
    """A NIfTI of few bytes that unpacks to as many zeros as deflate can make of them, and its header's claims."""
    header = nibabel.Nifti1Header()
    header.set_data_shape((side, side, side))
    header.set_data_dtype(np.float32)
    header["magic"], header["vox_offset"], header["sform_code"] = b"n+1", offset, 1
    content = header.binaryblock + bytes([bool(extension), 0, 0, 0]) + np.int32([extension, 6]).tobytes()
    path = folder / "bomb.nii.gz"
    path.write_bytes(gzip.compress(content + bytes(2**24)))
    return path


@pytest.mark.parametrize(
    ("offset", "side", "extension", "words"),
    [
        (352, 700, 0, "tells of more voxels"),
        (352, 800, 0, "million voxels"),
        (3e9, 64, 0, "begin far behind"),
        (2.0**24, 64, 2**31 - 16, "one value|damaged or cut off"),
    ],
    ids=["voxels", "too many", "offset", "extension"],
)
def test_a_small_file_whose_header_claims_much_is_refused_before_memory_is_taken(
    tmp_path: Path, offset: float, side: int, extension: int, words: str
):
    path = bomb(tmp_path, offset, side, extension)
    tracemalloc.start()
    try:
        assert re.search(words, refusal(path))
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()


def test_other_headers_that_claim_much_are_refused_too(tmp_path: Path):
    (tmp_path / "a.nrrd").write_bytes(
        b"NRRD0004\ntype: double\ndimension: 3\nsizes: 700 700 700\nencoding: gzip\nendian: little\n\n" + bytes(99)
    )
    (tmp_path / "a.mha").write_text(
        "ObjectType = Image\nNDims = 3\nDimSize = 700 700 700\nElementType = MET_DOUBLE\nElementDataFile = LOCAL\n"
    )
    assert "more voxels" in refusal(tmp_path / "a.nrrd") and "more voxels" in refusal(tmp_path / "a.mha")
    many = as_dicom(head())[0]
    many.NumberOfFrames = 2_000_000_000
    assert "headers of its files cannot be read" in refusal(write([many], tmp_path / "dicom"))


def test_a_number_that_is_none_and_a_link_to_nowhere_end_nothing(tmp_path: Path):
    slices = as_dicom(head())
    for dataset in slices:
        dataset.add(DataElement("SeriesNumber", "LO", "twelve"))
    folder = write(slices, tmp_path / "odd")
    (folder / "gone.dcm").symlink_to(folder / "nowhere.dcm")
    os.mkfifo(folder / "pipe")
    np.testing.assert_array_equal(read_volume(folder).array, head())
    for dataset in slices:
        dataset.add(DataElement("SamplesPerPixel", "OB", b"\x01"))
    assert "headers of its files" in refusal(write(slices, tmp_path / "damaged"))


def test_the_first_of_many_volumes_over_time_is_taken_though_nothing_but_numbers_tells_them_apart(tmp_path: Path):
    slices = []
    for time in range(8):
        for k, dataset in enumerate(as_dicom(head() + np.uint16(time), name=f"time{time}")):
            dataset.SeriesInstanceUID, dataset.StudyInstanceUID = "1.2.3", "1.2.4"
            dataset.InstanceNumber, dataset.SliceLocation = 1 + k + 16 * time, 5.0 * k
            slices.append(dataset)
    volume = read(slices, tmp_path)
    np.testing.assert_array_equal(volume.array, head())
    assert "4D: 8 slices at each position" in " ".join(volume.warnings) and not volume.doubt
