"""The file of one export format, and what export.json says of it; ``export.py`` checks and keeps it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..inference.model_folder import EXPORT_FILES, TENSORRT, runtime_of
from .slices import SEED, CalibrationSlices

if TYPE_CHECKING:
    from torch import Tensor

    from ..inference.classifier import TumorClassifier
    from .write_onnx import Quantization

INT8 = tuple(form for form in EXPORT_FILES if form.endswith("-int8"))
"""The formats that are calibrated on training slices."""
Tell = Callable[[str], None]
"""Told each step."""


def quantization_for(form: str, calibration: str | None, activations: str | None) -> Quantization | None:
    """Return how an ONNX int8 file is to be made; None for every other format.

    Args:
        form: a key of ``EXPORT_FILES``.
        calibration: one of ``onnx_writing.METHODS``; None for the default.
        activations: one of ``onnx_writing.ACTIVATIONS``; None for the default.

    Raises:
        UserError: LiteRT's int8 is not made that way.
    """
    if form == "litert-int8" and (calibration not in (None, "minmax") or activations not in (None, "int8")):
        raise UserError("litert-int8 knows --calibration minmax and --activations int8 alone; leave both out")
    if form != "onnx-int8":
        return None
    from .write_onnx import Quantization

    return Quantization(**{k: v for k, v in (("method", calibration), ("activations", activations)) if v})


def require_writer(form: str) -> None:
    """See that what writes and checks a format is there.

    Args:
        form: a key of ``EXPORT_FILES``.

    Raises:
        UserError: a package, or a GPU, is missing.
    """
    if runtime_of(form) == "litert":
        from .write_litert import require_litert_torch

        require_litert_torch()
        return
    from .write_onnx import require_onnx

    if form == TENSORRT:
        from ..inference.run_tensorrt import require_tensorrt

        require_tensorrt()
    require_onnx()


def write_file(
    reference: TumorClassifier,
    form: str,
    file: Path,
    *,
    calibration: CalibrationSlices | None,
    quantization: Quantization | None,
    full: Path | None = None,
    tell: Tell,
) -> tuple[dict[str, Any], str | None]:
    """Write the file.

    Args:
        reference: the model, run by PyTorch.
        form: a key of ``EXPORT_FILES``.
        file: to be written.
        calibration: for int8.
        quantization: for ``onnx-int8``.
        full: a float32 file of the same weights and stage, which saves ``litert-int8`` writing one.
        tell: told each step.

    Returns:
        Its entry in export.json, and the stage of its features, None where it gives none.

    Raises:
        UserError: the network cannot be expressed, or no training slice can be read.
        ValueError: int8 without calibration slices.
    """
    from .write_onnx import feature_stage

    wanted = reference.trust.in_distribution.stage if reference.trust else None
    stage = feature_stage(reference.model, wanted, reference.image_size)
    slices = None
    if form in INT8:
        if calibration is None:
            raise ValueError("int8 needs calibration slices")
        tell(f"reading {calibration.count} training slices")
        slices = calibration.pixels(reference)
    if runtime_of(form) == "litert":
        entry = _write_litert(reference, file, stage, slices, full, tell)
    elif form == TENSORRT:
        entry = _write_tensorrt(reference, file, stage, tell)
    else:
        entry = _write_onnx(reference, file, stage, slices, quantization, tell)
    if calibration is not None and slices is not None:
        drawn = {"slices": len(slices), "data": calibration.data, "protocol": calibration.protocol, "seed": SEED}
        entry["calibration"] |= drawn
    return {
        "file": EXPORT_FILES[form],
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "size_bytes": file.stat().st_size,
        "features": {"stage": stage} if stage else None,
        "calibration": None,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    } | entry, stage


def _write_onnx(
    reference: TumorClassifier,
    file: Path,
    stage: str | None,
    slices: Sequence[Tensor] | None,
    quantization: Quantization | None,
    tell: Tell,
) -> dict[str, Any]:
    from .write_onnx import OPSET, Quantization, batched, write_int8, write_onnx

    size = reference.image_size
    entry = {"opset": OPSET, "stored_as": "F32", "input": [None, 3, *size], "versions": _versions(_ONNX)}
    full = file if slices is None else file.with_name("full.onnx")
    tell("writing ONNX")
    write_onnx(reference.model, full, stage=stage, size=size)
    if slices is None:
        return entry
    how = quantization or Quantization()
    tell(f"calibrating on {len(slices)} training slices")
    write_int8(full, file, batched(slices), how)
    full.unlink()
    return entry | {"stored_as": "I8", "calibration": how.to_dict()}


def _write_litert(
    reference: TumorClassifier,
    file: Path,
    stage: str | None,
    slices: Sequence[Tensor] | None,
    full: Path | None,
    tell: Tell,
) -> dict[str, Any]:
    from .write_litert import PACKAGES, SETTINGS, write_int8, write_litert

    size = reference.image_size
    entry = {"stored_as": "F32", "input": [1, 3, *size], "versions": _versions(PACKAGES)}
    made = file if slices is None else file.with_name("full.tflite")
    if slices is None or full is None:
        tell("writing LiteRT")
        write_litert(reference.model, made, stage=stage, size=size)
    if slices is None:
        return entry
    tell(f"calibrating on {len(slices)} training slices")
    write_int8(full or made, file, slices)
    made.unlink(missing_ok=True)
    return entry | {"stored_as": "I8", "calibration": dict(SETTINGS)}


def _write_tensorrt(reference: TumorClassifier, file: Path, stage: str | None, tell: Tell) -> dict[str, Any]:
    from .write_onnx import OPSET, write_onnx
    from .write_tensorrt import BATCHES, write_engine

    size = reference.image_size
    half = file.with_name("half.onnx")
    tell("writing ONNX in float16")
    write_onnx(reference.model, half, stage=stage, size=size, half=True)
    tell("building the TensorRT engine, minutes")
    bound = write_engine(half, file, size)
    half.unlink()
    return {
        "opset": OPSET,
        "stored_as": "F16",
        "input": [None, 3, *size],
        "batches": list(BATCHES),
        "bound_to": bound,
        "versions": _versions(_ONNX),
    }


_ONNX = ("onnx", "onnxruntime", "onnxscript")


def _versions(packages: Sequence[str]) -> dict[str, str]:
    from ..machine import versions

    return versions() | {name: metadata.version(name) for name in packages}
