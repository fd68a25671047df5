"""``brain-tumor-mri train``: train.py of the clone, as ``accelerate launch`` starts it."""

import argparse
import subprocess
import sys
from pathlib import Path

from ..errors import UserError

SCRIPT = Path(__file__).resolve().parents[2] / "train.py"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments: all are train.py's."""
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="a recipe, then flags of train.py")


def run(args: argparse.Namespace) -> int:
    """Start the training and return its exit status."""
    if not SCRIPT.is_file():
        raise UserError("training needs the repository: clone it, and run this there")
    return subprocess.run([sys.executable, str(SCRIPT), *args.arguments], check=False).returncode
