"""The flags by which commands choose a model, and the classifier that they mean."""

from __future__ import annotations

import argparse

from ..errors import UserError
from ..inference.classifier import TumorClassifier
from ..inference.model_folder import BACKENDS, DEFAULT_MODEL
from ..trust.decision import COVERAGES, DEFAULT_COVERAGE


def add_model_arguments(parser: argparse.ArgumentParser, *, batch_size: int = 32) -> None:
    """Define the flags that choose a model (``--model``, once or more, ``--backend``, ...) and how it answers."""
    parser.add_argument(
        "--model",
        action="append",
        metavar="MODEL",
        help=f"model folder or Hub id (default: {DEFAULT_MODEL}); given again, all of them answer as an ensemble",
    )
    parser.add_argument(
        "--mirror", action="store_true", help="average with the mirror image's answer, at twice the cost"
    )
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument(
        "--batch_size", type=int, default=batch_size, help="images per forward pass (default: %(default)s)"
    )
    parser.add_argument(
        "--coverage",
        type=int,
        choices=COVERAGES,
        default=DEFAULT_COVERAGE,
        help="percent of slices whose prediction set holds the true class (default: %(default)s)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best one here)")
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        help="what runs the model (default: the first of these whose file is there; tensorrt only when named)",
    )


def load_classifier(args: argparse.Namespace) -> TumorClassifier:
    """Load what the flags of :func:`add_model_arguments` choose."""
    if args.batch_size < 1:
        raise UserError(f"--batch_size {args.batch_size}: give 1 or more")
    return TumorClassifier.from_pretrained(
        args.model or [DEFAULT_MODEL],
        revision=args.revision,
        device=args.device,
        batch_size=args.batch_size,
        mirror=args.mirror,
        coverage=args.coverage,
        backend=args.backend,
    )
