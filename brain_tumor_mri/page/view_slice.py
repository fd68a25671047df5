"""The view of one slice: answer with decision and prediction set, picture with heat map, what the model sees.

``answer_slice`` gives picture and answer at once, ``explain_slice`` the picture again with the heat maps. All four maps
come together, so that class and opacity change in the browser (page.js) and the server keeps no picture.
"""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
from PIL import Image

from ..errors import UserError
from ..heat_maps.explain import MOSTLY, Explanation, colour, explain_classes
from ..images.archive import shown_name
from ..images.facts import SliceFacts
from ..inference.classifier import TumorClassifier
from ..labels import CLASSES, NO_TUMOR, RESEARCH_NOTICE, TITLES, class_named
from ..trust.decision import ANSWER, COVERAGES, NOT_A_BRAIN_MRI, UNCERTAIN, UNFAMILIAR
from .fragments import (
    bars,
    classes_in_words,
    data_uri,
    decision_mark,
    drawing,
    info,
    percent,
    picture_uri,
    png_uri,
    problem_panel,
)
from .uploads import Files, file_input, read_upload, unforeseen

if TYPE_CHECKING:
    from ..inference.prediction import Prediction
    from .handle import ModelHandle

PREVIEW_PIXELS = 1024  # longest side of the picture sent back to the browser
OPACITY = 60  # percent, where the slider starts
KEPT = 30  # answers of one visitor in the history
NO_MAP = {
    NOT_A_BRAIN_MRI: "No heat map: the picture was refused.",
    UNFAMILIAR: "No heat map: the slice is unlike those that the model knows.",
}
TEMPLATE = "template-icbm152-axial.png"
HEADINGS = {
    ANSWER: "Model's answer",
    UNCERTAIN: "Uncertain",
    UNFAMILIAR: "Unfamiliar brain MRI: an answer not to rely on",
}

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


def panel_title(prediction: "Prediction") -> str:
    """The answer in a few words."""
    if prediction.decision == NOT_A_BRAIN_MRI:
        return "Not a brain MRI"
    words = classes_in_words(prediction.prediction_set or [str(prediction.label)])
    return f"{words} (unfamiliar)" if prediction.decision == UNFAMILIAR else words


def heat_maps_of(classifier: TumorClassifier, image: Image.Image) -> list[Explanation]:
    """Return where the model looked, for each kind of tumour; "no tumour" has no place."""
    return [found for found in explain_classes(classifier, image) if found.target != NO_TUMOR]


def heat_uri(heat: np.ndarray) -> str:
    """Return a map in [0, 1] as a PNG that lies over the slice: its colour, as opaque as the map is high."""
    # A table of 256 colours with their opacities takes a fifth of what four channels take.
    picture = Image.fromarray(np.rint(255 * heat).astype(np.uint8)).convert("P")
    picture.putpalette(colour(np.arange(256) / 255).tobytes())
    picture.info["transparency"] = bytes(range(256))
    return png_uri(picture)


def waiting_viewer() -> str:
    """The place of the picture, before there is one."""
    return (
        f'<section class="viewer waiting" {drawing()}><p>The slice and where the model looks appear here.</p></section>'
    )


def viewer(
    image: Image.Image,
    explanations: "Sequence[Explanation]" = (),
    facts: SliceFacts = SliceFacts(),  # noqa: B008 - frozen
    note: str = "",
) -> str:
    """Draw the slice in its own aspect ratio and, beside it, the same under the heat map.

    Args:
        image: the slice as read.
        explanations: one a class; switched and faded by page.js.
        facts: of its header.
        note: shown in place of the heat map's controls.
    """
    width, height = image.size
    # The frame has the slice's ratio, also before the picture is decoded, so that nothing jumps.
    ratio, uri = f'style="--ratio:{width / height:.5f}"', picture_uri(image, PREVIEW_PIXELS)
    sides = "".join(
        f'<span class="side {place}" title="Side of the patient, by the DICOM header">{letter}</span>'
        for place, letter in (("left", facts.left), ("right", facts.right))
        if letter
    )

    def figure(kind: str, alt: str, caption: str, over: str = "") -> str:
        return (
            f'<figure class="{kind}"><div class="stack" {ratio}><div class="pane"><img src="{uri}" alt="{alt}" '
            f'draggable="false">{over}</div>{sides}</div><figcaption>{caption}</figcaption></figure>'
        )

    figures = figure("whole", "The slice as it was read", f"Slice as read, {width} × {height} pixels")
    style, target, controls = "", "", f'<p class="note">{html.escape(note)}</p>' if note else ""
    extra = ""
    if explanations:
        uris = ";".join(f"--heat-{e.target}:url({heat_uri(e.shown_map)})" for e in explanations)
        probabilities = explanations[0].prediction.probabilities
        target = max((str(e.target) for e in explanations), key=lambda name: probabilities[name])
        # where "no tumour" is the answer, no map lies over the slice until a class is chosen
        target = "none" if explanations[0].prediction.label == NO_TUMOR else target
        style = f' style="{uris};--heat-none:none;--heat:var(--heat-{target})"'
        heat = '<div class="heat" aria-hidden="true"></div>'
        figures += figure("mapped", "The slice under the heat map", "Under the heat map; hold M for the slice", heat)
        controls = _heat_controls(explanations, target)
        seen = explanations[0].image
        extra = (
            "<details><summary>What the model sees</summary>"
            f'<figure class="seen"><img src="{png_uri(seen)}" alt="The slice as the model sees it" '
            f'width="{seen.width}" height="{seen.height}">'
            f"<figcaption>Squashed to {seen.width}\u00a0×\u00a0{seen.height} pixels"
            "</figcaption></figure></details>"
        )
    rows = "".join(f"<div><dt>{what}</dt><dd>{html.escape(value)}</dd></div>" for what, value in facts.lines)
    header = f'<dl class="header-facts" aria-label="From the DICOM header">{rows}</dl>' if rows else ""
    state = f'{drawing()} data-target="{target}"'
    return (
        f'<section class="viewer" aria-label="The slice" {state}{style}>{_tools()}<div class="figures">{figures}</div>'
        f"{header}{controls}{extra}</section>"
    )


def _tools() -> str:
    """Zoom, invert and window; they change the picture on the screen alone, never what the model sees."""
    buttons = "".join(
        f'<button type="button" data-tool="{name}"{pressed} title="{words}" aria-label="{words}">{sign}</button>'
        for name, sign, words, pressed in (
            ("in", "+", "Zoom in", ""),
            ("out", "−", "Zoom out", ""),
            ("reset", "Reset", "Reset zoom, window and level", ""),
            ("invert", "Invert", "Invert the grey scale", ' aria-pressed="false"'),
        )
    )
    sliders = "".join(
        f'<label><span>{title}</span><input type="range" name="{name}" min="{low}" max="{high}" value="{value}" '
        f'aria-label="{words}"></label>'
        for name, title, words, low, high, value in (
            ("window", "Window", "Window: width of the grey values shown, percent", 5, 200, 100),
            ("level", "Level", "Level: middle of the grey values shown, percent", 0, 100, 50),
        )
    )
    functions = "".join(f'<feFunc{c} type="linear" slope="1" intercept="0"/>' for c in "RGB")
    return (
        f'<div class="tools" role="group" aria-label="Display">{buttons}{sliders}</div><svg width="0" height="0" '
        'aria-hidden="true" class="filter"><filter id="grey-window" color-interpolation-filters="sRGB">'
        f"<feComponentTransfer>{functions}</feComponentTransfer></filter></svg>"
    )


def _heat_controls(explanations: "Sequence[Explanation]", target: str) -> str:
    shown = [(str(e.target), TITLES[str(e.target)]) for e in explanations]
    choices = "".join(
        f'<label><input type="radio" name="heat-class" value="{name}"{" checked" if name == target else ""}>'
        f"<span>{html.escape(title)}</span></label>"
        for name, title in [*shown, ("none", "None")]
    )
    notes = "".join(
        f'<p class="map-note" data-class="{name}"{"" if name == target else " hidden"}>{html.escape(words)}</p>'
        for name, words in [*((str(e.target), _map_words(e)) for e in explanations), ("none", "No map is shown.")]
    )
    meaning = info(
        "What the heat map means",
        "Where the model finds evidence for the class. It is no outline of a tumour, and no proof that the model "
        "looked at the right thing. It is drawn inside the head only, and all classes share one scale: a class "
        "that is hardly probable is hardly seen. No tumour has no place, so it has no map.",
    )
    return (
        f'<div class="controls"><label class="opacity"><span>Opacity <output>{OPACITY}</output> %</span>'
        f'<input type="range" name="heat-opacity" min="0" max="100" step="5" value="{OPACITY}"></label>'
        f'<fieldset class="switch"><legend>Heat map: what speaks for {meaning}</legend>'
        f'<div class="choices">{choices}</div></fieldset>{notes}'
        '<div class="scale"><span>little</span><span class="ramp" aria-hidden="true"></span><span>most</span></div>'
        "</div>"
    )


def _map_words(explanation: Explanation) -> str:
    """What must be known before a map is looked at."""
    title = TITLES[str(explanation.target)].lower()
    share = percent(explanation.prediction.probabilities[str(explanation.target)])
    if explanation.outside_head > MOSTLY:
        return (
            f"Do not rely on this: {100 * explanation.outside_head:.0f} % of the evidence for {title} lies outside the "
            "head, where no tumour can be."
        )
    if explanation.is_empty:
        return f"The map is empty: the model finds hardly any evidence for {title} ({share}) in one place."
    return (
        f"{title.capitalize()} {share}; {100 * explanation.outside_head:.0f} % of the evidence lies outside the head."
    )


def waiting_panel(model_name: str, labels: Sequence[str]) -> str:
    """The answer's place, before there is one."""
    return (
        '<section class="panel"><h2>Answer</h2><p class="words subdued">Choose, drop or paste one '
        "slice, or try an example. The probabilities appear here.</p>"
        f'{bars(None, labels)}<p class="source">Model: {html.escape(model_name)}</p></section>'
    )


def answer_panel(prediction: "Prediction", file_name: str, model_name: str, coverage: int) -> str:
    """Say what the model answers, and how far to trust it.

    Args:
        prediction: of the file.
        file_name: shown as the source.
        model_name: shown beside it.
        coverage: percent, of the prediction set that is shown first; page.js switches.
    """
    if prediction.decision is None:
        body = _undecided(prediction)
    elif prediction.decision == NOT_A_BRAIN_MRI:
        body = _refused(prediction)
    else:
        parts = [_decided(prediction, c, hidden=c != coverage) for c in sorted(COVERAGES, key=coverage.__ne__)]
        body = "".join(parts) + _coverage_switch(coverage)
        if prediction.decision == UNFAMILIAR:
            body += _folded(prediction, "Nobody measured what such numbers are worth on slices like this one.")
        else:
            body += f'<h3 class="quantity">Calibrated probabilities</h3>{bars(prediction.probabilities)}'
    return (
        f'<section class="panel" {drawing()} data-first="{coverage}">{body}{_report(prediction, model_name)}'
        f'<p class="source">File: {html.escape(file_name)} · Model: {html.escape(model_name)}</p></section>'
    )


def _folded(prediction: "Prediction", words: str) -> str:
    """Probabilities that are not to be used."""
    return (
        '<details class="meaningless"><summary>What the network gives for its classes all the same</summary>'
        f"<p>{words}</p>{bars(prediction.probabilities)}</details>"
    )


def _report(prediction: "Prediction", model_name: str) -> str:
    """The answer to take along: a page of PDF, JSON, and on paper."""
    record = prediction.to_dict() | {"model": model_name, "notice": RESEARCH_NOTICE}
    uri = data_uri("application/json", json.dumps(record, indent=2).encode())
    name = html.escape(f"{Path(prediction.name).stem}-answer.json")
    return (
        '<p class="report"><button type="button" data-report>Report as PDF</button>'
        f'<a href="{uri}" download="{name}">Report as JSON</a>'
        '<button type="button" data-tool="print">Print</button></p>'
    )


def _undecided(prediction: "Prediction") -> str:
    probabilities = prediction.probabilities
    second = sorted(probabilities, key=probabilities.__getitem__)[-2]
    shares = (
        f"The model gives {prediction.title.lower()} {percent(prediction.confidence)} of its probability, and "
        f"{TITLES[second].lower()} {percent(probabilities[second])}."
    )
    return (
        f'<h2>Most probable class</h2><p class="finding">{html.escape(prediction.title)}</p>'
        f'<p class="words">{html.escape(class_named(str(prediction.label)).description)}</p>'
        f'<h3 class="quantity">Probabilities, not calibrated</h3>{bars(probabilities)}'
        f'<p class="words subdued">{html.escape(shares)}</p><p class="words subdued" id="no-check">These weights come '
        "without a trust.json: nothing checks whether this is a brain MRI, and no prediction set says how sure the "
        "answer is. The model always chooses one of its classes, whatever the picture.</p>"
    )


def _refused(prediction: "Prediction") -> str:
    """Why there is no answer; what the network says of its classes all the same lies folded below."""
    return (
        f'<h2>{decision_mark(NOT_A_BRAIN_MRI)}No answer</h2><p class="finding">Not a brain MRI</p>'
        f'<p class="words">The model refuses this picture: {html.escape(str(prediction.reason))}.</p>'
        + _folded(prediction, "These numbers mean nothing for such a picture.")
    )


def _decided(prediction: "Prediction", coverage: int, *, hidden: bool) -> str:
    """Heading, finding and set at one coverage; a picture is unfamiliar at each."""
    left = prediction.prediction_sets[coverage]
    decision, words = _meaning(prediction, coverage)
    promise = f"For slices like those that it was fitted on, such sets hold the true class in about {coverage} of 100."
    if decision == UNFAMILIAR:
        promise = "For such slices nobody measured how often the set holds the true class."
    what = info("What this list is", f"Prediction set at {coverage} %. {promise}{_score(prediction)}")
    note = f"Classes left at {coverage} %: {', '.join(TITLES[name].lower() for name in left)}."
    return (
        f'<div class="decision" data-coverage="{coverage}"{" hidden" if hidden else ""}>'
        f"<h2>{decision_mark(decision)}{HEADINGS[decision]}</h2>"
        f'<p class="finding">{html.escape(classes_in_words(left))}</p>'
        f'<p class="words">{html.escape(words)}</p><div class="words subdued">{html.escape(note)} {what}</div></div>'
    )


def _meaning(prediction: "Prediction", coverage: int) -> tuple[str, str]:
    """The decision at a coverage, and what it means in words."""
    left = prediction.prediction_sets[coverage]
    if prediction.decision == UNFAMILIAR:
        return UNFAMILIAR, f"Do not rely on this: {prediction.reason}."
    if prediction.decision == UNCERTAIN and prediction.reason:  # by its heat map, whatever the set
        return UNCERTAIN, f"Do not rely on this: {prediction.reason}, where no tumour can be."
    if len(left) > 1:
        return UNCERTAIN, "The model cannot tell these apart here."
    return ANSWER, class_named(left[0]).description


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
        decision, meaning = _meaning(prediction, classifier.coverage)
        words = HEADINGS[decision], classes_in_words(prediction.prediction_set), meaning
    map_words = _map_words(shown) if shown else ""
    return SliceReport(*words, prediction, image, facts, model.name, shown, map_words).pdf()


def _score(prediction: "Prediction") -> str:
    if prediction.unlikeness is None:
        return ""
    return f" Unlikeness to the slices that the model knows: {prediction.unlikeness:.2f}; above 1 it is unfamiliar."


def _coverage_switch(coverage: int) -> str:
    choices = "".join(
        f'<label><input type="radio" name="coverage" value="{c}"{" checked" if c == coverage else ""}>'
        f"<span>{c} %</span></label>"
        for c in COVERAGES
    )
    meaning = info(
        "What this chooses",
        "How often the list of classes is to hold the true one (coverage of the prediction set). At 95 % it holds it "
        "more often than at 90 %, and so has more classes in it.",
    )
    legend = f"<legend>How sure the list of classes is to be {meaning}</legend>"
    return f'<fieldset class="switch">{legend}<div class="choices">{choices}</div></fieldset>'


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
