"""The demo page: builds the Gradio blocks around one classifier, for ``app.py`` and the tests.

``launch(build_page(ModelHandle("model"), "examples"))`` serves it. The views are ``view_slice``,
``view_batch`` and ``view_model``, its endpoints ``api``. Every file goes unopened to ``images.read.load_image``, which
alone decides what is readable; problems become one line on the page, never a traceback.
"""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from starlette.middleware import Middleware

from ..images.archive import MAX_ARCHIVE_BYTES
from ..labels import LABELS, RESEARCH_NOTICE
from ._gradio import gr
from .api import build_api
from .fragments import problem_panel
from .guard import KEPT_SECONDS, SWEEP_SECONDS, Guard, own_upload_folder
from .handle import ModelHandle, ModelUnavailableError
from .style import CSS, HEAD, THEME
from .uploads import READER
from .view_batch import build_batch_view
from .view_examination import build_examination_view
from .view_model import build_model_view
from .view_slice import build_slice_view

__all__ = ["ModelHandle", "ModelUnavailableError", "build_page", "launch"]

_OPTIONS: dict[str, Any] = {
    "theme": THEME,
    "css": CSS,
    "head": HEAD,
    "max_file_size": f"{MAX_ARCHIVE_BYTES // 2**20}mb",  # of images it is less: uploads.py
    # Gradio keeps 0.1 MB of each visitor, by default of the last 10,000. One who is forgotten just starts afresh.
    "state_session_capacity": 256,
    "share": False,
    "ssr_mode": False,  # no Node process: the page is small and starts faster without
    "run_history": False,  # Gradio would keep every uploaded slice in the browser's storage
    "footer_links": ["api"],  # not Gradio's settings, which offer to record the screen and to install the page
}
_MOST_WAITING = 256


def launch(demo: gr.Blocks, **options: Any) -> tuple[Any, str, str]:
    """Serve a page as this project does: its looks, its limits, nothing that calls home.

    Args:
        demo: of :func:`build_page`.
        **options: of ``gr.Blocks.launch``, added or in place of this project's.
    """
    # made anew for each launch: Gradio writes into it
    guarded = {"app_kwargs": {"middleware": [Middleware(Guard)]}}
    return demo.launch(**(_OPTIONS | guarded | options))


def intro_words(labels: Sequence[str]) -> str:
    """What the page is, for a model with these classes."""
    if tuple(labels) != LABELS:
        return f"<h1>Brain MRI classifier</h1><p>One MRI slice in, a probability for each of: {', '.join(labels)}.</p>"
    return (
        "<h1>Brain tumour MRI classifier</h1><p>One MRI slice in, four probabilities out: glioma, meningioma, "
        "pituitary tumour, or none of them. Made first of all for T1-weighted slices with contrast.</p>"
    )


# Gradio makes its server three times while a page is built, and again at launch, which serves the last.
@patch("gradio.routes.App.create_app", lambda *_, **__: None)
def build_page(model: ModelHandle, examples_dir: str | Path) -> gr.Blocks:
    """Build the page and its API.

    Args:
        model: the classifier to ask.
        examples_dir: folder with ``phantom-<label>.png`` and ``view_slice.TEMPLATE``; those that exist are offered.

    Returns:
        The blocks, to be served by :func:`launch`.
    """
    own_upload_folder()
    READER.start()

    def show_model_problem() -> tuple[dict[str, Any], Any]:
        """Wait for the model when a page is opened; a banner appears only if it failed."""
        try:
            labels = model.get().labels
        except ModelUnavailableError as error:
            message = f"{error}. Set MODEL_ID to the right one, then start the app again."
            return gr.update(value=problem_panel("The model is not available", message), visible=True), gr.skip()
        return gr.skip(), gr.skip() if labels == LABELS else intro_words(labels)

    # One queue for everything that runs the model: it uses all cores by itself.
    queued: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}

    with gr.Blocks(
        title="Brain tumour MRI classifier",
        analytics_enabled=False,
        # Not at once: the same file of two visitors is one file in Gradio's cache, and one of them may still wait in
        # the queue. This removes all at the end; what Gradio does not know of, guard.py sweeps.
        delete_cache=(SWEEP_SECONDS, KEPT_SECONDS),
    ) as demo:
        gr.HTML(f'<p role="note">{html.escape(RESEARCH_NOTICE)}</p>', elem_id="notice")
        intro = gr.HTML(intro_words(model.labels), elem_id="intro")
        banner = gr.HTML(visible=False, elem_id="model-problem")
        batch_paths = gr.State(())
        with gr.Tabs(elem_id="views") as tabs:
            with gr.Tab("One slice", id="slice"):
                build_slice_view(model, examples_dir, queued, tabs, batch_paths)
            # drawn at once: page.js hands it the files when several are dropped on the first view
            with gr.Tab("Many files", id="batch", render_children=True):
                build_batch_view(model, batch_paths)
            with gr.Tab("Examination", id="examination", render_children=True):
                build_examination_view(model)
            # filled when the page opens, so it is drawn then and not when it is first looked at
            with gr.Tab("Model", render_children=True):
                build_model_view(demo, model)
        demo.load(
            show_model_problem, None, [banner, intro], api_visibility="private", show_progress="hidden", queue=False
        )
        build_api(model, queued)
    # Places in the queue are told each second; at each answer, with 30 visitors waiting, 30 messages would go out.
    return demo.queue(status_update_rate=1, max_size=_MOST_WAITING)
