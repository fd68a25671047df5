"""Which files a folder, a pattern or a name means."""

import os
from pathlib import Path

import pytest

from brain_tumor_mri.errors import UserError
from brain_tumor_mri.images.find import find_images
from brain_tumor_mri.images.read import load_image


@pytest.fixture
def scans(tmp_path, monkeypatch):
    for name in [
        "s10.png",
        "s2.PNG",
        "s1.jpeg",
        "notes.txt",
        ".hidden.png",
        "sub/a.tif",
        "sub/deep/b.webp",
        "mr/IM2.DCM",
        "mr/IM10.dicom",
        "mr/.IM1.dcm",
        "mr/DICOMDIR",
        ".ipynb_checkpoints/s1.png",
        "sub/.cache/c.png",
    ]:
        path = tmp_path / "scans" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "none").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(paths):
    return [p.as_posix() for p in paths]


def test_a_folder_yields_its_visible_images_at_any_depth_in_natural_order(scans):
    assert names(find_images(["scans"])) == [
        "scans/mr/IM2.DCM",
        "scans/mr/IM10.dicom",
        "scans/s1.jpeg",
        "scans/s2.PNG",
        "scans/s10.png",
        "scans/sub/a.tif",
        "scans/sub/deep/b.webp",
    ]


def test_patterns_are_expanded_in_natural_order_and_match_images_and_folders(scans):
    assert names(find_images(["scans/s*.*"])) == ["scans/s1.jpeg", "scans/s2.PNG", "scans/s10.png"]
    assert names(find_images(["scans/**/*.webp"])) == ["scans/sub/deep/b.webp"]
    assert names(find_images(["scans/mr/*"])) == ["scans/mr/IM2.DCM", "scans/mr/IM10.dicom"]
    assert names(find_images(["scans/su?"])) == ["scans/sub/a.tif", "scans/sub/deep/b.webp"]


def test_a_named_file_is_kept_whatever_it_is(scans):
    given = ["scans/notes.txt", Path("scans/absent.png"), "scans/.hidden.png"]
    assert names(find_images(given)) == ["scans/notes.txt", "scans/absent.png", "scans/.hidden.png"]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(scans):
    (scans / "scan[1].png").write_bytes(b"x")
    assert names(find_images(["scan[1].png"])) == ["scan[1].png"]


def test_each_file_comes_once_in_the_order_given(scans):
    found = names(find_images(["scans/s10.png", "scans", "./scans/s1.jpeg", str(scans / "scans/s2.PNG")]))
    assert found[0] == "scans/s10.png"
    assert len(found) == 7


@pytest.mark.parametrize("given", ["none", "scans/*.bmp", "nowhere/*", ""])
def test_a_folder_or_pattern_without_images_is_an_error_of_one_line(scans, given):
    with pytest.raises(UserError) as caught:
        find_images([given])
    assert "\n" not in str(caught.value) and given in str(caught.value)


def test_linked_folders_are_followed_and_loops_end(scans):
    (scans / "linked").mkdir()
    (scans / "linked" / "data").symlink_to(scans / "scans", target_is_directory=True)
    (scans / "scans" / "loop").symlink_to(scans / "scans", target_is_directory=True)
    assert len(find_images(["linked"])) == 7


def test_a_dicom_slice_in_a_folder_is_found_and_read(tmp_path):
    from pydicom.data import get_testdata_file

    (tmp_path / "IM1.dcm").write_bytes(Path(get_testdata_file("MR_small.dcm")).read_bytes())
    (found,) = find_images([tmp_path])
    assert load_image(found).size == (64, 64)


def test_slices_without_suffix_and_under_rare_ones_are_found_by_what_they_hold(tmp_path):
    from pydicom.data import get_testdata_file

    slice_ = Path(get_testdata_file("MR_small.dcm")).read_bytes()
    wanted = ["1.2.840.113.7", "A/S/IM0001", "A/S/IM0002", "ct.IMA", "scan.jfif", "scan.jpe", "z0001"]
    for name in wanted:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(slice_[132:] if name == "z0001" else slice_)
    for name, content in (
        ("DICOMDIR", slice_), (".IM0003", slice_), ("README", b"text"), ("empty", b""), ("notes.txt", slice_),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe")
    assert sorted(p.relative_to(tmp_path).as_posix() for p in find_images([tmp_path])) == sorted(wanted)
    assert names(find_images([tmp_path / "A" / "S" / "IM*"])) == [
        str(tmp_path / "A/S/IM0001"),
        str(tmp_path / "A/S/IM0002"),
    ]
    assert load_image(tmp_path / "A/S/IM0001").size == load_image(tmp_path / "z0001").size == (64, 64)


def test_what_a_folder_without_images_lacks_is_said(tmp_path):
    (tmp_path / "README").write_text("text")
    with pytest.raises(UserError, match=r"\.dcm.* or DICOM without suffix"):
        find_images([tmp_path])
