"""A LiteRT (TensorFlow Lite) file as a network, run by ai-edge-litert on the CPU through XNNPACK."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import UserError, first_line
from .network import CELLS, FEATURES, INPUT, LOGITS, ExportedNetwork, physical_cores

_STDERR_LOCK = threading.Lock()


class LiteRtNetwork(ExportedNetwork):
    """An exported file, run by LiteRT.

    The graph takes one slice, so a batch is answered slice by slice. An interpreter may be run by one thread at a time:
    a lock sees to that, and each pass uses all cores anyway.
    """

    title = "a LiteRT"

    def __init__(self, content: bytes, name: str, device: str | None = None, *, threads: int | None = None) -> None:
        """Open an interpreter.

        Args:
            content: of the .tflite file; bytes, so that what was checked is what runs.
            name: of the file, for messages.
            device: cpu or None; there is no other.
            threads: that share one slice; None for the physical cores that this process may use.
        """
        runtime = require_litert()
        if device not in (None, "cpu"):
            raise UserError(f"LiteRT runs on the CPU here, not on {device}; use --device cpu")
        self.name = name
        self._lock = threading.Lock()
        try:
            with quiet_stderr():
                self._interpreter = runtime.Interpreter(model_content=content, num_threads=threads or physical_cores())
                self._interpreter.allocate_tensors()
                self._runner = self._interpreter.get_signature_runner()
        except (ValueError, RuntimeError) as error:
            raise UserError(f"{name} cannot be run ({first_line(error)}); export the model again") from error
        inputs, outputs = self._runner.get_input_details(), self._runner.get_output_details()
        self._require_names(list(inputs), list(outputs))
        self.outputs = [output for output in (LOGITS, FEATURES, *CELLS.values()) if output in outputs]
        self.maps = tuple(method for method, output in CELLS.items() if output in outputs)

    def __call__(self, pixel_values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Run the network; see :class:`~brain_tumor_mri.inference.network.Network`."""
        return self.explain(pixel_values)[:2]

    def explain(self, pixel_values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, dict[str, np.ndarray]]:
        """As :meth:`~brain_tumor_mri.inference.run_onnx.OnnxNetwork.explain`; no part of the graph can be left out."""
        found: dict[str, list[np.ndarray]] = {output: [] for output in self.outputs}
        for pixels in pixel_values:
            with self._lock:
                answer = self._runner(**{INPUT: pixels[None]})
            for output, rows in found.items():
                rows.append(answer[output])
        whole = {output: np.concatenate(rows) for output, rows in found.items()}
        return whole.pop(LOGITS), whole.pop(FEATURES, None), whole


def require_litert() -> Any:
    """Import ai-edge-litert's interpreter module; UserError where it is not installed."""
    try:
        from ai_edge_litert import interpreter  # optional
    except ImportError as error:
        message = f"a LiteRT model needs ai-edge-litert ({first_line(error)}): pip install ai-edge-litert"
        raise UserError(message) from error
    return interpreter


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Drop what C++ code writes to stderr, such as LiteRT's note on its delegate, for which it has no setting."""
    with _STDERR_LOCK:  # two threads that put stderr back in the wrong order would lose it
        try:
            sys.stderr.flush()
            kept = os.dup(2)
        except (OSError, AttributeError):  # a program without a stderr
            yield
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)
