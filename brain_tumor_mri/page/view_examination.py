"""The view of one examination: a NIfTI, a zip or DICOM files in; three planes, profile, answer and report out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from ..images.archive import MAX_ARCHIVE_BYTES
from .examination_panels import Progress, waiting_panel, waiting_viewer, working_panel
from .examination_work import examine
from .uploads import file_input

if TYPE_CHECKING:
    from ..inference.volume import VolumePrediction
    from .handle import ModelHandle

QUEUED: dict[str, Any] = {"concurrency_id": "examination", "concurrency_limit": 1}
"""One at a time, beside the queue of single slices: a visitor with one slice does not wait for whole examinations."""


@dataclass(frozen=True, eq=False)
class _Asked:
    """What a visitor asked for last; an answer to anything else is not shown, as it may be of another patient."""

    paths: tuple[str, ...]
    number: int | None = None
    known: "Sequence[VolumePrediction]" = ()


def build_examination_view(model: "ModelHandle") -> None:
    """Lay out the view and connect it, within the blocks that are open.

    Args:
        model: the classifier to ask.
    """
    newest: dict[str, _Asked] = {}

    def start(paths: list[str] | None, request: gr.Request) -> tuple[Any, ...]:
        newest[str(request.session_hash)] = _Asked(tuple(paths or ()))
        return waiting_viewer(), working_panel(Progress("Waiting for its turn ...")), None, ((), ())

    def start_series(number: float | None, known: tuple[Any, Any], request: gr.Request) -> tuple[Any, ...]:
        paths, predictions = known
        chosen = int(number or 0)
        newest[str(request.session_hash)] = _Asked(
            paths, chosen if chosen in range(len(predictions)) else None, predictions
        )
        return waiting_viewer(), working_panel(Progress("Waiting for its turn ...")), gr.skip(), known

    def work(request: gr.Request) -> Iterator[tuple[Any, ...]]:
        session = str(request.session_hash)
        asked = newest.get(session)

        def superseded() -> bool:
            return newest.get(session) is not asked

        if asked is None:  # answered already: two uploads, one right after the other
            yield gr.skip(), gr.skip(), gr.skip()
            return
        try:
            for found in examine(model, asked.paths, asked.number, asked.known, superseded):
                if superseded():
                    return
                if isinstance(found, Progress):
                    yield gr.skip(), working_panel(found), gr.skip()
                else:
                    yield found.viewer, found.panel, (asked.paths, found.predictions)
        finally:  # also where the visitor has gone
            if newest.get(session) is asked:
                del newest[session]

    gr.HTML(
        "<p>One examination: a volume (NIfTI, MGZ, NRRD, MHA), a zip, or DICOM files; drop them below, or "
        '<button type="button" class="choose-folder">choose a folder</button>. Up to '
        f"{MAX_ARCHIVE_BYTES // 2**20}\u00a0MB a file. Uploads, and what is unpacked of them, are removed after ten "
        "minutes.</p>",
        elem_classes="lead",
    )
    with gr.Row(equal_height=False, elem_id="examination-view"):
        upload = file_input(
            label="Drop a volume, a zip or DICOM files",
            file_count="multiple",
            height=150,
            elem_id="examination-input",
        )
        planes = gr.HTML(waiting_viewer(), elem_id="volume-viewer")
        answer = gr.HTML(waiting_panel(model.name), elem_id="examination-answer")
    known = gr.State(((), ()))
    outputs, answered = [planes, answer, upload, known], [planes, answer, known]
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "trigger_mode": "multiple"}
    upload.upload(start, upload, outputs, queue=False, **private).then(work, None, answered, **private, **QUEUED)
    # examination.js presses this when another series is chosen, and says which
    number = gr.Number(visible="hidden")
    hidden = gr.Button("open-series", visible="hidden", elem_id="open-series")
    chosen = "(...given) => [window.chosenSeries, ...given.slice(1)]"
    hidden.click(start_series, [number, known], outputs, js=chosen, queue=False, **private).then(
        work, None, answered, **private, **QUEUED
    )
