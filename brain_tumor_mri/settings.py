"""Settings as fields of dataclasses, which become flags: ``rounds: int = setting(10, "How often ...")``."""

from dataclasses import field
from typing import Any


def setting(default: Any, help: str) -> Any:
    """Return a field with its default, and with the help that transformers' parser and ours show."""
    return field(default=default, metadata={"help": help})
