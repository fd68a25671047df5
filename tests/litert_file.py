"""A tiny .tflite file by hand, so that what runs LiteRT is tested where no converter is installed.

The network: features = the mean of each channel, logits = features @ weights.T + bias.
"""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema


def tiny_tflite(
    weights: np.ndarray, bias: np.ndarray, size: tuple[int, int], input_name: str = "pixel_values"
) -> bytes:
    """Return the file: (1, 3, H, W) -> logits (1, 4) and features (1, 3); weights (4, 3) and bias (4,) float32."""
    types = schema.TensorType
    buffers = [schema.BufferT()]
    tensors = []

    def tensor(name: str, shape: tuple[int, ...], values: np.ndarray | None = None) -> int:
        made = schema.TensorT()
        made.name, made.shape, made.buffer, made.type = name, list(shape), 0, types.FLOAT32
        if values is not None:
            made.type = types.INT32 if values.dtype == np.int32 else types.FLOAT32
            stored = schema.BufferT()
            stored.data = list(values.tobytes())
            buffers.append(stored)
            made.buffer = len(buffers) - 1
        tensors.append(made)
        return len(tensors) - 1

    pixels = tensor("pixels", (1, 3, *size))
    axes = tensor("axes", (2,), np.array([2, 3], np.int32))
    features = tensor("means", (1, 3))
    matrix, offset = tensor("weights", weights.shape, weights), tensor("bias", bias.shape, bias)
    logits = tensor("sums", (1, 4))

    def operator(code: int, inputs: list[int], output: int, kind: int, options: object) -> schema.OperatorT:
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = code, inputs, [output]
        made.builtinOptionsType, made.builtinOptions = kind, options
        return made

    def code(number: int) -> schema.OperatorCodeT:
        made = schema.OperatorCodeT()
        made.builtinCode = made.deprecatedBuiltinCode = number
        return made

    def named(name: str, index: int) -> schema.TensorMapT:
        made = schema.TensorMapT()
        made.name, made.tensorIndex = name, index
        return made

    kinds, operators = schema.BuiltinOptions, schema.BuiltinOperator
    graph = schema.SubGraphT()
    graph.tensors, graph.inputs, graph.outputs = tensors, [pixels], [logits, features]
    graph.operators = [
        operator(0, [pixels, axes], features, kinds.ReducerOptions, schema.ReducerOptionsT()),
        operator(1, [features, matrix, offset], logits, kinds.FullyConnectedOptions, schema.FullyConnectedOptionsT()),
    ]
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = "serving_default", 0
    signature.inputs = [named(input_name, pixels)]
    signature.outputs = [named("logits", logits), named("features", features)]
    model = schema.ModelT()
    model.version, model.buffers, model.subgraphs, model.signatureDefs = 3, buffers, [graph], [signature]
    model.operatorCodes = [code(operators.MEAN), code(operators.FULLY_CONNECTED)]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
