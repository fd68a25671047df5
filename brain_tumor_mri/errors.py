"""Errors meant for people: one line that says what is wrong, where, and what to do.

Commands catch :class:`UserError`, print its message and exit with 2; anything else is a bug and keeps its traceback.
"""


class UserError(Exception):
    """The user's input (a path, a flag, a file, a missing download) is wrong; ``str(error)`` is one readable line."""


def safe_line(text: str) -> str:
    """Text safe to print on one line: no line breaks, terminal escapes or undecodable characters."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(text).split()))
