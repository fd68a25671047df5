"""Loads the network of a model folder for the backend asked for; what a backend needs is imported only for it."""

from __future__ import annotations

import hashlib
import re
from importlib import import_module
from types import ModuleType

from ..errors import UserError, missing_package
from .model_config import require_preprocessing, require_timm
from .model_folder import EXPORT_FILE, TENSORRT, TORCH, ModelFolder, runtime_of
from .network import Network

_RUNTIMES = {
    "onnx": ("run_onnx", "OnnxNetwork"),
    "litert": ("run_litert", "LiteRtNetwork"),
    TENSORRT: ("run_tensorrt", "TensorRtNetwork"),
}
_DEVICE = re.compile(r"cpu|mps|(cuda|xpu)(:\d+)?")


def pytorch() -> ModuleType:
    """The module ``run_pytorch``, imported only now: PyTorch and transformers take seconds that an answer need not."""
    try:
        return import_module(f"{__package__}.run_pytorch")
    except ModuleNotFoundError as error:
        told = missing_package(error)
        if told is None:
            raise
        raise UserError(
            f"{told}; or give a model folder with an ONNX file (`brain-tumor-mri export` writes it)"
        ) from error


def check_device(device: str | None, backend: str | None) -> None:
    """Refuse a device that can be seen to be wrong before the model is there: runtimes of exports know their own."""
    if device is not None and not _DEVICE.fullmatch(device):
        raise UserError(f"device {device} is not available here; leave it out to have one chosen")
    if backend == TORCH:
        pytorch().choose_device(device)


def load_network(folder: ModelFolder, device: str | None, stage: str | None) -> Network:
    """Load what the folder's backend runs.

    Args:
        folder: of ``find_model``.
        device: as of ``TumorClassifier``.
        stage: whose features are wanted; an export gives its own (``require_features``). None for no features.
    """
    require_timm(folder.source, folder.config)
    require_preprocessing(folder.source, folder.config)
    if folder.export is None:
        torch_side = pytorch()
        return torch_side.TorchNetwork(torch_side.load_module(folder), torch_side.choose_device(device), stage)
    (file,) = folder.weights
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != folder.run_sha256():
        raise UserError(
            f"{file} is not the file that {EXPORT_FILE} describes; copy it again, or export the model again"
        )
    module, name = _RUNTIMES[runtime_of(folder.backend)]
    return getattr(import_module(f"{__package__}.{module}"), name)(content, str(file), device)


def require_features(folder: ModelFolder, stage: str) -> None:
    """Refuse an export that does not give the features that trust.json reads; safetensors have every stage."""
    if folder.export and (folder.export["files"][folder.backend].get("features") or {}).get("stage") != stage:
        raise UserError(f"{folder.weights[0]} gives no features of {stage}, which trust.json needs; export it again")
