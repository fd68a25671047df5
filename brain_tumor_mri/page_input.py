"""The page's file inputs: ``file_input(label=...)`` hands paths of uploads to its events and leaves nothing behind."""

from typing import Any

import gradio as gr


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
