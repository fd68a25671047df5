"""A model that runs without PyTorch. What a command line needs of it without loading torch stands here."""

import os
from pathlib import Path

from ..errors import UserError
from ..inference.model_folder import EXPORT_FILES

INT8 = tuple(name for name in EXPORT_FILES if name.endswith("-int8"))
"""The formats that are calibrated on training slices."""
CHECKED_SLICES = 64
CALIBRATION_SLICES = 300
MIN_AGREEMENT = 0.95
"""Share of slices on which an int8 or float16 export gives PyTorch's class, and on which it gives its decision."""


def require_new(output: Path) -> None:
    """Refuse a place where something lies already, which would be lost."""
    if os.path.lexists(output) and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"--output {output} exists; give a new folder, or remove it")
