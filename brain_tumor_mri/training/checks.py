"""What can be found wrong in a training's arguments before a file is decoded; ``check_arguments`` says it."""

from __future__ import annotations

import math
import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations, get_reporting_integration_callbacks

from ..data.protocols import EXTERNAL, FIGSHARE_5FOLD, LEAVE_COLLECTION_OUT, OFFICIAL
from ..errors import UserError, first_line
from .checkpoints import CHECKPOINT_FILES, checkpoint_fault
from .trainer import VALIDATION_FIGURES

if TYPE_CHECKING:
    from .arguments import RunArguments

POSITIVE = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "logging_steps",
    "eval_steps", "save_steps", "eval_accumulation_steps", "dataloader_prefetch_factor",
)  # fmt: skip
NOT_NEGATIVE = ("weight_decay", "max_grad_norm", "eval_delay", "save_total_limit")
NOT_OURS = {
    "prediction_loss_only": "an epoch is judged by its figures",
    "batch_eval_metrics": "the figures are those of the whole validation part",
    "eval_do_concat_batches": "the figures are those of the whole validation part",
    "label_names": "--labels names the classes",
    "neftune_noise_alpha": "it is for language models",
    "use_liger_kernel": "it is for language models",
    "include_num_input_tokens_seen": "it is for language models",
    "fsdp": "these networks fit one device; several train under accelerate launch --multi_gpu",
    "deepspeed": "these networks fit one device; several train under accelerate launch --multi_gpu",
    "parallelism_config": "these networks fit one device; several train under accelerate launch --multi_gpu",
}
"""Fields of TrainingArguments that this training has no use for, and why."""
SEEDS = 2**32
"""NumPy takes seeds below."""


def check_arguments(args: RunArguments, optimizer: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None) -> None:
    """Refuse settings that would fail later, or mean nothing.

    Args:
        args: all of a run's.
        optimizer: class and options in place of those of ``--optim``.
    """
    _check_numbers(args)
    _check_recipe(args)
    _check_training(args.training)
    _check_made(args.training, optimizer)


def _check_numbers(args: RunArguments) -> None:
    t = args.training
    for topic in fields(args):
        for field in fields(settings := getattr(args, topic.name)):
            value = getattr(settings, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"--{field.name} {value}: give a number")
            if value == "" != field.default:
                raise UserError(f"--{field.name}: give a value, or leave it out")
    for name in POSITIVE:
        if (value := getattr(t, name)) is not None and value <= 0:
            raise UserError(f"--{name} {value}: give a number above 0")
    for name in NOT_NEGATIVE:
        if (value := getattr(t, name)) is not None and value < 0:
            raise UserError(f"--{name} {value}: give 0 or more")
    for name in ("seed", "data_seed"):
        if (value := getattr(t, name)) is not None and not 0 <= value < SEEDS:
            raise UserError(f"--{name} {value}: give a number from 0 to {SEEDS - 1}")
    if t.num_train_epochs <= 0 and t.max_steps <= 0:
        raise UserError(f"--num_train_epochs {t.num_train_epochs:g}: nothing would be trained; give a number above 0")
    if not 0 <= t.label_smoothing_factor <= 1:
        raise UserError(f"--label_smoothing_factor {t.label_smoothing_factor}: give a share from 0 to 1")
    if args.model.image_size < 32:
        raise UserError(f"--image_size {args.model.image_size}: give 32 pixels or more")
    if args.model.schedule_epochs is not None and args.model.schedule_epochs < 1:
        raise UserError(f"--schedule_epochs {args.model.schedule_epochs}: give 1 or more")
    if not 0 <= args.model.weight_averaging < 1:
        raise UserError(f"--weight_averaging {args.model.weight_averaging}: give a decay from 0 to below 1")
    if not 0 <= args.model.teacher_weight <= 1:
        raise UserError(f"--teacher_weight {args.model.teacher_weight}: give a share from 0 to 1")
    if args.model.mixup < 0:
        raise UserError(f"--mixup {args.model.mixup}: give 0 or more")


def _check_recipe(args: RunArguments) -> None:
    protocol = args.protocol.protocol
    if args.data.labels:
        of_tumours = {
            "external_dir": args.external.external_dir,
            "collections_dir": args.collections.collections_dir,
            "outlines_dir": args.guidance.outlines_dir,
        }
        if given := [f"--{name}" for name, folder in of_tumours.items() if folder]:
            raise UserError(f"{given[0]}: it is for this project's four classes; leave it out, or --labels")
        if protocol != OFFICIAL:
            raise UserError(f"--protocol {protocol}: it is for this project's classes; --labels needs {OFFICIAL}")
    if protocol == EXTERNAL:
        raise UserError(f"--protocol {EXTERNAL}: it only measures; train under another with --external_dir")
    if protocol == FIGSHARE_5FOLD and args.data.class_weights == "inverse":
        raise UserError(
            f"--class_weights inverse: {FIGSHARE_5FOLD} has no slices without a tumour; give none, or four numbers"
        )
    if args.protocol.train_on_validation and args.training.load_best_model_at_end:
        raise UserError(
            "--train_on_validation: nothing is left to choose an epoch by; keep the last one with "
            "--load_best_model_at_end false"
        )
    if protocol == LEAVE_COLLECTION_OUT and not args.collections.collections_dir:
        raise UserError(f"--protocol {LEAVE_COLLECTION_OUT}: give --collections_dir, the folder of the collections")
    if args.model.weight_averaging and args.training.load_best_model_at_end:
        raise UserError("--weight_averaging: the average of the last step is kept; add --load_best_model_at_end false")
    if args.model.model_revision != "main" and os.path.isdir(args.model.model_name_or_path):
        raise UserError(
            f"--model_revision {args.model.model_revision}: {args.model.model_name_or_path} is a folder here, without "
            "revisions; leave it out, or give a Hub id"
        )
    if args.guidance.outlines_dir and args.model.mixup:
        raise UserError("--mixup and --outlines_dir: a mixed slice has no outline; use one of them")


def _check_training(t: TrainingArguments) -> None:
    defaults = {field.name: field.default for field in fields(TrainingArguments)}
    for name, why in NOT_OURS.items():
        if getattr(t, name) not in (defaults[name], None, [], ""):  # as some versions have it
            raise UserError(f"--{name}: {why}; leave it out")
    if any(str(option.value) == "tpu_metrics_debug" for option in t.debug):
        raise UserError("--debug tpu_metrics_debug: this training runs on no TPU; leave it out")
    figure = (t.metric_for_best_model or "loss").removeprefix("eval_")
    if figure not in VALIDATION_FIGURES:
        raise UserError(f"--metric_for_best_model {figure}: give one of {', '.join(VALIDATION_FIGURES)}")
    if t.save_strategy == "best" and (t.metric_for_best_model is None or t.eval_strategy == "no"):
        raise UserError("--save_strategy best: give --metric_for_best_model and --eval_strategy, too")
    named = t.resume_from_checkpoint
    if named and named.lower() not in ("true", "false") and (fault := checkpoint_fault(Path(named), CHECKPOINT_FILES)):
        raise UserError(f"--resume_from_checkpoint {named}: {fault}; give a checkpoint folder, or leave it out")
    if t.train_sampling_strategy not in ("random", "sequential"):
        raise UserError(f"--train_sampling_strategy {t.train_sampling_strategy}: give random or sequential")
    if t.fp16 and t.device.type == "cpu":
        raise UserError("--fp16: a processor trains in bf16 or, by default, fp32; leave it out")
    modes = (None, "default", "lite", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
    if t.torch_compile_mode not in modes:
        raise UserError(f"--torch_compile_mode {t.torch_compile_mode}: give one of {', '.join(modes[1:])}")
    if t.torch_compile and t.torch_compile_backend not in torch.compiler.list_backends(exclude_tags=()):
        raise UserError(f"--torch_compile_backend {t.torch_compile_backend}: torch has no such backend here")


def _check_made(t: TrainingArguments, optimizer: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None) -> None:
    """Make once what Trainer will make of the arguments: a package may be missing, or an option unknown."""
    flag = "--optim and --optim_args"
    try:
        kind, options = optimizer or Trainer.get_optimizer_cls_and_kwargs(t)
        weight = torch.nn.Parameter(torch.zeros(2, 2))
        made = kind([weight], **options)
        weight.grad = torch.zeros(2, 2)  # of a weight that nothing reaches, which --adam_epsilon 0 makes NaN
        made.step()
        if not weight.isfinite().all():
            raise ValueError("a gradient of 0 gives no number; give --adam_epsilon above 0")
        flag = "--lr_scheduler_type and --lr_scheduler_kwargs"
        get_scheduler(t.lr_scheduler_type, made, t.get_warmup_steps(10), 10, t.lr_scheduler_kwargs)
        flag = "--dataloader_num_workers and the like"
        loading = ("num_workers", "persistent_workers", "prefetch_factor", "multiprocessing_context")
        DataLoader([0], **{name: getattr(t, f"dataloader_{name}", None) for name in loading})
        flag = f"--report_to {' '.join(t.report_to)}"
        callbacks = get_reporting_integration_callbacks(t.report_to)
        if missing := {*t.report_to} - {*get_available_reporting_integrations(), "all", "none"}:
            raise ValueError(f"not installed here: {', '.join(sorted(missing))}")
        for callback in callbacks:
            callback()
    except Exception as error:  # of many packages, each with its own
        raise UserError(f"{flag}: {first_line(error)}") from error
