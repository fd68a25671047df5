"""What ``train.py`` needs beyond transformers: the weighted-loss Trainer, the epoch table, starting and resuming."""

from __future__ import annotations

import contextlib
import copy
import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ..errors import UserError
from ..evaluation.metrics import measured
from ..labels import ANY_TUMOR, LABEL2ID, NO_TUMOR
from .backbone import save_release
from .checkpoints import WEIGHTS, checkpoint_fault, seal
from .losses import EvidenceGuide, Teacher, allowed_classes, weighted_cross_entropy_sum, with_any_tumor_weight

VALIDATION_FIGURES = ("loss", "accuracy", "balanced_accuracy", "macro_f1", "log_loss")
"""What every epoch is judged by, and an epoch can be chosen by."""


class WeightedLossTrainer(Trainer):
    """A ``Trainer`` whose loss is cross-entropy weighted by class.

    loss = sum_i w[y_i] * CE_i / sum_i w[y_i], both sums over everything that makes one optimizer step: all
    micro-batches of an accumulation step and all processes. So splitting a batch either way changes nothing.
    A label may be ``ANY_TUMOR``. With a teacher, CE_i is (1 - a) CE_i + a T^2 KL_i in training, the KL unweighted.

    Args:
        class_weights: one weight a class, or None for all equal.
        size_schedule: ``[(size, epochs), ...]``: training batches are shrunk to the size of the current epoch.
        weight_averaging: decay of an exponential moving average of weights and running statistics, taken after every
            optimizer step (Tarvainen & Valpola 2017); the average is what is evaluated and stored. 0 for none.
        half_weights: store the final model (not the checkpoints) as float16.
        schedule_epochs: epochs that the learning-rate schedule spans; by default those trained.
        teacher: whose answers are learnt from as well.
        teacher_weight: a in 0..1, the share of the loss that the teacher gives.
        mixup: parameter of mixup's Beta distribution (Zhang et al. 2018); each training batch is mixed with itself in
            another order, slices and losses alike, so that the sum of the w is that of the batch. 0 for none.
        guidance: times w_i, what a slice costs whose evidence lies all outside its outline (``guidance.py``); its
            batches have ``masks``. 0 for none.
        **kwargs: as for ``Trainer``.
    """

    def __init__(
        self,
        *args: Any,
        class_weights: Sequence[float] | None = None,
        size_schedule: Sequence[tuple[int, int]] | None = None,
        half_weights: bool = True,
        weight_averaging: float = 0.0,
        schedule_epochs: int | None = None,
        teacher: Teacher | None = None,
        teacher_weight: float = 0.5,
        mixup: float = 0.0,
        guidance: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.half_weights = half_weights
        self.schedule_epochs = schedule_epochs
        super().__init__(*args, **kwargs)
        self.label_weights = with_any_tumor_weight(class_weights, self.model.num_labels).to(self.args.device)
        self.teacher = teacher.to(self.args.device) if teacher is not None else None
        self.teacher_weight = teacher_weight
        self.mixup = mixup
        self.guidance = guidance
        self.guide = EvidenceGuide(self.model) if guidance else None
        self.loss_is_scaled_for_ga = True
        self.size_schedule = list(size_schedule or [])
        self.model.to(memory_format=torch.channels_last)
        if self.args.bf16 and self.args.device.type == "cpu":
            keep_depthwise_in_float32(self.model)
        self.first_step = 0
        self._reset_epoch_totals()
        self.add_callback(_EpochStart(self))
        self.add_callback(_Divergence())
        self.average = WeightAverage(self.model, weight_averaging) if weight_averaging else None
        if self.average is not None:
            self.add_callback(self.average)

    def train(self, resume_from_checkpoint: str | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, or go on from a checkpoint's folder; the average of the weights is taken up there, too."""
        if self.average is not None:
            self.average.checkpoint = resume_from_checkpoint
        result = super().train(resume_from_checkpoint, *args, **kwargs)
        if not result.global_step:
            raise UserError("not a single step was trained: fewer slices than --per_device_train_batch_size")
        return result

    def create_scheduler(self, num_training_steps: int, *args: Any, **kwargs: Any) -> Any:
        """Create the schedule over ``schedule_epochs`` epochs; one on a plateau follows ``greater_is_better``."""
        if self.args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):
            mode = {"mode": "max" if self.args.greater_is_better else "min"}
            self.args.lr_scheduler_kwargs = mode | (self.args.lr_scheduler_kwargs or {})
        if self.schedule_epochs:
            num_training_steps = round(num_training_steps * self.schedule_epochs / self.args.num_train_epochs)
        return super().create_scheduler(num_training_steps, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Train on a batch; one that is too small for the network, as the last of an epoch may be, is one line."""
        with _too_few_values():
            return super().training_step(*args, **kwargs)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        """Return the total class weight of the batches of one optimizer step, over all processes."""
        if not batch_samples:
            return None
        labels = torch.cat([batch["labels"].to(self.label_weights.device) for batch in batch_samples])
        total = self.label_weights[labels].sum()
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
        others, share = labels, 1.0
        if model.training:
            pixel_values = self._shrink(pixel_values)
            if self.mixup:
                order = torch.randperm(len(labels), device=labels.device)
                drawn = float(torch.distributions.Beta(self.mixup, self.mixup).sample())
                others, share = labels[order], max(drawn, 1 - drawn)
                pixel_values = torch.lerp(pixel_values[order], pixel_values, share)
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        outputs = model(pixel_values=pixel_values)
        smoothing = self.args.label_smoothing_factor if model.training else 0.0
        loss_sum = share * weighted_cross_entropy_sum(outputs.logits, labels, self.label_weights, smoothing)
        if share < 1:
            loss_sum += (1 - share) * weighted_cross_entropy_sum(outputs.logits, others, self.label_weights, smoothing)
        total = num_items_in_batch if num_items_in_batch is not None else self.label_weights[labels].sum()
        if model.training:
            self._count(outputs.logits, labels, loss_sum)
            if self.guide is not None:
                misplaced = self.guide.misplaced_sum(outputs.logits, labels, inputs["masks"], self.label_weights)
                loss_sum = loss_sum + self.guidance * misplaced
            if self.teacher is not None:
                with self.accelerator.autocast():
                    divergence = self.teacher.divergence_sum(outputs.logits, pixel_values)
                loss_sum = (1 - self.teacher_weight) * loss_sum + self.teacher_weight * divergence
        loss = loss_sum / total * self.args.world_size
        return (loss, outputs) if return_outputs else loss

    def _count(self, logits: torch.Tensor, labels: torch.Tensor, loss_sum: torch.Tensor) -> None:
        """Add a training batch to the epoch's totals: loss, weight, right answers, slices."""
        allowed = allowed_classes(logits.shape[-1]).to(labels.device)[labels]
        right = allowed.gather(1, logits.argmax(-1, keepdim=True)).sum()
        count = torch.tensor(len(labels), device=labels.device)
        totals = [loss_sum.detach(), self.label_weights[labels].sum(), right, count]
        self._epoch_totals += torch.stack(totals).float()

    def _shrink(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Resize a batch (N, 3, H, W) to this epoch's training size, with antialiasing as PIL's resize has."""
        epoch = int(self.state.epoch or 0)
        sizes = [size for size, count in self.size_schedule for _ in range(count)]
        size = sizes[epoch] if epoch < len(sizes) else pixel_values.shape[-1]
        if size == pixel_values.shape[-1]:
            return pixel_values
        return F.interpolate(pixel_values, size=(size, size), mode="bilinear", antialias=True)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate the averaged weights, where there are any."""
        with self.average.in_place() if self.average is not None else contextlib.nullcontext():
            return super().evaluate(*args, **kwargs)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        """Load every slice, whatever ``dataloader_drop_last`` leaves out of an epoch of training."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop_last

    def evaluation_loop(
        self,
        dataloader: torch.utils.data.DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate; the loss is one weighted mean over the part, however it was split into batches and processes."""
        output = super().evaluation_loop(dataloader, description, False, ignore_keys, metric_key_prefix)
        logits, labels = (torch.from_numpy(array) for array in (output.predictions, output.label_ids))
        weights = self.label_weights.cpu()
        loss = weighted_cross_entropy_sum(logits, labels, weights) / weights[labels].sum()
        output.metrics[f"{metric_key_prefix}_loss"] = loss.item()
        return output

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Save a checkpoint, and seal it when each process has written its part."""
        checkpoint = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        if self.args.should_save and checkpoint.exists():
            shutil.rmtree(checkpoint)  # it was passed over, and nothing of it may stay among new files
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            seal(checkpoint)

    def _load_best_model(self) -> None:
        """Load the best epoch, from where its checkpoint is now: the run's folder may have moved since."""
        best = Path(self.state.best_model_checkpoint)
        here = Path(self.args.output_dir, best.name)
        best = here if here.exists() else best
        if fault := checkpoint_fault(best, (WEIGHTS,)):
            raise UserError(f"{best}, the best epoch: {fault}; start the same command again to train on from before it")
        self.state.best_model_checkpoint = str(best)
        super()._load_best_model()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the release layout into the run's own folder; checkpoints keep full precision, as resuming needs."""
        if output_dir is not None and Path(output_dir) != Path(self.args.output_dir):
            super().save_model(output_dir, _internal_call)
            if self.average is not None and self.args.should_save:
                self.average.save(output_dir)  # before older checkpoints are removed
        elif self.args.should_save:
            model = self.accelerator.unwrap_model(self.model)
            with self.average.in_place() if self.average is not None else contextlib.nullcontext():
                save_release(model, self.args.output_dir, half=self.half_weights)

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Take the repository that ``create_repository`` made before any data was read."""
        self.hub_model_id, self.push_in_progress = self.args.hub_model_id, None

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
        self._epoch_totals = torch.zeros(4, device=self.args.device)


def check_one_slice(model: torch.nn.Module, size: int) -> None:
    """Find out whether a network can be trained on one slice at a time.

    Args:
        model: of ``pixel_values`` (N, 3, H, W); it stays as it is.
        size: of the slices, in pixels.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _too_few_values():
        copy.deepcopy(model).train()(torch.zeros(1, 3, size, size))


@contextlib.contextmanager
def _too_few_values() -> Iterator[None]:
    """Say what to do about torch's error of a batch that batch normalisation cannot normalise."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "a batch of one slice is too small for this network at this size; give --per_device_train_batch_size 2 "
            "or more, and --dataloader_drop_last true where one slice is left over"
        ) from error


class _EpochStart(TrainerCallback):
    """Tells the data which epoch it is, and starts the epoch's training totals."""

    def __init__(self, trainer: WeightedLossTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the step from which this process trains on."""
        self.trainer.first_step = state.global_step

    def on_epoch_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Pass the epoch's number on; ``Trainer`` itself does so in one process only."""
        if hasattr(self.trainer.train_dataset, "set_epoch"):
            self.trainer.train_dataset.set_epoch(int(state.epoch or 0))
        self.trainer._reset_epoch_totals()


class _Divergence(TrainerCallback):
    """Stops a training whose gradients are no numbers any more, in all processes at the same step."""

    def on_pre_optimizer_step(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the gradients, which the processes have averaged; fp16 skips such steps by itself."""
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        if not args.fp16 and not torch.nn.utils.get_total_norm(gradients).isfinite():
            raise UserError(
                f"step {state.global_step + 1}, epoch {state.epoch:.2f}: the training diverged, its gradient is no "
                "number; lower --learning_rate, or give --max_grad_norm 1"
            )


class WeightAverage(TrainerCallback):
    """The moving average of a model's weights; it is stored in every checkpoint and taken up from ``checkpoint``.

    The decay of step t is at most t / (t + 9), so that the average is not held back by where the training started.
    """

    file_name = "average.safetensors"

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.model = model
        self.decay = decay
        self.state: dict[str, torch.Tensor] = {}
        self.checkpoint: str | None = None

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Start from the weights, or from the checkpoint that the training goes on from."""
        self.state = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        if self.checkpoint:
            for name, value in load_file(Path(self.checkpoint, self.file_name), device=str(args.device)).items():
                self.state[name].copy_(value)

    @torch.no_grad()
    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the average towards the weights."""
        decay = min(self.decay, state.global_step / (state.global_step + 9))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1 - decay)
            else:
                self.state[name].copy_(value)

    def save(self, folder: str) -> None:
        """Store the average beside a checkpoint's weights."""
        packed = {name: value.contiguous() for name, value in self.state.items()}  # channels_last is not
        save_file(packed, Path(folder, self.file_name))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average in the weights' place for a while."""
        own = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.state or own)
        try:
            yield
        finally:
            self.model.load_state_dict(own)


def validation_figures(prediction: EvalPrediction) -> dict[str, float]:
    """Return an epoch's figures for ``Trainer``: of slices of known class, and the share of other tumours found.

    Args:
        prediction: ``predictions`` are logits (N, C), ``label_ids`` (N,) class indices or ``ANY_TUMOR``.
    """
    labels = prediction.label_ids
    if not np.isfinite(prediction.predictions).all():
        raise UserError("the training diverged: answers on the validation part are no numbers; lower --learning_rate")
    probabilities = torch.from_numpy(prediction.predictions).double().softmax(-1).numpy()
    known = labels != ANY_TUMOR
    names = [str(c) for c in range(probabilities.shape[1])]
    figures = measured(probabilities[known], labels[known], n_resamples=0, names=names)
    result = {key: figures[key]["value"] for key in VALIDATION_FIGURES if key in figures}
    if not known.all():
        result["tumours_found"] = float((probabilities[~known].argmax(1) != LABEL2ID[NO_TUMOR]).mean())
    return result


def keep_depthwise_in_float32(model: torch.nn.Module) -> None:
    """Run grouped convolutions in float32 under CPU autocast, and give their result as bfloat16 as autocast would.

    oneDNN's bfloat16 gradients of depthwise convolutions are slow: EfficientNet-Lite0's training step at 224 px went
    from 26 to 37 images/s here with this (one short trial). Weights and their names do not change.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.groups > 1:
            module.forward = functools.partial(_float32_under_autocast, module.forward)


def _float32_under_autocast(forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    if not torch.is_autocast_enabled("cpu"):
        return forward(x)
    with torch.autocast("cpu", enabled=False):
        return forward(x.float()).to(torch.get_autocast_dtype("cpu"))
