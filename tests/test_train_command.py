"""``accelerate launch train.py`` end to end on phantoms: what it leaves behind, how it resumes, what it refuses."""

import gc
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ports import free_port
from safetensors.torch import load_file
from transformers import pipeline

import train as script
from brain_tumor_mri.commands import main as cli
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.training.run import EpochTable

ROOT = Path(__file__).parents[1]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
SMALL = [
    "--num_train_epochs",
    "3",
    "--per_device_train_batch_size",
    "4",
    "--image_size",
    "64",
    "--disable_tqdm",
    "true",
]


def command(data_dir: Path, output_dir: Path, *flags: str, launch: tuple[str, ...] = ()) -> list[str]:
    paths = ["--data_dir", str(data_dir), "--output_dir", str(output_dir)]
    return [*LAUNCH, *launch, "train.py", "configs/smoke.yaml", *SMALL, *paths, *flags]


def train(*args, check: bool = True, **options) -> subprocess.CompletedProcess:
    done = subprocess.run(command(*args, **options), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def run(phantom_dir, tmp_path_factory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    train(phantom_dir, folder)
    return folder


def test_a_run_leaves_the_plain_hub_layout_metrics_tables_and_plots(run):
    names = {path.name for path in run.iterdir() if path.is_file()}
    assert {
        "config.json",
        "model.safetensors",
        "metrics.json",
        "training_log.csv",
        "training_log.md",
        "training_curves.png",
        "confusion_matrix.png",
    } <= names
    assert len((run / "training_log.csv").read_text().splitlines()) == 4
    assert {t.dtype for t in load_file(run / "model.safetensors").values()} <= {torch.float16, torch.int64}
    image = next((ROOT / "examples").glob("*.png"))
    answers = pipeline("image-classification", model=str(run), top_k=4)(str(image))
    assert {answer["label"] for answer in answers} == {"glioma", "meningioma", "notumor", "pituitary"}


def test_metrics_json_holds_what_a_reader_needs_to_repeat_the_run(run):
    record = json.loads((run / "metrics.json").read_text())
    assert record["protocol"] == "official"
    assert record["config"]["class_weights"] == "inverse"
    assert record["config"]["learning_rate"] == pytest.approx(3e-3)
    assert record["data"]["counts"]["test"] == {"glioma": 4, "meningioma": 4, "notumor": 4, "pituitary": 4}
    assert len(record["data"]["fingerprint"]) == 64
    assert record["training"]["class_weights"] == pytest.approx([4.0] * 4, abs=0.3)
    assert record["training"]["epochs"] == 3
    for split in ("validation", "test"):
        accuracy = record["splits"][split]["accuracy"]
        assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
    assert str(run.parent) not in json.dumps(record)


def test_evaluate_gives_the_same_figures_as_the_end_of_training(run, phantom_dir, capsys):
    assert cli.main(["evaluate", "--model", str(run), "--data_dir", str(phantom_dir), "--json"]) == 0
    record, trained = json.loads(capsys.readouterr().out), json.loads((run / "metrics.json").read_text())
    assert record["splits"]["test"] == trained["splits"]["test"]
    assert record["model"]["weights_sha256"] == trained["model"]["weights_sha256"]
    assert record["data"]["fingerprint"] == trained["data"]["fingerprint"]


def require_the_end_of(folder: Path, whole: Path) -> None:
    """Weights, figures and table are those of a whole run."""
    resumed = load_file(folder / "model.safetensors")
    for name, tensor in load_file(whole / "model.safetensors").items():
        assert torch.allclose(resumed[name].float(), tensor.float(), atol=1e-3), name
    figures = [json.loads((f / "metrics.json").read_text())["splits"]["test"] for f in (folder, whole)]
    assert figures[0]["confusion_matrix"] == figures[1]["confusion_matrix"]
    assert len((folder / "training_log.csv").read_text().splitlines()) == 4


def test_a_run_stopped_in_an_epoch_resumes_and_ends_where_an_uninterrupted_one_does(
    run, phantom_dir, tmp_path, monkeypatch
):
    class Stopped(EpochTable):
        def on_step_end(self, args, state, control, **kwargs):
            if state.epoch > 1.2:
                raise KeyboardInterrupt

    monkeypatch.chdir(ROOT)
    folder = tmp_path / "stopped"
    flags = ["configs/smoke.yaml", *SMALL, "--data_dir", str(phantom_dir), "--output_dir", str(folder)]
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(script, "EpochTable", Stopped)
        script.main(flags)
    gc.collect()  # the lock on the folder ends with what held it
    assert len(list(folder.glob("checkpoint-*/trainer_state.json"))) == 1 and not (folder / "metrics.json").exists()
    (folder / "checkpoint-99999").mkdir()
    (folder / "checkpoint-99999" / "model.safetensors").touch()
    script.main(flags)
    require_the_end_of(folder, run)


def test_a_run_killed_in_an_epoch_resumes_and_ends_where_an_uninterrupted_one_does(run, phantom_dir, tmp_path):
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        command(phantom_dir, folder),
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 240
    # The first epoch's checkpoint is whole once its last file is there; the second epoch is running then.
    while not list(folder.glob("checkpoint-*/trainer_state.json")) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()[-2000:]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "metrics.json").exists()
    half = folder / "checkpoint-99999"
    half.mkdir()
    (half / "model.safetensors").touch()
    train(phantom_dir, folder)
    require_the_end_of(folder, run)


def test_two_processes_train_under_accelerate(phantom_dir, tmp_path):
    launch = ("--cpu", "--num_processes", "2", "--main_process_port", str(free_port()))
    train(phantom_dir, tmp_path / "two", "--num_train_epochs", "1", launch=launch)
    record = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert record["training"]["processes"] == 2
    assert record["splits"]["test"]["n"] == 16


def test_a_finished_run_is_not_overwritten(run, phantom_dir):
    before = (run / "metrics.json").read_bytes()
    done = train(phantom_dir, run, check=False)
    assert done.returncode != 0
    assert "holds a finished run" in done.stderr
    assert (run / "metrics.json").read_bytes() == before


def test_what_a_person_got_wrong_is_one_line_without_a_traceback(phantom_dir, tmp_path, monkeypatch):
    damaged = shutil.copytree(phantom_dir, tmp_path / "damaged")
    (damaged / "Training/glioma/empty.jpg").touch()
    cases = [
        (["--data_dir", str(tmp_path / "nowhere")], "download_kaggle.py"),
        (["--data_dir", str(damaged)], "Training/glioma/empty.jpg"),
        (["--output_dir", "/proc/run"], "/proc/run"),
        (["--learning_rtae", "1"], "--learning_rtae"),
        (["--from_scratch", "false"], "--from_scratch"),
    ]
    monkeypatch.chdir(ROOT)
    for number, (flags, named) in enumerate(cases):
        paths = ["--data_dir", str(phantom_dir), "--output_dir", str(tmp_path / f"out-{number}")]
        with pytest.raises(UserError) as told:
            script.main(["configs/smoke.yaml", *paths, *flags])
        assert named in str(told.value) and "\n" not in str(told.value)


def test_the_script_itself_exits_with_2_and_one_line(tmp_path):
    flags = ["train.py", "configs/smoke.yaml", "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, *flags], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Training/" in done.stderr


def test_ctrl_c_is_one_line_that_says_how_to_go_on(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("brain_tumor_mri.training.arguments.parse_arguments", interrupt)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "stopped; the same command goes on from the last checkpoint\n"
