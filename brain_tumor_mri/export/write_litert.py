"""A trained network as a LiteRT (TensorFlow Lite) file, and such a file as its int8 twin.

litert-torch converts, ai-edge-quantizer quantizes: static int8 as LiteRT's own specification has it, weights symmetric
a channel, activations asymmetric a tensor, with ranges from calibration slices.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import litert_torch
import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer import quantizer as quantizing
from ai_edge_quantizer.calibrator import CalibrationMode, Calibrator
from ai_edge_quantizer.qtyping import TFLOperationName as Operation
from ai_edge_quantizer.utils.qsv_utils import min_max_update
from torch import Tensor

from ..errors import UserError, first_line
from ..inference.decoder import Decoder
from ..inference.network import CELLS, FEATURES, INPUT, LOGITS, physical_cores
from .outputs import FLOAT_CONVOLUTIONS, LogitsAndFeatures, hushed

PACKAGES = ("litert-torch", "ai-edge-litert", "ai-edge-quantizer")
"""What an export is made with, for export.json."""
INT8_SETTINGS = {
    "method": "minmax",
    "activations": "int8",
    "format": "static",
    "weights": "int8, symmetric, per channel",
    "float32": f"input, outputs, the last layer and the first {FLOAT_CONVOLUTIONS} convolutions",
}
"""How int8 files are made; LiteRT's kernels know no other activations."""
_SIGNATURE = "serving_default"


def write_litert(
    network: torch.nn.Module, file: Path, *, stage: str | None, size: tuple[int, int], decoder: Decoder | None = None
) -> None:
    """Write a network as float32 LiteRT for one slice, its input (1, 3, H, W) as the other exports have it.

    Of heat maps it gives the decoder's, which is part of the pass; the others take gradients.

    Args:
        network: a transformers model; it is not changed.
        file: to be written.
        stage: of ``feature_stage``; None for no ``features``.
        size: (height, width) of the input in pixels.
        decoder: of the model's ``decoder.json``; None for none.
    """
    names = [LOGITS, *([FEATURES] if stage else []), *([CELLS["decoder"]] if decoder else [])]
    whole = _Named(LogitsAndFeatures(network, stage, decoder=decoder), names).eval()
    try:
        with hushed():
            written = litert_torch.convert(whole, sample_kwargs={INPUT: torch.zeros(1, 3, *size)})
            written.export(str(file))
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"this network cannot be written as LiteRT ({first_line(error)})") from error


def write_int8(source: Path, file: Path, slices: Sequence[np.ndarray]) -> None:
    """Write the int8 twin of a float32 LiteRT file.

    Input and outputs stay float32, and so do the last layer (eight bits over the range of the logits would be a coarse
    probability) and the first ``FLOAT_CONVOLUTIONS``.

    Args:
        source: of ``write_litert``.
        file: to be written.
        slices: float32 (3, H, W) each, to calibrate on.
    """
    with hushed():
        quantizer = quantizing.Quantizer(str(source))
        quantizer.add_static_config(".*", Operation.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
        ends = "|".join((LOGITS, FEATURES, *CELLS.values()))
        kept = [f"^{_SIGNATURE}_({ends})_output", *(f"^{re.escape(name)}" for name in _first(source))]
        for operation in (Operation.INPUT, Operation.OUTPUT):
            quantizer.update_quantization_recipe(".*", operation, algorithm_key=quantizing.AlgorithmName.NO_QUANTIZE)
        for name in kept:
            quantizer.update_quantization_recipe(
                name, Operation.ALL_SUPPORTED, algorithm_key=quantizing.AlgorithmName.NO_QUANTIZE
            )
        # not quantizer.calibrate, whose moving average forgets the first slices; and not the quicker mode that reads
        # ranges off the profiler: with its ranges a ResNet50 came out as a file on which LiteRT 2.3 ends the process
        calibrator = Calibrator(
            source.read_bytes(),
            num_threads=physical_cores(),
            mode=CalibrationMode.CALIBRATION_PRESERVE_ALL_TENSORS,
            qsv_update_func=min_max_update,
        )
        batches = [{INPUT: np.ascontiguousarray(pixels[None])} for pixels in slices]
        calibrator.calibrate({_SIGNATURE: batches}, quantizer._recipe_manager)
        quantizer.quantize(calibrator.get_model_qsvs()).export_model(str(file), overwrite=True)


def _first(file: Path) -> list[str]:
    """Names of what the first convolutions of a LiteRT file give; a quantizer's settings go by these names."""
    model = schema.ModelT.InitFromPackedBuf(file.read_bytes(), 0)
    graph = model.subgraphs[0]
    wanted = (schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.DEPTHWISE_CONV_2D)
    found = [op for op in graph.operators if model.operatorCodes[op.opcodeIndex].builtinCode in wanted]
    return [graph.tensors[op.outputs[0]].name.decode() for op in found[:FLOAT_CONVOLUTIONS]]


class _Named(torch.nn.Module):
    """Outputs by name, which become the names in the file."""

    def __init__(self, whole: LogitsAndFeatures, names: Sequence[str]) -> None:
        super().__init__()
        self.whole, self.names = whole, names

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.names, self.whole(pixel_values), strict=True))
