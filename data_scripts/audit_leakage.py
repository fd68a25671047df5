"""Finds copies within and across the splits of an image folder; the same as ``brain-tumor-mri audit``.

``python data_scripts/audit_leakage.py DATA_DIR --output_dir runs/audit``
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a clone that is not installed

from brain_tumor_mri.commands import audit
from brain_tumor_mri.commands.script import run_script


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 done, 1 leaks found and ``--fail_on_leak`` given, 2 the user's input is wrong."""
    return run_script(__doc__, audit.add_arguments, audit.run, argv)


if __name__ == "__main__":
    sys.exit(main())
