"""Examinations of strangers in a process of their own: the same volumes, and limits that no decoder can pass."""

import sys
from pathlib import Path

import nibabel
import numpy as np
import psutil
import pytest
from images.mr_series import as_dicom, head, zipped

from brain_tumor_mri.images.examination import ExaminationApart
from brain_tumor_mri.images.series import UnreadableVolumeError
from brain_tumor_mri.images.volume import read_volume

HOSTILE = """
from brain_tumor_mri.images import examination
def hostile(*_, **__):
    {code}
examination.read_volume = hostile
examination.CPU_SECONDS = 1
examination.serve()
"""


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    nibabel.save(nibabel.Nifti1Image(head().astype(np.float32), np.diag([1, 1, 3, 1])), tmp_path / "flair.nii.gz")
    return tmp_path / "flair.nii.gz"


def test_volumes_are_those_of_this_process_and_no_process_is_left(tmp_path: Path, scan: Path):
    for path in (scan, zipped(as_dicom(head()), tmp_path / "study.zip")):
        with ExaminationApart(path, 10**6) as examination:
            volume, same = examination.read(0), read_volume(path)
            child = psutil.Process(examination._child.pid)
        assert not child.is_running()
        np.testing.assert_array_equal(volume.array, same.array)
        np.testing.assert_array_equal(volume.affine, same.affine)
        for name in ("name", "slice_files", "sequence", "study_uid", "series_uid", "warnings", "doubt"):
            assert getattr(volume, name) == getattr(same, name), name


def test_what_cannot_be_read_or_is_too_large_is_a_line_with_its_name(tmp_path: Path, scan: Path):
    with pytest.raises(UnreadableVolumeError, match="no such file"):
        ExaminationApart(tmp_path / "missing.nii", 10**6)
    with ExaminationApart(scan, 1000) as examination, pytest.raises(UnreadableVolumeError, match="million voxels"):
        examination.read(0)


def test_what_is_unpacked_lies_among_the_uploads(tmp_path: Path, scan: Path, monkeypatch: pytest.MonkeyPatch):
    code = "import tempfile; raise examination.UnreadableVolumeError('', tempfile.gettempdir())"
    monkeypatch.setattr(ExaminationApart, "serve", HOSTILE.format(code=code))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    with ExaminationApart(scan, 10**6) as examination, pytest.raises(UnreadableVolumeError, match=str(tmp_path)):
        examination.read(0)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limits")
@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("while True: pass", "of computing"),
        ("bytearray(5 * 2**30)", "more memory"),
        ("import os; os._exit(3)", "ended the reader"),
        ("raise RuntimeError('Doe^Jane')", r"\(RuntimeError\)"),
    ],
)
def test_a_volume_that_computes_for_ever_takes_all_memory_or_kills_costs_one_line(
    scan: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: str
):
    monkeypatch.setattr(ExaminationApart, "serve", HOSTILE.format(code=code))
    with ExaminationApart(scan, 10**6) as examination:
        for _ in range(2):  # a child that died is started anew
            with pytest.raises(UnreadableVolumeError, match=words):
                examination.read(0)
