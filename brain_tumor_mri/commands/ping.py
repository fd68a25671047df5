"""``brain-tumor-mri ping --config node.yaml``: try what the node asks of the PACS, a line a verb."""

import argparse
import json

from ..errors import UserError

try:
    from ..clinical.config import read_config
    from ..clinical.pacs import ping
except ModuleNotFoundError as error:
    raise UserError(f"{error.name} is missing; pip install 'brain-tumor-mri[clinical]'") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.add_argument("--config", required=True, help="node.yaml, see docs/clinical.md")
    parser.add_argument("--read_only", action="store_true", help="store no test object")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")


def run(args: argparse.Namespace) -> int:
    """Print a line a verb; 1 where one fails."""
    found = ping(read_config(args.config), store=not args.read_only)
    if args.json:
        print(json.dumps({"verbs": [{"verb": verb, "problem": problem} for verb, problem in found]}))
    else:
        for verb, problem in found:
            print(f"{verb}: {problem or 'ok'}")
    return int(any(problem for _, problem in found))
