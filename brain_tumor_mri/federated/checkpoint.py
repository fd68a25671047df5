"""A federation's checkpoint: weights, the strategy's state and the history, written whole after every round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.serverapp.strategy import Strategy
from safetensors import safe_open
from safetensors.torch import save_file

from ..files import put_in_place
from .task import Weights

MOMENTS = ("m_t", "v_t")
"""Of Adam, as Flower names them."""


def plain(strategy: Strategy) -> Strategy:
    """Return a strategy without what makes it private."""
    return getattr(strategy, "strategy", strategy)


class Checkpoint:
    """Weights, the strategy's state and the history in one file, written whole after every round."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0

    def store(self, strategy: Strategy, weights: Weights) -> None:
        """Write beside and rename."""
        tensors = {f"weights/{name}": value.contiguous() for name, value in weights.items()}
        for moment in MOMENTS:
            arrays = getattr(plain(strategy), moment, None) or {}
            tensors |= {f"{moment}/{name}": torch.from_numpy(np.array(value)) for name, value in arrays.items()}
        state: dict[str, Any] = {"history": self.history, "seconds": self.seconds}
        if accountant := getattr(strategy, "accountant", None):
            state["accountant"] = accountant.state_dict()
        beside = self.path.with_name(f".{self.path.name}.part")
        save_file(tensors, beside, metadata={"state": json.dumps(state)})
        put_in_place(beside, self.path)

    def restore(self, strategy: Strategy) -> Weights | None:
        """Read what was stored, if anything, into the strategy; return the weights."""
        if not self.path.is_file():
            return None
        with safe_open(self.path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        self.history, self.seconds = state["history"], state["seconds"]
        parts: dict[str, Weights] = {}
        for name, value in tensors.items():
            part, _, own = name.partition("/")
            parts.setdefault(part, {})[own] = value
        for moment in parts.keys() & set(MOMENTS):
            setattr(plain(strategy), moment, {name: value.numpy() for name, value in parts[moment].items()})
        if accountant := getattr(strategy, "accountant", None):
            accountant.load_state_dict(state["accountant"])
        return parts["weights"]
