"""What runs a network: PyTorch, or a runtime on an exported file; to the classifier all of them are a ``Network``.

``load_network(folder, device)`` -> ``network(pixel_values)`` -> logits (N, 4) and the features that trust.json's check
reads. PyTorch as it is and onnxruntime are run here, compiled PyTorch in compiled_running.py, LiteRT in
litert_running.py, TensorRT in tensorrt_running.py; each is imported only where a folder needs it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import psutil
import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging as transformers_logging

from .errors import UserError
from .features import StageFeatures
from .weights import EXPORT_FILE, TENSORRT, TORCH, ModelFolder, runtime_of

INPUT, LOGITS, FEATURES = "pixel_values", "logits", "features"
"""Names of an exported file's input (N, 3, H, W), and of its outputs (N, 4) and (N, D)."""
_LOADING_ERRORS = (OSError, ValueError, RuntimeError, ImportError, KeyError)


class Network(Protocol):
    """Answers a batch, for any number of threads at once."""

    device: torch.device
    """Where ``pixel_values`` are to be."""

    def __call__(self, pixel_values: Tensor) -> tuple[Tensor, np.ndarray | None]:
        """Run the network.

        Args:
            pixel_values: float32 (N, 3, H, W) on ``device``.

        Returns:
            Logits (N, 4); and the spatial means (N, D) of trust.json's stage, None where they were not asked for.
        """

    @property
    def module(self) -> torch.nn.Module:
        """The PyTorch network, for what needs its layers; UserError where there is none."""

    def take_features(self) -> np.ndarray | None:
        """The features (N, D) of this thread's latest pass of ``module``; UserError where there is none."""


class TorchNetwork:
    """A transformers model, run by PyTorch in float32, or its answers under bfloat16 autocast."""

    def __init__(self, module: torch.nn.Module, device: torch.device, stage: str | None, *, bf16: bool = False) -> None:
        """Put the model on the device.

        Args:
            module: takes pixel_values (N, 3, H, W), returns an object with ``logits`` (N, 4).
            device: where it is to run.
            stage: whose features are wanted; None for no features.
            bf16: answer under autocast; ``module`` itself stays float32.

        Raises:
            UserError: the network has no such stage.
        """
        self.device, self.bf16 = device, bf16
        # convolutions of oneDNN and cuDNN run faster on channels-last weights; the answers are equal within 1e-5
        self.module = module.float().eval().to(device, memory_format=torch.channels_last)
        self._features = StageFeatures(getattr(self.module, "timm_model", self.module), stage) if stage else None

    def __call__(self, pixel_values: Tensor) -> tuple[Tensor, np.ndarray | None]:
        """Run the network; see :class:`Network`."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
            return self.module(pixel_values=pixel_values).logits, self.take_features()

    def take_features(self) -> np.ndarray | None:
        """The features (N, D) of this thread's latest forward pass; None where no stage was named."""
        return self._features.take() if self._features else None


class ExportedNetwork:
    """What the networks of exported files share: there is no PyTorch module behind them.

    Attributes:
        title: of the kind of file, with its article, for messages.
        name: of the file, for messages.
        device: where ``pixel_values`` are to be.
    """

    title: str
    name: str
    device: torch.device

    @property
    def module(self) -> torch.nn.Module:
        """There is none.

        Raises:
            UserError: always.
        """
        raise self._no_module()

    def take_features(self) -> np.ndarray | None:
        """There is no PyTorch network whose pass could have left any.

        Raises:
            UserError: always.
        """
        raise self._no_module()

    def _require_names(self, inputs: list[str], outputs: list[str]) -> None:
        """Refuse a file that takes or gives something else than an export of this project does."""
        if inputs != [INPUT] or LOGITS not in outputs:
            raise UserError(f"{self.name} is no export of this project (inputs {inputs}, outputs {outputs})")

    def _no_module(self) -> UserError:
        kind = f"{self.name} is {self.title} export"
        return UserError(f"{kind}: this needs the PyTorch weights, the model it was made from")


class OnnxNetwork(ExportedNetwork):
    """An exported file, run by onnxruntime; a session may be run by several threads at once and keeps no state."""

    title = "an ONNX"

    def __init__(
        self,
        content: bytes,
        name: str,
        device: str | torch.device | None = None,
        *,
        threads: int | None = None,
        spinning: bool = False,
    ) -> None:
        """Open a session.

        Args:
            content: of the ONNX file; bytes, so that what was checked is what runs.
            name: of the file, for messages.
            device: cpu or cuda; None takes cuda where this onnxruntime has it.
            threads: that share one batch; None for the physical cores that this process may use.
            spinning: let idle threads wait in a loop, which answers sooner and takes the cores from everything else.

        Raises:
            UserError: onnxruntime is missing, cannot run the file, or has no such device.
        """
        runtime = require_onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or physical_cores()
        options.log_severity_level = 3  # errors; they are raised as well
        for kind in ("intra_op", "inter_op"):
            options.add_session_config_entry(f"session.{kind}.allow_spinning", str(int(spinning)))
        providers = _providers(runtime, device)
        try:
            self.session = runtime.InferenceSession(content, options, providers=providers)
        except Exception as error:  # onnxruntime's own classes share no base but this
            raise UserError(f"{name} cannot be run ({reason(error)}); export the model again") from error
        inputs, self.outputs = ([v.name for v in of()] for of in (self.session.get_inputs, self.session.get_outputs))
        self.name = name
        self._require_names(inputs, self.outputs)
        self.device = torch.device("cpu")  # numpy arrays go in; onnxruntime itself carries them to a GPU

    def __call__(self, pixel_values: Tensor) -> tuple[Tensor, np.ndarray | None]:
        """Run the network; see :class:`Network`."""
        found = dict(zip(self.outputs, self.session.run(None, {INPUT: as_array(pixel_values)}), strict=True))
        return torch.from_numpy(found[LOGITS]), found.get(FEATURES)


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for, or the best one here: cuda, then mps, then cpu.

    Raises:
        UserError: the name means nothing, or there is no such device here.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device {device} is not available here; leave it out to have one chosen") from error
    return chosen


def load_network(folder: ModelFolder, device: str | torch.device | None, stage: str | None) -> Network:
    """Load what the folder's backend runs.

    Args:
        folder: of ``find_model``.
        device: as of ``TumorClassifier``.
        stage: whose features are wanted; an export gives its own (``require_features``). None for no features.

    Raises:
        UserError: the weights are damaged, cut off, swapped or incomplete; what runs them is missing; the network has
            no such stage.
    """
    if folder.export is None:
        module, bf16 = _load_module(folder), folder.backend.endswith("-bf16")
        if folder.backend.startswith(f"{TORCH}-compile"):
            from .compiled_running import CompiledNetwork

            return CompiledNetwork(module, choose_device(device), stage, bf16=bf16)
        return TorchNetwork(module, choose_device(device), stage, bf16=bf16)
    (file,) = folder.weights
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != folder.run_sha256():
        raise UserError(
            f"{file} is not the file that {EXPORT_FILE} describes; copy it again, or export the model again"
        )
    runtime = runtime_of(folder.backend)
    if runtime == "onnx":
        return OnnxNetwork(content, str(file), device)
    if runtime == TENSORRT:
        from .tensorrt_running import TensorRtNetwork

        return TensorRtNetwork(content, str(file), device)
    from .litert_running import LiteRtNetwork

    return LiteRtNetwork(content, str(file), device)


def require_features(folder: ModelFolder, stage: str) -> None:
    """Refuse an export that does not give the features that a trust.json reads.

    Args:
        folder: of ``find_model``; safetensors have every stage that the network has.
        stage: that trust.json names.

    Raises:
        UserError: the export gives none, or those of another stage.
    """
    if folder.export and (folder.export["files"][folder.backend].get("features") or {}).get("stage") != stage:
        raise UserError(f"{folder.weights[0]} gives no features of {stage}, which trust.json needs; export it again")


def load_processor(folder: ModelFolder) -> Any:
    """Load the model's own image processor; the only preprocessing there is.

    Raises:
        UserError: it cannot be loaded.
    """
    with _told_in_one_line(folder):
        return AutoImageProcessor.from_pretrained(folder.path, local_files_only=True)


def require_onnxruntime() -> Any:
    """Import onnxruntime.

    Raises:
        UserError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"an ONNX model needs onnxruntime ({reason(error)}): pip install onnxruntime") from error
    return onnxruntime


def physical_cores() -> int:
    """How many physical cores this process may use: a second thread on a core only waits for the same multipliers."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def _providers(runtime: Any, device: str | torch.device | None) -> list[Any]:
    """What onnxruntime is to run on, best first."""
    has_cuda = "CUDAExecutionProvider" in runtime.get_available_providers()
    wanted = torch.device(device) if device is not None else torch.device("cuda" if has_cuda else "cpu")
    if wanted.type == "cpu":
        return ["CPUExecutionProvider"]
    if wanted.type != "cuda" or not has_cuda:
        raise UserError(f"this onnxruntime cannot run on {device}; use --device cpu, or pip install onnxruntime-gpu")
    return [("CUDAExecutionProvider", {"device_id": wanted.index or 0}), "CPUExecutionProvider"]


def as_array(pixel_values: Tensor) -> np.ndarray:
    """Return a batch as runtimes take it: float32 (N, 3, H, W) in C order."""
    return np.ascontiguousarray(pixel_values.detach().cpu().float().numpy())


def _load_module(folder: ModelFolder) -> torch.nn.Module:
    _ = folder.tensors  # reads the headers: a cut-off file is told by its name, not by a loader's traceback
    with _told_in_one_line(folder):
        loaded, report = AutoModelForImageClassification.from_pretrained(
            folder.path,
            use_safetensors=True,
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
    # transformers fills a missing layer with random numbers and only logs it: the answers would be noise
    lacking = [*report["missing_keys"], *report["mismatched_keys"]]
    if lacking:
        raise UserError(f"{folder.source} lacks {len(lacking)} of the model's weights, such as {lacking[0]}")
    return loaded


@contextmanager
def _told_in_one_line(folder: ModelFolder) -> Iterator[None]:
    """Load without transformers' progress bar and notes, which mean nothing to the person who asked for an answer."""
    level, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except _LOADING_ERRORS as error:
        raise UserError(f"{folder.source} cannot be loaded ({reason(error)}); download or train it again") from error
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()


def reason(error: BaseException) -> str:
    """The start of an exception's text on one line, for use inside a message."""
    return " ".join(str(error).split())[:160]
