"""Several sequences of one patient: each answered, then one answer, and what is missing is said."""

import json
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
from clinical.synthetic_series import write
from images.mr_series import as_dicom, head

from brain_tumor_mri.commands import predict_volumes
from brain_tumor_mri.commands.main import main
from brain_tumor_mri.images.volume import Volume, read_volume
from brain_tumor_mri.inference.study import combine_study, predict_studies
from brain_tumor_mri.inference.volume import VolumeClassifier, VolumePrediction
from brain_tumor_mri.labels import LABELS, NO_TUMOR


def answer(sequence: str, decision: str = "answer", **probabilities: float) -> VolumePrediction:
    """A volume's answer; what is not given is no tumour."""
    values = {name: probabilities.get(name, 0.0) for name in LABELS}
    values[NO_TUMOR] = 1 - sum(probabilities.values())
    label = max(values, key=values.get)
    return VolumePrediction(sequence, label, values[label], values, decision=decision, sequence=sequence)


T1C = answer("t1c", glioma=0.2, meningioma=0.7)
FLAIR = answer("flair", "unfamiliar", glioma=0.8, meningioma=0.1)


def test_the_kind_is_that_of_the_measured_sequence_and_the_tumour_that_of_both():
    study = combine_study("patient", [T1C, FLAIR])
    assert (study.label, study.decision, study.reason) == ("meningioma", "answer", None)
    assert study.probabilities[NO_TUMOR] == pytest.approx(0.1)
    assert study.probabilities["meningioma"] == pytest.approx(0.9 * 0.7 / 0.9)
    assert sum(study.probabilities.values()) == pytest.approx(1)
    assert study.used == ("t1c", "flair") and study.missing == ("t1", "t2")


def test_sequences_that_disagree_on_a_tumour_make_it_uncertain():
    study = combine_study("patient", [T1C, answer("flair", "unfamiliar", glioma=0.1)])
    assert study.decision == "uncertain" and "disagree" in study.reason


def test_without_the_measured_sequence_it_is_unfamiliar_and_says_what_is_there():
    study = combine_study("patient", [FLAIR, answer("t2", "unfamiliar")])
    assert study.decision == "unfamiliar" and "FLAIR, T2" in study.reason and study.missing == ("t1", "t1c")
    assert study.used == ("flair",)


def test_a_map_or_what_cannot_be_read_decides_nothing():
    broken = VolumePrediction("mask", error="a mask or label map of 2 values, not a scan")
    study = combine_study("patient", [broken, answer("adc", glioma=0.9), T1C])
    assert study.probabilities == pytest.approx(T1C.probabilities) and study.used == ("t1c",)
    assert combine_study("patient", [broken]).error == broken.error
    phantom = answer("t1c", "not-a-brain-mri", glioma=0.9)
    assert combine_study("patient", [phantom]).decision == "not-a-brain-mri"
    assert combine_study("patient", [phantom, T1C]).label == "meningioma"


class Fixed(VolumeClassifier):
    """Answers by the sequence."""

    def __init__(self) -> None:
        pass

    def predict(self, source, *, heat_map=False, on_slice=None):
        volume = source if isinstance(source, Volume) else read_volume(source)
        return VolumePrediction(
            volume.name, "glioma", 0.9, dict(zip(LABELS, (0.9, 0, 0.1, 0), strict=True)), decision="answer",
            sequence=volume.sequence.name, volume=volume,
        )  # fmt: skip


def test_series_are_grouped_by_study_and_volumes_in_files_by_their_folder(tmp_path: Path):
    for patient in ("a", "b"):
        write(as_dicom(head(), name=patient), tmp_path / patient)
        flair = as_dicom(head(), name=f"{patient}2", RepetitionTime=9000, EchoTime=110, InversionTime=2500)
        for dataset in flair:
            dataset.StudyInstanceUID = as_dicom(head(), name=patient)[0].StudyInstanceUID
        write(flair, tmp_path / patient / "flair")
    (tmp_path / "nifti").mkdir()
    noise = np.random.default_rng(0).normal(100, 9, (40, 40, 9)).astype(np.float32)
    for name in ("t1c.nii.gz", "flair.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(noise, np.diag([1, 1, 3, 1.0])), tmp_path / "nifti" / name)
    (tmp_path / "nifti" / "broken.nii.gz").write_bytes(b"no")
    studies = list(predict_studies(Fixed(), tmp_path))
    assert len(studies) == 3
    assert [sorted(v.sequence for v in s.volumes if not v.error) for s in studies] == [
        ["flair", "t1"], ["flair", "t1"], ["flair", "t1c"],
    ]  # fmt: skip
    assert studies[0].study_uid != studies[1].study_uid and studies[2].study_uid is None
    assert [v.error is not None for v in studies[2].volumes].count(True) == 1


def test_the_command_takes_sequences_by_name_and_says_what_is_missing(tiny_model_dir: Path, tmp_path: Path, capsys):
    noise = np.random.default_rng(0).normal(100, 9, (40, 40, 9)).astype(np.float32)
    for name in ("a.nii.gz", "b.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(noise, np.diag([1, 1, 3, 1.0])), tmp_path / name)
    given = [f"t1c={tmp_path / 'a.nii.gz'}", f"flair={tmp_path / 'b.nii.gz'}"]
    assert main(["predict", "--model", str(tiny_model_dir), *given]) == 0
    assert "missing: T1, T2" in capsys.readouterr().out
    assert main(["predict", "--model", str(tiny_model_dir), "--json", *given]) == 0
    out = capsys.readouterr().out
    assert '"source": "given"' not in out and out.count('"sequence": "t1c"') == 1 and '"missing"' in out
    assert main(["predict", "--model", str(tiny_model_dir), given[0], str(tmp_path / "b.nii.gz")]) == 2
    assert "name each path" in capsys.readouterr().err


def test_ctrl_c_prints_what_was_answered_and_ends_with_130(tmp_path: Path, capsys, monkeypatch):
    def studies(classifier, source, **options):
        if source == "second":
            raise KeyboardInterrupt
        yield combine_study(source, [T1C, FLAIR])

    slices = SimpleNamespace(describe=lambda: {"source": "test"})
    monkeypatch.setattr(predict_volumes, "predict_studies", studies)
    monkeypatch.setattr(predict_volumes, "load_classifier", lambda args: slices)
    assert main(["predict", "--volume", "--json", "first", "second", "third"]) == 130
    said = capsys.readouterr()
    assert [volume["name"] for volume in json.loads(said.out)["volumes"]] == ["t1c", "flair"]
    assert json.loads(said.out)["complete"] is False and "stopped after 2 volumes" in said.err
