"""``export_model``: write a model as a file of another runtime, compare it with PyTorch, and keep it when it passed.

``onnx`` and ``onnx-int8`` lie as the Hub's ONNX models do: ``onnx/model.onnx`` or ``onnx/model_int8.onnx``
(transformers.js asks for the first by ``dtype: "fp32"``, for the second by ``dtype: "int8"``; its ``"q8"`` is
``model_quantized.onnx``). ``litert`` and ``litert-int8``, for phones and small boards, are ``litert/model.tflite`` and
``litert/model_int8.tflite``. ``tensorrt``, for one NVIDIA GPU, is ``tensorrt/model.engine``; it was never run so far.
Beside them lie ``config.json``, ``trust.json`` and ``metrics.json``, and ``export.json``, which binds the file to the
weights it was made from and holds what the check against PyTorch measured.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from ..errors import UserError, first_line
from ..files import write_json
from ..inference.classifier import TumorClassifier
from ..inference.model_folder import EXPORT_FILE, EXPORT_FILES, EXPORT_SCHEMA, TENSORRT, TORCH, ModelFolder, runtime_of
from ..inference.run_tensorrt import require_tensorrt
from ..machine import versions
from . import INT8, MIN_AGREEMENT, require_new, write_litert, write_onnx, write_tensorrt
from .parity import MAX_HALF_DIFFERENCE, compare, require_close, require_same
from .slices import SEED, CalibrationSlices

OnStatus = Callable[[str], None]
"""Told each step."""
_CARRIED = ("config.json", "preprocessor_config.json", "trust.json", "metrics.json")


def export_model(
    folder: ModelFolder,
    output: Path,
    export_format: str,
    *,
    check_images: Sequence[Path],
    calibration: CalibrationSlices | None = None,
    min_agreement: float = MIN_AGREEMENT,
    on_status: OnStatus = lambda step: None,
) -> dict[str, Any]:
    """Write an export in a folder beside, compare it with PyTorch, and rename it when it passed.

    Returns:
        The content of ``export.json``.
    """
    require_new(output)
    require_writer(export_format)
    if export_format in INT8 and calibration is None:
        raise ValueError("int8 needs calibration slices")
    on_status(f"loading {folder.source}")
    reference = TumorClassifier.from_pretrained(folder.path, device="cpu", backend=TORCH)
    with _beside(output) as part:
        for name in _CARRIED:
            if (folder.path / name).is_file():
                shutil.copy2(folder.path / name, part / name)
        file = part / EXPORT_FILES[export_format]
        file.parent.mkdir()
        entry, stage = _write_file(reference, export_format, file, calibration, on_status)
        record = {"schema": EXPORT_SCHEMA, "source": _source(folder), "files": {export_format: entry}}
        write_json(part / EXPORT_FILE, record)

        on_status(f"comparing with PyTorch on {len(check_images)} images")
        device = "cuda" if export_format == TENSORRT else "cpu"
        exported = TumorClassifier.from_pretrained(part, device=device, backend=export_format)
        parity = compare(reference, exported, check_images, stage)
        entry["check"] = parity.to_dict()
        if export_format in (*INT8, TENSORRT):
            require_close(parity, min_agreement, MAX_HALF_DIFFERENCE if export_format == TENSORRT else 1.0)
            entry["check"]["min_agreement"] = min_agreement
        else:
            require_same(parity)
        write_json(part / EXPORT_FILE, record)
    return record


def require_writer(export_format: str) -> None:
    """See that what writes and runs a format is there; the UserError names the package, or the GPU, that is missing."""
    if runtime_of(export_format) == "litert":
        write_litert.require_litert_torch()
        return
    if export_format == TENSORRT:
        require_tensorrt()
    write_onnx.require_onnx()


def _write_file(
    reference: TumorClassifier,
    export_format: str,
    file: Path,
    calibration: CalibrationSlices | None,
    on_status: OnStatus,
) -> tuple[dict[str, Any], str | None]:
    """Write the file; return its entry in export.json, and the stage of its features, None where it gives none."""
    wanted = reference.trust.in_distribution.stage if reference.trust else None
    stage = write_onnx.feature_stage(reference.model, wanted, reference.image_size)
    settings = {"stage": stage, "size": reference.image_size}
    full = file if export_format not in INT8 else file.with_name(f"full{file.suffix}")
    entry: dict[str, Any] = {"stored_as": "F32", "input": [None, 3, *reference.image_size], "calibration": None}
    on_status(f"writing {export_format}")
    if runtime_of(export_format) == "litert":
        write, packages = write_litert, write_litert.PACKAGES
        entry["input"][0] = 1
        write_litert.write_litert(reference.model, full, **settings)
    else:
        write, packages = write_onnx, write_onnx.PACKAGES
        entry["opset"] = write_onnx.OPSET
        half = export_format == TENSORRT
        full = file.with_name("half.onnx") if half else full
        write_onnx.write_onnx(reference.model, full, **settings, half=half)
    if export_format == TENSORRT:
        on_status("building the TensorRT engine, minutes")
        bound_to = write_tensorrt.write_engine(full, file, reference.image_size)
        entry |= {"stored_as": "F16", "batches": list(write_tensorrt.BATCHES), "bound_to": bound_to}
    elif export_format in INT8:
        on_status(f"calibrating on {calibration.count} training slices")
        slices = calibration.pixels(reference)
        write.write_int8(full, file, slices)
        drawn = {"slices": len(slices), "data": calibration.data, "protocol": calibration.protocol, "seed": SEED}
        entry |= {"stored_as": "I8", "calibration": write.INT8_SETTINGS | drawn}
    if full != file:
        full.unlink()
    return {
        "file": EXPORT_FILES[export_format],
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "size_bytes": file.stat().st_size,
        "features": {"stage": stage} if stage else None,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions() | {name: metadata.version(name) for name in packages},
    } | entry, stage


def _source(folder: ModelFolder) -> dict[str, Any]:
    name = folder.path.resolve().name if Path(folder.source).is_dir() else folder.source
    return {
        "name": name,
        "architecture": folder.architecture,
        "weights_sha256": folder.sha256(),
        "parameters": folder.parameters,
    }


@contextmanager
def _beside(output: Path) -> Iterator[Path]:
    """Give a folder to fill, which becomes ``output`` unless anything is raised, Ctrl-C included."""
    output = Path(os.path.abspath(output))
    part = output.with_name(f".{output.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--output {output} cannot be made: {first_line(error)}") from error
    try:
        yield part
        part.rename(output)  # onto an empty folder too
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {first_line(error)}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
