"""benchmarks/pictures/foreign_images_second.py on made volumes and made packages; nothing is downloaded."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from benchmarks.pictures import foreign_images_second as second
from benchmarks.pictures.foreign_images import ForeignImage
from brain_tumor_mri.errors import UserError


def test_a_plane_is_shown_upright_with_square_pixels(tmp_path: Path):
    values = np.zeros((4, 6, 3), np.int16)  # x to the left, as stored
    values[0, 5, 1] = 100  # right, front, in the middle
    nibabel.Nifti1Image(values, np.diag([-1, 1, 2, 1])).to_filename(tmp_path / "volume.nii")
    scan, spacing = second.volume(tmp_path / "volume.nii")
    assert spacing == (1, 1, 2) and scan[3, 5, 1] == 100  # x to the right now
    axial = np.asarray(second.cut(scan, spacing, 2, 1, 0, 100).convert("L"))
    assert axial.shape == (6, 4) and axial[0, 3] == axial.max() == 255  # front is up
    assert second.cut(scan, spacing, 1, 5, 0, 100).size == (4, 6)  # coronal: 3 slices of 2 mm


def test_planes_with_next_to_nothing_are_left_out():
    values = np.zeros((50, 50, 5), np.float32)
    values[10:40, 10:40, 2] = values[10:13, 10:13, 1] = 1
    planes = list(second._planes("kind", (values, (1, 1, 1)), axial=5, keep=1, name="made"))
    assert [plane.name for plane in planes] == ["made axial 2"]


def test_a_disc_keeps_the_middle_and_has_a_black_margin():
    shown = np.asarray(second.disc(Image.new("RGB", (300, 200), "white"), size=100, margin=0.1))
    assert (shown[50, 11:89] == 255).all() and not shown[:10].any() and not shown[:, 91:].any()
    assert not shown[15, 15].any()  # a corner


def test_grey_runs_from_black_to_white():
    values = np.asarray(second.grey_image(np.array([[-5.0, 0.0], [50.0, 200.0]]), 0, 100))
    assert values[..., 0].tolist() == [[0, 0], [128, 255]]


def test_pictures_are_written_a_folder_a_kind_and_never_beside_older_ones(tmp_path: Path):
    images = [ForeignImage("head CT", f"slice {i}, bone", Image.new("RGB", (8, 8))) for i in range(2)]
    assert second.write(iter(images), tmp_path) == {"head CT": 2}
    assert sorted(path.name for path in (tmp_path / "head-CT").iterdir()) == ["slice-0-bone.png", "slice-1-bone.png"]
    with pytest.raises(UserError, match="holds pictures already"):
        second.write(iter(images), tmp_path)


def test_a_package_without_its_file_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(second, "APT", ("made-doc",))
    monkeypatch.setattr(second, "PIP", ())
    (tmp_path / "made-doc" / "usr").mkdir(parents=True)
    (tmp_path / "made-doc_1.2-3_all.deb").touch()
    packages = second.Packages(tmp_path)
    packages.fetch()  # it is there: nothing to download
    assert packages.versions()["made-doc"] == "1.2-3" and "nibabel" in packages.versions()
    assert packages.file("nibabel", "tests/data/example4d.nii.gz").is_file()
    assert second.main(["--output", str(tmp_path / "out"), "--packages", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "invesalius-examples has no examples/Cranium.inv3" in told and told.count("\n") == 1


def test_sources_say_how_many_pictures_came_of_which_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("foreign_images", "familiar_images"):
        made = [ForeignImage("page", name, Image.new("RGB", (8, 8)))]
        monkeypatch.setattr(second, name, lambda packages, made=made: iter(made))
    monkeypatch.setattr(second.Packages, "fetch", lambda self: None)
    assert second.main(["--output", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "sources.json").read_text())
    assert record["counts"] == {"foreign": {"page": 1}, "familiar": {"page": 1}}
    assert set(second.INSTALLED) <= set(record["packages"])
