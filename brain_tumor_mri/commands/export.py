"""``brain-tumor-mri export``: write a model as ONNX, LiteRT or TensorRT, checked against PyTorch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import UserError
from ..export import CALIBRATION_SLICES, CHECKED_SLICES, INT8, MIN_AGREEMENT, require_new
from ..export.slices import calibration_slices, check_slices
from ..images.find import find_images
from ..images.read import load_image
from ..inference.model_folder import DEFAULT_MODEL, EXPORT_FILES, find_model
from ..labels import RESEARCH_NOTICE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.add_argument(
        "--format", required=True, nargs="+", choices=tuple(EXPORT_FILES), help="what is written, one or several"
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"folder of a trained model (default: {DEFAULT_MODEL})")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="new folder (default: the model's own, beside its weights)"
    )
    parser.add_argument(
        "--data_dir",
        default="data/brain-tumor-mri-dataset",
        help=f"what the model was trained on: {CHECKED_SLICES} of its test slices check the export, training slices "
        "calibrate int8",
    )
    parser.add_argument(
        "--check_images", nargs="+", metavar="PATH", help="check on these files, folders or patterns instead"
    )
    parser.add_argument(
        "--calibration_slices",
        type=int,
        default=CALIBRATION_SLICES,
        help="int8: at most so many training slices (default: %(default)s)",
    )
    parser.add_argument(
        "--min_agreement",
        type=float,
        default=MIN_AGREEMENT,
        help="int8, tensorrt: least share of slices with PyTorch's class and decision (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print what export.json holds as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Export, check and write."""
    if args.calibration_slices < 1:
        raise UserError(f"--calibration_slices must be at least 1, not {args.calibration_slices}")
    if not 0 <= args.min_agreement <= 1:
        raise UserError(f"--min_agreement must be between 0 and 1, not {args.min_agreement}")
    folder = find_model(args.model)
    if args.output:
        require_new(args.output)
    elif not Path(folder.source).is_dir():
        raise UserError(f"{args.model} is on the Hub; give --output, a new folder here")
    named = _named_images(args.check_images) if args.check_images else None
    images = named or check_slices(args.data_dir, folder, CHECKED_SLICES)
    training = (
        calibration_slices(args.data_dir, folder, args.calibration_slices) if set(args.format) & set(INT8) else None
    )
    from ..export.export import export_model  # torch: seconds, so after everything told without it

    with _status() as on_status:
        record = export_model(
            folder,
            args.output,
            args.format,
            check_images=images,
            calibration=training,
            min_agreement=args.min_agreement,
            on_status=on_status,
        )
    if args.json:
        print(json.dumps(record, indent=2))
    else:
        for export_format in record["files"]:
            print(summary(record, args.output or folder.path, export_format))
        print(RESEARCH_NOTICE)
    return 0


def summary(record: dict[str, Any], output: Path, export_format: str) -> str:
    """Say in two lines what was written and what the check found."""
    from ..export.parity import Parity  # torch, which is loaded by now

    entry = record["files"][export_format]
    parity = Parity(**{field.name: entry["check"][field.name] for field in fields(Parity)})
    size = f"{entry['size_bytes'] / 1e6:.1f} MB"
    return (
        f"{record['source']['architecture']} as {export_format}: {output / entry['file']}, {size}\n"
        f"Against PyTorch: {parity}"
    )


def _named_images(paths: Sequence[str]) -> list[Path]:
    """The images that a person named, read once: a wrong name is told before minutes of work."""
    files = find_images(paths)
    for file in files:
        load_image(file)
    return files


@contextmanager
def _status() -> Iterator[Callable[[str], None]]:
    """A line on stderr that says which step is under way, where that is a terminal."""
    with Console(stderr=True).status("starting") as status:
        yield lambda step: status.update(step)
