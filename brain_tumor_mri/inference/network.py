"""What runs a network: PyTorch, or a runtime on an exported file; to the classifier all of them are a ``Network``.

``load_network(folder, device)`` -> ``network(pixel_values)`` -> logits (N, 4) and the features that trust.json's check
reads. PyTorch as it is and onnxruntime are run here, compiled PyTorch in compiled_running.py, LiteRT in
litert_running.py, TensorRT in tensorrt_running.py; each is imported only where a folder needs it.
"""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np
import psutil
import torch
from torch import Tensor

from ..errors import UserError

INPUT, LOGITS, FEATURES = "pixel_values", "logits", "features"
"""Names of an exported file's input (N, 3, H, W), and of its outputs (N, 4) and (N, D)."""


class Network(Protocol):
    """Answers a batch, for any number of threads at once."""

    device: torch.device
    """Where ``pixel_values`` are to be."""

    def __call__(self, pixel_values: Tensor) -> tuple[Tensor, np.ndarray | None]:
        """Run the network.

        Args:
            pixel_values: float32 (N, 3, H, W) on ``device``.

        Returns:
            Logits (N, 4); and the spatial means (N, D) of trust.json's stage, None where they were not asked for.
        """

    @property
    def module(self) -> torch.nn.Module:
        """The PyTorch network, for what needs its layers; UserError where there is none."""

    def take_features(self) -> np.ndarray | None:
        """The features (N, D) of this thread's latest pass of ``module``; UserError where there is none."""


class ExportedNetwork:
    """What the networks of exported files share: there is no PyTorch module behind them.

    Attributes:
        title: of the kind of file, with its article, for messages.
        name: of the file, for messages.
        device: where ``pixel_values`` are to be.
    """

    title: str
    name: str
    device: torch.device

    @property
    def module(self) -> torch.nn.Module:
        """There is none.

        Raises:
            UserError: always.
        """
        raise self._no_module()

    def take_features(self) -> np.ndarray | None:
        """There is no PyTorch network whose pass could have left any.

        Raises:
            UserError: always.
        """
        raise self._no_module()

    def _require_names(self, inputs: list[str], outputs: list[str]) -> None:
        """Refuse a file that takes or gives something else than an export of this project does."""
        if inputs != [INPUT] or LOGITS not in outputs:
            raise UserError(f"{self.name} is no export of this project (inputs {inputs}, outputs {outputs})")

    def _no_module(self) -> UserError:
        kind = f"{self.name} is {self.title} export"
        return UserError(f"{kind}: this needs the PyTorch weights, the model it was made from")


def physical_cores() -> int:
    """How many physical cores this process may use: a second thread on a core only waits for the same multipliers."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def as_array(pixel_values: Tensor) -> np.ndarray:
    """Return a batch as runtimes take it: float32 (N, 3, H, W) in C order."""
    return np.ascontiguousarray(pixel_values.detach().cpu().float().numpy())


def reason(error: BaseException) -> str:
    """The start of an exception's text on one line, for use inside a message."""
    return " ".join(str(error).split())[:160]
