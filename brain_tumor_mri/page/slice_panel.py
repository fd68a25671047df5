"""The answer to one slice as HTML: decision, classes left, probabilities, and what each is worth in words."""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..labels import RESEARCH_NOTICE, TITLES, class_named
from ..trust.decision import ANSWER, COVERAGES, NOT_A_BRAIN_MRI, UNCERTAIN, UNFAMILIAR
from .fragments import bars, classes_in_words, data_uri, decision_mark, drawing, info, percent

if TYPE_CHECKING:
    from ..inference.prediction import Prediction

HEADINGS = {
    ANSWER: "Model's answer",
    UNCERTAIN: "Uncertain",
    UNFAMILIAR: "Unfamiliar brain MRI: an answer not to rely on",
}


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
            body += _folded(prediction, "On such slices these numbers promise nothing.")
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
    decision, words = meaning_of(prediction, coverage)
    promise = f"For slices like those that it was fitted on, such sets hold the true class in about {coverage} of 100."
    if decision == UNFAMILIAR:
        promise = "For such slices it holds the true class less often."
    what = info("What this list is", f"Prediction set at {coverage} %. {promise}{_score(prediction)}")
    note = f"Classes left at {coverage} %: {', '.join(TITLES[name].lower() for name in left)}."
    return (
        f'<div class="decision" data-coverage="{coverage}"{" hidden" if hidden else ""}>'
        f"<h2>{decision_mark(decision)}{HEADINGS[decision]}</h2>"
        f'<p class="finding">{html.escape(classes_in_words(left, len(prediction.probabilities)))}</p>'
        f'<p class="words">{html.escape(words)}</p><div class="words subdued">{html.escape(note)} {what}</div></div>'
    )


def meaning_of(prediction: "Prediction", coverage: int) -> tuple[str, str]:
    """The decision at a coverage, and what it means in words."""
    left = prediction.prediction_sets[coverage]
    if prediction.decision == UNFAMILIAR:
        return UNFAMILIAR, f"Do not rely on this: {prediction.reason}."
    if prediction.decision == UNCERTAIN and prediction.reason:  # by its heat map, whatever the set
        return UNCERTAIN, f"Do not rely on this: {prediction.reason}, where no tumour can be."
    if len(left) > 1:
        what = "these" if len(left) < len(prediction.probabilities) else "its classes"
        return UNCERTAIN, f"The model cannot tell {what} apart here."
    return ANSWER, class_named(left[0]).description


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


def panel_title(prediction: "Prediction") -> str:
    """The answer in a few words."""
    if prediction.decision == NOT_A_BRAIN_MRI:
        return "Not a brain MRI"
    words = classes_in_words(prediction.prediction_set or [str(prediction.label)], len(prediction.probabilities))
    return f"{words} (unfamiliar)" if prediction.decision == UNFAMILIAR else words
