"""Errors meant for people: one line that says what is wrong, where, and what to do.

Commands catch :class:`UserError`, print its message and exit with 2; anything else is a bug and keeps its traceback.
"""

import re

_EXTRAS = {
    "torch": "train", "torchvision": "train", "timm": "train", "transformers": "train", "datasets": "train",
    "evaluate": "train", "accelerate": "train", "torchio": "train", "sklearn": "train", "scipy": "train",
    "matplotlib": "train", "jinja2": "train", "yaml": "train", "kagglehub": "train", "gradio": "page",
    "starlette": "page", "pydicom": "dicom", "nibabel": "volumes", "SimpleITK": "volumes", "pynetdicom": "clinical",
    "dicomweb_client": "clinical", "highdicom": "clinical", "onnx": "export", "onnxscript": "export",
    "flwr": "federated",
}  # fmt: skip
"""Package that the core does without -> the extra of pyproject.toml that brings it."""


class UserError(Exception):
    """The user's input (a path, a flag, a file, a missing download) is wrong; ``str(error)`` is one readable line."""


def missing_package(error: ImportError) -> UserError | None:
    """Say how to install what was not found; None where it is in no extra, which is a bug and no user's doing."""
    package = (error.name or "").partition(".")[0]
    if package not in _EXTRAS:
        return None
    return UserError(f"{package} is not installed: pip install 'brain-tumor-mri[{_EXTRAS[package]}]'")


def safe_line(text: str) -> str:
    """Text safe to print on one line: no line breaks, terminal escapes or undecodable characters."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(text).split()))


def first_line(error: BaseException) -> str:
    """Return what an error says, short enough for a line: its first line without the full stop, else its kind.

    An ``OSError`` says its reason only (``No space left on device``), as the caller names the file.
    """
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = text.strip().splitlines()
    return without_credentials(safe_line(lines[0]).rstrip(".:")) if lines else type(error).__name__


def without_credentials(text: str) -> str:
    """Text in which no address names a user or a password, as in ``https://user:password@host``."""
    return re.sub(r"(?<=://)[^/?#\s]*@", "", text)
