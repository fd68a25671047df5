"""Loads a model with transformers, runs it with PyTorch, and reads the features of its stages."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging as transformers_logging

from ..errors import UserError, first_line
from .decoder import Decoder
from .model_folder import ModelFolder
from .network import CPU_BATCH


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """PyTorch's device of that name, or its best one here: cuda, then mps, then cpu; UserError where there is none."""
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device {device} is not available here; leave it out to have one chosen") from error
    return chosen


def load_processor(folder: ModelFolder) -> Any:
    """Load the model's own image processor; as transformers has it."""
    with _told_in_one_line(folder):
        return AutoImageProcessor.from_pretrained(folder.path, local_files_only=True, trust_remote_code=False)


def load_module(folder: ModelFolder) -> nn.Module:
    """Load the transformers model of a folder; UserError where its weights are damaged or incomplete."""
    _ = folder.tensors  # reads the headers: a cut-off file is told by its name, not by a loader's traceback
    with _told_in_one_line(folder):
        loaded, report = AutoModelForImageClassification.from_pretrained(
            folder.path,
            use_safetensors=True,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,  # left out, transformers asks on the console, and a "y" from a pipe runs the code
            output_loading_info=True,
        )
    # transformers fills a missing layer with random numbers and only logs it: the answers would be noise
    lacking = [*report["missing_keys"], *report["mismatched_keys"]]
    if lacking:
        raise UserError(f"{folder.source} lacks {len(lacking)} of the model's weights, such as {lacking[0]}")
    return loaded


@contextmanager
def _told_in_one_line(folder: ModelFolder) -> Iterator[None]:
    """Load without transformers' progress bar and notes, which mean nothing to the person who asked for an answer."""
    level, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a damaged or hostile folder raises nearly anything: SafetensorError, RecursionError
        raise UserError(
            f"{folder.source} cannot be loaded ({first_line(error)}); download or train it again"
        ) from error
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()


def stage_of(network: nn.Module) -> str:
    """Name the stages whose features the checks of trust.json read: the last two (ResNet: ``layer3+layer4``).

    Of an EfficientNet-Lite0, each kind of head CT left out of the fit in turn, the last two told more of it from brain
    MRI than any one stage, and than all of them.
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
        """
        self.device, self.largest_batch = str(device), CPU_BATCH if device.type == "cpu" else None
        # convolutions of oneDNN and cuDNN run faster on channels-last weights; the answers are equal within 1e-5
        self.module = module.float().eval().to(device, memory_format=torch.channels_last)
        self._features = StageFeatures(getattr(self.module, "timm_model", self.module), stage) if stage else None

    @torch.inference_mode()
    def __call__(self, pixel_values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Run the network; see :class:`Network`."""
        pixels = torch.from_numpy(pixel_values).to(self.device, memory_format=torch.channels_last)
        return self.module(pixel_values=pixels).logits.float().cpu().numpy(), self.take_features()

    def take_features(self) -> np.ndarray | None:
        """The features (N, D) of this thread's latest forward pass; None where no stage was named."""
        return self._features.take() if self._features else None


def decoded(maps: Sequence[Tensor], decoder: Decoder) -> Tensor:
    """Apply a decoder.

    Args:
        maps: of its stages, each (N, C, h, w).
        decoder: the weights.

    Returns:
        The probability of each class, (N, 4, h, w) of the finest map, in [0, 1].
    """
    weights = torch.from_numpy(decoder.weights).to(maps[0])
    size = maps[0].shape[2:]
    scores = torch.from_numpy(decoder.biases).to(maps[0]).view(1, -1, 1, 1)
    parts = weights.split([stage.shape[1] for stage in maps], 1)
    for stage, part in zip(maps, parts, strict=True):  # weighted first: four channels are cheaper to enlarge
        cells = functional.conv2d(stage, part[:, :, None, None])
        scores = scores + functional.interpolate(cells, size, mode="bilinear", align_corners=False)
    return scores.softmax(1)


def stage_maps(network: nn.Module, stages: str, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Run a timm network; return its logits (N, 4) and the maps (N, C, h, w) of its ``stages``."""
    maps: list[Tensor] = []
    modules = [network.get_submodule(name) for name in stages.split("+")]
    handles = [m.register_forward_hook(lambda module, inputs, output: maps.append(output)) for m in modules]
    try:
        return network(pixel_values), maps
    finally:
        for handle in handles:
            handle.remove()


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
