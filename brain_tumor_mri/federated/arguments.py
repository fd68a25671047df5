"""The settings of a federation: one YAML file with those of ``train.py`` and those of ``FederationArguments``.

``read_settings(file, overrides)`` gives a flat dictionary, ``parse_settings`` its dataclasses. What a hospital is told
is ``for_clients(settings)``, and it takes nothing else: no folder, no token, no name of a file comes over the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError, first_line
from ..settings import setting
from ..training.arguments import OneLineParser, RunArguments, parse_arguments, read_config
from ..training.augmentation import AugmentationArguments

PARTITIONS = ("collection", "patient", "dirichlet", "pooled")
STRATEGIES = ("fedavg", "fedprox", "fedadam")
BATCH_NORM = ("average", "frozen")
SCHEDULES = ("constant", "cosine")


@dataclass
class FederationArguments:
    """Who takes part, how their models become one, and what is kept from whom."""

    rounds: int = setting(10, "How often the hospitals train and their models are joined.")
    clients: int | None = setting(None, "Hospitals; with the partition collection, as many as there are collections.")
    partition: str = setting("collection", f"Simulation: who holds which slice, {', '.join(PARTITIONS)}.")
    hospitals: str | None = setting(
        None, "Only these of the partition's (a,b,...) take part; one name trains it alone."
    )
    alpha: float = setting(0.5, "Partition dirichlet: the smaller, the more a hospital has of few classes.")
    strategy: str = setting("fedavg", f"One of {', '.join(STRATEGIES)}.")
    proximal_mu: float = setting(0.01, "fedprox: pull towards the round's common weights.")
    server_learning_rate: float = setting(1e-3, "fedadam: step of the common weights.")
    batch_norm: str = setting(
        "average", "Running statistics: average (as weights are), or frozen (as the start model has them)."
    )
    slices_per_round: float | None = setting(
        None, "Slices that a hospital draws a round, or their share of its slices, under 1; default all."
    )
    round_schedule: str = setting("constant", f"Learning rate over the rounds: {' or '.join(SCHEDULES)}.")
    clipping_norm: float | None = setting(None, "Differential privacy: longest update of a hospital (L2 norm).")
    noise_multiplier: float = setting(1.0, "Differential privacy: noise on the sum of updates, in clipping norms.")
    delta: float = setting(1e-5, "Differential privacy: delta that epsilon is given for.")
    evaluate_clients: bool = setting(True, "Hospitals measure each round's common model on their validation slices.")
    server_test: bool = setting(True, "The final model is measured on the protocol's test part, by the server.")
    connect_timeout: float = setting(300.0, "Seconds to wait until all hospitals are there.")
    round_timeout: float = setting(3600.0, "Seconds to wait for the answers of a round.")

    def __post_init__(self) -> None:
        for name, known in (
            ("partition", PARTITIONS), ("strategy", STRATEGIES), ("batch_norm", BATCH_NORM),
            ("round_schedule", SCHEDULES),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise UserError(f"{name}: {getattr(self, name)}: give one of {', '.join(known)}")
        positive = ("rounds", "clients", "alpha", "server_learning_rate", "slices_per_round", "clipping_norm")
        for name in (*positive, "noise_multiplier", "connect_timeout", "round_timeout"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise UserError(f"{name}: {value}: give more than 0")
        if self.proximal_mu < 0:
            raise UserError(f"proximal_mu: {self.proximal_mu}: give 0 or more")
        if not 0 < self.delta < 1:
            raise UserError(f"delta: {self.delta}: give a number between 0 and 1")
        if self.partition in ("patient", "dirichlet") and not self.clients:
            raise UserError(f"partition: {self.partition}: give clients, the number of hospitals")
        if self.hospitals and self.partition == "pooled":
            raise UserError("hospitals: not with partition: pooled, which is one hospital with everything")
        if self.private:
            if self.strategy == "fedadam":
                raise UserError("clipping_norm: the privacy accountant knows averages only; use fedavg or fedprox")
            if self.batch_norm != "frozen":
                raise UserError("clipping_norm: noise would make running variances negative; add batch_norm: frozen")

    def drawn(self, slices: int) -> int:
        """How many of its slices a hospital draws in a round."""
        asked = self.slices_per_round or slices
        return max(1, round(asked * slices)) if asked < 1 else min(round(asked), slices)

    @property
    def wanted(self) -> int:
        """How many hospitals to wait for, at least."""
        return len(set(self.hospitals.split(","))) if self.hospitals else self.clients or 1

    @property
    def private(self) -> bool:
        """Whether updates are clipped and noise is added."""
        return self.clipping_norm is not None


FEDERATION = tuple(f.name for f in fields(FederationArguments))
LOCAL = (
    "image_size", "optimizer", "mixup", "seed", "num_train_epochs", "per_device_train_batch_size",
    "per_device_eval_batch_size", "learning_rate", "weight_decay", "optim", "lr_scheduler_type", "warmup_steps",
    "label_smoothing_factor", "gradient_accumulation_steps", "bf16", "max_grad_norm", "adam_beta1", "adam_beta2",
    "adam_epsilon", "balance",
)  # fmt: skip
"""Settings of ``train.py`` that a hospital takes from the server, beside those of the augmentation."""
FOR_CLIENTS = frozenset(
    (*LOCAL, *(f.name for f in fields(AugmentationArguments)), "rounds", "slices_per_round", "round_schedule",
     "batch_norm", "clipping_norm", "evaluate_clients")
)  # fmt: skip
NOT_HERE = ("teacher", "outlines_dir", "train_sizes", "weight_averaging", "push_to_hub", "train_on_validation")
SERVER_ONLY = (
    "model_name_or_path", "model_revision", "from_scratch", "half_weights", "data_dir", "skip_unreadable",
    "class_weights", "protocol", "fold", "collection", "external_dir", "collections_dir", "output_dir",
)  # fmt: skip
"""Settings that stay with the server; in a simulation the hospitals are the same machine and read the data by them."""


def read_settings(config: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file and ``name=value`` overrides into one flat dictionary."""
    path = Path(config).expanduser()
    settings = read_config(path)
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise UserError(f"--set {override}: give name=value")
        settings[name] = yaml.safe_load(value)
    if no_place := [name for name in NOT_HERE if settings.get(name)]:
        raise UserError(f"{path}: {no_place[0]}: not in a federation; take it out")
    if unknown := sorted(set(settings) - FOR_CLIENTS - {*FEDERATION, *SERVER_ONLY}):
        raise UserError(f"{path}: unknown setting {unknown[0]}; docs/federated.md lists them")
    return {name: value for name, value in settings.items() if value is not None}


def parse_settings(settings: Mapping[str, Any]) -> tuple[FederationArguments, RunArguments]:
    """Return the settings as dataclasses: the federation's and, as ``train.py`` has them, those of a training."""
    own = {name: value for name, value in settings.items() if name in FEDERATION}
    parser = OneLineParser(FederationArguments, allow_abbrev=False)
    parser.where = "docs/federated.md"
    try:
        (federation,) = parser.parse_args_into_dataclasses(_flags(own))
    except ValueError as error:
        raise UserError(f"settings of the federation: {first_line(error)}") from error
    return federation, parse_arguments(_flags({k: v for k, v in settings.items() if k not in own}))


def for_clients(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that hospitals are told."""
    return {name: value for name, value in settings.items() if name in FOR_CLIENTS}


def parse_client_settings(settings: Mapping[str, Any], folder: str) -> tuple[FederationArguments, RunArguments]:
    """Return settings that came over the network as dataclasses, for a training that writes into ``folder`` alone."""
    if refused := sorted(set(settings) - FOR_CLIENTS):
        raise UserError(f"the server sends the setting {refused[0]}, which no hospital takes")
    quiet = {
        "output_dir": folder, "save_strategy": "no", "eval_strategy": "no", "logging_strategy": "no",
        "report_to": "none", "disable_tqdm": True, "class_weights": "none",
    }  # fmt: skip
    return parse_settings({"num_train_epochs": 1, **settings, **quiet})


def _flags(settings: Mapping[str, Any]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]
