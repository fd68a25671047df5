"""Runs an ONNX export with onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import UserError, first_line
from .network import CELLS, EXPLAIN, FEATURES, INPUT, LOGITS, ExportedNetwork, physical_cores


class OnnxNetwork(ExportedNetwork):
    """An exported file, run by onnxruntime; a session may be run by several threads at once and keeps no state."""

    title = "an ONNX"

    def __init__(self, content: bytes, name: str, device: str | None = None) -> None:
        """Open a session.

        Args:
            content: of the ONNX file; bytes, so that what was checked is what runs.
            name: of the file, for messages.
            device: cpu or cuda; None takes cuda where this onnxruntime has it.
        """
        runtime = require_onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = physical_cores()
        options.log_severity_level = 4  # no errors either, as they are raised
        for kind in ("intra_op", "inter_op"):  # idle threads that wait in a loop take the cores from everything else
            options.add_session_config_entry(f"session.{kind}.allow_spinning", "0")
        providers = _providers(runtime, device)
        try:
            self.session = runtime.InferenceSession(content, options, providers=providers)
        except Exception as error:  # onnxruntime's own classes share no base but this
            raise UserError(f"{name} cannot be run ({first_line(error)}); export the model again") from error
        inputs, self.outputs = ([v.name for v in of()] for of in (self.session.get_inputs, self.session.get_outputs))
        self.name = name
        self._require_names(inputs, self.outputs)
        self.maps = tuple(method for method, output in CELLS.items() if output in self.outputs)
        self._answer = [output for output in (LOGITS, FEATURES) if output in self.outputs]
        gates = [value.name for value in self.session.get_overridable_initializers()]
        self._answering = {EXPLAIN: np.array(False)} if EXPLAIN in gates else {}
        if providers[0] != "CPUExecutionProvider":
            self.device, self.largest_batch = str(device or "cuda"), None
            if providers[0][0] not in self.session.get_providers():  # it only warns, and runs on the CPU
                raise UserError(
                    f"onnxruntime cannot start on {device or 'this GPU'} (no CUDA, or another); use --device cpu"
                )

    def __call__(self, pixel_values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Run the network; see :class:`Network`."""
        values = self.session.run(self._answer, {INPUT: pixel_values} | self._answering)
        return values[0], values[1] if len(values) > 1 else None

    def explain(self, pixel_values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, dict[str, np.ndarray]]:
        """Run all of the graph: logits and features, as a call gives them, and the heat maps' cells by their names."""
        found = dict(zip(self.outputs, self.session.run(None, {INPUT: pixel_values}), strict=True))
        return found.pop(LOGITS), found.pop(FEATURES, None), found


def require_onnxruntime() -> Any:
    """Import onnxruntime; UserError where it is not installed."""
    try:
        import onnxruntime  # half a second that PyTorch does not need
    except ImportError as error:
        raise UserError(f"an ONNX model needs onnxruntime ({first_line(error)}): pip install onnxruntime") from error
    return onnxruntime


def _providers(runtime: Any, device: str | None) -> list[Any]:
    """What onnxruntime is to run on, best first."""
    has_cuda = "CUDAExecutionProvider" in runtime.get_available_providers()
    kind, _, index = str(device or ("cuda" if has_cuda else "cpu")).partition(":")
    if kind == "cpu":
        return ["CPUExecutionProvider"]
    if kind != "cuda" or not has_cuda:
        raise UserError(f"this onnxruntime cannot run on {device}; use --device cpu, or pip install onnxruntime-gpu")
    return [("CUDAExecutionProvider", {"device_id": int(index or 0)}), "CPUExecutionProvider"]
