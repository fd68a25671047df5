"""What every export gives, logits and features, and what its writers share. Imports no writer's packages."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import UserError
from ..inference.decoder import Decoder
from ..inference.run_litert import quiet_stderr
from ..inference.run_pytorch import StageFeatures, decoded, stage_of

FLOAT_CONVOLUTIONS = 3
"""How many of the first convolutions stay float32. They hold few weights, and what eight bits lose in them goes through
all others: with them in int8, an EfficientNet-Lite0's features were off by half of the largest, and its check against
unlike pictures refused one slice in two (64 test slices, on which this number was chosen too)."""


def feature_stage(network: torch.nn.Module, wanted: str | None, size: tuple[int, int]) -> str | None:
    """Name the stages whose spatial means an export gives as ``features``.

    Args:
        network: a transformers model.
        wanted: those that trust.json names, joined by ``+``; None takes those that a calibration would choose.
        size: (height, width) of the input in pixels.

    Returns:
        Their names; None where the network has no stages, or none with maps (N, C, H, W).
    """
    inner = getattr(network, "timm_model", network)
    if wanted is None:
        try:
            wanted = stage_of(inner)
        except UserError:
            return None
    hook = StageFeatures(inner, wanted)
    try:
        with torch.inference_mode():
            network(pixel_values=torch.zeros(1, 3, *size, device=next(network.parameters()).device))
        return wanted if hook.take().ndim == 2 else None
    except IndexError:  # a stage of tokens, which has no height and width to average over
        return None
    finally:
        hook.remove()


class LogitsAndFeatures(torch.nn.Module):
    """A copy of a network, on the CPU and in eval mode, whose answer is a tuple of plain tensors."""

    def __init__(
        self, network: torch.nn.Module, stage: str | None, *, half: bool = False, decoder: Decoder | None = None
    ) -> None:
        """Copy the network.

        Args:
            network: a transformers model; it is not changed.
            stage: of ``feature_stage``; None for no features.
            half: compute in float16; input and outputs are float32 all the same.
            decoder: of the model's ``decoder.json``, whose cells come last; None for none.
        """
        super().__init__()
        self.decoder = decoder
        self.network = copy.deepcopy(network).cpu().to(memory_format=torch.contiguous_format)
        self.stage, self.dtype = stage, torch.float16 if half else torch.float32
        self.network.to(self.dtype)
        self.eval()

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Return logits (N, C), the means (N, D) of the stage if one is named, and the decoder's cells (N, C, h, w)."""
        pixel_values = pixel_values.to(self.dtype)
        # both in the order of the stages, which is that of the pass
        means: list[Tensor] = []
        maps: list[Tensor] = []
        inner = getattr(self.network, "timm_model", self.network)
        # not StageFeatures, which detaches its means from the graph that is exported here
        wanted = [(name, lambda output: means.append(output.float().mean((2, 3)))) for name in _split(self.stage)]
        wanted += [(name, maps.append) for name in _split(self.decoder and self.decoder.stages)]
        handles = [
            inner.get_submodule(name).register_forward_hook(lambda module, inputs, output, take=take: take(output))
            for name, take in wanted
        ]
        try:
            logits = self.network(pixel_values=pixel_values).logits.float()
        finally:
            for handle in handles:
                handle.remove()
        found = [logits, *([torch.cat(means, 1)] if means else [])]
        return (*found, *([decoded(maps, self.decoder)] if self.decoder else []))


def _split(stages: str | None) -> list[str]:
    return stages.split("+") if stages else []


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep the writers' own notes, meant for their authors, off the console."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Keep LiteRT's converter, whose progress Python and C++ both write, off the console."""
    with silence(), contextlib.redirect_stderr(io.StringIO()), quiet_stderr():
        yield
