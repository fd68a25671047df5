"""A TensorRT engine as a network. Written from NVIDIA's reference of the Python API; never run on a GPU so far.

An engine runs on the kind of GPU and under the TensorRT version that it was built with. It holds machine code: load
only engines of your own.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch

from ..errors import UserError, first_line
from .network import FEATURES, INPUT, LOGITS, ExportedNetwork

MAX_BATCH = 64
"""Slices in one pass."""


class TensorRtNetwork(ExportedNetwork):
    """An engine, run by TensorRT on torch's CUDA memory; a lock gives each thread its turn."""

    title = "a TensorRT"
    largest_batch = MAX_BATCH

    def __init__(self, content: bytes, name: str, device: str | None = None) -> None:
        """Load an engine.

        Args:
            content: of the engine; bytes, so that what was checked is what runs.
            name: of the file, for messages.
            device: cuda, cuda:1, ...; None for the first GPU.
        """
        self._tensorrt = tensorrt = require_tensorrt()
        self.name, self.device = name, str(device or "cuda")
        if not self.device.startswith("cuda"):
            raise UserError(f"TensorRT runs on an NVIDIA GPU, not on {device}; use --device cuda")
        self._lock = threading.Lock()
        self._logger = tensorrt.Logger(tensorrt.Logger.ERROR)  # is to live as long as what was made with it
        with torch.cuda.device(self.device):
            self._runtime = tensorrt.Runtime(self._logger)
            self._engine = self._runtime.deserialize_cuda_engine(content)
            if self._engine is None:
                told = f"{name} cannot be run by TensorRT {tensorrt.__version__} on this GPU"
                raise UserError(f"{told}; an engine runs only where it was built: export the model again, here")
            self._context = self._engine.create_execution_context()
            self._stream = torch.cuda.Stream(self.device)
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        is_input = [self._engine.get_tensor_mode(tensor) == tensorrt.TensorIOMode.INPUT for tensor in names]
        inputs, outputs = ([t for t, i in zip(names, is_input, strict=True) if i == wanted] for wanted in (True, False))
        self._require_names(inputs, outputs)
        self.outputs = outputs

    def __call__(self, pixel_values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Run the network; see :class:`~brain_tumor_mri.inference.network.Network`."""
        pixels = torch.from_numpy(pixel_values).to(self.device)
        with self._lock, torch.cuda.device(self.device):
            self._context.set_input_shape(INPUT, tuple(pixels.shape))
            self._context.set_tensor_address(INPUT, pixels.data_ptr())
            found = {}
            for output in self.outputs:
                shape = tuple(self._context.get_tensor_shape(output))
                found[output] = torch.empty(shape, dtype=torch.float32, device=self.device)
                self._context.set_tensor_address(output, found[output].data_ptr())
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                raise UserError(f"{self.name}: TensorRT did not run it; export the model again, on this machine")
            self._stream.synchronize()
        features = found[FEATURES].cpu().numpy() if FEATURES in found else None
        return found[LOGITS].cpu().numpy(), features


def require_tensorrt() -> Any:
    """Import tensorrt, and see that there is a GPU for it; the UserError names all that is missing."""
    missing = [] if torch.cuda.is_available() else ["an NVIDIA GPU that PyTorch sees"]
    try:
        import tensorrt  # optional
    except ImportError as error:
        tensorrt = None
        missing.append(f"the package tensorrt ({first_line(error)}; pip install tensorrt)")
    if missing:
        raise UserError(f"TensorRT needs {' and '.join(missing)}; --format onnx runs everywhere")
    return tensorrt
