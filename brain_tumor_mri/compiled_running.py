"""A network compiled by ``torch.compile``, its weights frozen into the code; a ``backends.Network``."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from .backends import reason
from .errors import UserError


class CompiledNetwork:
    """A transformers model, compiled for each size of batch anew, at its first pass of that size."""

    def __init__(self, module: torch.nn.Module, device: torch.device, stage: str | None, *, bf16: bool = False) -> None:
        """Put the model on the device; nothing is compiled yet.

        Args:
            module: takes pixel_values (N, 3, H, W), returns an object with ``logits`` (N, 4).
            device: where it is to run.
            stage: whose features are wanted; None for no features.
            bf16: answer under autocast.

        Raises:
            UserError: the network has no such stage.
        """
        self.device, self.bf16 = device, bf16
        module = module.float().eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        # torch.compile keeps no promise to threads that compile at once
        self._lock = threading.Lock()
        self._run = torch.compile(_LogitsAndMeans(module, stage), dynamic=False, options={"freezing": True})

    def __call__(self, pixel_values: Tensor) -> tuple[Tensor, np.ndarray | None]:
        """Run the network; see ``backends.Network``.

        Raises:
            UserError: it cannot be compiled here.
        """
        try:
            with self._lock, torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                logits, means = self._run(pixel_values.contiguous(memory_format=torch.channels_last))
        except TorchDynamoException as error:
            raise UserError(
                f"this network cannot be compiled here ({reason(error)}); torch.compile needs a C++ compiler, on a GPU "
                "Triton; use --backend torch"
            ) from error
        return logits, None if means is None else means.cpu().numpy()

    @property
    def module(self) -> torch.nn.Module:
        """There is none whose layers could be looked at.

        Raises:
            UserError: always.
        """
        raise UserError("a compiled network only answers; use --backend torch")

    def take_features(self) -> np.ndarray | None:
        """There is no pass of ``module`` that could have left any.

        Raises:
            UserError: always.
        """
        _ = self.module


class _LogitsAndMeans(torch.nn.Module):
    """Gives the stage's means as an output: what ``StageFeatures`` keeps by thread would cut the graph."""

    def __init__(self, network: torch.nn.Module, stage: str | None) -> None:
        super().__init__()
        self.network, self.means = network, None
        if stage:
            try:
                getattr(network, "timm_model", network).get_submodule(stage).register_forward_hook(self._keep)
            except AttributeError as error:
                raise UserError(f"trust.json names the stage {stage}, which this model does not have") from error

    def _keep(self, module: torch.nn.Module, inputs: Any, output: Tensor) -> None:
        self.means = output.float().mean((2, 3))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.network(pixel_values=pixel_values).logits, self.means
