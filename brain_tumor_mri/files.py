"""Text and JSON files: read with errors for people, and written whole, so that a stopped run leaves no half of one."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from .errors import UserError, first_line


@contextmanager
def replacing(path: str | os.PathLike[str], *, newline: str | None = None, errors: str = "strict") -> Iterator[TextIO]:
    """Open a text file (UTF-8) to write beside its place; renamed at the end, so that nobody ever meets half of it.

    A symbolic link stays, and the file that it names is replaced; a file keeps its mode. Devices and pipes are written
    straight into.

    Raises:
        UserError: it cannot be written; a file that was there is as before.
    """
    try:
        if is_stream(path):
            with open(path, "w", encoding="utf-8", newline=newline, errors=errors) as file:
                yield file
            return
        target = Path(os.path.realpath(path))
        beside = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            with beside.open("w", encoding="utf-8", newline=newline, errors=errors) as file:
                yield file
            put_in_place(beside, target)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"{path} cannot be written: {first_line(error)}") from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file (UTF-8) as :func:`replacing` does.

    Raises:
        UserError: as of :func:`replacing`.
    """
    with replacing(path) as file:
        file.write(text)


def write_json(path: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """Write a record as readable JSON; NaN is refused, as no parser but Python's takes it.

    Raises:
        UserError: as of :func:`write_text`.
        ValueError: a number is not finite.
    """
    write_text(path, json.dumps(record, indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str], remedy: str = "") -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: of the file.
        remedy: what to do when it cannot be read; ends the error's line.

    Raises:
        UserError: it is missing, unreadable, no JSON, or holds no object.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        problem, cause = "is missing", error
    except OSError as error:
        problem, cause = f"cannot be read ({first_line(error)})", error
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or nested without end
        problem, cause = f"is no valid JSON ({first_line(error)})", error
    else:
        if isinstance(record, dict):
            return record
        problem, cause = "holds no JSON object", None
    raise UserError(f"{path} {problem}{'; ' + remedy if remedy else ''}") from cause


def check_writable(path: str | os.PathLike[str], flag: str = "--output") -> None:
    """Find out before the work whether its result can be written to this place; nothing is written.

    Raises:
        UserError: it is a folder, or in a folder that is missing or may not be written to.
    """
    if is_stream(path):
        if not os.access(path, os.W_OK):
            raise UserError(f"{flag} {path} cannot be written: no permission")
        return
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise UserError(f"{flag} {path} is a folder; give a file name")
    if not target.parent.is_dir():
        raise UserError(f"{flag} {path}: there is no folder {Path(path).parent}; create it first")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {path} cannot be written: no permission in {target.parent}")


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether this is a device, pipe or socket, which is written straight into and never replaced."""
    # /dev/stdout may lead to a regular file, which the shell holds open: replaced, it would lose what follows
    if os.path.abspath(path).startswith(("/dev/std", "/dev/fd/", "/proc/")):
        return True
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def put_in_place(beside: Path, target: Path) -> None:
    """Rename a finished file to its name, with the mode of the file that it replaces."""
    if target.exists():
        beside.chmod(stat.S_IMODE(target.stat().st_mode))
    beside.replace(target)
