"""``brain-tumor-mri stress``: measure what disturbed images (motion, noise, JPEG, ...) cost a model."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.protocols import ProtocolArguments
from ..errors import UserError
from ..evaluation.stress import stress_record
from ..inference.model_folder import DEFAULT_MODEL
from ..reports.plots import plot_stress
from ..reports.stress_tables import stress_summary, stress_table
from .model_flags import add_model_arguments, load_classifier
from .progress import DelayedProgress

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..inference.classifier import Prediction


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    add_model_arguments(parser)
    add_stress_arguments(parser)


def add_stress_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that do not depend on what is measured: data, protocol, sample, output."""
    parser.add_argument("--data_dir", default="data/brain-tumor-mri-dataset", help="holds Training/ and Testing/")
    for setting in fields(ProtocolArguments):
        kind = {"action": "store_true"} if setting.type == "bool" else {"type": type(setting.default)}
        parser.add_argument(f"--{setting.name}", default=setting.default, help=setting.metadata["help"], **kind)
    parser.add_argument("--seed", type=int, default=42, help="of the validation draw, as in training")
    parser.add_argument(
        "--sample",
        type=int,
        default=500,
        metavar="N",
        help="slices of the test part, the same for every model (default: %(default)s)",
    )
    parser.add_argument("--title", help="what stands in tables for the model (default: architecture and input size)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures to this metrics.json")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw accuracy by strength")
    parser.add_argument("--json", action="store_true", help="print the record as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Measure and print a table, or JSON.

    Raises:
        UserError: the model or the data cannot be used, or there is nowhere to write to.
        KeyboardInterrupt: Ctrl-C; its text says what is kept.
    """
    from ..evaluation.record import describe_model

    if args.batch_size < 1:
        raise UserError(f"--batch_size must be at least 1, not {args.batch_size}")
    check_targets(args)
    args.model = args.model or [DEFAULT_MODEL]
    classifier = load_classifier(args)

    def answer(images: Iterator[Image]) -> Iterator[Prediction]:
        return classifier.predict_stream(images, on_error="record")

    described = classifier.describe()
    identity = {key: value for key, value in described.items() if key != "source"}
    # what decisions depend on, besides the weights
    model = describe_model(args.model, classifier) | {key: described[key] for key in ("coverage", "trust")}
    show(args, stress_record(args, model, identity, answer, progress=DelayedProgress))
    return 0


def show(args: argparse.Namespace, record: dict[str, Any], beside: Sequence[dict[str, Any]] = ()) -> None:
    """Draw the plot that is asked for, and print tables, or JSON; ``beside`` are records to compare with."""
    from rich.console import Console
    from rich.markdown import Markdown

    if args.plot:
        plot_stress([record, *beside], args.plot)
    if args.json:
        json.dump(record, sys.stdout, indent=2)
        print()
        return
    for text in (stress_table(record), stress_summary([record, *beside])):
        Console().print(Markdown(text))
    for file in record["unreadable"]:
        print(f"not readable: {file['path']}: {file['reason']}", file=sys.stderr)
    if missing := record["unanswered"]:
        first = "{path} ({disturbance} {strength}): {reason}".format(**missing[0])
        print(f"{len(missing)} images without an answer, such as {first}", file=sys.stderr)


def check_targets(args: argparse.Namespace) -> None:
    """Find out before minutes of work whether the files can be written.

    Raises:
        UserError: they cannot.
    """
    for flag, path in (("--output", args.output), ("--plot", args.plot)):
        if path and (path.is_dir() or not os.access(path.parent, os.W_OK)):
            raise UserError(f"{flag} {path} cannot be written; give a file in a folder that exists")
    if args.plot and args.plot.suffix.lower() != ".png":
        raise UserError(f"--plot {args.plot}: give a name that ends in .png")
