"""The example of an average brain: which way round it lies, and that its licence travels with it."""

from pathlib import Path

import numpy as np
import pytest
from app_server import EXAMPLES
from PIL import Image

from brain_tumor_mri.errors import UserError
from data_scripts.make_template_slice import NOTICE, SOURCE, axial_slice, framed, main

EXAMPLE = EXAMPLES / "template-icbm152-axial.png"


def test_a_slice_is_cut_at_its_height_and_lies_as_radiologists_look_at_it():
    volume = np.zeros((5, 7, 4))
    volume[4, 6, 2] = 1  # right, front
    volume[1, 0, 3] = 2
    affine = np.array([[2, 0, 0, -4], [0, 2, 0, -6], [0, 0, 2, -10], [0, 0, 0, 1]])
    plane = axial_slice(volume, affine, -6)
    assert plane.shape == (7, 5) and plane[0, 0] == 1 and plane.sum() == 1
    assert axial_slice(volume, affine, -4)[6, 3] == 2
    with pytest.raises(UserError, match="no slice there"):
        axial_slice(volume, affine, 20)


def test_a_brain_is_centred_in_a_square_with_its_proportions():
    plane = np.zeros((90, 120))
    plane[5:45, 70:90] = 0.5
    pixels = np.asarray(framed(plane, 100))
    rows, columns = np.nonzero(pixels)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (1, 98, 25, 73)
    assert pixels.shape == (100, 100) and set(np.unique(pixels)) == {0, 128}
    with pytest.raises(UserError):
        framed(np.zeros((9, 9)), 100)


def test_the_example_in_the_repository_carries_its_source_and_licence_and_nothing_of_a_person():
    with Image.open(EXAMPLE) as picture:
        assert (picture.mode, picture.size) == ("L", (256, 256))
        assert picture.text["Copyright"] == NOTICE and picture.text["Source"] == SOURCE
        assert not picture.getexif() and "not a patient" in picture.text["Description"]
    beside = " ".join((EXAMPLES / "README.md").read_text(encoding="utf-8").replace(">", " ").split())
    assert NOTICE in beside


def test_the_command_makes_the_example_that_is_in_the_repository(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("nilearn", reason="nilearn is not installed (requirements-dev.txt)")
    assert main(["--output", str(tmp_path / "made.png")]) == 0
    with Image.open(tmp_path / "made.png") as made, Image.open(EXAMPLE) as kept:
        np.testing.assert_allclose(np.asarray(made, int), np.asarray(kept, int), atol=1)
    assert main(["--output", str(tmp_path / "none.png"), "--height", "500"]) == 2
    assert "--height 500" in capsys.readouterr().err and not (tmp_path / "none.png").exists()
