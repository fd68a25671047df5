"""The large volume that is timed is a volume, and what a process took is told of that process."""

from pathlib import Path

import pytest

from benchmarks.speed import volume_speed
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.images.volume import read_volume


def test_the_head_that_is_written_slice_by_slice_is_one_volume(tmp_path: Path):
    volume_speed.write_head(tmp_path / "t1c.nii.gz", (48, 40, 12))
    volume = read_volume(tmp_path / "t1c.nii.gz")
    assert volume.array.shape == (48, 40, 12) and volume.spacing == pytest.approx((0.45, 0.45, 0.45))
    assert volume.array[24, 20, 6] >= 900 and volume.array[0, 0, 6] == 0 and not volume.doubt


def test_what_the_command_took_is_told_and_a_failure_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = tmp_path / "python"
    script.write_text("""#!/bin/sh\necho '{"volumes": [{"slices": [1, 2, 3]}]}'\nexit $CODE\n""")
    script.chmod(0o755)
    monkeypatch.setattr(volume_speed.sys, "executable", str(script))
    monkeypatch.setenv("CODE", "0")
    found = volume_speed.answered(["scan.nii.gz"])
    assert found["slices_answered"] == 3 and found["seconds"] < 60 and found["peak_mb"] >= 0
    monkeypatch.setenv("CODE", "2")
    with pytest.raises(UserError, match="exited with 2"):
        volume_speed.answered(["scan.nii.gz"])
