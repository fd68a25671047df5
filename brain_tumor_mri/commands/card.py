"""``brain-tumor-mri card``: write the model card from the recorded figures, or check that it agrees with them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..errors import UserError
from ..files import write_text
from ..reports.card import PLACEHOLDER, render_card


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.add_argument("--model", default="model", help="model folder with its metrics.json (default: model)")
    parser.add_argument("--lite", help="folder of a small model to show too (default: MODEL-lite, where there is one)")
    parser.add_argument("--output", type=Path, default=Path("model_card.md"), help="the card (default: model_card.md)")
    parser.add_argument("--repo_id", default=PLACEHOLDER, help=f"Hub id in the snippets (default: {PLACEHOLDER})")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the card is not up to date")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Write the card, or with ``--check`` compare it."""
    text = render_card(args.model, lite=args.lite, repo_id=args.repo_id)
    try:
        same = args.output.is_file() and args.output.read_text(encoding="utf-8") == text
        if not args.check:
            write_text(args.output, text)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{args.output} cannot be read or written ({error}); give another --output") from error
    if args.check and not same:
        how = "differs from" if args.output.exists() else "is missing, so it is not"
        raise UserError(f"{args.output} {how} what {args.model}/metrics.json gives; write it without --check")
    facts = {"card": str(args.output), "model": args.model, "changed": not same}
    done = "agrees with" if args.check else "written from"
    print(json.dumps(facts) if args.json else f"{args.output} {done} {args.model}/metrics.json")
    return 0
