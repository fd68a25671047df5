"""Whole volumes: the same answer however the axes are stored, places in the input's own numbering, traps."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest

from brain_tumor_mri.commands.main import main
from brain_tumor_mri.images.series import SequenceGuess, UnreadableVolumeError
from brain_tumor_mri.images.volume import Volume
from brain_tumor_mri.inference.prediction import Prediction
from brain_tumor_mri.inference.volume import VolumeClassifier
from brain_tumor_mri.labels import LABELS, NO_TUMOR

STEPS = np.array([4.0, 1.0, 1.0])
"""Millimetres along S, P and L."""
TUMOUR = (slice(10, 16), slice(20, 34), slice(50, 62))
"""Bright, on the patient's left."""


def head() -> np.ndarray:
    """A head (24, 80, 70) in S, P, L order, a bright tumour in it."""
    s, p, left = np.indices((24, 80, 70))
    inside = ((s - 12) / 13) ** 2 + ((p - 40) / 36) ** 2 + ((left - 35) / 31) ** 2 < 1
    voxels = np.where(inside, 100.0, 0)
    voxels[TUMOUR] = 250
    return voxels


def volume(array: np.ndarray, codes: str = "SPL", sequence: str = "t1c") -> Volume:
    """The head stored with its axes in that order and direction."""
    given = nibabel.orientations.axcodes2ornt("SPL")
    wanted = nibabel.orientations.axcodes2ornt(codes)
    scaled = np.linalg.inv(nibabel.orientations.inv_ornt_aff(given, array.shape))
    scaled[:3, :3] *= STEPS
    turn = nibabel.orientations.ornt_transform(given, wanted)
    turned = nibabel.Nifti1Image(array, scaled).as_reoriented(turn)
    return Volume(
        "head.nii.gz", np.asarray(turned.dataobj, np.float32), turned.affine, sequence=SequenceGuess(sequence)
    )


class BrightIsGlioma:
    """A slice model that takes bright pixels for a glioma and draws them as its heat map."""

    def predict_stream(self, pictures):
        for picture in pictures:
            share = float((np.asarray(picture.convert("L")) > 200).mean())
            p = min(0.98, 40 * share)
            values = {name: 0.0 for name in LABELS} | {"glioma": p, NO_TUMOR: 1 - p}
            label = max(values, key=values.get)
            yield Prediction("slice", label, values[label], values, decision="answer")

    def explain(self, picture, target):
        return SimpleNamespace(heat_map=(np.asarray(picture.convert("L")) > 200).astype(np.float32))


CLASSIFIER = VolumeClassifier(BrightIsGlioma())
CODES = [
    "".join(axes)
    for order in itertools.permutations(("SI", "PA", "LR"))
    for axes in itertools.product(*order)
]  # fmt: skip


def test_every_order_and_direction_of_the_axes_gives_the_same_answer_and_place():
    plain = CLASSIFIER.predict(volume(head()))
    assert (plain.label, plain.plane, plain.decision, plain.sequence) == ("glioma", "axial", "answer", "t1c")
    assert len(CODES) == 48
    for codes in CODES:
        found = CLASSIFIER.predict(volume(head(), codes))
        assert found.probabilities == pytest.approx(plain.probabilities, abs=1e-6), codes
        assert "SI".find(codes[found.slice_axis]) >= 0
        positions = {s.index: s.position_mm for s in found.slices}
        expected = sorted(s.position_mm for s in plain.slices if s.index in plain.key_slices)
        assert sorted(positions[i] for i in found.key_slices) == pytest.approx(expected), codes


@pytest.mark.parametrize("codes", ["SPL", "RAS", "LIA"])
def test_the_mask_lies_on_the_tumour_in_the_inputs_geometry_and_names_the_patients_side(codes: str, tmp_path: Path):
    given = volume(head(), codes)
    found = CLASSIFIER.predict(given, heat_map=True)
    assert found.mask.shape == given.array.shape and found.heat_map.dtype == np.float32
    bright = given.array > 200
    inside = np.take(bright, sorted(found.key_slices), axis=found.slice_axis)
    masked = np.take(found.mask, sorted(found.key_slices), axis=found.slice_axis) > 0
    assert (inside & masked).sum() / (inside | masked).sum() > 0.7
    sides = {s.side for s in found.slices if s.index in found.key_slices and s.p_tumour > 0.5}
    assert sides == {"left"}
    found.write_heat_map(tmp_path / "heat.nii.gz")
    written = nibabel.load(tmp_path / "heat.nii.gz")
    np.testing.assert_allclose(written.affine, given.affine, atol=1e-4)
    np.testing.assert_allclose(written.get_fdata(), found.heat_map, atol=1e-6)


def test_a_bright_skull_base_and_crown_do_not_make_a_tumour():
    healthy = head()
    healthy[TUMOUR] = 100
    healthy[:4, 30:50, 25:45], healthy[-2:, 35:45, 30:40] = 250, 250
    found = CLASSIFIER.predict(volume(healthy))
    assert found.label == NO_TUMOR and any(s.p_tumour > 0.5 for s in found.slices)
    assert all(not s.used for s in found.slices if s.p_tumour > 0.5)


def test_on_a_sequence_that_was_not_measured_or_a_geometry_in_doubt_the_answer_is_unfamiliar():
    flair = CLASSIFIER.predict(volume(head(), sequence="flair"))
    assert flair.decision == "unfamiliar" and "flair" in flair.reason
    given = volume(head())
    doubted = Volume(given.name, given.array, given.affine, sequence=given.sequence, doubt="its affine lies")
    assert CLASSIFIER.predict(doubted).reason == "its affine lies"


def test_a_blank_volume_is_refused_in_one_line():
    with pytest.raises(UnreadableVolumeError, match="it is blank"):
        CLASSIFIER.predict(volume(np.zeros((24, 80, 70))))


def test_the_command_answers_volumes_beside_what_cannot_be_read(tiny_model_dir: Path, tmp_path: Path, capsys):
    given = volume(head(), "RAS")
    scan, broken = tmp_path / "t1c.nii.gz", tmp_path / "broken.nii.gz"
    grain = np.random.default_rng(0).normal(0, 2, given.array.shape).astype(np.float32)  # few values would be a mask
    nibabel.save(nibabel.Nifti1Image(given.array + grain, given.affine), scan)
    broken.write_bytes(b"no volume")
    arguments = ["predict", "--model", str(tiny_model_dir), "--json"]
    assert main([*arguments, str(scan), str(broken)]) == 0
    out = capsys.readouterr().out
    assert '"sequence": "t1c"' in out and out.count('"label"') == 2 and "Traceback" not in out
    assert main([*arguments, str(broken)]) == 2
    capsys.readouterr()
    for place, told in (("missing/heat.nii.gz", "there is no folder"), ("heat.png", "ends in .nii")):
        assert main([*arguments, str(scan), "--heat_map", str(tmp_path / place)]) == 2
        said = capsys.readouterr()
        assert told in said.err and not said.out  # before the work, not after it
    capsys.readouterr()
    assert main([*arguments, str(scan), str(tmp_path)]) == 2
    assert "two commands" in capsys.readouterr().err
