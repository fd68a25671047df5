"""Whole volumes: the same answer however the axes are stored, places in the input's own numbering, traps."""

import itertools
import json
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
from clinical.synthetic_series import write
from images.mr_series import as_dicom, enhanced, zipped
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation

from brain_tumor_mri.commands.main import main
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.files import write_json
from brain_tumor_mri.images.sequence import SequenceGuess
from brain_tumor_mri.images.series import UnreadableVolumeError
from brain_tumor_mri.images.volume import Volume, read_volume
from brain_tumor_mri.inference.patients import PatientLimit, load_patient_limit, log_mean
from brain_tumor_mri.inference.prediction import Prediction
from brain_tumor_mri.inference.upright import Upright
from brain_tumor_mri.inference.volume import VolumeClassifier, VolumePrediction, combine, key_images
from brain_tumor_mri.labels import LABELS, NO_TUMOR
from brain_tumor_mri.page.examination_words import position
from brain_tumor_mri.trust.decision import ANSWER, UNCERTAIN, UNFAMILIAR

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


def volume(array: np.ndarray, codes: str = "SPL", sequence: str = "t1c", steps: np.ndarray = STEPS) -> Volume:
    """The head stored with its axes in that order and direction."""
    given = nibabel.orientations.axcodes2ornt("SPL")
    wanted = nibabel.orientations.axcodes2ornt(codes)
    scaled = np.linalg.inv(nibabel.orientations.inv_ornt_aff(given, array.shape))
    scaled[:3, :3] *= steps
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


@pytest.mark.parametrize("codes", ["SPL", "RAS"])
def test_the_side_of_a_sagittal_slice_is_that_of_the_head_wherever_the_scanner_has_its_centre(codes: str):
    array = head()
    array[6:18, 16:40, 50:58] = 250
    given = volume(array, codes, steps=STEPS[::-1])
    given.affine[0, 3] += 200  # all of the head to the right of the scanner's centre
    found = CLASSIFIER.predict(given, heat_map=True)
    key = [s for s in found.slices if s.index in found.key_slices and s.p_tumour > 0.5]
    assert found.plane == "sagittal" and {s.side for s in key} == {"left"} and min(s.position_mm for s in key) > 0
    assert "of the scanner's centre, on the left" in position(found)
    doubted = CLASSIFIER.predict(replace(given, doubt="its affine lies"), heat_map=True)
    assert not any(s.side for s in doubted.slices)


@pytest.mark.parametrize("order", ["RAS", "PSR"])
def test_an_oblique_volume_is_turned_upright_and_found_in_its_own_voxels(order: str):
    """A cubic head turned by 30 degrees: as if it were upright, and what is found lies where the input has it."""
    cubic = np.repeat(head(), 4, axis=0)  # 1 mm each way
    cubic[36:64, 18:38, 44:62] = 250  # so large that it is over the 99.5th percentile of the larger grid, too
    upright = volume(cubic, steps=np.ones(3))
    plain = CLASSIFIER.predict(upright)
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", (25, 10, 5), degrees=True).as_matrix()
    # the patient lies as before, the scanner's grid is turned
    size = (120, 120, 120)
    grid = np.linalg.inv(upright.affine) @ turn
    centre = (np.array(cubic.shape) - 1) / 2
    grid[:3, 3] = centre - grid[:3, :3] @ ((np.array(size) - 1) / 2)
    turned = affine_transform(upright.array, grid[:3, :3], grid[:3, 3], size, order=1)
    oblique = nibabel.Nifti1Image(turned, upright.affine @ grid)
    codes = nibabel.orientations.axcodes2ornt(order)
    oblique = oblique.as_reoriented(
        nibabel.orientations.ornt_transform(nibabel.orientations.io_orientation(oblique.affine), codes)
    )
    given = Volume("head.nii.gz", np.asarray(oblique.dataobj), oblique.affine, sequence=SequenceGuess("t1c"))
    found = CLASSIFIER.predict(given, heat_map=True)
    assert found.probabilities == pytest.approx(plain.probabilities, abs=0.1) and found.label == "glioma"
    assert {s.side for s in found.slices if s.index in found.key_slices and s.p_tumour > 0.5} == {"left"}
    places = {s.index: s.position_mm for s in plain.slices}
    position = next(s.position_mm for s in found.slices if s.index == found.key_slices[0])
    assert min(abs(position - places[k]) for k in plain.key_slices) < 25
    assert found.mask.shape == given.array.shape and set(np.unique(found.mask)) == {0, 1}
    assert (given.array[found.mask > 0] > 150).mean() > 0.7


def test_dicom_its_zip_and_its_nifti_give_one_answer(tmp_path: Path):
    grain = np.random.default_rng(0).integers(0, 9, (24, 80, 70))  # few values would be a mask
    array = np.ascontiguousarray((head() + grain).T).astype(np.uint16)  # columns, rows, slices of an axial series
    slices = as_dicom(array)
    nifti = tmp_path / "t1.nii.gz"
    answers = [
        CLASSIFIER.predict(write(slices, tmp_path / "dicom")),
        CLASSIFIER.predict(zipped(slices, tmp_path / "z.zip")),
    ]
    dicom = read_volume(tmp_path / "dicom")
    image = nibabel.Nifti1Image(dicom.array, dicom.affine)
    nibabel.save(nibabel.as_closest_canonical(image), nifti)
    answers.append(CLASSIFIER.predict(nifti))
    first = answers[0]
    assert first.label == "glioma"
    for other in answers[1:]:
        assert other.probabilities == pytest.approx(first.probabilities, abs=1e-3)
        assert other.sequence == first.sequence == "t1" and len(other.slices) == len(first.slices)
    assert not any(s.frame for s in first.slices)
    enhanced(slices).save_as(tmp_path / "whole.dcm", enforce_file_format=True)
    assert [s.frame for s in CLASSIFIER.predict(tmp_path / "whole.dcm").slices] == [s.index for s in first.slices]
    uids = {s.sop_instance_uid for s in first.slices}
    assert uids <= {d.SOPInstanceUID for d in slices} and len(uids) == len(first.slices)


def test_progress_is_told_and_ctrl_c_leaves_no_thread(tmp_path: Path):
    told = []

    def show(count: int, total: int) -> None:
        told.append((count, total))
        if count == 5:
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        CLASSIFIER.predict(volume(head()), on_slice=show)
    assert told[0][0] == 1 and len(told) == 5 and told[0][1] > 10
    assert threading.active_count() == before


def test_a_bright_skull_base_and_crown_do_not_make_a_tumour():
    healthy = head()
    healthy[TUMOUR] = 100
    healthy[:4, 30:50, 25:45], healthy[-2:, 35:45, 30:40] = 250, 250
    found = CLASSIFIER.predict(volume(healthy))
    assert found.label == NO_TUMOR and any(s.p_tumour > 0.5 for s in found.slices)
    assert all(not s.used for s in found.slices if s.p_tumour > 0.5)


def test_on_a_sequence_that_was_not_measured_or_a_geometry_in_doubt_the_answer_is_unfamiliar():
    flair = CLASSIFIER.predict(volume(head(), sequence="flair"))
    assert flair.decision == "unfamiliar" and "FLAIR" in flair.reason
    given = volume(head())
    doubted = Volume(given.name, given.array, given.affine, sequence=given.sequence, doubt="its affine lies")
    assert CLASSIFIER.predict(doubted).reason == "its affine lies"
    untold = CLASSIFIER.predict(volume(head(), sequence="unknown"))
    assert untold.decision == "unfamiliar" and "say so" in untold.reason and "t1c=FILE" in untold.reason


def test_what_is_no_brain_has_no_label_in_json_that_a_count_could_take():
    found = CLASSIFIER.predict(volume(head()))
    assert found.to_dict()["label"] == found.to_dict()["top_class"] == "glioma"
    refused = replace(found, decision="not-a-brain-mri").to_dict()
    assert refused["label"] is None and refused["top_class"] == "glioma"


@pytest.mark.parametrize("codes", ["SPL", "RAI"])
def test_key_images_are_the_strongest_slices_upright(codes: str):
    found = CLASSIFIER.predict(volume(head(), codes))
    images = key_images(found)
    assert list(images) == list(found.key_slices[:3])
    for picture in images.values():
        bright = np.argwhere(np.asarray(picture.convert("L")) > 200).mean(0) / picture.height
        assert bright[0] < 0.5 < bright[1]  # in front, and on the right of the picture: the patient's left


@pytest.mark.parametrize("outside", [-5.0, 0.0])
def test_a_volume_brought_to_mean_0_is_answered_as_before(outside: float):
    array = head() + np.random.default_rng(0).normal(0, 5, head().shape) * (head() > 0)
    plain, normalised = volume(array), np.where(array, (array - 110) / 40, outside)
    pictures = [Upright(given).array.astype(int) for given in (plain, volume(normalised))]
    assert np.abs(pictures[0] - pictures[1])[:, 20:60, 15:55].mean() < 100  # other limits, no other order
    assert (pictures[1][:, 0, 0] == 0).all()
    assert CLASSIFIER.predict(volume(normalised)).label == CLASSIFIER.predict(plain).label == "glioma"


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
    assert main([*arguments, str(scan), "--key_images", str(tmp_path / "key")]) == 0
    assert len(list((tmp_path / "key").glob("volume-1-slice-*.png"))) == 3
    assert main([*arguments, str(broken)]) == 2
    capsys.readouterr()
    assert main([*arguments, f"T1C={scan}", "--heat_map", str(tmp_path / "heat.nii.gz")]) == 0
    assert nibabel.load(tmp_path / "heat.nii.gz").shape == given.array.shape
    assert main([*arguments, f"t9={scan}"]) == 2 and "t1c=FILE" in capsys.readouterr().err
    (tmp_path / "only").mkdir()
    broken.rename(broken := tmp_path / "only" / broken.name)
    assert main([*arguments, str(broken.parent)]) == 2 and "predict --volume" in capsys.readouterr().err
    for place, told in (("missing/heat.nii.gz", "there is no folder"), ("heat.png", "ends in .nii")):
        assert main([*arguments, str(scan), "--heat_map", str(tmp_path / place)]) == 2
        said = capsys.readouterr()
        assert told in said.err and not said.out  # before the work, not after it
    capsys.readouterr()
    assert main([*arguments, str(scan), str(tmp_path / "slice.png")]) == 2
    assert "two commands" in capsys.readouterr().err


def test_a_zip_and_a_folder_beside_a_volume_are_volumes_too(tiny_model_dir: Path, tmp_path: Path, capsys):
    given = volume(head() + np.random.default_rng(0).normal(0, 2, head().shape), "RAS")
    (tmp_path / "study").mkdir()
    for place in ("t1c.nii.gz", "study/flair.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(given.array, given.affine), tmp_path / place)
    packed = zipped(as_dicom(np.uint16(given.array * (given.array > 0))), tmp_path / "study.zip")
    paths = [str(tmp_path / "t1c.nii.gz"), str(tmp_path / "study"), str(packed)]
    assert main(["predict", "--model", str(tiny_model_dir), "--json", *paths]) == 0
    assert [v["sequence"] for v in json.loads(capsys.readouterr().out)["volumes"]] == ["t1c", "flair", "t1"]


def test_a_volume_of_slices_that_the_model_does_not_know_says_so():
    upright = Upright(volume(head()))
    rows = {"glioma": 0.97, "meningioma": 0.01, "notumor": 0.01, "pituitary": 0.01}
    reasons = {}
    for decision in (UNFAMILIAR, UNCERTAIN):
        answer = Prediction("", "glioma", 0.97, rows, decision=decision)
        found = combine(upright, dict.fromkeys(upright.head_slices(), answer))
        assert found.decision == UNCERTAIN
        reasons[decision] = found.reason
    assert "unlike" in reasons[UNFAMILIAR] and "not sure" in reasons[UNCERTAIN]


def test_what_a_patient_is_not_sure_enough_for_is_uncertain_and_the_file_is_of_its_weights(tmp_path: Path):
    def decided(limit: PatientLimit | None) -> VolumePrediction:
        upright = Upright(volume(head()))
        rows = {"glioma": 0.94, "meningioma": 0.04, "notumor": 0.01, "pituitary": 0.01}
        answer = Prediction("", "glioma", 0.94, rows, decision=ANSWER)
        return combine(upright, dict.fromkeys(upright.head_slices(), answer), limit=limit)

    assert decided(None).decision == decided(PatientLimit(95, 0.05)).decision == ANSWER
    unsure = decided(PatientLimit(95, 0.03))
    assert unsure.decision == UNCERTAIN and "one patient in 20" in unsure.reason and "meningioma" in unsure.reason

    class Folder:
        path = tmp_path

        @staticmethod
        def sha256() -> str:
            return "ours"

    assert load_patient_limit(Folder, 95) is None
    content = {"schema": 1, "weights_sha256": "ours", "limits": {"90": 0.1, "95": 0.03}}
    for change, expected in (({}, PatientLimit(95, 0.03)), ({"weights_sha256": "others"}, None)):
        write_json(tmp_path / "patients.json", content | change)
        assert load_patient_limit(Folder, 95) == expected
    write_json(tmp_path / "patients.json", content | {"limits": {"95": 7}})
    with pytest.raises(UserError, match="damaged"):
        load_patient_limit(Folder, 95)


def test_the_log_mean_follows_most_slices_and_not_the_one_that_stands_alone():
    rows = np.array([[0.9, 0.1, 0, 0]] + 4 * [[0.1, 0.9, 0, 0]])
    assert log_mean(rows)[1] > rows.mean(0)[1] and log_mean(rows).sum() == pytest.approx(1)
    np.testing.assert_allclose(log_mean(rows[:1]), rows[0], atol=1e-5)
