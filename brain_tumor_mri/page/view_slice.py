"""The view of one slice: answer with decision and prediction set, picture with heat map, what the model sees.

``answer_slice`` gives picture and answer at once, ``explain_slice`` the picture again with the heat maps. All four maps
come together, so that class and opacity change in the browser (page.js) and the server keeps no picture.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL import Image

from ..errors import UserError
from ..heat_maps.explain import Explanation, explain_classes
from ..images.archive import shown_name
from ..inference.classifier import TumorClassifier
from ..labels import CLASSES, NO_TUMOR
from ..trust.decision import NOT_A_BRAIN_MRI, UNFAMILIAR
from .fragments import classes_in_words, data_uri, problem_panel
from .slice_panel import HEADINGS, answer_panel, meaning_of, panel_title, waiting_panel
from .slice_viewer import map_words, viewer, waiting_viewer
from .uploads import Files, file_input, read_upload, unforeseen

if TYPE_CHECKING:
    from .handle import ModelHandle

KEPT = 30  # answers of one visitor in the history
NO_MAP = {
    NOT_A_BRAIN_MRI: "No heat map: the picture was refused.",
    UNFAMILIAR: "No heat map: the slice is unlike those that the model knows.",
}
TEMPLATE = "template-icbm152-axial.png"

# On a phone the examples lie below the answer; where that is in view already, nothing moves.
SHOW_ANSWER = """() => {
  const answer = document.querySelector("#answer"), box = answer.getBoundingClientRect();
  if (box.bottom < 120 || box.top < 0 || box.top > innerHeight - 120) {
    answer.scrollIntoView({ block: "start", behavior: "smooth" });
  }
}"""


Source = tuple[tuple[str, ...], int]
"""Files of one upload, and which of them (of an archive's members, too) is meant: what is kept of a slice."""
GONE = "its upload is no longer here (uploads are removed after ten minutes); choose the file again"


def content_of(source: Source) -> tuple[str, str | bytes]:
    """Return name and content, or path, of a slice that was uploaded before."""
    paths, number = source
    if missing := [path for path in paths if not Path(path).is_file()]:
        raise UserError(f"{shown_name(Path(missing[0]).name)}: {GONE}")
    with Files(paths) as files:
        name, reader = files.entries[number]
        return name, reader()


@dataclass(frozen=True)
class SliceAnswer:
    """What the page shows for one slice, before heat maps.

    Attributes:
        viewer: HTML of the picture.
        panel: HTML of the answer.
        explainable: whether heat maps can follow.
        title: the answer in a few words, for the history; "" where there is none.
    """

    viewer: str
    panel: str
    explainable: bool = False
    title: str = ""


def answer_slice(model: "ModelHandle", path: "str | Source") -> SliceAnswer:
    """Answer one file for the page.

    Args:
        model: the classifier to ask.
        path: of the file, or one of several; its name is shown, and stands in errors.
    """
    try:
        name, content = content_of(_source(path))
        image, facts = read_upload(content, name)
    except UserError as error:
        return no_answer("This file cannot be read", str(error))
    except Exception as error:
        return no_answer("This file cannot be read", unforeseen(error))
    try:
        classifier = model.get()
        prediction = replace(classifier.predict(image), name=name)
    except UserError as error:
        return no_answer("No answer", str(error))
    except Exception as error:
        return no_answer("No answer", f"{name}: {unforeseen(error)}")
    panel = answer_panel(prediction, name, model.name, classifier.coverage)
    title = panel_title(prediction)
    if prediction.decision in (NOT_A_BRAIN_MRI, UNFAMILIAR):
        note = NO_MAP[prediction.decision]
        return SliceAnswer(viewer(image, facts=facts, note=note), panel, False, title)
    waiting = "The heat maps are on their way ..."
    return SliceAnswer(viewer(image, facts=facts, note=waiting), panel, True, title)


def no_answer(title: str, words: str) -> SliceAnswer:
    """Neither picture nor answer: nothing of an earlier file may stand beside what is said of this one."""
    return SliceAnswer(waiting_viewer(), problem_panel(title, words))


def explain_slice(model: "ModelHandle", path: "str | Source") -> tuple[str, str | None]:
    """Return the viewer with the heat maps of a file that was answered before, and the answer where they change it."""
    name, content = content_of(_source(path))
    image, facts = read_upload(content, name)
    try:
        classifier = model.get()
        found = heat_maps_of(classifier, image)
    except UserError as error:
        return viewer(image, facts=facts, note=f"No heat map: {error}."), None
    except Exception as error:
        return viewer(image, facts=facts, note=f"No heat map: {unforeseen(error)}."), None
    judged = next((one.judged for one in found if one.judged is not one.prediction), None)
    panel = judged and answer_panel(replace(judged, name=name), name, model.name, classifier.coverage)
    return viewer(image, found, facts), panel


def _source(path: "str | Source") -> Source:
    return ((path,), 0) if isinstance(path, str) else path


def heat_maps_of(classifier: TumorClassifier, image: Image.Image) -> list[Explanation]:
    """Return where the model looked, for each kind of tumour; "no tumour" has no place."""
    return [found for found in explain_classes(classifier, image) if found.target != NO_TUMOR]


def slice_report(model: "ModelHandle", path: "str | Source") -> bytes:
    """Return the answer of a file that was answered before as a page of PDF."""
    from .slice_report import SliceReport  # matplotlib: half a second, for those who want a report

    image, facts = read_upload(*content_of(_source(path))[::-1])
    classifier = model.get()
    prediction, shown = classifier.predict(image), None
    if prediction.decision not in (NOT_A_BRAIN_MRI, UNFAMILIAR):
        try:
            found = heat_maps_of(classifier, image)
            shown = next((one for one in found if one.target == prediction.label), None)
            prediction = shown.judged if shown else prediction
        except UserError:
            pass  # a network without a feature map
    if prediction.decision is None:
        words = "Not calibrated: these weights have no trust.json.", prediction.title, ""
    elif prediction.decision == NOT_A_BRAIN_MRI:
        words = "No answer", "Not a brain MRI", f"The model refuses this picture: {prediction.reason}."
    else:
        decision, meaning = meaning_of(prediction, classifier.coverage)
        left = classes_in_words(prediction.prediction_set, len(prediction.probabilities))
        words = HEADINGS[decision], left, meaning
    seen = map_words(shown) if shown else ""
    return SliceReport(*words, prediction, image, facts, model.name, shown, seen).pdf()


def build_slice_view(
    model: "ModelHandle", examples_dir: str | Path, queued: dict[str, Any], tabs: gr.Tabs, batch_paths: gr.State
) -> None:
    """Lay out the view and connect it, within the blocks that are open.

    Args:
        model: the classifier to ask.
        examples_dir: folder with ``phantom-<label>.png`` and ``TEMPLATE``; those that exist are offered as examples.
        queued: the queue's arguments for events that run the model.
        tabs: of the page; a row of many files leads to the first of them.
        batch_paths: the uploads behind the table of many files.
    """

    def show_answer(path: "str | Source | None", history: list[Entry]) -> tuple[Any, Any, None, Any, Any, Any]:
        if path is None:
            return gr.skip(), gr.skip(), None, None, gr.skip(), gr.skip()
        found, source = answer_slice(model, path), _source(path)
        if found.title:
            history = [(source, found.title), *(entry for entry in history if entry[0] != source)][:KEPT]
        maps = source if found.explainable else None
        # the input is emptied: ready for the next file
        return found.viewer, found.panel, None, maps, history, history_list(history)

    def show_maps(source: Source | None) -> tuple[Any, Any]:
        try:
            drawn, panel = (None, None) if source is None else explain_slice(model, source)
        except UserError:  # the upload's time was up while it waited; the answer stays
            drawn, panel = None, None
        return drawn or gr.skip(), panel or gr.skip()

    def fail(history: list[Entry]) -> tuple[Any, Any, None, None, Any, Any]:
        """What Gradio itself refused: a file that it cannot take, a queue that is full."""
        found = no_answer("No answer", "The page did not take this file; choose it again")
        return found.viewer, found.panel, None, None, history, gr.skip()

    def reopen(number: float | None, history: list[Entry]) -> tuple[Any, Any, None, Any, Any, Any]:
        known = number is not None and 0 <= int(number) < len(history)
        return show_answer(history[int(number)][0] if known else None, history)

    def open_row(number: float | None, paths: tuple[str, ...], history: list[Entry]) -> tuple[Any, ...]:
        return *show_answer((paths, int(number or 0)) if paths else None, history), gr.Tabs(selected="slice")

    def make_report(history: list[Entry]) -> str:
        try:
            uri = data_uri("application/pdf", slice_report(model, history[0][0])) if history else ""
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return f'<a href="{uri}" download="answer.pdf">report</a>' if uri else ""

    with gr.Row(equal_height=False, elem_id="slice-view"):  # page.css lays out its three parts
        # gr.File, not gr.Image: gr.Image opens and re-encodes the upload, and browsers cannot show TIFF or DICOM.
        upload = file_input(label="MRI slice: drop, choose or paste (Ctrl+V) a file", height=150, elem_id="slice-input")
        picture = gr.HTML(waiting_viewer(), elem_id="viewer")
        answer = gr.HTML(waiting_panel(model.name, model.labels), elem_id="answer")

    named = [(f"Synthetic: {c.title.lower()}", f"phantom-{c.name}.png") for c in CLASSES]
    named.append(("Template: average of 152 healthy brains", TEMPLATE))
    examples = [(words, path) for words, name in named if (path := Path(examples_dir) / name).is_file()]
    buttons: list[gr.Button] = []
    if examples:
        title = "No slice at hand? Examples that show no patient, drawn by a program or an average of healthy brains:"
        gr.HTML(f"<p>{title}</p>", elem_id="examples-title")
        with gr.Row(elem_id="examples"):
            buttons = [gr.Button(words, icon=path) for words, path in examples]
        for button in buttons:
            button.keep_in_cache.add(button.icon["path"])  # or delete_cache would take the pictures away

    history_view = gr.HTML(history_list([]), elem_id="history")
    # The maps follow in an event of their own, so that the input takes the next file meanwhile. They are made of the
    # upload's file, of which only the path is kept, and so of the slice that is shown.
    source, history = gr.State(None), gr.State([])
    outputs = [picture, answer, upload, source, history, history_view]
    private: dict[str, Any] = {"api_visibility": "private", **queued}

    def follow(shown: Any) -> None:
        """After an answer its maps; after a failure nothing of an earlier file."""
        shown.success(show_maps, source, [picture, answer], show_progress="hidden", **private)
        shown.failure(fail, history, outputs, show_progress="hidden", api_visibility="private", queue=False)

    shown = upload.upload(
        show_answer, [upload, history], outputs, show_progress_on=answer, trigger_mode="multiple", **private
    )
    follow(shown)
    for button, (_, example) in zip(buttons, examples, strict=True):

        def show_example(history: list[Entry], example: str = str(example)) -> tuple[Any, ...]:
            return show_answer(example, history)

        shown = button.click(show_example, history, outputs, show_progress_on=answer, **private)
        shown.then(None, js=SHOW_ANSWER, api_visibility="private")
        follow(shown)

    # page.js presses it; the file comes as a data URI, so that none of a visitor's is written
    report = gr.HTML(visible="hidden", elem_id="report-file")
    hidden = gr.Button("report", visible="hidden", elem_id="make-report")
    made = hidden.click(make_report, history, report, show_progress="hidden", **private)
    made.then(None, js='() => document.querySelector("#report-file a")?.click()', api_visibility="private")

    # page.js presses these when an entry of the history or a row of the table is chosen, and says which
    number = gr.Number(visible="hidden")
    for name, work, inputs, results in (
        ("open-entry", reopen, [number, history], outputs),
        ("open-row", open_row, [number, batch_paths, history], [*outputs, tabs]),
    ):
        hidden = gr.Button(name, visible="hidden", elem_id=name)
        chosen = "(...given) => [window.chosenNumber, ...given.slice(1)]"
        shown = hidden.click(work, inputs, results, js=chosen, show_progress_on=answer, **private)
        shown.then(None, js=SHOW_ANSWER, api_visibility="private")
        follow(shown)


Entry = tuple[Source, str]


def history_list(history: Sequence[Entry]) -> str:
    """The slices of this tab, newest first; "" without any."""
    if not history:
        return ""
    items = []
    for number, ((paths, place), title) in enumerate(history):
        name = Path(paths[place] if len(paths) > 1 and place < len(paths) else paths[0]).name
        items.append(
            f'<li><button type="button" data-entry="{number}">{html.escape(shown_name(name))}</button>'
            f"<span>{html.escape(title)}</span></li>"
        )
    count = f"Slices of this tab ({len(items)})"
    return f'<details class="history"><summary>{count}</summary><ol>{"".join(items)}</ol></details>'
