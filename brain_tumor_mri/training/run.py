"""What surrounds the trainer: run folder, checkpoint to go on from, epoch table, files at the end."""

from __future__ import annotations

import argparse
import csv
import ctypes
import io
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from huggingface_hub import create_repo
from huggingface_hub.errors import HfHubHTTPError
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import TrainOutput

from ..errors import UserError, first_line
from ..evaluation.record import describe_data, describe_model, run_record
from ..evaluation.split import evaluate_external, evaluate_split
from ..files import read_json, write_json, write_text
from ..inference.classifier import TumorClassifier
from ..machine import cpu_count
from ..reports.plots import plot_confusion_matrix, plot_training_curves
from ..reports.tables import class_table, external_table, markdown_table, percent, summary_table
from .arguments import RunArguments, run_settings
from .checkpoints import CHECKPOINT_FILES, RUN_FILE, checkpoint_fault, last_complete_checkpoint
from .parts import Parts
from .trainer import WeightAverage, WeightedLossTrainer

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


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
    trained_here = state.global_step > trainer.first_step
    return {
        "epochs": state.epoch,
        "steps": state.global_step,
        "best_epoch": state.best_global_step * state.epoch / state.global_step if state.best_global_step else None,
        "class_weights": class_weights,
        "processes": trainer.args.world_size,
        "seconds": result.metrics["train_runtime"] if trained_here else None,
        "samples_per_second": result.metrics["train_samples_per_second"] if trained_here else None,
    }


def finish_run(args: RunArguments, parts: Parts, trainer: WeightedLossTrainer, result: TrainOutput) -> str:
    """Measure what a finished training stored, as users run it, write its records, and return what to print."""
    folder = args.training.output_dir
    classifier = TumorClassifier.from_pretrained(folder, device=str(args.training.device))
    held_out = ("test",) if args.protocol.train_on_validation else ("validation", "test")
    external = None
    if parts.tumours:
        external = evaluate_external(
            classifier, parts.tumours, parts.slices.splits, with_threshold="validation" in held_out, progress=True
        )
    record = run_record(
        protocol=args.protocol,
        model=describe_model(folder, classifier),
        data=describe_data(args.data.data_dir, parts.slices),
        splits={n: evaluate_split(classifier, parts.slices.splits[n], progress=True) for n in held_out},
        config=run_settings(args),
        training=describe_training(trainer, result, parts.class_weights),
        external=external,
    )
    write_run(Path(folder), record, epoch_rows(trainer.state.log_history))
    tables = [summary_table([record]), class_table(record), *([external_table([record])] if external else [])]
    return (
        "\n".join(tables) + f"\n\nThe model is in {folder}. Next:\n"
        f"  brain-tumor-mri calibrate --model {folder} --data_dir {args.data.data_dir}\n"
        f"  brain-tumor-mri predict --model {folder} IMAGE\n"
        f"  brain-tumor-mri export --model {folder}"
    )


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


def create_repository(args: TrainingArguments) -> str:
    """Create the Hub repository of ``--push_to_hub``, before hours are spent; return its full name."""
    name = args.hub_model_id or Path(args.output_dir).absolute().name
    try:
        return create_repo(name, token=args.hub_token, private=args.hub_private_repo, exist_ok=True).repo_id
    except (OSError, HfHubHTTPError, ValueError, httpx.HTTPError) as error:
        raise UserError(
            f"--push_to_hub: cannot reach or create {name} ({first_line(error)}); "
            "log in with `hf auth login`, or train without --push_to_hub and publish later"
        ) from None


def prepare_output_dir(args: RunArguments, parameters: int, data: Mapping[str, str] | None = None) -> str | None:
    """Check before training that the run can be saved, and find where to take it up.

    Args:
        args: of this run. Settings that change the result must equal those of a run already begun in the folder.
        data: fingerprints of the slices and of their parts, which must equal those of the run as well.
        parameters: of the model; a checkpoint is about 12 bytes each (weights and two Adam moments, float32).

    Returns:
        The checkpoint that ``--resume_from_checkpoint`` names, or else the run's last whole one; None to start anew.
    """
    folder = Path(args.training.output_dir)
    main_process = args.training.process_index == 0
    kept = min(args.training.save_total_limit or 100, int(args.training.num_train_epochs) or 1) + 1
    needed, free = 12 * parameters * kept + 50e6, shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {needed / 1e9:.1f} GB are needed for checkpoints and {free / 1e9:.1f} GB are free; "
            "choose another --output_dir or a lower --save_total_limit"
        )
    files = (*CHECKPOINT_FILES, WeightAverage.file_name) if args.model.weight_averaging else CHECKPOINT_FILES
    last = last_complete_checkpoint(folder, files, with_best=args.training.load_best_model_at_end, tell=main_process)
    added = {**(data or {}), "processes": args.training.world_size}
    settings = run_settings(args) | added
    before = _settings_before(folder, last)
    if before is not None:
        before = added | before  # runs begun by earlier versions noted no data
        if changed := [key for key in sorted(settings | before) if before.get(key) != settings.get(key)]:
            what = ", ".join(f"{key} {before.get(key)} -> {settings.get(key)}" for key in changed[:5])
            raise UserError(f"{folder}: holds a run with other settings ({what}); choose another --output_dir")
    if main_process:
        write_json(folder / RUN_FILE, settings)
    named = args.training.resume_from_checkpoint
    if named and named.lower() == "false":
        return None
    if named and named.lower() != "true":
        if fault := checkpoint_fault(Path(named), files):
            raise UserError(f"--resume_from_checkpoint {named}: {fault}; give a checkpoint folder, or leave it out")
        return named
    return str(last) if last else None


def _settings_before(folder: Path, last: Path | None) -> dict[str, Any] | None:
    """Return the settings of the run begun in a folder; its last checkpoint has them, too, should run.json be cut."""
    if not (folder / RUN_FILE).is_file():
        return None
    try:
        return read_json(folder / RUN_FILE, "choose another --output_dir, or remove it")
    except UserError:
        if last is None:
            return None  # nothing was kept of that run
        if not (last / RUN_FILE).is_file():
            raise
        return read_json(last / RUN_FILE)


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
