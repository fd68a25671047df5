"""The page's API for programs: ``/predict``, ``/explain``, ``/batch`` and ``/examine``.

Each has inputs and outputs of its own, so it does not depend on how the page looks. Every endpoint gives JSON; what a
visitor did wrong comes back as an error of one line that names the file.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL import Image

from ..errors import UserError
from ..images.archive import MAX_ARCHIVE_BYTES
from ..labels import LABELS, RESEARCH_NOTICE
from ..trust.decision import DECISIONS
from .examination_work import EXAMINE, examination_answer
from .fragments import png_uri
from .uploads import MAX_FILES, MAX_IMAGE_BYTES, batch_answer, checked, file_input, read_upload, unforeseen
from .view_examination import QUEUED

if TYPE_CHECKING:
    from ..inference.prediction import Prediction
    from .handle import ModelHandle

ANSWERED = "answered"
"""Stands for the class that the model answers, where ``/explain`` takes a class."""

_FILE = f"an image (JPEG, PNG, BMP, TIFF, WebP, or DICOM of one slice; up to {MAX_IMAGE_BYTES // 2**20} MB)"
_FIELDS = (
    "label (glioma, meningioma, notumor or pituitary; null of a refused picture), top_class (the most probable class, "
    "of a refused one, too), title (the same for people), confidence (top_class's "
    f"probability, 0 to 1), probabilities (label to 0..1; together 1), decision ({', '.join(DECISIONS)}; null where "
    "the weights have no trust.json), reason (of a refusal or a warning), prediction_set (the labels left), "
    "prediction_sets (the labels left at 90 and at 95 % coverage), model (the weights that answered), notice (research "
    "use only)"
)
_ERRORS = "A file that cannot be read gives an error of one line that names it."
PREDICT = f"Classify one MRI slice. Input: file, {_FILE}. Output: JSON with {_FIELDS}. {_ERRORS}"
EXPLAIN = (
    f"Show where the model looks in one MRI slice (heat map). Input: file, {_FILE}; target, the class whose evidence "
    f"is shown (default: {ANSWERED}, the one answered). Output: JSON with {_FIELDS}, as /predict, and target (the "
    "class shown), size (width and height of the file in pixels), heat_map (data URI of a grey PNG at the size of the "
    "model's input, 255 where most speaks for the class), overlay (data URI of an RGB PNG: the slice as the model sees "
    f"it, under the map). {_ERRORS}"
)
BATCH = (
    f"Classify many MRI slices. Input: files, a list of images as for /predict and zip archives of them (up to "
    f"{MAX_ARCHIVE_BYTES // 2**20} MB each), {MAX_FILES} files in all. Output: JSON with model, notice, predictions "
    "(in order, an object a file: name, label, top_class, confidence, probabilities, error, decision, reason, "
    "prediction_set, prediction_sets, unlikeness, foreign; a file that cannot be read has only name and error, and "
    "ends nothing), summary (images, answered, refused, errors, per_label, per_decision, complete) and schema_version."
)


def answer_fields(prediction: "Prediction", model_name: str) -> dict[str, Any]:
    """Return what ``/predict`` gives for a prediction."""
    fields = prediction.to_dict()
    return {
        "label": fields["label"],
        "top_class": fields["top_class"],
        "title": prediction.title,
        **{key: fields[key] for key in ("confidence", "probabilities", "decision", "reason")},
        **{key: fields[key] for key in ("prediction_set", "prediction_sets")},
        "model": model_name,
        "notice": RESEARCH_NOTICE,
    }


def build_api(model: "ModelHandle", queued: dict[str, Any]) -> None:
    """Add the endpoints to the blocks that are open.

    Args:
        model: the classifier to ask.
        queued: the queue's arguments for events that run the model.
    """

    def predict(file: str) -> dict[str, Any]:
        image = _image(file)
        return answer_fields(model.get().predict(image), model.name)

    def explain(file: str, target: str) -> dict[str, Any]:
        image = _image(file)
        classifier = model.get()
        if target not in (ANSWERED, *classifier.labels):
            raise UserError(f"target {target}: give {ANSWERED}, or one of {', '.join(classifier.labels)}")
        found = classifier.explain(image, None if target == ANSWERED else target)
        heat = Image.fromarray((255 * found.heat_map).round().astype("uint8"))
        return answer_fields(found.judged, model.name) | {
            "target": found.target,
            "size": list(image.size),
            "heat_map": png_uri(heat),
            "overlay": png_uri(found.overlay()),
        }

    def batch(files: list[str]) -> dict[str, Any]:
        return batch_answer(model.get(), model.name, files or [])

    def examine(files: list[str], with_heat_map: bool) -> dict[str, Any]:
        return examination_answer(model, files or [], with_heat_map)

    file = file_input(label="file", visible=False)
    files = file_input(label="files", file_count="multiple", visible=False)
    choices = [ANSWERED, *LABELS]  # a laboratory's own classes are taken, too
    target = gr.Dropdown(choices, value=ANSWERED, label="target", visible=False, allow_custom_value=True)
    with_heat_map = gr.Checkbox(False, label="with_heat_map", visible=False)
    answer = gr.JSON(label="answer", visible=False)
    for name, work, inputs, words, queue in (
        ("predict", predict, [file], PREDICT, queued),
        ("explain", explain, [file, target], EXPLAIN, queued),
        ("batch", batch, [files], BATCH, {"concurrency_id": "batch", "concurrency_limit": 1}),
        ("examine", examine, [files, with_heat_map], EXAMINE, QUEUED),
    ):
        gr.on([], _with_errors(work), inputs, answer, api_name=name, api_description=words, **queue)


def _image(file: str | None) -> Image.Image:
    if not file:
        raise UserError("No file was given.")
    return read_upload(checked(file), Path(file).name)[0]


def _with_errors(work: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Give the project's errors to the caller as one line; Gradio would log a traceback and say "error"."""

    @functools.wraps(work)  # the parameters' names are the API's
    def answered(*inputs: Any) -> dict[str, Any]:
        try:
            return work(*inputs)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None
        except Exception as error:  # the caller learns of it, the next is answered
            raise gr.Error(unforeseen(error), print_exception=False) from None

    return answered
