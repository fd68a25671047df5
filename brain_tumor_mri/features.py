"""The features that the in-distribution check reads, caught while the network answers, at the cost of one mean."""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch import Tensor

from .errors import UserError


class StageFeatures:
    """Catches the mean of a stage's feature maps in each forward pass; each thread gets those of its own passes."""

    def __init__(self, network: torch.nn.Module, stage: str) -> None:
        """Hook into the stage.

        Raises:
            UserError: the network has no such module.
        """
        kept = self._kept = threading.local()

        # a function, not a method: a copy of the network (explain.py) then shares it
        def keep(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            kept.means = output.detach().float().mean((2, 3))

        try:
            self._handle = network.get_submodule(stage).register_forward_hook(keep)
        except AttributeError as error:
            raise UserError(f"trust.json names the stage {stage}, which this model does not have") from error

    def take(self) -> np.ndarray:
        """Return the means (N, D) float32 of this thread's latest forward pass."""
        return self._kept.means.cpu().numpy()

    def remove(self) -> None:
        """Leave the network as it was."""
        self._handle.remove()
