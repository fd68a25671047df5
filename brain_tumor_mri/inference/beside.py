"""JSON files beside the weights that no class depends on: read, checked, and passed over where they are of others."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ..errors import UserError
from .model_folder import ModelFolder

_Content = TypeVar("_Content")


def read_beside(
    folder: ModelFolder, name: str, schema: int, parse: Callable[[Mapping[str, Any]], _Content], command: str
) -> _Content | None:
    """Read one of a model folder's files; None when it has none, or one of other weights.

    Args:
        folder: of the model.
        name: of the file.
        schema: that it must have.
        parse: makes what is returned; KeyError, TypeError or ValueError where the content is not as it should be.
        command: that writes the file anew.
    """
    file = folder.path / name
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["schema"] != schema:
            raise ValueError(f"schema {content['schema']}, not {schema}")
        parsed = parse(content)
        # unlike trust.json it decides no class, so one that is out of date is left out rather than refused
        return parsed if content["weights_sha256"] == folder.sha256() else None
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({error}); write it anew with `{command}`") from error


def record_of(content: Mapping[str, Any], *known: str) -> dict[str, Any]:
    """What a file says of how it was made: all but its schema, its weights and what is ``known``."""
    return {key: value for key, value in content.items() if key not in {"schema", "weights_sha256", *known}}
