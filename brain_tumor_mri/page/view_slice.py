"""The view of one slice: answer with decision and prediction set, picture with heat map, what the model sees.

``answer_slice`` gives picture and answer at once, ``explain_slice`` the picture again with the heat maps. All four maps
come together, so that class and opacity change in the browser (page.js) and the server keeps no picture.
"""

import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from ..errors import UserError
from ..images.read import load_image
from ..labels import CLASSES, TITLES
from ..trust.decision import ANSWER, COVERAGES, NOT_A_BRAIN_MRI, UNCERTAIN, UNFAMILIAR
from .fragments import bars, classes_in_words, decision_mark, drawing, percent, picture_uri, png_uri, problem_panel
from .uploads import checked, file_input

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from ..inference.classifier import TumorClassifier
    from ..inference.prediction import Prediction
    from .handle import ModelHandle

PREVIEW_PIXELS = 1024  # longest side of the picture sent back to the browser
OPACITY = 60  # percent, where the slider starts
TEMPLATE = "template-icbm152-axial.png"
DESCRIPTIONS = {c.name: c.description for c in CLASSES}
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


def answer_slice(model: "ModelHandle", path: str) -> tuple[str, str, bool]:
    """Answer one file for the page.

    Args:
        model: the classifier to ask.
        path: of the file; its name is shown, and stands in errors.

    Returns:
        The viewer without heat maps and the answer, as HTML; and whether heat maps can follow.
    """
    name = Path(path).name
    try:
        image = load_image(checked(path), name=name)
    except UserError as error:
        return waiting_viewer(), problem_panel("This file cannot be read", str(error)), False
    try:
        classifier = model.get()
        prediction = classifier.predict(image)
    except UserError as error:
        return viewer(image), problem_panel("No answer", str(error)), False
    panel = answer_panel(prediction, name, model.name, classifier.coverage)
    if prediction.decision == NOT_A_BRAIN_MRI:
        return viewer(image), panel, False
    return viewer(image, note="The heat maps are on their way ..."), panel, True


def explain_slice(model: "ModelHandle", path: str) -> str:
    """Return the viewer with the heat maps of a file that was answered before."""
    image = load_image(path, name=Path(path).name)
    try:
        seen, maps, target = heat_maps_of(model.get(), image)
    except UserError as error:
        return viewer(image, note=f"No heat map: {error}.")
    return viewer(image, seen, maps, target)


def heat_maps_of(
    classifier: "TumorClassifier", image: "Image.Image"
) -> "tuple[Image.Image, dict[str, np.ndarray], str]":
    """Return what the model sees; for each class its heat map, float32 (H, W) in [0, 1]; and the class answered.

    Raises:
        UserError: the model has no feature map to explain.
    """
    from ..heat_maps.explain import explain_classes

    found = explain_classes(classifier, image)
    maps = {str(explanation.target): explanation.heat_map for explanation in found}
    return found[0].image, maps, str(found[0].prediction.label)


def heat_uri(heat: "np.ndarray") -> str:
    """Return a map in [0, 1] as a PNG that lies over the slice: its colour, as opaque as the map is high."""
    import numpy as np
    from PIL import Image

    from ..heat_maps.explain import colour

    # A table of 256 colours with their opacities takes a fifth of what four channels take.
    picture = Image.fromarray(np.rint(255 * heat).astype(np.uint8)).convert("P")
    picture.putpalette(colour(np.arange(256) / 255).tobytes())
    picture.info["transparency"] = bytes(range(256))
    return png_uri(picture)


def waiting_viewer() -> str:
    """The place of the picture, before there is one."""
    return '<section class="viewer waiting"><p>The slice and where the model looks appear here.</p></section>'


def viewer(
    image: "Image.Image",
    seen: "Image.Image | None" = None,
    maps: "dict[str, np.ndarray] | None" = None,
    target: str | None = None,
    note: str = "",
) -> str:
    """Draw the slice in its own aspect ratio, what the model sees beside it, and the heat maps over both.

    Args:
        image: the slice as read.
        seen: what the model sees.
        maps: class -> heat map; switched and faded by page.js.
        target: the class whose map is shown first.
        note: shown in place of the controls.
    """
    width, height = image.size
    style, heat = "", ""
    if maps:
        uris = ";".join(f"--heat-{name}:url({heat_uri(values)})" for name, values in maps.items())
        style, heat = f' style="{uris};--heat:var(--heat-{target})"', '<div class="heat" aria-hidden="true"></div>'
    # The frame has the slice's ratio, also before the picture is decoded, so that nothing jumps.
    figures = (
        f'<figure class="whole"><div class="stack" style="--ratio:{width / height:.5f}">'
        f'<img src="{picture_uri(image, PREVIEW_PIXELS)}" alt="The slice as it was read">{heat}</div>'
        f"<figcaption>Slice as read, {width} × {height} pixels</figcaption></figure>"
    )
    if seen is not None:
        figures += (
            f'<figure class="seen"><div class="stack" style="--ratio:{seen.width / seen.height:.5f}">'
            f'<img src="{png_uri(seen)}" alt="The slice as the model sees it">{heat}</div>'
            f"<figcaption>What the model sees, {seen.width}\u00a0×\u00a0{seen.height}</figcaption></figure>"
        )
    controls = _heat_controls(str(target)) if maps else f'<p class="note">{html.escape(note)}</p>' if note else ""
    figures = f'<div class="figures">{figures}</div>'
    state = f'{drawing()} data-target="{target or ""}"'
    return f'<section class="viewer" aria-label="The slice" {state}{style}>{figures}{controls}</section>'


def _heat_controls(target: str) -> str:
    choices = "".join(
        f'<label><input type="radio" name="heat-class" value="{name}"{" checked" if name == target else ""}>'
        f"<span>{html.escape(title)}</span></label>"
        for name, title in TITLES.items()
    )
    return (
        f'<div class="controls"><fieldset class="switch"><legend>Heat map: what speaks for</legend>'
        f'<div class="choices">{choices}</div></fieldset>'
        f'<label class="opacity"><span>Opacity <output>{OPACITY}</output> %</span>'
        f'<input type="range" name="heat-opacity" min="0" max="100" step="5" value="{OPACITY}"></label>'
        '<div class="scale"><span>little</span><span class="ramp" aria-hidden="true"></span><span>most</span></div>'
        "</div>"
        '<p class="note">Where the model finds evidence for the class; no outline of a tumour, and no proof that it '
        "looked at the right thing.</p>"
    )


def waiting_panel(model_name: str) -> str:
    """The answer's place, before there is one."""
    return (
        '<section class="panel"><h2>Answer</h2><p class="words subdued">Choose, drop or paste one '
        "slice, or try an example. The four probabilities appear here.</p>"
        f'{bars(None)}<p class="source">Model: {html.escape(model_name)}</p></section>'
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
        kind = "Probabilities" if prediction.decision == UNFAMILIAR else "Calibrated probabilities"
        body += f'<h3 class="quantity">{kind}</h3>{bars(prediction.probabilities)}'
    return (
        f'<section class="panel" {drawing()} data-first="{coverage}">{body}'
        f'<p class="source">File: {html.escape(file_name)} · Model: {html.escape(model_name)}</p></section>'
    )


def _undecided(prediction: "Prediction") -> str:
    probabilities = prediction.probabilities
    second = sorted(probabilities, key=probabilities.__getitem__)[-2]
    shares = (
        f"The model gives {prediction.title.lower()} {percent(prediction.confidence)} of its probability, and "
        f"{TITLES[second].lower()} {percent(probabilities[second])}."
    )
    return (
        f'<h2>Most probable of the four</h2><p class="finding">{html.escape(prediction.title)}</p>'
        f'<p class="words">{html.escape(DESCRIPTIONS[prediction.label])}</p>'
        f'<h3 class="quantity">Probabilities, not calibrated</h3>{bars(probabilities)}'
        f'<p class="words subdued">{html.escape(shares)}</p><p class="words subdued" id="no-check">These weights come '
        "without a trust.json: nothing checks whether this is a brain MRI, and no prediction set says how sure the "
        "answer is. The model always chooses one of the four, whatever the picture.</p>"
    )


def _refused(prediction: "Prediction") -> str:
    """Why there is no answer; what the network says of its four classes all the same lies folded below."""
    return (
        f'<h2>{decision_mark(NOT_A_BRAIN_MRI)}No answer</h2><p class="finding">Not a brain MRI</p>'
        f'<p class="words">The model refuses this picture: {html.escape(str(prediction.reason))}.</p>'
        '<details class="meaningless"><summary>What the network gives for its four classes all the same</summary>'
        f"<p>These numbers mean nothing for such a picture.</p>{bars(prediction.probabilities)}</details>"
    )


def _decided(prediction: "Prediction", coverage: int, *, hidden: bool) -> str:
    """Heading, finding and set at one coverage; a picture is unfamiliar at each."""
    left = prediction.prediction_sets[coverage]
    decision = UNFAMILIAR if prediction.decision == UNFAMILIAR else ANSWER if len(left) == 1 else UNCERTAIN
    words = DESCRIPTIONS[left[0]] if len(left) == 1 else "The model cannot tell these apart here."
    promise = f"For slices like those that it was fitted on, such sets hold the true class in about {coverage} of 100."
    if decision == UNFAMILIAR:
        words = f"Do not rely on this: {prediction.reason}."
        promise = "For such slices nobody measured how often the set holds the true class."
    note = f"Prediction set at {coverage} %: {', '.join(TITLES[name].lower() for name in left)}. {promise}"
    return (
        f'<div class="decision" data-coverage="{coverage}"{" hidden" if hidden else ""}>'
        f"<h2>{decision_mark(decision)}{HEADINGS[decision]}</h2>"
        f'<p class="finding">{html.escape(classes_in_words(left))}</p>'
        f'<p class="words">{html.escape(words)}</p><p class="words subdued">{html.escape(note)}</p></div>'
    )


def _coverage_switch(coverage: int) -> str:
    choices = "".join(
        f'<label><input type="radio" name="coverage" value="{c}"{" checked" if c == coverage else ""}>'
        f"<span>{c} %</span></label>"
        for c in COVERAGES
    )
    legend = "<legend>Coverage of the prediction set</legend>"
    return f'<fieldset class="switch">{legend}<div class="choices">{choices}</div></fieldset>'


def build_slice_view(model: "ModelHandle", examples_dir: str | Path, queued: dict[str, Any]) -> None:
    """Lay out the view and connect it, within the blocks that are open.

    Args:
        model: the classifier to ask.
        examples_dir: folder with ``phantom-<label>.png`` and ``TEMPLATE``; those that exist are offered as examples.
        queued: the queue's arguments for events that run the model.
    """

    def show_answer(path: str | None) -> tuple[Any, Any, None, str | None]:
        if path is None:
            return gr.skip(), gr.skip(), None, None
        picture, panel, explainable = answer_slice(model, path)
        return picture, panel, None, path if explainable else None  # the input is emptied: ready for the next file

    def show_maps(path: str | None) -> Any:
        try:
            return gr.skip() if path is None else explain_slice(model, path)
        except UserError:  # the upload's time was up while it waited; the answer stays
            return gr.skip()

    with gr.Row(equal_height=False, elem_id="slice-view"):  # page.css lays out its three parts
        # gr.File, not gr.Image: gr.Image opens and re-encodes the upload, and browsers cannot show TIFF or DICOM.
        upload = file_input(label="MRI slice: drop, choose or paste (Ctrl+V) a file", height=150, elem_id="slice-input")
        picture = gr.HTML(waiting_viewer(), elem_id="viewer")
        answer = gr.HTML(waiting_panel(model.name), elem_id="answer")

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

    # The maps follow in an event of their own, so that the input takes the next file meanwhile. They are made of the
    # upload's file, of which only the path is kept, and so of the slice that is shown.
    path = gr.State(None)
    outputs = [picture, answer, upload, path]
    private: dict[str, Any] = {"api_visibility": "private", **queued}
    upload.upload(show_answer, upload, outputs, show_progress_on=answer, trigger_mode="multiple", **private).then(
        show_maps, path, picture, show_progress="hidden", **private
    )
    for button, (_, example) in zip(buttons, examples, strict=True):

        def show_example(example: str = str(example)) -> tuple[Any, Any, None, str | None]:
            return show_answer(example)

        shown = button.click(show_example, None, outputs, show_progress_on=answer, **private)
        shown.then(None, js=SHOW_ANSWER, api_visibility="private")
        shown.then(show_maps, path, picture, show_progress="hidden", **private)
