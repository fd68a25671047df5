"""A trained network as an ONNX file, and an ONNX file as its int8 twin.

int8 is static QDQ (Jacob et al. 2018, arXiv:1712.05877): weights symmetric int8 a channel, activations 8 bits a tensor
with ranges from calibration slices, as onnxruntime's kernels take them.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError, first_line
from ..inference.network import FEATURES, INPUT, LOGITS
from ..inference.run_pytorch import StageFeatures, stage_of

OPSET = 20
"""Of the ONNX operators: what torch writes by default, and what the runtimes of browsers and phones read too."""
FLOAT_CONVOLUTIONS = 3
"""How many of the first convolutions stay float32. They hold few weights, and what eight bits lose in them goes through
all others: with them in int8, an EfficientNet-Lite0's features were off by half of the largest, and its check against
unlike pictures refused one slice in two (64 test slices, on which this number was chosen too)."""
INT8_SETTINGS = {
    "method": "minmax",
    "activations": "uint8",
    "format": "QDQ",
    "weights": "int8, symmetric, per channel",
}
"""How int8 files are made, for export.json: ranges are the least and the largest value met."""
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
"""What an export is made with, for export.json."""
_BATCH = 8  # slices; ResNet50's activations of 8, all of which a calibration looks at, are 0.4 GB


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


def write_onnx(
    network: torch.nn.Module, file: Path, *, stage: str | None, size: tuple[int, int], half: bool = False
) -> None:
    """Write a network as ONNX, its batch of any size, valid under onnx.checker.

    Args:
        network: a transformers model; it is not changed.
        file: to be written, weights inside.
        stage: of ``feature_stage``; None for no ``features``.
        size: (height, width) of the input in pixels.
        half: weights and layers in float16, for TensorRT; input and outputs stay float32.
    """
    onnx = require_onnx()
    whole = LogitsAndFeatures(network, stage, half=half)
    try:
        with silence(), torch.no_grad():
            torch.onnx.export(
                whole,
                (torch.zeros(2, 3, *size),),  # two: the exporter takes a batch of one for a constant
                file,
                input_names=[INPUT],
                output_names=[LOGITS, FEATURES] if stage else [LOGITS],
                opset_version=OPSET,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
            onnx.checker.check_model(str(file), full_check=True)
    except (RuntimeError, ValueError, TypeError, onnx.checker.ValidationError) as error:
        raise UserError(f"this network cannot be written as ONNX ({first_line(error)})") from error


def write_int8(source: Path, file: Path, slices: Sequence[np.ndarray]) -> None:
    """Write the int8 twin of a float32 ONNX file.

    The last layer's output stays float32: eight bits over the range of the logits would be a coarse probability. So do
    the first ``FLOAT_CONVOLUTIONS``.

    Args:
        source: of ``write_onnx``.
        file: to be written.
        slices: float32 (3, H, W) each, to calibrate on.
    """
    onnx = require_onnx()
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix=".quantizing-", dir=file.parent) as scratch, silence():
        prepared = Path(scratch) / "prepared.onnx"
        quant_pre_process(source, prepared)
        quantize_static(
            prepared,
            file,
            _Batches(slices),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,  # x86 multiplies uint8 by int8
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_exclude=[node.name for node in _convolutions(onnx.load(prepared))[:FLOAT_CONVOLUTIONS]],
            extra_options={
                "WeightSymmetric": True,
                "CalibStridedMinMax": 1,  # batch by batch
                "OpTypesToExcludeOutputQuantization": ["Gemm"],
            },
        )
        onnx.checker.check_model(str(file), full_check=True)


def require_onnx() -> Any:
    """Import onnx; UserError where it, onnxruntime or onnxscript is not installed."""
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        missing = f"an export needs onnx, onnxruntime and onnxscript ({first_line(error)})"
        raise UserError(f"{missing}: pip install onnx onnxruntime onnxscript") from error
    return onnx


def _convolutions(model: Any) -> list[Any]:
    """Nodes of a model's convolutions, in the order in which they run."""
    return [node for node in model.graph.node if node.op_type == "Conv"]


class LogitsAndFeatures(torch.nn.Module):
    """A copy of a network, on the CPU and in eval mode, whose answer is a tuple of plain tensors."""

    def __init__(self, network: torch.nn.Module, stage: str | None, *, half: bool = False) -> None:
        """Copy the network.

        Args:
            network: a transformers model; it is not changed.
            stage: of ``feature_stage``; None for no features.
            half: compute in float16; input and outputs are float32 all the same.
        """
        super().__init__()
        self.network = copy.deepcopy(network).cpu().to(memory_format=torch.contiguous_format)
        self.stage, self.dtype = stage, torch.float16 if half else torch.float32
        self.network.to(self.dtype)
        self.eval()

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Return logits (N, 4) and, where a stage is named, its spatial means (N, D)."""
        pixel_values = pixel_values.to(self.dtype)
        if self.stage is None:
            return (self.network(pixel_values=pixel_values).logits.float(),)
        means: list[Tensor] = []  # in the order of the stages, which is that of the pass
        inner = getattr(self.network, "timm_model", self.network)
        # not StageFeatures, which detaches its means from the graph that is exported here
        handles = [
            inner.get_submodule(name).register_forward_hook(
                lambda module, inputs, output: means.append(output.float().mean((2, 3)))
            )
            for name in self.stage.split("+")
        ]
        try:
            logits = self.network(pixel_values=pixel_values).logits.float()
        finally:
            for handle in handles:
                handle.remove()
        return logits, torch.cat(means, 1)


class _Batches:
    """Calibration slices, in batches, as onnxruntime asks for them."""

    def __init__(self, slices: Sequence[np.ndarray]) -> None:
        self.batches = [np.stack(slices[i : i + _BATCH]) for i in range(0, len(slices), _BATCH)]
        self.set_range(0, len(self.batches))

    def set_range(self, start_index: int, end_index: int) -> None:
        """Hand out these batches next."""
        self.waiting = iter(self.batches[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, None after the last."""
        batch = next(self.waiting, None)
        return None if batch is None else {INPUT: batch}

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return iter(self.get_next, None)

    def __len__(self) -> int:
        return len(self.batches)


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
