"""The page's file inputs: ``file_input(label=...)`` hands paths of uploads to its events and leaves nothing behind.

``checked(path)`` refuses an upload that is too large for an image: Gradio has one limit for all, which is that of zip
archives.
"""

import os
from pathlib import Path
from typing import Any

import gradio as gr

from .archive import MAX_MEMBER_BYTES
from .imaging import UnreadableImageError

MAX_IMAGE_BYTES = MAX_MEMBER_BYTES
"""Largest image, whether it comes alone or in an archive."""


def file_input(**options: Any) -> gr.File:
    """Make a file input.

    Gradio's own (6.31) makes an empty temporary file for each upload that it hands over, and never removes one. A
    subclass is no way out: Gradio writes a .pyi file beside the source of every new kind of component.

    Args:
        **options: of ``gr.File``.
    """
    component = gr.File(**options)
    several = component.file_count != "single"

    def paths(payload: Any) -> str | list[str] | None:
        if payload is None:
            return None
        files = [payload] if hasattr(payload, "path") else list(payload)
        found = [str(file.path) for file in files]
        return found if several else found[0] if found else None

    component.preprocess = paths  # type: ignore[method-assign]
    return component


def checked(path: str) -> str:
    """Return the path of an upload as it is, for ``load_image`` to read.

    Raises:
        UnreadableImageError: the file is larger than ``MAX_IMAGE_BYTES``.
    """
    if os.path.exists(path) and os.path.getsize(path) > MAX_IMAGE_BYTES:
        raise UnreadableImageError(Path(path).name, f"the file is over {MAX_IMAGE_BYTES // 2**20} MB; export one slice")
    return path
