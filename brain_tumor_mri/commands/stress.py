"""``brain-tumor-mri stress``: measure what disturbed images (motion, noise, JPEG, ...) cost a model."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markdown import Markdown

from ..errors import UserError
from ..evaluation.record import describe_model
from ..files import check_writable
from ..inference.model_folder import DEFAULT_MODEL
from ..labels import require_project_classes
from ..reports.tables import stress_summary, stress_table
from .model_flags import add_model_arguments, load_classifier
from .progress import DelayedProgress
from .protocol_flags import add_protocol_arguments, protocol_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..inference.prediction import Prediction


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    add_model_arguments(parser)
    add_stress_arguments(parser)


def add_stress_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that do not depend on what is measured: data, protocol, sample, output."""
    add_protocol_arguments(parser)
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
    """Measure and print a table, or JSON."""
    check_targets(args)
    args.model = args.model or [DEFAULT_MODEL]
    classifier = load_classifier(args)

    def answer(images: Iterator[Image]) -> Iterator[Prediction]:
        return classifier.predict_stream(images, on_error="record")

    require_project_classes(classifier.labels, "stress")
    described = classifier.describe()
    identity = {key: value for key, value in described.items() if key != "source"}
    # what decisions depend on, besides the weights
    model = describe_model(args.model, classifier) | {key: described[key] for key in ("coverage", "trust")}
    show(args, measured(args, model, identity, answer))
    return 0


def measured(
    args: argparse.Namespace, model: dict[str, Any], identity: dict[str, Any], answer: Any, note: str | None = None
) -> dict[str, Any]:
    """Return the record of whatever answers, by the flags of :func:`add_stress_arguments`."""
    from ..evaluation.stress import stress_record  # torch, datasets: seconds

    return stress_record(
        args.data_dir,
        protocol_of(args),
        model,
        identity,
        answer,
        sample_size=args.sample,
        seed=args.seed,
        title=args.title,
        output=args.output,
        note=note,
        progress=DelayedProgress,
    )


def show(args: argparse.Namespace, record: dict[str, Any], beside: Sequence[dict[str, Any]] = ()) -> None:
    """Draw the plot that is asked for, and print tables, or JSON; ``beside`` are records to compare with."""
    if args.plot:
        from ..reports.plots import plot_stress  # matplotlib: half a second

        plot_stress([record, *beside], args.plot)
    if args.json:
        print(json.dumps(record, indent=2))
        return
    for text in (stress_table(record), stress_summary([record, *beside])):
        Console().print(Markdown(text))
    for file in record["unreadable"]:
        print(f"not readable: {file['path']}: {file['reason']}", file=sys.stderr)
    if missing := record["unanswered"]:
        first = "{path} ({disturbance} {strength}): {reason}".format(**missing[0])
        print(f"{len(missing)} images without an answer, such as {first}", file=sys.stderr)


def check_targets(args: argparse.Namespace) -> None:
    """Find out before minutes of work whether the files can be written."""
    for flag, path in (("--output", args.output), ("--plot", args.plot)):
        if path:
            check_writable(path, flag)
    if args.plot and args.plot.suffix.lower() != ".png":
        raise UserError(f"--plot {args.plot}: give a name that ends in .png")
