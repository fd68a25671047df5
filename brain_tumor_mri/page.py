"""The demo page: builds the Gradio blocks around one classifier, for ``app.py`` and the tests.

``build_page(ModelHandle("model"), "examples").launch(**LAUNCH_OPTIONS)`` serves it. Every file goes unopened to
``imaging.load_image``, which alone decides what is readable; problems become one line on the page, never a traceback.
"""

import html
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from brain_tumor_mri.decisions import NOT_A_BRAIN_MRI, UNCERTAIN
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.imaging import load_image
from brain_tumor_mri.labels import CLASSES, RESEARCH_NOTICE, TITLES

if TYPE_CHECKING:
    from brain_tumor_mri.classifier import TumorClassifier
    from brain_tumor_mri.prediction import Prediction

logger = logging.getLogger(__name__)

PREVIEW_PIXELS = 1024  # longest side of the picture sent back to the browser
DESCRIPTIONS = {c.name: c.description for c in CLASSES}

THEME = gr.themes.Base(
    primary_hue=gr.themes.colors.cyan,
    neutral_hue=gr.themes.colors.slate,
    radius_size=gr.themes.sizes.radius_md,
    # Bundled with Gradio, so nothing is fetched. Its semi-bold file (6.31) lacks most letters; 400 and 700 are whole.
    font=(gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif"),
    font_mono=("ui-monospace", "Consolas", "monospace"),
).set(
    body_background_fill="*neutral_50",
    body_background_fill_dark="*neutral_950",
    body_text_color="*neutral_800",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
    block_background_fill="white",
    block_background_fill_dark="*neutral_900",
    block_border_width="1px",
    block_label_text_color="*neutral_700",
    block_label_text_color_dark="*neutral_300",
    button_secondary_background_fill="white",
    button_secondary_background_fill_dark="*neutral_900",
    button_secondary_background_fill_hover="*neutral_100",
    button_secondary_background_fill_hover_dark="*neutral_800",
    button_secondary_border_color="*neutral_200",
    button_secondary_border_color_dark="*neutral_700",
    button_border_width="1px",
    color_accent="*primary_700",
)

# Theme variables where light and dark differ; every fixed colour is paired with its dark twin.
CSS = """
.gradio-container { width: 100%; max-width: 1120px !important; margin: 0 auto !important;
  overflow: clip !important; /* Gradio hides the overflow, which would keep the notice from sticking */ }
.gradio-container .html-container { padding: 0; }
#notice { position: sticky; top: 0; z-index: 40; overflow: visible; }
#notice p { margin: 0; padding: 8px 14px; border-radius: 8px; font-size: 14px; line-height: 1.4;
  background: #fdf3d7; color: #5c3d00; border: 1px solid #ecd59a; }
.dark #notice p { background: #33290f; color: #f5e0a8; border-color: #5d4a17; }
#intro h1 { margin: 0; font-size: 26px; font-weight: 700; line-height: 1.25; color: var(--body-text-color); }
#intro p { margin: 4px 0 0; font-size: 15px; color: var(--body-text-color-subdued); }
.panel { background: var(--block-background-fill); border: 1px solid var(--border-color-primary);
  border-radius: 8px; padding: 22px 24px; color: var(--body-text-color); }
.panel h2 { margin: 0 0 4px; font-size: 14px; font-weight: 400; color: var(--body-text-color-subdued); }
.panel p.finding { margin: 0; font-size: 30px; font-weight: 700; line-height: 1.2; color: var(--body-text-color); }
.panel p.words { margin: 8px 0 0; font-size: 15px; line-height: 1.5; color: var(--body-text-color); }
.panel p.subdued { color: var(--body-text-color-subdued); }
.panel p.source { margin: 20px 0 0; padding-top: 12px; border-top: 1px solid var(--border-color-primary);
  font-size: 13px; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
.panel.problem { border-left: 4px solid #c2410c; }
.dark .panel.problem { border-left-color: #fb923c; }
.panel .bars { list-style: none; margin: 22px 0; padding: 0; display: grid; gap: 14px; }
.bars li { display: grid; grid-template-columns: 1fr auto; gap: 5px 12px; margin: 0; font-size: 15px; }
.bars .percent { font-variant-numeric: tabular-nums; }
.bars .track { grid-column: 1 / -1; height: 10px; border-radius: 5px; overflow: hidden;
  background: var(--border-color-primary); }
.bars .fill { height: 100%; border-radius: 5px; background: #64748b; }
.dark .bars .fill { background: #94a3b8; }
.bars .top { font-weight: 700; }
.bars .top .fill { background: #0e7490; }
.dark .bars .top .fill { background: #22b8d4; }
#preview, #preview .image-container, #preview .empty { background: #000; }
#preview { scroll-margin-top: 84px; }
#preview .empty svg { color: #94a3b8; }
#examples-title p { margin: 8px 0 0; font-size: 14px; color: var(--body-text-color-subdued); }
#examples { gap: 12px; }
#examples button { flex: 1 1 calc(25% - 9px); min-width: 220px; flex-wrap: nowrap; padding: 8px; gap: 12px;
  justify-content: flex-start; text-align: left; font-size: 14px; font-weight: 400; line-height: 1.3; }
#examples button img { width: 72px; height: 72px; margin: 0; object-fit: contain; border-radius: 4px;
  background: #000; }
button:focus-visible { outline: 3px solid #0e7490 !important; outline-offset: 2px; }
.dark button:focus-visible { outline-color: #22b8d4 !important; }
@media (max-width: 640px) {
  .panel { padding: 16px; }
  #intro h1 { font-size: 22px; }
  #notice p { font-size: 13px; padding: 6px 12px; }
  #preview:not(:has(img)) { display: none; }
  #examples button { min-width: 100%; }
}
"""

# Gradio's own paste button asks for a permission and takes pictures only; this takes any file from Ctrl+V. The style is
# here because Gradio confines CSS to its content: on phones it hides the footer's API link but not the dot after it.
HEAD = """
<style>@media (max-width: 640px) { footer .divider { display: none; } }</style>
<script>
document.addEventListener("paste", (event) => {
  const file = event.clipboardData && event.clipboardData.files[0];
  const input = document.querySelector("#slice-input input[type=file]");
  if (!file || !input) return;
  event.preventDefault();
  const transfer = new DataTransfer();
  transfer.items.add(file);
  input.files = transfer.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
});
</script>
"""

# On a phone the examples lie below the answer; where the picture is in view already, nothing moves.
SHOW_PREVIEW = "() => document.querySelector('#preview').scrollIntoView({ block: 'nearest', behavior: 'smooth' })"

API_DESCRIPTION = (
    "Classify one MRI slice. Input: file, an image (JPEG, PNG, BMP, TIFF or WebP, up to 20 MB). Output: JSON with "
    "label (glioma, meningioma, notumor or pituitary), title (the same for people), confidence (the label's "
    "probability, 0 to 1), probabilities (label to 0..1; together 1), decision (answer, uncertain or "
    "not-a-brain-mri; null where the weights have no trust.json), reason (of a refusal), prediction_set (the labels "
    "left), model (the weights that answered), notice (research use only). A file that cannot be read gives an error "
    "of one line that names it."
)

LAUNCH_OPTIONS: dict[str, Any] = {
    "theme": THEME,
    "css": CSS,
    "head": HEAD,
    "max_file_size": "20mb",
    "share": False,
    "ssr_mode": False,  # no Node process: the page is small and starts faster without
    "run_history": False,  # Gradio would keep every uploaded slice in the browser's storage
    "footer_links": ["api", "settings"],
}


class ModelUnavailableError(UserError):
    """The weights could not be loaded; ``str(error)`` is one line for the page."""


class ModelHandle:
    """The classifier, loaded in the background so that the page answers before torch has been imported.

    Args:
        model_id: Hub id or folder.
        revision: Hub branch, tag or commit.
        name: how the model is called on the page and in answers; default ``model_id``, with ``@revision``.
    """

    def __init__(self, model_id: str, revision: str | None = None, name: str | None = None) -> None:
        self.model_id = model_id
        self.revision = revision
        self.name = name or (f"{model_id}@{revision}" if revision else model_id)
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._loading = executor.submit(self._load)
        executor.shutdown(wait=False)

    def _load(self) -> "TumorClassifier":
        try:
            from brain_tumor_mri.classifier import TumorClassifier

            return TumorClassifier.from_pretrained(self.model_id, revision=self.revision)
        except UserError as error:
            logger.error("%s", error)
            raise ModelUnavailableError(str(error)) from error
        except Exception as error:
            # A broken file fails in many places (safetensors, timm, ...): one line for the page, the rest in the log.
            logger.exception("loading %s failed", self.name)
            reason = (str(error).strip().splitlines() or [""])[0]
            raise ModelUnavailableError(
                f"The model {self.name} could not be loaded ({type(error).__name__}: {reason}); "
                "copy or download it again"
            ) from error

    def get(self) -> "TumorClassifier":
        """Wait until the model is there, and return it.

        Raises:
            ModelUnavailableError: it could not be loaded.
        """
        return self._loading.result()


def _percent(probability: float) -> str:
    """Format a probability, on one line, without claiming the 0 % or 100 % that a softmax never reaches."""
    if probability > 0.999:
        return ">\N{NO-BREAK SPACE}99.9\N{NO-BREAK SPACE}%"
    if probability < 0.001:
        return "<\N{NO-BREAK SPACE}0.1\N{NO-BREAK SPACE}%"
    return f"{100 * probability:.1f}\N{NO-BREAK SPACE}%"


def _bars(probabilities: dict[str, float] | None) -> str:
    """Draw the four probabilities as meters, always in the model's order so that slices compare at a glance."""
    top = max(probabilities, key=probabilities.__getitem__) if probabilities else None
    rows = []
    for name, title in TITLES.items():
        value = probabilities[name] if probabilities else 0.0
        text = _percent(value) if probabilities else "–"
        rows.append(
            f'<li class="{"top" if name == top else "other"}"><span>{html.escape(title)}</span>'
            f'<span class="percent">{html.escape(text)}</span>'
            f'<div class="track" role="meter" aria-label="{html.escape(title)}" aria-valuemin="0" aria-valuemax="100" '
            f'aria-valuenow="{100 * value:.1f}" aria-valuetext="{html.escape(text)}">'
            f'<div class="fill" style="width:{100 * value:.2f}%"></div></div></li>'
        )
    return f'<ul class="bars">{"".join(rows)}</ul>'


def _waiting_panel(model_name: str) -> str:
    return (
        '<section class="panel" aria-live="polite"><h2>Answer</h2><p class="words subdued">Choose, drop or paste one '
        "slice, or try a synthetic example. The four probabilities appear here.</p>"
        f'{_bars(None)}<p class="source">Model: {html.escape(model_name)}</p></section>'
    )


def _answer_panel(prediction: "Prediction", file_name: str, model_name: str, coverage: int) -> str:
    probabilities = prediction.probabilities
    second = sorted(probabilities, key=probabilities.__getitem__)[-2]
    shares = (
        f"The model gives {prediction.title.lower()} {_percent(prediction.confidence)} of its probability, and "
        f"{TITLES[second].lower()} {_percent(probabilities[second])}."
    )
    heading, finding, meaning = "Most probable of the four", prediction.title, DESCRIPTIONS[prediction.label]
    if prediction.decision == NOT_A_BRAIN_MRI:
        heading, finding = "No answer", "Not a brain MRI"
        meaning = f"The model refuses this picture: {prediction.reason}."
    elif prediction.decision == UNCERTAIN:
        heading, finding = "Uncertain", " or ".join(TITLES[name] for name in prediction.prediction_set)
        meaning = "The model cannot tell these apart here."
    words = {
        None: f"{shares} It always chooses one of the four, even for a picture that is no brain MRI.",
        NOT_A_BRAIN_MRI: f"{shares} These figures mean nothing for a picture that is no brain MRI.",
        UNCERTAIN: f"{shares} It leaves in what it needs to be right for {coverage} % of slices like its own.",
    }.get(prediction.decision, f"{shares} It leaves no other class in at {coverage} % coverage.")
    return (
        f'<section class="panel" aria-live="polite"><h2>{heading}</h2>'
        f'<p class="finding">{html.escape(finding)}</p>'
        f'<p class="words">{html.escape(meaning)}</p>'
        f"{_bars(probabilities)}"
        f'<p class="words subdued">{html.escape(words)}</p>'
        f'<p class="source">File: {html.escape(file_name)} · Model: {html.escape(model_name)}</p></section>'
    )


def _problem_panel(title: str, message: str) -> str:
    return (
        f'<section class="panel problem" role="alert"><h2>{html.escape(title)}</h2>'
        f'<p class="words">{html.escape(message)}</p></section>'
    )


def build_page(model: ModelHandle, examples_dir: str | Path) -> gr.Blocks:
    """Build the page and its API.

    Args:
        model: the classifier to ask.
        examples_dir: folder with ``phantom-<label>.png``; those that exist are offered as synthetic examples.

    Returns:
        The blocks, to be launched with :data:`LAUNCH_OPTIONS`.
    """

    def show_answer(path: str | None) -> tuple[dict[str, Any], str, None]:
        """Answer one slice for the page: preview, panel, and an emptied input that is ready for the next file."""
        if path is None:
            return gr.skip(), gr.skip(), None
        try:
            image = load_image(path, name=Path(path).name)
        except UserError as error:
            return gr.update(value=None), _problem_panel("This file cannot be read", str(error)), None
        preview = image.copy()
        preview.thumbnail((PREVIEW_PIXELS, PREVIEW_PIXELS))
        try:
            classifier = model.get()
            panel = _answer_panel(classifier.predict(image), Path(path).name, model.name, classifier.coverage)
        except UserError as error:
            panel = _problem_panel("No answer", str(error))
        return gr.update(value=preview), panel, None

    def show_model_problem() -> dict[str, Any]:
        """Wait for the model when a page is opened; a banner appears only if it failed."""
        try:
            model.get()
        except ModelUnavailableError as error:
            message = f"{error}. Set MODEL_ID to the right one, then start the app again."
            return gr.update(value=_problem_panel("The model is not available", message), visible=True)
        return gr.skip()

    def predict(file: str) -> dict[str, Any]:
        """Answer the API; see :data:`API_DESCRIPTION`."""
        if not file:
            raise gr.Error("No file was given.", print_exception=False)
        try:
            prediction = model.get().predict(load_image(file, name=Path(file).name))
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return {
            "label": prediction.label,
            "title": prediction.title,
            "confidence": float(prediction.confidence),
            "probabilities": {name: float(value) for name, value in prediction.probabilities.items()},
            "decision": prediction.decision,
            "reason": prediction.reason,
            "prediction_set": list(prediction.prediction_set),
            "model": model.name,
            "notice": RESEARCH_NOTICE,
        }

    # One queue for everything that runs the model: it uses all cores by itself.
    queued: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}

    with gr.Blocks(
        title="Brain tumour MRI classifier",
        analytics_enabled=False,
        delete_cache=(600, 1800),  # seconds: uploads are looked at every 10 minutes and gone after 30
    ) as demo:
        gr.HTML(f'<p role="note">{html.escape(RESEARCH_NOTICE)}</p>', elem_id="notice")
        gr.HTML(
            "<h1>Brain tumour MRI classifier</h1><p>One MRI slice in, four probabilities out: glioma, meningioma, "
            "pituitary tumour, or none of them.</p>",
            elem_id="intro",
        )
        banner = gr.HTML(visible=False, elem_id="model-problem")
        with gr.Row(equal_height=False):
            with gr.Column(min_width=320):
                # gr.File, not gr.Image: gr.Image opens and re-encodes the upload, and browsers cannot show a TIFF.
                upload = gr.File(
                    label="MRI slice: drop, choose or paste (Ctrl+V) a file", height=150, elem_id="slice-input"
                )
                preview = gr.Image(
                    label="The slice as it was read",
                    format="png",
                    height=320,
                    interactive=False,
                    buttons=["fullscreen"],
                    elem_id="preview",
                    alt_text="The uploaded slice",
                )
            with gr.Column(min_width=320):
                answer = gr.HTML(_waiting_panel(model.name), elem_id="answer")

        examples = [(c, Path(examples_dir) / f"phantom-{c.name}.png") for c in CLASSES]
        examples = [(c, path) for c, path in examples if path.is_file()]
        buttons: list[gr.Button] = []
        if examples:
            title = "No slice at hand? Synthetic examples, drawn by a program (no patients):"
            gr.HTML(f"<p>{title}</p>", elem_id="examples-title")
            with gr.Row(elem_id="examples"):
                buttons = [gr.Button(f"Synthetic: {c.title.lower()}", icon=path) for c, path in examples]
            for button in buttons:
                button.keep_in_cache.add(button.icon["path"])  # or delete_cache would take the pictures away

        outputs = [preview, answer, upload]
        upload.upload(show_answer, upload, outputs, api_visibility="private", show_progress_on=answer, **queued)
        for button, (_, path) in zip(buttons, examples, strict=True):
            button.click(
                lambda path=str(path): show_answer(path),
                None,
                outputs,
                api_visibility="private",
                show_progress_on=answer,
                **queued,
            ).then(None, js=SHOW_PREVIEW, api_visibility="private")
        demo.load(show_model_problem, None, banner, api_visibility="private", show_progress="hidden", queue=False)

        # The API has an input and an output of its own, so that it does not depend on how the page looks.
        api_file = gr.File(label="file", visible=False)
        api_answer = gr.JSON(label="answer", visible=False)
        gr.on([], predict, api_file, api_answer, api_name="predict", api_description=API_DESCRIPTION, **queued)
    return demo
