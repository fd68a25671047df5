"""Gradio, imported without what it does for those who write programs with it: a third of the page's start.

The package imports it from here, before any of its modules does.
"""

import inspect
import os
from typing import Any

_SETTINGS = {
    # Gradio (6.31) asks matplotlib for its window system at each answer; to find that out takes the import of pyplot.
    "MPLBACKEND": "agg",
    # It keeps who asked, of the last 10,000 answers, and counts all of them anew after each.
    "GRADIO_ANALYTICS_MAX_EVENTS": "1",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(10**9),
}
os.environ.update(_SETTINGS | os.environ)

_getfile = inspect.getfile


def _no_file_of_components(thing: Any) -> str:
    """Gradio writes a stub for editors beside each component's file at every import, unless there is no file."""
    if str(getattr(thing, "__module__", "")).startswith("gradio."):
        raise FileNotFoundError
    return _getfile(thing)


inspect.getfile = _no_file_of_components
try:
    import gradio as gr
finally:
    inspect.getfile = _getfile

__all__ = ["gr"]
