"""``brain-tumor-mri ping --config node.yaml``: whether the PACS of node.yaml can be reached, a line a verb."""

import argparse

from ..errors import UserError

try:
    from ..clinical.node import ping, read_config
except ModuleNotFoundError as error:
    raise UserError(f"{error.name} is missing; pip install 'brain-tumor-mri[clinical]'") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.add_argument("--config", required=True, help="node.yaml, see docs/clinical.md")


def run(args: argparse.Namespace) -> int:
    """Print a line a verb; 1 where one fails."""
    found = ping(read_config(args.config))
    for verb, problem in found:
        print(f"{verb}: {problem or 'ok'}")
    return int(any(problem for _, problem in found))
