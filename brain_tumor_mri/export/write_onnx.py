"""A trained network as an ONNX file, and an ONNX file as its int8 twin.

int8 is static QDQ (Jacob et al. 2018, arXiv:1712.05877): weights symmetric int8 a channel, activations 8 bits a tensor
with ranges from calibration slices, as onnxruntime's kernels take them.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxscript import optimizer

from ..errors import UserError, first_line
from ..inference.decoder import Decoder
from ..inference.network import CELLS, EXPLAIN, FEATURES, INPUT, LOGITS
from .outputs import FLOAT_CONVOLUTIONS, LogitsAndFeatures, silence
from .with_maps import fold_norms, with_maps

OPSET = 20
"""Of the ONNX operators: what torch writes by default, and what the runtimes of browsers and phones read too."""
INT8_SETTINGS = {
    "method": "minmax",
    "activations": "uint8",
    "format": "QDQ",
    "weights": "int8, symmetric, per channel",
}
"""How int8 files are made, for export.json: ranges are the least and the largest value met."""
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
"""What an export is made with, for export.json."""
_INSIDE = "inside_"  # before the names of the heat maps' cells in their branch
_FOLDED = 4096  # numbers; what the exporter works out ahead is at most as large
_BATCH = 8  # slices; ResNet50's activations of 8, all of which a calibration looks at, are 0.4 GB


def write_onnx(
    network: torch.nn.Module,
    file: Path,
    *,
    stage: str | None,
    size: tuple[int, int],
    half: bool = False,
    decoder: Decoder | None = None,
) -> None:
    """Write a network as ONNX, its batch of any size, valid under onnx.checker; in float32 with its heat maps' cells.

    Args:
        network: a transformers model; it is not changed.
        file: to be written, weights inside.
        stage: of ``feature_stage``; None for no ``features``.
        size: (height, width) of the input in pixels.
        half: weights and layers in float16, for TensorRT; input and outputs stay float32.
        decoder: of the model's ``decoder.json``; None for none.
    """
    whole: torch.nn.Module = LogitsAndFeatures(network, stage, half=half)
    names = [LOGITS, FEATURES] if stage else [LOGITS]
    if not half and (traced := _traced(network, stage, size, decoder)):
        whole, names = traced
    try:
        with silence(), torch.no_grad():
            program = torch.onnx.export(
                whole,
                (torch.zeros(2, 3, *size),),  # two: the exporter takes a batch of one for a constant
                input_names=[INPUT],
                output_names=names,
                opset_version=OPSET,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                dynamo=True,
                optimize=False,
                verbose=False,
            )
            # weights are not folded: those turned round for the heat maps would be stored beside those as they are
            optimizer.optimize_ir(program.model, input_size_limit=_FOLDED, output_size_limit=_FOLDED)
            program.save(file, external_data=False)
            onnx.save(gated(onnx.load(file)), file)
            onnx.checker.check_model(str(file), full_check=True)
    except (RuntimeError, ValueError, TypeError, onnx.checker.ValidationError) as error:
        raise UserError(f"this network cannot be written as ONNX ({first_line(error)})") from error


def write_int8(source: Path, file: Path, slices: Sequence[np.ndarray]) -> None:
    """Write the int8 twin of a float32 ONNX file.

    The last layer's output stays float32: eight bits over the range of the logits would be a coarse probability. So do
    the first ``FLOAT_CONVOLUTIONS``, and what leads to the heat maps alone.

    Args:
        source: of ``write_onnx``.
        file: to be written.
        slices: float32 (3, H, W) each, to calibrate on.
    """
    with tempfile.TemporaryDirectory(prefix=".quantizing-", dir=file.parent) as scratch, silence():
        plain, prepared = (Path(scratch) / f"{name}.onnx" for name in ("plain", "prepared"))
        onnx.save(_opened(onnx.load(source)), plain)
        # folding would store the weights once more in float32, turned round as the heat maps need them
        quant_pre_process(plain, prepared, skip_optimization=True)
        quantize_static(
            prepared,
            file,
            Batches(slices),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,  # x86 multiplies uint8 by int8
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_exclude=_in_float32(onnx.load(prepared)),
            extra_options={
                "WeightSymmetric": True,
                "CalibStridedMinMax": 1,  # batch by batch
                "OpTypesToExcludeOutputQuantization": ["Gemm"],
            },
        )
        onnx.save(gated(onnx.load(file)), file)
        onnx.checker.check_model(str(file), full_check=True)


def _traced(
    network: torch.nn.Module, stage: str | None, size: tuple[int, int], decoder: Decoder | None
) -> tuple[torch.fx.GraphModule, list[str]] | None:
    inner = getattr(network, "timm_model", network)
    if not hasattr(inner, "forward_features"):
        return None
    plain, folded = (
        copy.deepcopy(inner).cpu().to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
        for _ in range(2)
    )
    fold_norms(folded, size)
    pixels = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # a convolution may feed more than its norm
        same = torch.allclose(plain(pixels), folded(pixels), rtol=1e-3, atol=1e-3)
    return with_maps(folded if same else plain, stage, size, decoder)


def _in_float32(model: Any) -> list[str]:
    """Names of the nodes that int8 leaves alone."""
    answer, maps = _parts(model)
    convolutions = [node.name for node in answer if node.op_type == "Conv"]
    return convolutions[:FLOAT_CONVOLUTIONS] + [node.name for node in maps]


def _parts(model: Any) -> tuple[list[Any], list[Any]]:
    """The nodes that an answer needs, and those that lead to heat maps alone; both in the order in which they run."""
    needed, answer, maps = {LOGITS, FEATURES}, [], []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            answer.append(node)
        else:
            maps.append(node)
    return answer[::-1], maps[::-1]


def gated(model: Any) -> Any:
    """Put what leads to heat maps alone behind an input ``explain`` that need not be given: True, or False without.

    Args:
        model: an ONNX model; it is not changed.
    """
    model = copy.deepcopy(model)
    graph = model.graph
    answer, maps = ([copy.deepcopy(node) for node in nodes] for nodes in _parts(model))
    outputs = [output for output in graph.output if output.name in CELLS.values()]
    if not outputs:
        return model
    for node in maps:
        for names in (node.input, node.output):
            names[:] = [_INSIDE + name if name in CELLS.values() else name for name in names]
    shapes = [[dim.dim_value for dim in output.type.tensor_type.shape.dim[1:]] for output in outputs]

    def branch(name: str, nodes: list[Any], prefix: str) -> Any:
        infos = [
            helper.make_tensor_value_info(prefix + output.name, TensorProto.FLOAT, [None, *shape])
            for output, shape in zip(outputs, shapes, strict=True)
        ]
        return helper.make_graph(nodes, name, [], infos)

    none = [
        helper.make_node(
            "Constant", [], [f"none_{output.name}"],
            value=helper.make_tensor(f"none_{output.name}_value", TensorProto.FLOAT, [0, *shape], []),
        )
        for output, shape in zip(outputs, shapes, strict=True)
    ]  # fmt: skip
    gate = helper.make_node(
        "If", [EXPLAIN], [output.name for output in outputs], name="heat_maps",
        then_branch=branch("with_maps", maps, _INSIDE), else_branch=branch("without_maps", none, "none_"),
    )  # fmt: skip
    del graph.node[:], graph.value_info[:]
    graph.node.extend([*answer, gate])
    graph.input.append(helper.make_tensor_value_info(EXPLAIN, TensorProto.BOOL, []))
    graph.initializer.append(helper.make_tensor(EXPLAIN, TensorProto.BOOL, [], [True]))
    return model


def _opened(model: Any) -> Any:
    """Undo ``gated``, as quantizers do not look into branches."""
    model = copy.deepcopy(model)
    graph = model.graph
    gates = [node for node in graph.node if node.op_type == "If" and list(node.input) == [EXPLAIN]]
    for gate in gates:
        (inside,) = (attribute.g for attribute in gate.attribute if attribute.name == "then_branch")
        for node in inside.node:
            for names in (node.input, node.output):
                names[:] = [name.removeprefix(_INSIDE) for name in names]
        graph.node.remove(gate)
        graph.node.extend(inside.node)
    for values in (graph.input, graph.initializer):
        for value in [value for value in values if value.name == EXPLAIN]:
            values.remove(value)
    return model


class Batches:
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
