"""``export_model``: write a model as a file of another runtime, compare it with PyTorch, and keep it when it passed.

``onnx`` and ``onnx-int8`` lie as the Hub's ONNX models do: ``onnx/model.onnx`` or ``onnx/model_int8.onnx``
(transformers.js asks for the first by ``dtype: "fp32"``, for the second by ``dtype: "int8"``; its ``"q8"`` is
``model_quantized.onnx``). ``litert`` and ``litert-int8``, for phones and small boards, are ``litert/model.tflite`` and
``litert/model_int8.tflite``. ``tensorrt``, for one NVIDIA GPU, is ``tensorrt/model.engine``; it was never run so far.
Beside them lie ``config.json``, ``trust.json`` and ``metrics.json``, and ``export.json``, which binds the file to the
weights it was made from and holds what the check against PyTorch measured. All of that is a folder of its own, or it
goes into the model's folder, beside the weights.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import UserError, first_line
from ..files import read_json, write_json
from ..inference.classifier import TumorClassifier
from ..inference.model_folder import EXPORT_FILE, EXPORT_FILES, EXPORT_SCHEMA, TENSORRT, TORCH, ModelFolder, runtime_of
from ..inference.run_litert import require_litert
from ..inference.run_tensorrt import require_tensorrt
from ..machine import versions
from . import INT8, MIN_AGREEMENT, require_new, write_tensorrt
from .outputs import feature_stage, hushed
from .parity import MAX_HALF_DIFFERENCE, compare, require_close, require_same
from .slices import SEED, CalibrationSlices

OnStatus = Callable[[str], None]
"""Told each step."""
_CARRIED = (
    "config.json",
    "preprocessor_config.json",
    "trust.json",
    "decoder.json",
    "appearance.json",
    "patients.json",
    "metrics.json",
)


def export_model(
    folder: ModelFolder,
    output: Path | None,
    formats: Sequence[str],
    *,
    check_images: Sequence[Path],
    calibration: CalibrationSlices | None = None,
    min_agreement: float = MIN_AGREEMENT,
    on_status: OnStatus = lambda step: None,
) -> dict[str, Any]:
    """Write exports in a folder beside, compare them with PyTorch, and move them into place when all passed.

    Args:
        folder: the PyTorch weights.
        output: new folder; None for the model's own, where what was made from other weights goes.
        formats: keys of ``EXPORT_FILES``.
        check_images: that both are asked about.
        calibration: for int8.
        min_agreement: least share of slices with PyTorch's class and decision, of int8 and TensorRT.
        on_status: told each step.

    Returns:
        The content of ``export.json``.
    """
    if output:
        require_new(output)
    formats = sorted(formats, key=list(EXPORT_FILES).index)  # int8 is made from its float32 twin
    for export_format in formats:
        writer(export_format)
        if export_format in INT8 and calibration is None:
            raise ValueError("int8 needs calibration slices")
    on_status(f"loading {folder.source}")
    reference = TumorClassifier.from_pretrained(folder.path, device="cpu", backend=TORCH)
    with _beside(output) if output else _inside(folder) as part:
        for name in _CARRIED:
            if (folder.path / name).is_file():
                shutil.copy2(folder.path / name, part / name)
        record: dict[str, Any] = {"schema": EXPORT_SCHEMA, "source": _source(folder), "files": {}}
        for export_format in formats:
            file = part / EXPORT_FILES[export_format]
            file.parent.mkdir(exist_ok=True)
            entry, stage = _write_file(reference, export_format, file, calibration, on_status)
            record["files"][export_format] = entry
            write_json(part / EXPORT_FILE, record)

            on_status(f"comparing {export_format} with PyTorch on {len(check_images)} images")
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


def writer(export_format: str) -> ModuleType:
    """Import what writes a format; the UserError names the package, or the GPU, that is missing."""
    try:
        if runtime_of(export_format) == "litert":
            require_litert()
            missing = "a LiteRT export needs litert-torch", "litert-torch; best in a virtual environment of its own"
            with hushed():
                return import_module(f"{__package__}.write_litert")
        if export_format == TENSORRT:
            require_tensorrt()
        missing = "an export needs onnx, onnxruntime and onnxscript", "onnx onnxruntime onnxscript"
        return import_module(f"{__package__}.write_onnx")
    except ImportError as error:
        raise UserError(f"{missing[0]} ({first_line(error)}): pip install {missing[1]}") from error


def _write_file(
    reference: TumorClassifier,
    export_format: str,
    file: Path,
    calibration: CalibrationSlices | None,
    on_status: OnStatus,
) -> tuple[dict[str, Any], str | None]:
    """Write the file; return its entry in export.json, and the stage of its features, None where it gives none."""
    wanted = reference.trust.in_distribution.stage if reference.trust else None
    stage = feature_stage(reference.model, wanted, reference.image_size)
    settings = {"stage": stage, "size": reference.image_size}
    full, twin = file, file.parents[1] / EXPORT_FILES.get(runtime_of(export_format), "")
    if export_format in INT8:
        full = twin if twin.is_file() else file.with_name(f"full{file.suffix}")
    entry: dict[str, Any] = {"stored_as": "F32", "input": [None, 3, *reference.image_size], "calibration": None}
    on_status(f"writing {export_format}")
    write = writer(export_format)
    if runtime_of(export_format) == "litert":
        entry["input"][0] = 1
        if full != twin or full == file:
            write.write_litert(reference.model, full, **settings, decoder=reference.members[0].decoder)
    else:
        entry["opset"] = write.OPSET
        half = export_format == TENSORRT
        full = file.with_name("half.onnx") if half else full
        if full != twin or full == file:
            write.write_onnx(reference.model, full, **settings, half=half, decoder=reference.members[0].decoder)
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
    if full not in (file, twin):
        full.unlink()
    return {
        "file": EXPORT_FILES[export_format],
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "size_bytes": file.stat().st_size,
        "features": {"stage": stage} if stage else None,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions() | {name: metadata.version(name) for name in write.PACKAGES},
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
def _inside(folder: ModelFolder) -> Iterator[Path]:
    """Give a folder to fill, whose exports move into the model's folder unless anything is raised."""
    try:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder.path) as scratch:
            yield (part := Path(scratch))
            record = read_json(part / EXPORT_FILE)
            kept = _of_same_weights(folder, record["source"]["weights_sha256"])
            # from here on export.json and files may disagree for a moment, which loading notices
            for name, file in EXPORT_FILES.items():
                if name in record["files"]:
                    (folder.path / file).parent.mkdir(exist_ok=True)
                    (part / file).replace(folder.path / file)
                elif name not in kept:
                    (folder.path / file).unlink(missing_ok=True)  # of other weights, or of unknown ones
            record["files"] = kept | record["files"]
            write_json(folder.path / EXPORT_FILE, record)
    except OSError as error:
        raise UserError(f"{folder.path} cannot be written to: {first_line(error)}; give --output") from error


def _of_same_weights(folder: ModelFolder, weights_sha256: str) -> Mapping[str, Any]:
    """The entries of a folder's export.json whose files were made from these weights, and are there."""
    try:
        record = read_json(folder.path / EXPORT_FILE)
        same = record["source"]["weights_sha256"] == weights_sha256
        return {name: entry for name, entry in record["files"].items() if same and _is_there(folder, name)}
    except (UserError, KeyError, TypeError, AttributeError):
        return {}


def _is_there(folder: ModelFolder, name: str) -> bool:
    return name in EXPORT_FILES and (folder.path / EXPORT_FILES[name]).is_file()


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
