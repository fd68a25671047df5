"""Traces the Kaggle files to patients of the Figshare data set and writes splits without a patient on two sides.

``python data_scripts/make_splits.py --kaggle_dir D --figshare_dir D`` rewrites data_scripts/splits.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a clone that is not installed

from brain_tumor_mri import provenance
from brain_tumor_mri.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 done, 2 the user's input is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    provenance.add_arguments(parser)
    try:
        return provenance.run(parser.parse_args(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
