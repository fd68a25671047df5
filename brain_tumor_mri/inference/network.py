"""What runs a network: PyTorch, or a runtime on an exported file; to the classifier all of them are a ``Network``.

``load.load_network(folder, device)`` -> ``network(pixel_values)`` -> logits (N, 4) and the features that trust.json's
checks read. Each runtime has its file, ``run_*.py``; its package is imported only where a folder needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import psutil

from ..errors import UserError
from ..machine import cpu_count

if TYPE_CHECKING:
    import torch

INPUT, LOGITS, FEATURES = "pixel_values", "logits", "features"
"""Names of an exported file's input (N, 3, H, W), and of its outputs (N, 4) and (N, D)."""
EXPLAIN = "explain"
"""Name of an ONNX file's input that need not be given: False leaves out what leads to heat maps alone."""
FINE_STRIDE = 16
"""Pixels a cell of the feature map that the heat maps' method ``layer-cam`` takes."""
CELLS = {"grad-cam": "grad_cam", "layer-cam": "layer_cam", "decoder": "decoder"}
"""Method of ``heat_maps`` -> name of the output that holds its cells of all classes, (N, 4, h, w), 0 or more."""


CPU_BATCH = 16
"""Images in one pass on a CPU: ResNet50 holds about 0.4 GB of activations for 32 at 224 px; half of them saves half of
that and costs no speed. GPUs need the whole batch to be busy."""


class Network(Protocol):
    """Answers a batch, for any number of threads at once."""

    device: str
    """What it runs on: ``cpu``, ``cuda``, ``cuda:1``, ``mps``."""
    largest_batch: int | None
    """Images in one pass; None for as many as come."""

    def __call__(self, pixel_values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Run the network.

        Args:
            pixel_values: float32 (N, 3, H, W).

        Returns:
            Logits (N, 4), float32; and the spatial means (N, D) of trust.json's stages, None where not asked for.
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
        device: what it runs on.
        largest_batch: images in one pass; None for as many as come.
        maps: the methods of ``heat_maps`` whose cells the graph gives, keys of ``CELLS``; none of an older export.
    """

    title: str
    name: str
    maps: tuple[str, ...] = ()
    device: str = "cpu"
    largest_batch: int | None = CPU_BATCH

    @property
    def module(self) -> torch.nn.Module:
        """There is none: always a UserError."""
        raise self._no_module()

    def take_features(self) -> np.ndarray | None:
        """There is no PyTorch network whose pass could have left any: always a UserError."""
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
    allowed = cpu_count()
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))
