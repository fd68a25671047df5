"""The view of many files: progress, a table that sorts in the browser (page.js), a CSV; a stop keeps what is done."""

import html
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from ..errors import UserError
from ..images.archive import MAX_ARCHIVE_BYTES
from ..labels import TITLES
from ..trust.decision import ANSWER, DECISIONS, NOT_A_BRAIN_MRI, UNCERTAIN, UNFAMILIAR
from .fragments import classes_in_words, decision_mark, drawing, percent, problem_panel
from .uploads import MAX_FILES, MAX_IMAGE_BYTES, Files, Row, answer_files, csv_uri, file_input, unforeseen

if TYPE_CHECKING:
    from ..inference.prediction import Prediction
    from .handle import ModelHandle

_COLUMNS = (("Slice", None), ("File", "text"), ("Class", "text"), ("Probability", "number"), ("Decision", "text"))
_KINDS = {"error": "not readable", **DECISIONS}
_CONCERN = ("error", NOT_A_BRAIN_MRI, UNFAMILIAR, UNCERTAIN, ANSWER)
"""What a person must look at first comes first."""
_ROWS_A_SECOND = 100  # the whole table is sent again with each update, so long ones are sent less often


class Stops:
    """Who pressed Cancel: a flag for each visitor with a run, by the session's random name."""

    def __init__(self) -> None:
        self._flags: dict[str, threading.Event] = {}

    def start(self, session: str) -> None:
        """Make a flag for the session's new run; one that is still going ends."""
        self.press(session)
        self._flags[session] = threading.Event()

    def of(self, session: str) -> threading.Event:
        """Return the flag of the session's newest run."""
        return self._flags.setdefault(session, threading.Event())

    def press(self, session: str) -> None:
        """Set the flag of the session's run, if it has one."""
        if flag := self._flags.get(session):
            flag.set()

    def end(self, session: str, flag: threading.Event) -> None:
        """Forget a run; a newer one of the session stays."""
        if self._flags.get(session) is flag:
            del self._flags[session]


def answer_batch(model: "ModelHandle", paths: Sequence[str], stop: threading.Event) -> Iterator[tuple[str, str]]:
    """Answer the files of one run.

    Args:
        model: the classifier to ask.
        paths: of the files.
        stop: set to end early.

    Yields:
        Status and table, as HTML, about once a second; at last with everything that was done.
    """
    try:
        classifier = model.get()
        files = Files(paths)
    except UserError as error:
        yield problem_panel("No answers", str(error)), ""
        return
    rows: list[Row] = []
    with files:
        total = len(files.entries)
        yield status(0, total, "Working"), ""
        shown = time.monotonic()
        problem = ""
        try:
            for row in answer_files(classifier, files, stopped=stop.is_set):
                rows.append(row)
                if time.monotonic() - shown > max(0.7, len(rows) / _ROWS_A_SECOND):
                    yield status(len(rows), total, "Working"), table(rows)
                    shown = time.monotonic()
        except Exception as error:  # of the model: files have rows of their own
            words = str(error) if isinstance(error, UserError) else unforeseen(error)
            problem = problem_panel("Not all files were answered", words)
    done = "Done" if len(rows) == total else "Stopped; what was done is kept"
    yield problem + status(len(rows), total, done, rows), table(rows)


def status(done: int, total: int, words: str, rows: Sequence[Row] = ()) -> str:
    """How far a run is; with ``rows``, what came of it."""
    text = f"{words}: {done} of {total} {'file' if total == 1 else 'files'}"
    if rows:
        # a class counts where it is the model's answer; what is uncertain, unfamiliar or refused is counted as such
        sure = Counter(row.prediction.label for row in rows if row.prediction.decision in (ANSWER, None))
        flagged = Counter(row.prediction.decision for row in rows)
        parts = [(sure[name], TITLES[name].lower()) for name in (*TITLES, *sorted(sure.keys() - {*TITLES, None}))]
        parts += [(flagged[name], words) for name, words in DECISIONS.items() if name != ANSWER]
        parts.append((sum(row.prediction.error is not None for row in rows), "not readable"))
        text += f" ({', '.join(f'{count} {words}' for count, words in parts if count)})"
    return (
        f'<div class="panel progress"><p role="status">{html.escape(text)}</p>'
        f'<progress max="{max(total, 1)}" value="{done}" aria-label="Files answered"></progress></div>'
    )


def table(rows: Sequence[Row]) -> str:
    """The answers as a table whose heads sort it, and as a CSV to download; "" without rows."""
    if not rows:
        return ""
    link = csv_uri([row.prediction for row in rows])
    ordered = sorted(enumerate(rows), key=lambda item: _CONCERN.index(_kind(item[1].prediction)))
    kinds = Counter(_kind(row.prediction) for row in rows)
    options = "".join(
        f'<option value="{kind}">{html.escape(_KINDS[kind])} ({kinds[kind]})</option>'
        for kind in _CONCERN
        if kinds[kind]
    )
    body = "".join(_table_row(*item) for item in ordered)
    chooser = (
        f'<label class="filter">Show <select name="decision-filter"><option value="">all {len(rows)}, problems first'
        f"</option>{options}</select></label>"
    )
    heads = "".join(
        f'<th scope="col" data-sort="{kind}"><button type="button">{title}</button></th>'
        if kind
        else f'<th scope="col">{title}</th>'
        for title, kind in _COLUMNS
    )
    return (
        f'<div class="panel answers"><a class="download" download="answers.csv" href="{link}">Download CSV</a>{chooser}'
        f'<div class="scroll" tabindex="0" role="region" aria-label="Answers"><table {drawing()}>'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div></div>"
    )


def _kind(prediction: "Prediction") -> str:
    return "error" if prediction.error is not None else prediction.decision or ANSWER


def _table_row(number: int, row: Row) -> str:
    prediction = row.prediction
    name = html.escape(prediction.name)
    picture = '<span class="none">–</span>'
    if row.thumbnail:
        picture = (
            f'<button type="button" class="open" aria-label="Open {name}"><img src="{row.thumbnail}" alt="" '
            'loading="lazy"></button>'
        )
    first = f'<td>{picture}</td><td class="file">{name}</td>'
    marks = f'data-row="{number}" data-kind="{_kind(prediction)}"'
    if prediction.error is not None or prediction.decision == NOT_A_BRAIN_MRI:
        kind, why = ("error", prediction.error) if prediction.error is not None else ("refused", prediction.reason)
        words = f"{'Not readable' if kind == 'error' else 'Not a brain MRI'}: {why}"
        verdict = f'<div class="verdict">{decision_mark(NOT_A_BRAIN_MRI)}{html.escape(words)}</div>'
        return (
            f'<tr class="{kind}" {marks}>{first}<td data-value="~">–</td><td data-value="-1">–</td>'
            f'<td data-value="~">{verdict}</td></tr>'
        )
    share = percent(prediction.confidence)
    verdict = f'<div class="verdict">{decision_mark(prediction.decision)}{html.escape(_in_words(prediction))}</div>'
    return (
        f"<tr {marks}>{first}<td>{html.escape(prediction.title)}</td>"
        f'<td data-value="{prediction.confidence:.6f}" class="number">{html.escape(share)}</td><td>{verdict}</td></tr>'
    )


def _in_words(prediction: "Prediction") -> str:
    if prediction.decision == UNFAMILIAR:
        return f"Unfamiliar, do not rely on it: {prediction.reason}"
    if prediction.decision == UNCERTAIN:
        return f"Uncertain: {classes_in_words(prediction.prediction_set, len(prediction.probabilities))}"
    # without a trust.json there is no decision; the class alone would look like one
    return "Model's answer" if prediction.decision else "not checked"


def build_batch_view(model: "ModelHandle", batch_paths: gr.State) -> None:
    """Lay out the view and connect it, within the blocks that are open.

    Args:
        model: the classifier to ask.
        batch_paths: takes the uploads of the newest run, so that a row can be opened.
    """
    stops = Stops()
    waiting = '<div class="panel progress"><p role="status">Waiting for its turn ...</p></div>'

    def start(paths: list[str] | None, request: gr.Request) -> tuple[Any, Any, Any, tuple[str, ...]]:
        stops.start(str(request.session_hash))
        return waiting, "", gr.update(visible=True), tuple(paths or ())

    def work(paths: list[str] | None, request: gr.Request) -> Iterator[tuple[Any, Any, Any, Any]]:
        session = str(request.session_hash)
        flag = stops.of(session)
        try:
            for progress, answers in answer_batch(model, paths or [], flag):
                yield progress, answers, gr.skip(), gr.skip()
            yield progress, answers, gr.update(visible=False), None
        finally:  # also where the visitor has gone
            stops.end(session, flag)

    def cancel(request: gr.Request) -> dict[str, Any]:
        stops.press(str(request.session_hash))
        return gr.update(visible=False)

    gr.HTML(
        f"<p>Several images, or a zip of them: up to {MAX_FILES} files, {MAX_IMAGE_BYTES // 2**20}\u00a0MB an image, "
        f"{MAX_ARCHIVE_BYTES // 2**20}\u00a0MB a zip. Nothing is unpacked to disk, and uploads are removed after ten "
        "minutes.</p>",
        elem_classes="lead",
    )
    upload = file_input(
        label="MRI slices: drop or choose several files, or a zip",
        file_count="multiple",
        height=170,
        elem_id="batch-input",
    )
    stop = gr.Button("Cancel", visible=False, elem_id="batch-cancel", size="sm")
    progress = gr.HTML(elem_id="batch-status")
    answers = gr.HTML(elem_id="batch-table")

    # One batch at a time, beside the queue of single slices: a visitor with one slice does not wait for 500 others.
    upload.upload(
        start,
        upload,
        [progress, answers, stop, batch_paths],
        api_visibility="private",
        queue=False,
        show_progress="hidden",
    ).then(
        work,
        upload,
        [progress, answers, stop, upload],
        api_visibility="private",
        show_progress="hidden",
        concurrency_id="batch",
        concurrency_limit=1,
    )
    stop.click(cancel, None, stop, api_visibility="private", queue=False, show_progress="hidden")
