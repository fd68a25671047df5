"""Loads the network and the processor of a model folder, for the backend asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging as transformers_logging

from ..errors import UserError, first_line
from .model_folder import EXPORT_FILE, TENSORRT, TORCH, ModelFolder, runtime_of
from .network import Network
from .run_litert import LiteRtNetwork
from .run_onnx import OnnxNetwork
from .run_pytorch import TorchNetwork
from .run_tensorrt import TensorRtNetwork

_LOADING_ERRORS = (OSError, ValueError, RuntimeError, ImportError, KeyError)


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """PyTorch's device of that name, or its best one here: cuda, then mps, then cpu; UserError where there is none."""
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


def check_device(device: str | torch.device | None, backend: str | None) -> None:
    """Refuse a device that can be seen to be wrong before the model is there: runtimes of exports know their own."""
    if backend == TORCH:
        choose_device(device)
    elif device is not None:
        try:
            torch.device(device)
        except RuntimeError as error:
            raise UserError(f"device {device} is not available here; leave it out to have one chosen") from error


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
        chosen = choose_device(device)
        return TorchNetwork(_load_module(folder), chosen, stage)
    (file,) = folder.weights
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != folder.run_sha256():
        raise UserError(
            f"{file} is not the file that {EXPORT_FILE} describes; copy it again, or export the model again"
        )
    return _RUNTIMES[runtime_of(folder.backend)](content, str(file), device)


_RUNTIMES = {"onnx": OnnxNetwork, "litert": LiteRtNetwork, TENSORRT: TensorRtNetwork}


def require_features(folder: ModelFolder, stage: str) -> None:
    """Refuse an export that does not give the features that trust.json reads; safetensors have every stage."""
    if folder.export and (folder.export["files"][folder.backend].get("features") or {}).get("stage") != stage:
        raise UserError(f"{folder.weights[0]} gives no features of {stage}, which trust.json needs; export it again")


def load_processor(folder: ModelFolder) -> Any:
    """Load the model's own image processor; the only preprocessing there is."""
    with _told_in_one_line(folder):
        return AutoImageProcessor.from_pretrained(folder.path, local_files_only=True, trust_remote_code=False)


def _load_module(folder: ModelFolder) -> torch.nn.Module:
    _ = folder.tensors  # reads the headers: a cut-off file is told by its name, not by a loader's traceback
    with _told_in_one_line(folder):
        loaded, report = AutoModelForImageClassification.from_pretrained(
            folder.path,
            use_safetensors=True,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,  # left out, transformers asks on the console, and a "y" from a pipe runs the code
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
        raise UserError(
            f"{folder.source} cannot be loaded ({first_line(error)}); download or train it again"
        ) from error
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()
