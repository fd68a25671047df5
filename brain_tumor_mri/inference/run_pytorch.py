"""Runs a model with PyTorch, and reads the features of one of its stages."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .network import CPU_BATCH

if TYPE_CHECKING:
    from torch import nn


def stage_of(network: nn.Module) -> str:
    """Name the stages whose features the checks of trust.json read: the last two (ResNet: ``layer3+layer4``).

    Of an EfficientNet-Lite0, each kind of head CT left out of the fit in turn, the last two told more of it from brain
    MRI than any one stage, and than all of them.

    Raises:
        UserError: the network does not list its stages, as timm's convolutional networks do.
    """
    stages = getattr(network, "feature_info", None)
    if not isinstance(stages, list) or len(stages) < 2:
        raise UserError("this network lists no stages, as timm's ResNets and EfficientNets do: it cannot be calibrated")
    return "+".join(str(stage["module"]) for stage in stages[-2:])


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
    """Catches the means of stages' feature maps in each forward pass; each thread gets those of its own passes."""

    def __init__(self, network: torch.nn.Module, stage: str) -> None:
        """Hook into the stages, such as ``layer3+layer4``; UserError where the network has no such module."""
        kept = self._kept = threading.local()
        names = stage.split("+")

        # a function, not a method: a copy of the network (heat_maps/cam.py) then shares it
        def keep(name: str, module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            setattr(kept, name, output.detach().float().mean((2, 3)))

        try:
            modules = [network.get_submodule(name) for name in names]
        except AttributeError as error:
            raise UserError(f"trust.json names the stage {stage}, which this model does not have") from error
        self._names = names
        self._handles = [m.register_forward_hook(partial(keep, name)) for name, m in zip(names, modules, strict=True)]

    def take(self) -> np.ndarray:
        """Return the means (N, D) float32 of this thread's latest forward pass, one stage after the other."""
        return torch.cat([getattr(self._kept, name) for name in self._names], 1).cpu().numpy()

    def remove(self) -> None:
        """Leave the network as it was."""
        for handle in self._handles:
            handle.remove()
