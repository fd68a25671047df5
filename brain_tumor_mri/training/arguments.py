"""The arguments of a training run: ``CONFIG.yaml [--flag value ...]`` into dataclasses, one a topic.

``parse_arguments`` reads them, ``run_settings`` gives those that decide the result, as metrics.json records them.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from ..data.br35h import ExternalArguments
from ..data.collections import CollectionArguments
from ..data.protocols import ProtocolArguments
from ..data.slices import DataArguments
from ..errors import UserError, safe_line
from ..settings import setting
from .augmentation import AugmentationArguments
from .backbone import DEFAULT_BACKBONE
from .checks import check_arguments
from .losses import GuidanceArguments

OBJECTS, LISTS = ("_kwargs", "_config"), ("report_to", "optim_target_modules")
FOLDERS = {
    "data_dir", "external_dir", "collections_dir", "outlines_dir", "teacher", "model_name_or_path",
    "resume_from_checkpoint",
}  # fmt: skip


@dataclass
class ModelArguments:
    """Which network, and how it is stored."""

    model_name_or_path: str = setting(DEFAULT_BACKBONE, "A timm Hub id, or a local folder in that layout.")
    model_revision: str = setting("main", "Branch, tag or commit of a Hub id.")
    from_scratch: bool = setting(False, "Random weights; needs no network.")
    image_size: int = setting(224, "Side of the model's input in pixels, declared in its config.")
    train_sizes: str | None = setting(
        None, "Sizes trained at, as SIZE:EPOCHS,...; e.g. 128:14,176:7,224:3. Default: image_size throughout."
    )
    optimizer: str = setting(
        "trainer", "trainer (the --optim of TrainingArguments), or adam: torch.optim.Adam with coupled L2 decay."
    )
    schedule_epochs: int | None = setting(
        None, "Epochs that the learning-rate schedule spans; if more than are trained, it ends above 0."
    )
    teacher: str | None = setting(None, "Folder of a trained model of this project to learn from as well.")
    teacher_weight: float = setting(0.5, "Share of the loss that the teacher gives, 0 to 1.")
    mixup: float = setting(0.0, "Mix pairs of training slices by shares from Beta(this, this); 0 for none.")
    weight_averaging: float = setting(
        0.0, "Decay of the moving average of the weights, which is evaluated and kept; 0 for none."
    )
    half_weights: bool = setting(True, "Store the final weights as float16 (loaded as float32).")


@dataclass
class RunArguments:
    """All of a run's arguments, one dataclass a topic."""

    model: ModelArguments
    data: DataArguments
    protocol: ProtocolArguments
    external: ExternalArguments
    collections: CollectionArguments
    guidance: GuidanceArguments
    augmentation: AugmentationArguments
    training: TrainingArguments


class OneLineParser(HfArgumentParser):
    """Says what is wrong in one line, and ``where`` more is said, instead of printing the usage of 200 flags."""

    where = "train.py --help"

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raise a ``UserError``."""
        raise UserError(f"{message}; see {self.where}")


def parse_arguments(argv: Sequence[str]) -> RunArguments:
    """Read ``CONFIG.yaml [--flag value ...]``; flags override the file.

    Args:
        argv: the command line without the program's name. The YAML file may be left out.
    """
    classes = (
        ModelArguments, DataArguments, ProtocolArguments, ExternalArguments, CollectionArguments, GuidanceArguments,
        AugmentationArguments, TrainingArguments,
    )  # fmt: skip
    parser = OneLineParser(classes, allow_abbrev=False)
    # Without an accelerator, bf16 needs use_cpu said; and a half-trained model has no business on the Hub.
    on_cpu = not torch.accelerator.is_available()
    parser.set_defaults(use_cpu=on_cpu, dataloader_pin_memory=not on_cpu, hub_strategy="end")
    argv = list(argv)
    if argv and not argv[0].startswith("-"):
        parser.set_defaults(**_read_config(Path(argv.pop(0)).expanduser(), parser._actions))
    try:
        args = RunArguments(*parser.parse_args_into_dataclasses(argv))
    except UserError:
        raise
    except Exception as error:  # whatever TrainingArguments raises is about what it was given
        given = [word.split("=")[0] for word in argv if word.startswith("--")]
        told = safe_line(str(error).strip() or type(error).__name__)
        raise UserError(told if "--" in told or not given else f"{' or '.join(given)}: {told}") from error
    for topic in fields(args):
        for name in FOLDERS & vars(settings := getattr(args, topic.name)).keys():
            if value := getattr(settings, name):
                setattr(settings, name, os.path.expanduser(value))
    check_arguments(args, optimizer_class(args))
    if args.guidance.outlines_dir:
        args.training.remove_unused_columns = False  # the masks are the loss's, not the model's
    return args


def read_config(path: Path) -> dict[str, Any]:
    """Return the settings of a YAML file."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # no UTF-8, no such day, nested without end
        raise UserError(f"{path}: cannot read this configuration ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a configuration; give lines of the form 'name: value'")
    return config


def _read_config(path: Path, actions: Sequence[argparse.Action]) -> dict[str, Any]:
    known = {action.dest: action for action in actions}
    config = read_config(path)
    if unknown := sorted(map(str, config.keys() - known.keys())):
        raise UserError(f"{path}: unknown setting {', '.join(unknown)}; see train.py --help for the names")
    for key, value in config.items():
        choices, many = known[key].choices, known[key].nargs == "+" or key in LISTS
        if (isinstance(value, list) and not many) or (isinstance(value, dict) and not key.endswith(OBJECTS)):
            raise UserError(f"{path}: {key}: give one value, written as for --{key}")
        if choices and not isinstance(value, list | None) and value not in choices:  # argparse looks at flags only
            raise UserError(f"{path}: {key}: {value} is none of {', '.join(map(str, choices))}")
    # YAML reads 1e-4 as a string and 2024-01-31 as a day; argparse converts strings, so hand it those.
    kept = bool | str | list | dict | None
    return {key: value if isinstance(value, kept) else str(value) for key, value in config.items()}


def parse_size_schedule(setting: str | None, image_size: int, epochs: float) -> list[tuple[int, int]]:
    """Return ``[(size in pixels, epochs), ...]`` in order."""
    if not setting:
        return [(image_size, max(1, int(-(-epochs // 1))))]
    try:
        stages = [(int(size), int(count)) for size, count in (part.split(":") for part in setting.split(","))]
    except ValueError:
        raise UserError(
            f"--train_sizes {setting}: give SIZE:EPOCHS,SIZE:EPOCHS,... (in a YAML file a single one in quotes)"
        ) from None
    if any(size < 32 or count < 1 for size, count in stages) or sum(count for _, count in stages) != epochs:
        raise UserError(f"--train_sizes {setting}: sizes from 32 up, and epochs that add up to {epochs:g}")
    return stages


def optimizer_class(args: RunArguments) -> tuple[type[torch.optim.Optimizer], dict[str, Any]] | None:
    """Return torch's Adam for ``--optimizer adam`` (the source's; TrainingArguments knows only AdamW), else None."""
    if args.model.optimizer == "trainer":
        return None
    if args.model.optimizer != "adam":
        raise UserError(f"--optimizer {args.model.optimizer}: give trainer or adam")
    t = args.training
    betas = (t.adam_beta1, t.adam_beta2)
    return torch.optim.Adam, {"lr": t.learning_rate, "betas": betas, "eps": t.adam_epsilon, "fused": True}


def run_settings(args: RunArguments) -> dict[str, Any]:
    """Return the settings that decide a run's result, JSON-ready: what metrics.json records as ``config``.

    Of ``TrainingArguments``, those that differ from their defaults, without folders, tokens and reporting.
    """
    topics = (
        args.model, args.data, args.protocol, args.external, args.collections, args.guidance, args.augmentation
    )  # fmt: skip
    plain = {key: value for topic in topics for key, value in asdict(topic).items()}
    for key in ("data_dir", "external_dir", "collections_dir", "outlines_dir", "teacher", "model_name_or_path"):
        if plain[key] and (key == "data_dir" or os.path.isdir(plain[key])):
            plain[key] = Path(plain[key]).name  # the rest of the path belongs to the machine
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
