"""Files written whole: beside their place first, then renamed, so that a stopped run leaves no half of one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file beside and rename it, so that readers and crashes never meet half of it."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def write_json(path: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """Write a record as readable JSON; NaN is refused, as no parser but Python's takes it."""
    write_text(path, json.dumps(record, indent=2, allow_nan=False) + "\n")
