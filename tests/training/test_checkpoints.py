"""A run's folder under accident: cut, changed and half-written files, leftovers of kills, a second training."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from brain_tumor_mri.errors import UserError
from brain_tumor_mri.training.arguments import parse_arguments
from brain_tumor_mri.training.checkpoints import (
    CHECKSUMS,
    claim_output_dir,
    last_complete_checkpoint,
    seal,
)
from brain_tumor_mri.training.run import RUN_FILE, prepare_output_dir


def make_checkpoint(folder: Path, step: int, best: int | None = None) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    save_file({"weight": torch.arange(64.0) + step}, checkpoint / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.arange(64.0) + step}, checkpoint / name)
    state = {"global_step": step, "best_model_checkpoint": f"/elsewhere/checkpoint-{best}" if best else None}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    seal(checkpoint)
    return checkpoint


@pytest.fixture
def run(tmp_path) -> Path:
    """A run of two checkpoints, with its settings."""
    folder = tmp_path / "run"
    folder.mkdir()
    prepare_output_dir(arguments(folder), parameters=1000)
    for step in (2, 4):
        make_checkpoint(folder, step)
    return folder


def arguments(folder: Path, *flags: str):
    return parse_arguments(["--output_dir", str(folder), *flags])


def flip(file: Path) -> None:
    """One bit in the middle: of a tensor's numbers, where no format notices."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if file.suffix == ".json" else -9] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def empty(file: Path) -> None:
    file.write_bytes(b"")


FILES = (
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    RUN_FILE,
    CHECKSUMS,
)


@pytest.mark.parametrize("damage", [flip, cut, empty], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", FILES)
def test_any_damage_to_the_last_checkpoint_is_found_and_the_one_before_is_taken(run, capsys, name, damage):
    assert last_complete_checkpoint(run) == run / "checkpoint-4"
    damage(run / "checkpoint-4" / name)
    assert last_complete_checkpoint(run, tell=True) == run / "checkpoint-2"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{run}/checkpoint-4: ") and line.endswith("; it is passed over")


def test_a_checkpoint_that_was_killed_right_before_its_seal_is_taken_if_its_files_are_whole(run):
    (run / "checkpoint-4" / CHECKSUMS).unlink()
    assert last_complete_checkpoint(run) == run / "checkpoint-4"
    cut(run / "checkpoint-4" / "optimizer.pt")
    assert last_complete_checkpoint(run) == run / "checkpoint-2"


def test_a_checkpoint_whose_best_epoch_was_damaged_is_passed_over_wherever_the_run_was_moved(run, tmp_path, capsys):
    make_checkpoint(run, 6, best=4)
    moved = shutil.move(run, tmp_path / "moved")
    assert last_complete_checkpoint(moved, with_best=True) == moved / "checkpoint-6"
    flip(moved / "checkpoint-4" / "model.safetensors")
    assert last_complete_checkpoint(moved, with_best=True, tell=True) == moved / "checkpoint-2"
    assert "its best epoch is checkpoint-4, whose model.safetensors is damaged" in capsys.readouterr().err
    assert last_complete_checkpoint(moved) == moved / "checkpoint-6"


@pytest.mark.parametrize("damage", [cut, empty])
def test_run_json_cut_or_empty_is_mended_from_the_last_checkpoint_and_other_settings_are_still_refused(run, damage):
    before = json.loads((run / RUN_FILE).read_text())
    damage(run / RUN_FILE)
    with pytest.raises(UserError, match=r"learning_rate 5e-05 -> 0\.1"):
        prepare_output_dir(arguments(run, "--learning_rate", "0.1"), parameters=1000)
    assert prepare_output_dir(arguments(run), parameters=1000) == str(run / "checkpoint-4")
    assert json.loads((run / RUN_FILE).read_text()) == before


def test_run_json_cut_before_the_first_checkpoint_begins_the_run_anew(tmp_path):
    empty(tmp_path / RUN_FILE)
    assert prepare_output_dir(arguments(tmp_path), parameters=1000) is None
    assert json.loads((tmp_path / RUN_FILE).read_text())["learning_rate"] == 5e-5


def test_run_json_cut_beside_checkpoints_without_a_copy_is_one_line(run):
    for checkpoint in run.glob("checkpoint-*"):
        (checkpoint / CHECKSUMS).unlink()
        (checkpoint / RUN_FILE).unlink()
    empty(run / RUN_FILE)
    with pytest.raises(UserError, match=r"run\.json is no valid JSON .*; choose another --output_dir"):
        prepare_output_dir(arguments(run), parameters=1000)


def test_what_killed_writes_left_is_removed_and_nothing_else(run):
    mine = {path for path in run.rglob("*")}
    for name in (".tmpAb12cd", ".metrics.json.4711.part", "checkpoint-4/.tmpQQ", "checkpoint-4/.checksums.json.1.part"):
        (run / name).touch()
    claim_output_dir(run).release()
    assert {path for path in run.rglob("*")} - mine == {run / ".lock"}


def test_a_second_training_into_the_same_folder_is_refused_until_the_first_ends_or_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("brain_tumor_mri.training.checkpoints.SECONDS_TO_LET_GO", 0.2)
    hold = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); "
    hold += "sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another training runs in it"):
            claim_output_dir(tmp_path)
    finally:
        other.kill()
        other.communicate()
    claim_output_dir(tmp_path).release()
    claim_output_dir(tmp_path).release()
