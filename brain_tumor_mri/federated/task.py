"""What a hospital holds and what it does in a round: the project's own data loading and trainer, without Flower.

``simulated_hospital`` or ``own_hospital`` gives its slices, ``train_round`` trains on them from the common weights,
``evaluate_round`` measures those. Weights are dictionaries of tensors, by the names that the network has for them.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import timm
import torch
from transformers import EvalPrediction, PreTrainedModel, PrinterCallback

from ..data.br35h import load_external
from ..data.collections import TABLE, draw_shares, load_collections
from ..data.protocols import ProtocolArguments
from ..data.slices import label_counts, load_slices, with_slices
from ..errors import UserError
from ..training.arguments import RunArguments, optimizer_class
from ..training.backbone import build_model
from ..training.dataset import SliceDataset, TrainTransform, eval_transform
from ..training.losses import ALLOWED_CLASSES
from ..training.parts import run_slices
from ..training.run import tune_for_cpu
from ..training.trainer import WeightedLossTrainer
from .arguments import FederationArguments, parse_client_settings, parse_settings, read_settings
from .partitions import partition

KAGGLE, BR35H = "kaggle", "br35h"
STATISTICS = ("running_mean", "running_var")
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Hospital:
    """A hospital's name, and its slices with the columns that ``SliceDataset`` takes."""

    name: str
    train: datasets.Dataset
    validation: datasets.Dataset

    def counts(self) -> list[int]:
        """Return its training slices of each class; those of a tumour of unknown kind are of none."""
        return label_counts(self.train["label"][:])


@cache
def simulated_hospitals(settings_file: str) -> dict[str, Hospital]:
    """Divide the training and validation parts of a protocol among hospitals, as the settings say."""
    federation, args = parse_settings(read_settings(settings_file))
    held = {}
    for part, slices in _pooled(args).items():
        rows = partition(
            federation.partition,
            slices["hospital"][:],
            slices["label"][:],
            slices["group"][:],
            clients=federation.clients,
            alpha=federation.alpha,
            seed=args.training.seed,
        )
        held[part] = {name: slices.select(of_one) for name, of_one in rows.items()}
    empty = datasets.Dataset.from_dict({"image": [], "label": []})
    found = {name: Hospital(name, own, held["validation"].get(name, empty)) for name, own in held["train"].items()}
    chosen = sorted(set(federation.hospitals.split(","))) if federation.hospitals else list(found)
    if unknown := [name for name in chosen if name not in found]:
        raise UserError(f"hospitals: {unknown[0]}: no such hospital here; there are {', '.join(found)}")
    if without := [name for name in chosen if not len(found[name].train)]:
        raise UserError(f"hospital {without[0]} would have no slice; give fewer clients or a larger alpha")
    return {name: found[name] for name in chosen}


def _pooled(args: RunArguments) -> dict[str, datasets.Dataset]:
    """The slices that train, and those that validate, with the column ``hospital``: the collection they are of."""
    data = run_slices(args, parts=("train", "validation"))
    external = load_external(args.external.external_dir) if args.external.external_dir else {}
    folder = args.collections.collections_dir
    further = load_collections(folder, args.protocol.collection) if folder else {}
    pooled = {}
    for part in ("train", "validation"):
        slices, hospitals = data.splits[part], [KAGGLE] * len(data.splits[part])
        if part in external:
            slices, hospitals = with_slices(slices, external[part]), hospitals + [BR35H] * len(external[part])
        if part in further:
            slices, hospitals = with_slices(slices, further[part]), hospitals + further[part]["family"][:]
        pooled[part] = slices.add_column("hospital", hospitals)
    return pooled


@cache
def own_hospital(name: str, folder: str) -> Hospital:
    """Load a hospital's own folder: one with ``collections.csv``, or with ``Training/`` and ``Testing/``."""
    if (Path(folder) / TABLE).is_file():
        parts = load_collections(folder)
    else:
        parts = load_slices(folder, ProtocolArguments(), skip_unreadable=True, parts=("train", "validation")).splits
    if not len(parts["train"]):
        raise UserError(f"{folder}: no slice to train on")
    return Hospital(name, parts["train"], parts["validation"])


def describe_network(model: PreTrainedModel) -> str:
    """Return as JSON what a hospital needs to build the network: architecture, input size and normalisation."""
    cfg = model.config.pretrained_cfg
    kept = {key: cfg[key] for key in ("mean", "std", "interpolation") if key in cfg}
    return json.dumps({"architecture": model.config.architecture, "image_size": cfg["input_size"][-1], "cfg": kept})


def build_network(description: str) -> PreTrainedModel:
    """Build a network of :func:`describe_network`; its weights are random."""
    network = json.loads(description)
    architecture = str(network["architecture"])
    if not timm.is_model(architecture) or not architecture.replace("_", "").isalnum():
        raise UserError(f"the server sends a network {architecture!r}, which timm does not have")
    model = build_model(architecture, from_scratch=True, image_size=int(network["image_size"]))
    model.config.pretrained_cfg |= {key: network["cfg"][key] for key in ("mean", "std", "interpolation")}
    return model


def is_statistic(name: str) -> bool:
    """Whether a tensor is a running mean or variance of batch normalisation."""
    return name.rpartition(".")[2] in STATISTICS


def travelling(model: PreTrainedModel, batch_norm: str) -> Weights:
    """Return the tensors that hospitals and server exchange, in float32 on the CPU.

    Those are the weights that train and, where they are averaged, the running statistics; counters never travel.
    """
    return {
        name: value.detach().float().cpu().contiguous()
        for name, value in model.state_dict().items()
        if value.is_floating_point() and not (batch_norm == "frozen" and is_statistic(name))
    }


def frozen_tensors(model: PreTrainedModel, batch_norm: str) -> Weights:
    """Return the tensors that hospitals need and do not change: running statistics that are frozen."""
    exchanged = travelling(model, batch_norm)
    return {
        name: value.detach().float().cpu().contiguous()
        for name, value in model.state_dict().items()
        if value.is_floating_point() and name not in exchanged
    }


def load_weights(model: PreTrainedModel, weights: Mapping[str, torch.Tensor]) -> None:
    """Put tensors in their places; those that are not named keep their values."""
    own = model.state_dict()
    for name, value in weights.items():
        if name not in own or own[name].shape != value.shape:
            raise UserError(f"the weights do not fit this network, first {name}")
        own[name].copy_(value)


def round_seed(seed: int, server_round: int, name: str) -> int:
    """Return the seed of a hospital's round: the same wherever the hospital runs."""
    return int(np.random.SeedSequence([seed, server_round, zlib.crc32(name.encode())]).generate_state(1)[0] % 2**31)


class ProximalTrainer(WeightedLossTrainer):
    """A ``WeightedLossTrainer`` whose loss grows with the distance from the round's common weights.

    loss + mu / 2 * ||w - w_common||^2 over the weights that train (FedProx: Li et al. 2020). With mu 0 it is its
    parent.
    """

    def __init__(self, *args: Any, proximal_mu: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.proximal_mu = proximal_mu
        trained = self.model.parameters() if proximal_mu else ()
        self.common = [(parameter, parameter.detach().clone()) for parameter in trained if parameter.requires_grad]

    def compute_loss(self, model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Return the loss as its parent does, with the proximal term in training."""
        result = super().compute_loss(model, *args, **kwargs)
        if not (self.common and model.training):
            return result
        distance = sum(((parameter - common) ** 2).sum() for parameter, common in self.common)
        term = self.proximal_mu / 2 * distance / self.args.gradient_accumulation_steps
        return (result[0] + term, *result[1:]) if isinstance(result, tuple) else result + term


def train_round(
    hospital: Hospital, settings: Mapping[str, Any], network: str, weights: Mapping[str, torch.Tensor],
    *, server_round: int, class_weights: list[float] | None = None, proximal_mu: float = 0.0,
) -> tuple[Weights, dict[str, float]]:  # fmt: skip
    """Train on a hospital's slices from the common weights: what ``train.py`` does, for one round.

    Args:
        hospital: whose slices train.
        settings: those of ``arguments.FOR_CLIENTS``.
        network: of :func:`describe_network`.
        weights: of :func:`travelling`, with the frozen tensors.
        server_round: from 1; decides what is drawn, and the learning rate where it follows a schedule.
        class_weights: one weight a class, which all hospitals share; None for all equal.
        proximal_mu: of FedProx.

    Returns:
        The new tensors of :func:`travelling`, and ``num-examples`` (slices drawn), ``steps`` and ``train-loss``.
    """
    with tempfile.TemporaryDirectory() as folder:
        federation, args = parse_client_settings(settings, folder)
        args.training.learning_rate *= learning_rate_share(federation, server_round)
        args.training.seed = round_seed(args.training.seed, server_round, hospital.name)
        drawn = federation.drawn(len(hospital.train))
        balance = args.collections.balance
        trainer = _trainer(
            hospital, federation, args, network, weights,
            proximal_mu=proximal_mu,
            class_weights=class_weights,
            shares=draw_shares(hospital.train, balance),
            # as in train.py: without a number, each slice once and in the trainer's order
            length=drawn if drawn < len(hospital.train) or balance < 1 else None,
        )  # fmt: skip
        result = trainer.train()
    figures = {"num-examples": drawn, "steps": trainer.state.global_step, "train-loss": result.training_loss}
    return travelling(trainer.accelerator.unwrap_model(trainer.model), federation.batch_norm), figures


def evaluate_round(
    hospital: Hospital, settings: Mapping[str, Any], network: str, weights: Mapping[str, torch.Tensor],
    *, class_weights: list[float] | None = None,
) -> dict[str, float]:  # fmt: skip
    """Measure the common weights on a hospital's validation slices.

    Returns:
        ``num-examples``, ``loss``, and ``right``: the share of slices whose answer the label allows. Without slices all
        are 0.
    """
    figures = {"num-examples": len(hospital.validation), "loss": 0.0, "right": 0.0}
    if figures["num-examples"]:
        with tempfile.TemporaryDirectory() as folder:
            federation, args = parse_client_settings(settings, folder)
            trainer = _trainer(hospital, federation, args, network, weights, class_weights=class_weights)
            found = trainer.evaluate()
        figures |= {"loss": found["eval_loss"], "right": found["eval_right"]}
    return figures


def learning_rate_share(federation: FederationArguments, server_round: int) -> float:
    """Return the share of the learning rate that a round has, in (0, 1]; ``cosine`` falls over the rounds."""
    if federation.round_schedule == "constant":
        return 1.0
    return 0.5 * (1 + float(np.cos(np.pi * (server_round - 1) / federation.rounds)))


def _trainer(
    hospital: Hospital, federation: FederationArguments, args: RunArguments, network: str,
    weights: Mapping[str, torch.Tensor], *, class_weights: list[float] | None, proximal_mu: float = 0.0, **draws: Any,
) -> ProximalTrainer:  # fmt: skip
    tune_for_cpu(args.training)
    model = build_network(network)
    load_weights(model, weights)
    if federation.batch_norm == "frozen":
        _freeze_statistics(model)
    augment = TrainTransform(model.config, args.augmentation)
    trainer = ProximalTrainer(
        model=model,
        args=args.training,
        train_dataset=SliceDataset(hospital.train, augment, seed=args.training.seed, **draws),
        eval_dataset=SliceDataset(hospital.validation, eval_transform(model.config)),
        compute_metrics=_share_right,
        class_weights=class_weights,
        mixup=args.model.mixup,
        optimizer_cls_and_kwargs=optimizer_class(args),
        proximal_mu=proximal_mu,
    )
    trainer.remove_callback(PrinterCallback)  # it would print among the run's own lines
    return trainer


def _freeze_statistics(model: torch.nn.Module) -> None:
    """Keep batch normalisation as in evaluation while the rest trains: it neither uses nor changes batch statistics."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
            module.train = lambda mode=True, module=module: module


def _share_right(prediction: EvalPrediction) -> dict[str, float]:
    labels, answers = torch.from_numpy(prediction.label_ids), torch.from_numpy(prediction.predictions).argmax(-1)
    return {"right": float(ALLOWED_CLASSES[labels].gather(1, answers[:, None]).float().mean())}
