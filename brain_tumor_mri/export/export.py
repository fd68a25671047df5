"""``brain-tumor-mri export --format FORMAT --model DIR --output DIR``: a model that runs without PyTorch.

``onnx`` and ``onnx-int8`` lie as the Hub's ONNX models do: ``onnx/model.onnx`` or ``onnx/model_int8.onnx``
(transformers.js asks for the first by ``dtype: "fp32"``, for the second by ``dtype: "int8"``; its ``"q8"`` is
``model_quantized.onnx``). ``litert`` and ``litert-int8``, for phones and small boards, are ``litert/model.tflite`` and
``litert/model_int8.tflite``. ``tensorrt``, for one NVIDIA GPU, is ``tensorrt/model.engine``; it was never run so far.
Beside them lie ``config.json``, ``trust.json`` and ``metrics.json``, and ``export.json``, which binds the file to the
weights it was made from and holds what the check against PyTorch measured. Nothing is left behind unless that check
passed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..inference.model_folder import (
    EXPORT_FILE,
    EXPORT_FILES,
    EXPORT_SCHEMA,
    TENSORRT,
    ModelFolder,
)
from .slices import CalibrationSlices
from .write import INT8, write_file

if TYPE_CHECKING:
    from ..inference.classifier import TumorClassifier
    from .write_onnx import Quantization


CHECKED_SLICES = 64
CALIBRATION_SLICES = 300
_CALIBRATIONS = ("minmax", "entropy", "percentile")  # onnx_writing.METHODS, ACTIVATIONS and parity.MIN_AGREEMENT,
_ACTIVATIONS = ("uint8", "int8")  # spelled here so that --help need not load torch; a test compares them
_MIN_AGREEMENT = 0.95
_CARRIED = ("config.json", "preprocessor_config.json", "trust.json", "metrics.json")


def export_model(
    folder: ModelFolder,
    output: Path,
    form: str,
    *,
    check_images: Sequence[Path],
    calibration: CalibrationSlices | None = None,
    quantization: Quantization | None = None,
    min_agreement: float = _MIN_AGREEMENT,
    kept: dict[str, Any] | None = None,
    tell: Callable[[str], None] = lambda step: None,
) -> dict[str, Any]:
    """Write an export in a folder beside, compare it with PyTorch, and rename it when it passed.

    Args:
        folder: the trained model.
        output: the folder to be.
        form: a key of ``EXPORT_FILES``.
        check_images: slices on which both are asked.
        calibration: for int8.
        quantization: for ``onnx-int8``.
        min_agreement: for int8 and TensorRT; see ``parity.require_close``.
        kept: of ``kept_files``.
        tell: told each step.

    Returns:
        The content of ``export.json``.

    Raises:
        UserError: the network cannot be expressed, the check failed, or the folder cannot be written.
        UnreadableImageError: a check image cannot be read.
    """
    from ..files import write_json
    from ..inference.classifier import TumorClassifier
    from .parity import MAX_HALF_DIFFERENCE, compare, require_close, require_same

    tell(f"loading {folder.source}")
    reference = TumorClassifier.from_pretrained(folder.path, device="cpu")
    with _beside(output) as part:
        for name in _CARRIED:
            if (folder.path / name).is_file():
                shutil.copy2(folder.path / name, part / name)
        record = {"schema": EXPORT_SCHEMA, "source": _source(folder), "files": dict(kept or {})}
        for name in (form, *record["files"]):
            (part / EXPORT_FILES[name]).parent.mkdir(exist_ok=True)
        for other in record["files"]:
            shutil.copy2(output / EXPORT_FILES[other], part / EXPORT_FILES[other])
        entry, stage = write_file(
            reference,
            form,
            part / EXPORT_FILES[form],
            calibration=calibration,
            quantization=quantization,
            full=part / EXPORT_FILES["litert"] if _has_litert(record, reference) else None,
            tell=tell,
        )
        record["files"][form] = entry
        write_json(part / EXPORT_FILE, record)

        tell(f"comparing with PyTorch on {len(check_images)} images")
        device = "cuda" if form == TENSORRT else "cpu"
        parity = compare(
            reference, TumorClassifier.from_pretrained(part, device=device, backend=form), check_images, stage
        )
        exact = form not in (*INT8, TENSORRT)
        if exact:
            require_same(parity)
        else:
            require_close(parity, min_agreement, MAX_HALF_DIFFERENCE if form == TENSORRT else 1.0)
        entry["check"] = parity.to_dict() | ({} if exact else {"min_agreement": min_agreement})
        write_json(part / EXPORT_FILE, record)
    return record


def _has_litert(record: dict[str, Any], reference: TumorClassifier) -> bool:
    """Whether the folder has a float32 LiteRT file that gives the features that trust.json asks for."""
    if "litert" not in record["files"]:
        return False
    there = (record["files"]["litert"].get("features") or {}).get("stage")
    return reference.trust is None or there == reference.trust.in_distribution.stage


def kept_files(output: Path, folder: ModelFolder) -> dict[str, Any]:
    """Return what an earlier export of the same weights has in the folder, as its ``export.json`` says.

    Raises:
        UserError: the folder holds anything else, which would be lost.
    """
    if not os.path.lexists(output) or (output.is_dir() and not any(output.iterdir())):
        return {}
    try:
        record = json.loads((output / EXPORT_FILE).read_text(encoding="utf-8"))
        same = record["source"]["weights_sha256"] == folder.sha256() and not list(output.glob("*.safetensors"))
        files = {form: record["files"][form] for form in EXPORT_FILES if form in record["files"]}
        whole = all(_digest(output / EXPORT_FILES[form]) == entry["sha256"] for form, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        same = whole = False
        files = {}
    if not (same and whole):
        raise UserError(f"{output} exists and is no export of these weights; give another --output, or remove it")
    return files


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


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
    """Give a folder to fill, which takes the place of ``output`` unless anything is raised, Ctrl-C included."""
    output = Path(os.path.abspath(output))
    part, old = (output.with_name(f".{output.name}.{kind}") for kind in ("part", "old"))
    try:
        for stale in (part, old):
            shutil.rmtree(stale, ignore_errors=True)
        part.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--output {output} cannot be made: {error.strerror}") from error
    try:
        yield part
        if output.exists():
            output.rename(old)
        part.rename(output)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror or error}") from error
    finally:
        if old.exists() and not output.exists():  # stopped between the two renames
            old.rename(output)
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)
