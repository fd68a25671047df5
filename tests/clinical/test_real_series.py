"""The released model on real DICOM series with broken headers: an answer comes back as DICOM each time."""

import os
from pathlib import Path

import pytest

pytest.importorskip("highdicom", reason="pip install 'brain-tumor-mri[clinical]'")
from pydicom import dcmread

from brain_tumor_mri.clinical.results import ModelId, build_results
from brain_tumor_mri.images.series import find_series
from brain_tumor_mri.inference.volume import VolumeClassifier
from brain_tumor_mri.labels import LABELS

REPO_ROOT = Path(__file__).resolve().parents[2]
MODEL = REPO_ROOT / "model-lite"
VOLUMES = Path(os.environ.get("BRAIN_TUMOR_MRI_DATA", REPO_ROOT.parent / "shared" / "data" / "x")).parent / "volumes"
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not (MODEL / "model.safetensors").is_file(), reason="there are no weights in model-lite/"),
    pytest.mark.skipif(not VOLUMES.is_dir(), reason=f"the real volumes are not in {VOLUMES}"),
]


@pytest.fixture(scope="module")
def classifier() -> VolumeClassifier:
    return VolumeClassifier.from_pretrained(MODEL)


@pytest.mark.parametrize(
    ("folder", "kinds", "note"),
    [
        ("brainix/dicom-flair", {"SR", "SEG", "SC"}, "PatientSex"),
        ("gui-meningioma/M013-t1c", {"SR", "SC"}, "no SEG"),  # its slices all say that they are at the same place
        ("papaya-dicom", {"SR", "SC"}, ""),
    ],
)
def test_a_real_series_is_answered_whatever_its_header(classifier, tmp_path, folder, kinds, note) -> None:
    series = find_series(VOLUMES / folder)[0]
    datasets = [dcmread(path) for path in sorted({frame.file for frame in series.frames})]
    prediction = classifier.predict(VOLUMES / folder, heat_map=True)
    results = build_results(datasets, prediction, ModelId("model-lite", "1.0", "ab" * 32))
    assert kinds <= set(results.datasets), results.notes
    assert any(note in line for line in results.notes) or not note
    names = {str(d.get("PatientName", "")) for d in datasets} - {""}
    assert not any(name in line for name in names for line in results.notes)
    for kind, dataset in results.datasets.items():
        dataset.save_as(tmp_path / f"{kind}.dcm", enforce_file_format=True)
        stored = dcmread(tmp_path / f"{kind}.dcm")
        assert stored.StudyInstanceUID == datasets[0].StudyInstanceUID
        assert stored.PatientSex in ("", "M", "F", "O")
    assert prediction.label in LABELS and results.fhir["entry"]
