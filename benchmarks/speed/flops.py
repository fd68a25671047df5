"""Operations of an ONNX network: 2 for each multiply-add of its convolutions and matrix products, as torch counts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from brain_tumor_mri.errors import UserError
from brain_tumor_mri.inference.run_onnx import require_onnxruntime

_COUNTED = ("Conv", "Gemm", "MatMul")


def onnx_flops(file: Path) -> int:
    """Return the operations that one image takes; a network with an open batch is run once to know every shape."""
    runtime = require_onnxruntime()
    try:
        import onnx
    except ImportError as error:
        raise UserError(f"counting the operations of {file} needs onnx: pip install onnx") from error
    try:
        model = onnx.load(str(file))
        nodes = [node for node in model.graph.node if node.op_type in _COUNTED]
        weights = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
        wanted = {name for node in nodes for name in (node.input[1], node.output[0])} - weights.keys()
        wanted -= {value.name for value in (*model.graph.input, *model.graph.output)}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(wanted))
        session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        (pixels,) = session.get_inputs()
        values = session.run(None, {pixels.name: np.zeros([1, *pixels.shape[1:]], np.float32)})
    except Exception as error:  # protobuf's, onnx's and onnxruntime's errors share no base but this
        said = " ".join(str(error).split())[:160]
        raise UserError(f"the operations of {file} cannot be counted ({said}); is it a float32 ONNX file?") from error
    shapes = {v.name: value.shape for v, value in zip(session.get_outputs(), values, strict=True)}
    return sum(_node_flops(node, shapes[node.output[0]], (shapes | weights)[node.input[1]]) for node in nodes)


def _node_flops(node: Any, output: tuple[int, ...], weight: tuple[int, ...]) -> int:
    if node.op_type == "Conv":
        return 2 * math.prod(output) * math.prod(weight[1:])
    transposed = any(field.name == "transB" and field.i for field in node.attribute)
    return 2 * math.prod(output) * (weight[-1] if transposed else weight[-2])
