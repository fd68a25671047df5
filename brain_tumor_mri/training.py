"""What ``train.py`` needs beyond transformers: its arguments, the weighted-loss Trainer, resuming, the epoch table."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
import torch.nn.functional as F
import yaml
from huggingface_hub.errors import HfHubHTTPError
from transformers import HfArgumentParser, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import TrainOutput

from .data import DataArguments
from .errors import UserError
from .modeling import DEFAULT_BACKBONE, save_release
from .report import write_epoch_table
from .transforms import AugmentationArguments

RUN_FILE = "run.json"
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
CHECKPOINT_FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")


@dataclass
class ModelArguments:
    """Which network, and how it is stored."""

    model_name_or_path: str = field(
        default=DEFAULT_BACKBONE, metadata={"help": "A timm Hub id, or a local folder in that layout."}
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a Hub id."})
    from_scratch: bool = field(default=False, metadata={"help": "Random weights; needs no network."})
    image_size: int = field(
        default=224, metadata={"help": "Side of the model's input in pixels, declared in its config."}
    )
    train_sizes: str | None = field(
        default=None,
        metadata={
            "help": "Sizes trained at, as SIZE:EPOCHS,...; e.g. 128:14,176:7,224:3. Default: image_size throughout."
        },
    )
    optimizer: str = field(
        default="trainer",
        metadata={
            "help": "trainer (the --optim of TrainingArguments), or adam: torch.optim.Adam with coupled L2 decay."
        },
    )
    half_weights: bool = field(
        default=True, metadata={"help": "Store the final weights as float16 (loaded as float32)."}
    )


@dataclass
class RunArguments:
    """All of a run's arguments, one dataclass a topic."""

    model: ModelArguments
    data: DataArguments
    augmentation: AugmentationArguments
    training: TrainingArguments


class _OneLineParser(HfArgumentParser):
    """Says what is wrong in one line instead of printing the usage of 200 flags."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; see train.py --help")


def parse_arguments(argv: Sequence[str]) -> RunArguments:
    """Read ``CONFIG.yaml [--flag value ...]``; flags override the file.

    Args:
        argv: the command line without the program's name. The YAML file may be left out.

    Raises:
        UserError: an unknown key or flag, a value of the wrong kind, a missing file.
    """
    classes = (ModelArguments, DataArguments, AugmentationArguments, TrainingArguments)
    parser = _OneLineParser(classes, allow_abbrev=False)
    # Without an accelerator, bf16 needs use_cpu said; and a half-trained model has no business on the Hub.
    on_cpu = not torch.accelerator.is_available()
    parser.set_defaults(use_cpu=on_cpu, dataloader_pin_memory=not on_cpu, hub_strategy="end")
    argv = list(argv)
    if argv and not argv[0].startswith("-"):
        parser.set_defaults(**_read_config(Path(argv.pop(0)), {action.dest for action in parser._actions}))
    try:
        parts = parser.parse_args_into_dataclasses(argv)
        return RunArguments(*parts)
    except (ValueError, ImportError) as error:
        raise UserError(str(error).strip().replace("\n", " ")) from error


def _read_config(path: Path, known: set[str]) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot read this configuration ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a configuration; give lines of the form 'name: value'")
    if unknown := sorted(set(config) - known):
        raise UserError(f"{path}: unknown setting {', '.join(unknown)}; see train.py --help for the names")
    # YAML reads 1e-4 as a string, lists as lists; argparse converts strings, so hand it those for plain numbers.
    return {k: str(v) if isinstance(v, int | float) and not isinstance(v, bool) else v for k, v in config.items()}


def parse_size_schedule(setting: str | None, image_size: int, epochs: float) -> list[tuple[int, int]]:
    """Return ``[(size in pixels, epochs), ...]`` in order.

    Raises:
        UserError: not of the form SIZE:EPOCHS,..., or the epochs do not add up to ``epochs``.
    """
    if not setting:
        return [(image_size, max(1, int(-(-epochs // 1))))]
    try:
        stages = [(int(size), int(count)) for size, count in (part.split(":") for part in setting.split(","))]
    except ValueError:
        raise UserError(f"--train_sizes {setting}: give SIZE:EPOCHS,SIZE:EPOCHS,...") from None
    if any(size < 32 or count < 1 for size, count in stages) or sum(count for _, count in stages) != epochs:
        raise UserError(f"--train_sizes {setting}: sizes from 32 up, and epochs that add up to {epochs:g}")
    return stages


def weighted_cross_entropy_sum(
    logits: torch.Tensor, labels: torch.Tensor, class_weights: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Return the sum over a batch of w_y times the cross-entropy, before division by the sum of the w_y.

    Args:
        logits: (N, C), any float type; computed in float32.
        labels: (N,) int64.
        class_weights: (C,) float32.
        label_smoothing: as in ``torch.nn.CrossEntropyLoss``, whose 'mean' is this sum divided by the sum of the w_y.
    """
    return F.cross_entropy(
        logits.float(), labels, weight=class_weights, label_smoothing=label_smoothing, reduction="sum"
    )


class WeightedLossTrainer(Trainer):
    """A ``Trainer`` whose loss is cross-entropy weighted by class.

    loss = sum_i w[y_i] * CE_i / sum_i w[y_i], both sums over everything that makes one optimizer step: all
    micro-batches of an accumulation step and all processes. So splitting a batch either way changes nothing.

    Args:
        class_weights: one weight a class, or None for all equal.
        size_schedule: ``[(size, epochs), ...]``: training batches are shrunk to the size of the current epoch.
        half_weights: store the final model (not the checkpoints) as float16.
        **kwargs: as for ``Trainer``.
    """

    def __init__(
        self,
        *args: Any,
        class_weights: Sequence[float] | None = None,
        size_schedule: Sequence[tuple[int, int]] | None = None,
        half_weights: bool = True,
        **kwargs: Any,
    ) -> None:
        self.half_weights = half_weights
        super().__init__(*args, **kwargs)
        weights = class_weights or [1.0] * self.model.config.num_labels
        self.class_weights = torch.tensor(weights, dtype=torch.float32, device=self.args.device)
        self.loss_is_scaled_for_ga = True
        self.size_schedule = list(size_schedule or [])
        self.model.to(memory_format=torch.channels_last)
        self._reset_epoch_totals()
        self.add_callback(_EpochStart(self))

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        """Return the total class weight of the batches of one optimizer step, over all processes."""
        if not batch_samples:
            return None
        labels = torch.cat([batch["labels"].to(self.class_weights.device) for batch in batch_samples])
        total = self.class_weights[labels].sum()
        if self.args.world_size > 1:
            total = self.accelerator.reduce(total, reduction="sum")
        return total.to(device)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """Return this process's share of the weighted loss, times the number of processes (gradients are averaged)."""
        labels = inputs["labels"]
        pixel_values = inputs["pixel_values"]
        if model.training:
            pixel_values = self._shrink(pixel_values)
        outputs = model(pixel_values=pixel_values.contiguous(memory_format=torch.channels_last))
        smoothing = self.args.label_smoothing_factor if model.training else 0.0
        loss_sum = weighted_cross_entropy_sum(outputs.logits, labels, self.class_weights, smoothing)
        total = num_items_in_batch if num_items_in_batch is not None else self.class_weights[labels].sum()
        if model.training:
            self._epoch_totals += torch.stack(
                [
                    loss_sum.detach(),
                    self.class_weights[labels].sum(),
                    (outputs.logits.argmax(-1) == labels).sum(),
                    torch.tensor(len(labels), device=labels.device),
                ]
            ).double()
        loss = loss_sum / total * self.args.world_size
        return (loss, outputs) if return_outputs else loss

    def _shrink(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Resize a batch (N, 3, H, W) to this epoch's training size, with antialiasing as PIL's resize has."""
        epoch = int(self.state.epoch or 0)
        sizes = [size for size, count in self.size_schedule for _ in range(count)]
        size = sizes[epoch] if epoch < len(sizes) else pixel_values.shape[-1]
        if size == pixel_values.shape[-1]:
            return pixel_values
        return F.interpolate(pixel_values, size=(size, size), mode="bilinear", antialias=True)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the release layout into the run's own folder; checkpoints keep full precision, as resuming needs."""
        if output_dir is not None and Path(output_dir) != Path(self.args.output_dir):
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            model = self.accelerator.unwrap_model(self.model)
            save_release(model, self.args.output_dir, half=self.half_weights)

    def init_hf_repo(self, token: str | None = None) -> None:
        """Create the Hub repository before training; what prevents that is said in one line."""
        try:
            super().init_hf_repo(token)
        except (OSError, HfHubHTTPError, ValueError, httpx.HTTPError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"--push_to_hub: cannot reach or create {self.args.hub_model_id or 'the repository'} ({reason}); "
                "log in with `hf auth login`, or train without --push_to_hub and publish later"
            ) from error

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the epoch's running training accuracy and loss to the evaluation's log entry."""
        if "eval_loss" in logs:
            totals = self._epoch_totals
            if self.args.world_size > 1:
                totals = self.accelerator.reduce(totals, reduction="sum")
            loss_sum, weight, correct, count = totals.tolist()
            if count:
                logs |= {"epoch_train_loss": loss_sum / weight, "epoch_train_accuracy": correct / count}
        super().log(logs, *args, **kwargs)

    def _reset_epoch_totals(self) -> None:
        self._epoch_totals = torch.zeros(4, dtype=torch.float64, device=self.args.device)


class _EpochStart(TrainerCallback):
    """Tells the data which epoch it is, and starts the epoch's training totals."""

    def __init__(self, trainer: WeightedLossTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Pass the epoch's number on; ``Trainer`` itself does so in one process only."""
        if hasattr(self.trainer.train_dataset, "set_epoch"):
            self.trainer.train_dataset.set_epoch(int(state.epoch or 0))
        self.trainer._reset_epoch_totals()


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
    """Return what metrics.json says of a finished training; seconds and samples/s are of its last unbroken part."""
    state = trainer.state
    return {
        "epochs": state.epoch,
        "steps": state.global_step,
        "best_epoch": state.best_global_step * state.epoch / state.global_step if state.best_global_step else None,
        "class_weights": class_weights,
        "processes": trainer.args.world_size,
        "seconds": result.metrics["train_runtime"],
        "samples_per_second": result.metrics["train_samples_per_second"],
    }


def optimizer_class(args: RunArguments) -> tuple[type[torch.optim.Optimizer], dict[str, Any]] | None:
    """Return torch's Adam for ``--optimizer adam`` (the source's; TrainingArguments knows only AdamW), else None."""
    if args.model.optimizer == "trainer":
        return None
    if args.model.optimizer != "adam":
        raise UserError(f"--optimizer {args.model.optimizer}: give trainer or adam")
    t = args.training
    betas = (t.adam_beta1, t.adam_beta2)
    return torch.optim.Adam, {"lr": t.learning_rate, "betas": betas, "eps": t.adam_epsilon, "fused": True}


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
    freed; keeping them made ResNet50's training step about a fifth faster here (``benchmarks/training_speed.py``).
    """
    if args.device.type != "cpu":
        return
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", args.world_size))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_processes))
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 2**28)):
            mallopt(parameter, value)


def prepare_output_dir(args: RunArguments, parameters: int) -> str | None:
    """Check before training that the run can be saved, and find where to take it up.

    Args:
        args: of this run. Settings that change the result must equal those of a run already begun in the folder.
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
    settings = run_settings(args)
    record = folder / RUN_FILE
    if record.is_file():
        before = json.loads(record.read_text())
        if changed := [key for key in settings if before.get(key) != settings[key]]:
            what = ", ".join(f"{key} {before.get(key)} -> {settings[key]}" for key in changed[:5])
            raise UserError(f"{folder}: holds a run with other settings ({what}); choose another --output_dir")
    elif args.training.process_index == 0:
        record.write_text(json.dumps(settings, indent=2, sort_keys=True))
    return args.training.resume_from_checkpoint or last_complete_checkpoint(folder)


def last_complete_checkpoint(folder: Path) -> str | None:
    """Return the newest ``checkpoint-N`` that was written to its end (a kill can leave half a one)."""
    found = [p for p in folder.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    for path in sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")), reverse=True):
        if all((path / name).is_file() for name in CHECKPOINT_FILES):
            return str(path)
    return None


def run_settings(args: RunArguments) -> dict[str, Any]:
    """Return the settings that decide a run's result, JSON-ready: what metrics.json records as ``config``.

    Of ``TrainingArguments``, those that differ from their defaults, without folders, tokens and reporting.
    """
    plain = {**asdict(args.model), **asdict(args.data), **asdict(args.augmentation)}
    plain["data_dir"] = Path(args.data.data_dir).name
    if os.path.isdir(args.model.model_name_or_path):
        plain["model_name_or_path"] = Path(args.model.model_name_or_path).name
    default = TrainingArguments(output_dir="default", report_to=[], use_cpu=True).to_dict()
    own = args.training.to_dict()
    recorded = (
        "seed", "num_train_epochs", "per_device_train_batch_size", "learning_rate", "weight_decay", "optim",
        "lr_scheduler_type", "warmup_steps", "label_smoothing_factor", "gradient_accumulation_steps", "bf16", "fp16",
        "max_grad_norm", "metric_for_best_model",
    )  # fmt: skip
    ignored = ("dir", "token", "hub", "log", "report", "resume", "num_workers", "disable_tqdm", "use_cpu", "run_name")
    for key, value in own.items():
        differs = value != default.get(key) and not any(part in key for part in ignored)
        if key in recorded or differs:
            plain[key] = value
    return json.loads(json.dumps(plain, default=str))
