"""Errors meant for people: one line that says what is wrong, where, and what to do.

Commands catch :class:`UserError`, print its message and exit with 2; anything else is a bug and keeps its traceback.
"""


class UserError(Exception):
    """The user's input (a path, a flag, a file, a missing download) is wrong; ``str(error)`` is one readable line."""


def safe_line(text: str) -> str:
    """Text safe to print on one line: no line breaks, terminal escapes or undecodable characters."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(text).split()))


def first_line(error: BaseException) -> str:
    """Return what an error says, short enough for a line: its first line without the full stop, else its kind.

    An ``OSError`` says its reason only (``No space left on device``), as the caller names the file.
    """
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = text.strip().splitlines()
    return safe_line(lines[0]).rstrip(".:") if lines else type(error).__name__
