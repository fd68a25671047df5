"""Answers as DICOM and FHIR: what is written is read back."""

import json

import numpy as np
import pytest

pytest.importorskip("highdicom", reason="pip install 'brain-tumor-mri[clinical]'")
from clinical.synthetic_series import SECRETS, FakeClassifier, series, write
from pydicom import dcmread

from brain_tumor_mri.clinical.results import NOTICE, ModelId, build_results

MODEL = ModelId("model", "1.0", "ab" * 32)


def results_of(datasets, folder):
    files = write(datasets, folder)
    read = [dcmread(path) for path in sorted(files.iterdir())]
    return build_results(read, FakeClassifier().predict(files), MODEL)


def test_the_segmentation_equals_the_mask_voxel_for_voxel_and_lies_where_the_input_lies(tmp_path) -> None:
    made = series("seg")
    results = results_of(made, tmp_path / "in")
    assert set(results.datasets) == {"SR", "SEG", "SC"}
    results.datasets["SEG"].save_as(tmp_path / "seg.dcm")
    seg = dcmread(tmp_path / "seg.dcm")
    stored = np.zeros((64, 64, 6), np.uint8)
    for frame, pixels in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        z = frame.PlanePositionSequence[0].ImagePositionPatient[2]
        stored[:, :, round(z / 5)] = pixels.T
    assert np.array_equal(stored, FakeClassifier().predict(tmp_path / "in").mask)


def test_a_second_run_gives_the_same_uids_and_another_model_others(tmp_path) -> None:
    first, again = (results_of(series("uid"), tmp_path / "in") for _ in range(2))
    assert {d.SOPInstanceUID for d in first.datasets.values()} == {d.SOPInstanceUID for d in again.datasets.values()}
    assert first.fhir == again.fhir
    read = [dcmread(path) for path in sorted((tmp_path / "in").iterdir())]
    other = build_results(read, FakeClassifier().predict(tmp_path / "in"), ModelId("model", "1.0", "cd" * 32))
    assert other.datasets["SR"].SOPInstanceUID != first.datasets["SR"].SOPInstanceUID


def test_the_report_is_preliminary_and_says_class_model_and_notice(tmp_path) -> None:
    report = results_of(series("sr"), tmp_path / "in").datasets["SR"]
    report.save_as(tmp_path / "sr.dcm", enforce_file_format=True)
    stored = (tmp_path / "sr.dcm").read_bytes()
    assert report.PreliminaryFlag == "PRELIMINARY" and report.StudyInstanceUID == series("sr")[0].StudyInstanceUID
    for expected in ("eningioma", MODEL.sha256, NOTICE):
        assert expected.encode() in stored


@pytest.mark.parametrize(
    "header",
    [
        {"PatientSex": "0000"},
        {"StudyDate": None, "StudyTime": None, "PatientBirthDate": None},
        {"PatientName": None, "AccessionNumber": None, "StudyID": None},
        {"FrameOfReferenceUID": None},
        {"PatientSex": "0000", "PatientName": SECRETS[0]},
    ],
)
def test_broken_headers_are_repaired_with_a_note_without_values(tmp_path, header, recwarn) -> None:
    results = results_of(series("broken", **header), tmp_path / "in")
    assert set(results.datasets) == {"SR", "SEG", "SC"}
    assert any(next(iter(header)) in note for note in results.notes)
    assert not any(secret in str(warning.message) for secret in SECRETS for warning in recwarn)
    assert not any(secret in note for note in results.notes for secret in SECRETS)


def test_slices_that_say_the_same_position_are_answered_with_a_note(tmp_path) -> None:
    results = results_of(series("places", ImagePositionPatient=[-128, -128, 0.0]), tmp_path / "in")
    assert set(results.datasets) == {"SR", "SC"}
    assert "several slices have the same position" in results.notes
    assert any(note.startswith("no SEG") for note in results.notes)


def test_bytes_of_latin_1_without_a_character_set_are_read_as_such(tmp_path) -> None:
    folder = write(series("latin", PatientName="Muller^Jorg"), tmp_path / "in")
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"Muller^Jorg", b"M\xfcller^J\xf6rg"))
    read = [dcmread(path) for path in sorted(folder.iterdir())]
    results = build_results(read, FakeClassifier().predict(folder), MODEL)
    assert set(results.datasets) == {"SR", "SEG", "SC"}
    for kind, dataset in results.datasets.items():
        dataset.save_as(tmp_path / kind)
        assert str(dcmread(tmp_path / kind).PatientName) == "Müller^Jörg"


def test_the_fhir_bundle_is_valid_r4b(tmp_path) -> None:
    bundle = pytest.importorskip("fhir.resources.R4B.bundle", reason="pip install fhir.resources").Bundle
    fhir = results_of(series("fhir"), tmp_path / "in").fhir
    bundle.model_validate_json(json.dumps(fhir))
    assert not any(secret in json.dumps(fhir) for secret in SECRETS)
