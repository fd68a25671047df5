"""What surrounds the trainer: run folder, checkpoint to go on from, epoch table, files at the end."""

from __future__ import annotations

import argparse
import csv
import ctypes
import hashlib
import io
import os
import platform
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import psutil
import torch
from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import TrainOutput

from ..errors import UserError
from ..files import read_json, write_json, write_text
from ..machine import cpu_count
from ..reports.plots import plot_confusion_matrix, plot_training_curves
from ..reports.tables import markdown_table, percent
from .arguments import RunArguments, run_settings
from .trainer import WeightAverage, WeightedLossTrainer

RUN_FILE = "run.json"
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
CHECKPOINT_FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")


class EpochTable(TrainerCallback):
    """Writes training_log.csv and training_log.md after every epoch, so that a running training can be followed."""

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir

    def on_evaluate(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the table so far, on the main process."""
        if state.is_world_process_zero:
            write_epoch_table(self.output_dir, epoch_rows(state.log_history))


def epoch_rows(log_history: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Return one row an evaluated epoch: epoch, train and validation loss and accuracy, learning rate.

    The training figures are running means over the epoch's augmented batches; after a resume in the middle of an
    epoch, over its part since then.
    """
    rows: dict[float, dict[str, float]] = {}
    learning_rate = float("nan")
    for entry in log_history:
        learning_rate = entry.get("learning_rate", learning_rate)
        if "epoch_train_loss" in entry:
            rows[entry["epoch"]] = {
                "epoch": entry["epoch"],
                "train_loss": entry["epoch_train_loss"],
                "train_accuracy": entry["epoch_train_accuracy"],
                "validation_loss": entry["eval_loss"],
                "validation_accuracy": entry["eval_accuracy"],
                "learning_rate": learning_rate,
            }
    return [rows[epoch] for epoch in sorted(rows)]


def describe_training(trainer: WeightedLossTrainer, result: TrainOutput, class_weights: Any) -> dict[str, Any]:
    """Return what metrics.json says of a finished training; the time is that of its last unbroken part, if any."""
    state = trainer.state
    trained_here = state.global_step > trainer._initial_global_step
    return {
        "epochs": state.epoch,
        "steps": state.global_step,
        "best_epoch": state.best_global_step * state.epoch / state.global_step if state.best_global_step else None,
        "class_weights": class_weights,
        "processes": trainer.args.world_size,
        "seconds": result.metrics["train_runtime"] if trained_here else None,
        "samples_per_second": result.metrics["train_samples_per_second"] if trained_here else None,
    }


def start_missing_processes() -> None:
    """Start the processes that ``accelerate launch --cpu --num_processes N`` promised; it starts only one without MPI.

    Seen in accelerate 1.15: it sets MASTER_PORT for N processes and runs the script once. This replaces that one by
    ``torch.distributed.run`` with the N of accelerate's own command line, and returns where nothing is missing.
    """
    environment = os.environ
    promised = environment.get("ACCELERATE_USE_CPU", "").lower() == "true" and "MASTER_PORT" in environment
    started = any(
        name in environment for name in ("LOCAL_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
    )
    if not promised or started:
        return
    launcher = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    launcher.add_argument("--num_processes", "--num-processes", type=int, default=1)
    processes = launcher.parse_known_args(psutil.Process(os.getppid()).cmdline())[0].num_processes
    if processes > 1:
        port = ["--master_port", environment["MASTER_PORT"]]
        run = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), *port, *sys.argv]
        os.execv(sys.executable, run)


def tune_for_cpu(args: TrainingArguments) -> None:
    """Make training on a CPU use the machine: all its cores, and memory kept rather than given back and faulted in.

    ``accelerate launch`` leaves each process one thread. glibc returns every large tensor to the system when it is
    freed; keeping them made ResNet50's bare training step faster here (26 to 31 images/s at 128 px, one short trial).
    """
    if args.device.type != "cpu":
        return
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", args.world_size))
    torch.set_num_threads(max(1, cpu_count() // local_processes))
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 2**28)):
            mallopt(parameter, value)


def split_fingerprint(parts: Mapping[str, datasets.Dataset]) -> str:
    """Return a SHA-256 over part, path, label and bytes of each slice, in their order."""
    digest = hashlib.sha256()
    for name, split in parts.items():
        files = split.cast_column("image", datasets.Image(decode=False))["image"][:]
        for path, label, file in zip(split["path"][:], split["label"][:], files, strict=True):
            digest.update(f"{name} {path} {label} {os.path.getsize(file['path'])}\n".encode())
    return digest.hexdigest()


def prepare_output_dir(args: RunArguments, parameters: int, data: Mapping[str, str] | None = None) -> str | None:
    """Check before training that the run can be saved, and find where to take it up.

    Args:
        args: of this run. Settings that change the result must equal those of a run already begun in the folder.
        data: fingerprints of the slices and of their parts, which must equal those of the run as well.
        parameters: of the model; a checkpoint is about 12 bytes each (weights and two Adam moments, float32).

    Returns:
        The last complete checkpoint, or None to start anew.

    Raises:
        UserError: the folder cannot be written, the disk is too full, or the folder holds a different run.
    """
    folder = Path(args.training.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another --output_dir") from error
    kept = min(args.training.save_total_limit or 100, int(args.training.num_train_epochs) or 1) + 1
    needed, free = 12 * parameters * kept + 50e6, shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {needed / 1e9:.1f} GB are needed for checkpoints and {free / 1e9:.1f} GB are free; "
            "choose another --output_dir or a lower --save_total_limit"
        )
    added = {**(data or {}), "processes": args.training.world_size}
    settings = run_settings(args) | added
    record = folder / RUN_FILE
    if record.is_file():
        # runs begun by earlier versions noted no data
        before = added | read_json(record, "choose another --output_dir, or remove it")
        if changed := [key for key in sorted(settings | before) if before.get(key) != settings.get(key)]:
            what = ", ".join(f"{key} {before.get(key)} -> {settings.get(key)}" for key in changed[:5])
            raise UserError(f"{folder}: holds a run with other settings ({what}); choose another --output_dir")
    elif args.training.process_index == 0:
        write_json(record, settings)
    return _checkpoint_to_go_on_from(args)


def _checkpoint_to_go_on_from(args: RunArguments) -> str | None:
    """Return what ``--resume_from_checkpoint`` names, or else the newest whole checkpoint of the run."""
    files = (*CHECKPOINT_FILES, WeightAverage.file_name) if args.model.weight_averaging else CHECKPOINT_FILES
    named = args.training.resume_from_checkpoint
    if named and named.lower() == "false":
        return None
    if named and named.lower() != "true":
        if fault := checkpoint_fault(Path(named), files):
            raise UserError(f"--resume_from_checkpoint {named}: {fault}; give a checkpoint folder, or leave it out")
        return named
    return last_complete_checkpoint(Path(args.training.output_dir), files, tell=args.training.process_index == 0)


def last_complete_checkpoint(folder: Path, files: Sequence[str] = CHECKPOINT_FILES, tell: bool = False) -> str | None:
    """Return the newest ``checkpoint-N`` that was written to its end (a kill can leave half a one).

    Args:
        folder: of the run.
        files: what a checkpoint has to hold.
        tell: print a line for each that is passed over.
    """
    found = [p for p in folder.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    for path in sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")), reverse=True):
        fault = checkpoint_fault(path, files)
        if fault is None:
            return str(path)
        if tell:
            print(f"{path}: {fault}; it is passed over", file=sys.stderr)
    return None


def checkpoint_fault(path: Path, files: Sequence[str]) -> str | None:
    """Return what is missing or cut in a checkpoint, or None where training can go on from it."""
    states = sorted({*files, *(file.name for file in path.glob("*.pt*"))})  # of each process's random numbers, too
    for name in states:
        try:
            if name.endswith(".safetensors"):
                with safe_open(path / name, "pt"):  # compares the header with the file's length
                    pass
            elif name.endswith(".json"):
                read_json(path / name)
            else:
                with zipfile.ZipFile(path / name) as archive:
                    if archive.testzip():
                        return f"{name} is damaged"
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, UserError, SafetensorError, zipfile.BadZipFile):
            return f"{name} is cut off or unreadable"
    return None


def write_epoch_table(folder: Path, rows: Sequence[dict[str, float]]) -> None:
    """Write training_log.csv and training_log.md: one row an epoch."""
    if not rows:
        return
    names = list(rows[0])
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in rows)
    write_text(folder / "training_log.csv", buffer.getvalue())
    header = [name.replace("_", " ") for name in names]
    cells = [[f"{v:.4g}" if "rate" in k else f"{v:.4f}" if "_" in k else f"{v:g}" for k, v in r.items()] for r in rows]
    write_text(folder / "training_log.md", markdown_table(header, cells))


def write_run(folder: Path, record: dict[str, Any], epochs: Sequence[dict[str, float]]) -> None:
    """Write a finished run: metrics.json, training_log.csv and .md, training_curves.png, confusion_matrix.png."""
    title = f"{record['model']['architecture']}, {record['protocol']}"
    write_epoch_table(folder, epochs)
    if epochs:
        plot_training_curves(epochs, folder / "training_curves.png", title)
    test = record["splits"]["test"]
    accuracy = percent(test["accuracy"])
    plot_confusion_matrix(
        test, folder / "confusion_matrix.png", f"{title}, test\naccuracy {accuracy}, {test['n']} images"
    )
    # Last, because its presence says that the run is finished.
    write_json(folder / "metrics.json", record)
