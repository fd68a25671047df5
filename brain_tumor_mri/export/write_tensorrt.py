"""A float16 ONNX file as a TensorRT engine. Written from NVIDIA's reference; never run on a GPU so far.

Precision is in the ONNX file, and the network strongly typed: TensorRT 11 knows no other way, and TensorRT 10 knows it
too. What needs no GPU is tested: the requests to the builder, against a small stand-in, and how the float16 ONNX file
answers, under onnxruntime.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import UserError
from ..inference.network import INPUT
from ..inference.run_tensorrt import MAX_BATCH, require_tensorrt

BATCHES = (1, 16, MAX_BATCH)
"""Least, usual and largest batch of the optimisation profile; TensorRT chooses its kernels for the usual one."""


def write_engine(source: Path, file: Path, size: tuple[int, int]) -> dict[str, str]:
    """Build an engine for this machine's GPU; takes minutes.

    Args:
        source: of ``write_onnx`` with ``half``.
        file: to be written.
        size: (height, width) of the input in pixels.

    Returns:
        ``tensorrt`` and ``gpu``, that the engine is bound to, for export.json.
    """
    tensorrt = require_tensorrt()
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(source.read_bytes()):
        faults = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise UserError(f"TensorRT cannot read this network ({' '.join(faults.split())[:160]})")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT, *((batch, 3, *size) for batch in BATCHES))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise UserError("TensorRT could not build an engine of this network; what it wrote above says why")
    file.write_bytes(bytes(engine))
    return {"tensorrt": tensorrt.__version__, "gpu": torch.cuda.get_device_name()}
