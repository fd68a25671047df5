"""What the page shows of an examination, as HTML: three planes, profile, answer, list of series.

The planes are drawn in the browser (examination.js) from voxels that travel inside the HTML, so that no file is written
for it to fetch.
"""

import gzip
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..images.sequence import SEQUENCE_TITLES
from ..labels import NO_TUMOR, RESEARCH_NOTICE
from ..trust.decision import DECISIONS, NOT_A_BRAIN_MRI, UNFAMILIAR
from .examination_words import KEY_SLICES, SIDES_HIDDEN, finding, heading, position, slice_words, why
from .fragments import bars, data_uri, decision_mark, drawing, info, percent, picture_uri

if TYPE_CHECKING:
    from ..inference.study import StudyPrediction
    from ..inference.volume import VolumePrediction
    from .examination_picture import Shown

OPACITY = 60  # percent, where the heat map's slider starts
THUMBNAIL_PIXELS = 120


@dataclass(frozen=True)
class Progress:
    """What is being done, for people, and how far it is."""

    words: str
    done: int = 0
    total: int = 0


def waiting_viewer() -> str:
    """The place of the planes, before there is an answer."""
    return (
        '<section class="volume waiting"><p>The volume in three planes, and what the model says of each of its slices, '
        "appear here.</p></section>"
    )


def waiting_panel(model_name: str) -> str:
    """The answer's place, before there is one."""
    return (
        '<section class="panel"><h2>Answer</h2><p class="words subdued">Choose or drop one examination: a volume, '
        f"a zip, or DICOM files. The answer for the whole of it appears here.</p>{bars(None)}"
        f'<p class="source">Model: {html.escape(model_name)}</p></section>'
    )


def working_panel(progress: Progress) -> str:
    """How far it is; the former answer is gone by then."""
    count = f" {progress.done} of {progress.total} slices" if progress.total else ""
    value = f' max="{progress.total}" value="{progress.done}"' if progress.total else ""
    return (
        f'<section class="panel progress" {drawing()}><p role="status">{html.escape(progress.words + count)}</p>'
        f'<progress aria-label="Slices answered"{value}></progress></section>'
    )


def viewer(prediction: "VolumePrediction", shown: "Shown") -> str:
    """Draw the three planes, their controls and the profile; examination.js fills and moves them.

    Args:
        prediction: with its volume.
        shown: the same, turned.
    """
    from .examination_picture import PLANES, packed, palette  # SimpleITK and SciPy: seconds

    first = prediction.key_slices[0]
    refused = prediction.decision == NOT_A_BRAIN_MRI
    heat = "" if shown.heat is None or refused else packed(shown.heat)
    data = {
        "shape": ",".join(map(str, shown.voxels.shape)),
        "axis": shown.axis,
        "flipped": int(shown.flipped),
        "focus": ",".join(map(str, shown.focus(first))),
        "palette": palette(),
        "words": json.dumps({s.index: slice_words(s, prediction) for s in prediction.slices}),
    }
    attributes = " ".join(f'data-{name}="{html.escape(str(value))}"' for name, value in data.items())
    doubtful = prediction.volume is not None and prediction.volume.doubt is not None
    order = [shown.axis, *(axis for axis in (2, 1, 0) if axis != shown.axis)]
    planes = "".join(_plane(shown, axis, PLANES[axis], sides=not doubtful) for axis in order)
    note = _map_note(prediction, bool(heat)) + (f" Sides: {SIDES_HIDDEN}." if doubtful else "")
    return (
        f'<section class="volume" {drawing()} {attributes}><data class="voxels" value="{packed(shown.voxels)}"></data>'
        f'<data class="heat" value="{heat}"></data><div class="planes">{planes}</div>'
        f"{profile(prediction, shown)}{_controls(bool(heat))}"
        f'<p class="note">{html.escape(note)}</p></section>'
    )


def _plane(shown: "Shown", axis: int, title: str, *, sides: bool) -> str:
    across = [k for k in range(3) if k != axis]
    width, height = (shown.voxels.shape[k] * shown.steps[k] for k in across)
    ends = {0: ("R", "L"), 1: ("A", "P"), 2: ("H", "F")}
    letters = "".join(
        f'<span class="side {place}" title="Side of the patient">{letter}</span>'
        for k, places in zip(across, (("left", "right"), ("top", "bottom")), strict=True)
        for place, letter in zip(places, ends[k], strict=True)
        if sides
    )
    main = " main" if axis == shown.axis else ""
    return (
        f'<figure class="plane{main}" data-axis="{axis}" style="--ratio:{width / height:.4f}"><div class="frame">'
        f'<canvas role="img" aria-label="{title.capitalize()} plane"></canvas><i class="line across"></i>'
        f'<i class="line down"></i>{letters}</div><label><span>{title.capitalize()}</span><input type="range" '
        f'min="0" max="{shown.voxels.shape[axis] - 1}" name="plane" aria-label="{title.capitalize()} slice">'
        "</label></figure>"
    )


def profile(prediction: "VolumePrediction", shown: "Shown") -> str:
    """P(tumour) of each slice as bars, in the input's order, under a slider that goes to a slice."""
    count = shown.voxels.shape[shown.axis]
    rects = []
    for slice_ in prediction.slices:
        kind = "key" if slice_.index in prediction.key_slices else "used" if slice_.used else "unused"
        height = max(1.0, 100 * slice_.p_tumour)
        rects.append(
            f'<rect class="{kind}" x="{slice_.index + 0.06:.2f}" y="{100 - height:.1f}" width="0.88" '
            f'height="{height:.1f}"/>'
        )
    meaning = info(
        "What the profile means",
        "What the model gives a tumour on each slice, from 0 to 100 %. The most suspicious stretch of 20 mm makes the "
        "answer: the key slices. Pale slices do not count: at the skull's base and at the crown the model sees tumours "
        "where there are none. Gaps hold no head.",
    )
    return (
        f'<div class="profile"><div class="profile-head"><span>Tumour by slice {meaning}</span>'
        f'<output aria-live="off"></output></div><div class="strip" style="--slices:{count}">'
        f'<svg viewBox="0 0 {count} 100" preserveAspectRatio="none" aria-hidden="true">{"".join(rects)}</svg>'
        f'<input type="range" name="strip" min="0" max="{count - 1}" aria-label="Slice, on the profile of tumour">'
        f'<i class="cursor"></i></div><div class="ends"><span>0</span><span class="legend"><i class="key"></i>key '
        'slices <i class="used"></i>counted <i class="unused"></i>not counted</span>'
        f"<span>{count - 1}</span></div></div>"
    )


def _controls(has_heat: bool) -> str:
    sliders = [("window", "Window", 5, 200, 100), ("level", "Level", 0, 100, 50)]
    if has_heat:
        sliders.append(("opacity", "Heat map", 0, 100, OPACITY))
    inputs = "".join(
        f'<label>{title}<input type="range" name="volume-{name}" min="{low}" max="{high}" value="{value}" '
        f'aria-label="{title}, percent"></label>'
        for name, title, low, high, value in sliders
    )
    buttons = (
        '<button type="button" data-volume-tool="invert" aria-pressed="false">Invert</button>'
        '<button type="button" data-volume-tool="reset">Reset</button>'
    )
    return f'<div class="volume-tools" role="group" aria-label="Display of the volume">{inputs}{buttons}</div>'


def _map_note(prediction: "VolumePrediction", has_heat: bool) -> str:
    if has_heat:
        return (
            f"Heat map: what speaks for {finding(prediction).lower()} on the key slices; no outline of a tumour. "
            "Click a picture to move the other two; the wheel turns its slices."
        )
    if prediction.decision == NOT_A_BRAIN_MRI:
        return "No heat map: the volume was refused."
    if prediction.label == NO_TUMOR:
        return "No heat map: no tumour has no place. Click a picture to move the other two; the wheel turns its slices."
    return "The heat map is empty."


def heat_map_uri(prediction: "VolumePrediction") -> str:
    """Return the heat map as a data URI of a NIfTI in the input's geometry."""
    from ..images.volume import nifti_of  # SimpleITK takes seconds that the page need not wait for

    return data_uri(
        "application/gzip", gzip.compress(nifti_of(prediction.heat_map, prediction.volume.affine).to_bytes())
    )


def answer_panel(
    prediction: "VolumePrediction",
    shown: "Shown",
    model_name: str,
    together: "StudyPrediction | None" = None,
    *,
    named: bool = False,
) -> str:
    """Say what the model answers for the volume, how far to trust it, and on which slices it rests.

    Args:
        prediction: with its volume.
        shown: the same, turned.
        model_name: shown beside it.
        together: the answer for all series of the patient, for the report.
        named: whether the heading names the sequence, as there are others.
    """
    from .examination_report import report_pdf  # matplotlib: half a second

    warnings = "".join(f"<li>{html.escape(line)}</li>" for line in prediction.warnings)
    if warnings:
        warnings = f'<h3 class="quantity">How the input was read</h3><ul class="warnings">{warnings}</ul>'
    pdf = data_uri("application/pdf", report_pdf(prediction, shown, model_name, together))
    record = json.dumps(prediction.to_dict() | {"model": model_name, "notice": RESEARCH_NOTICE}, indent=2)
    links = [("Report as PDF", "examination.pdf", pdf)]
    links.append(("JSON", "examination.json", data_uri("application/json", record.encode())))
    if shown.heat is not None and prediction.decision != NOT_A_BRAIN_MRI:
        links.append(("Heat map as NIfTI", "heat_map.nii.gz", heat_map_uri(prediction)))
    title = f"{SEQUENCE_TITLES[prediction.sequence]}: {heading(prediction)}" if named else heading(prediction)
    saved = "".join(f'<a href="{uri}" download="{name}">{words}</a>' for words, name, uri in links)
    return (
        f'<section class="panel" {drawing()}><h2>{decision_mark(prediction.decision)}{html.escape(title)}</h2>'
        f'<p class="finding">{html.escape(finding(prediction))}</p>'
        f'<p class="words">{html.escape(why(prediction))}</p>{_numbers(prediction, "the volume")}'
        f'{_key_slices(prediction, shown)}{_facts(prediction)}{warnings}<p class="report">{saved}</p>'
        f'<p class="source">File: {html.escape(prediction.name)} · Model: {html.escape(model_name)}</p></section>'
    )


def _key_slices(prediction: "VolumePrediction", shown: "Shown") -> str:
    if prediction.decision == NOT_A_BRAIN_MRI:
        return ""
    by_index = {slice_.index: slice_ for slice_ in prediction.slices}
    items = []
    for index in prediction.key_slices[:KEY_SLICES]:
        picture = picture_uri(shown.picture(shown.place(index)), THUMBNAIL_PIXELS, quality=80)
        focus = ",".join(map(str, shown.focus(index)))
        words = position(prediction, by_index[index])
        share = percent(by_index[index].p_tumour)
        items.append(
            f'<li><button type="button" data-focus="{focus}"><img src="{picture}" alt="">'
            f"<span>{html.escape(words.capitalize())}<br>tumour {html.escape(share)}</span></button></li>"
        )
    return f'<h3 class="quantity">Key slices</h3><ol class="key-slices">{"".join(items)}</ol>'


def _facts(prediction: "VolumePrediction") -> str:
    volume = prediction.volume
    name = SEQUENCE_TITLES.get(prediction.sequence, prediction.sequence)
    evidence = f" ({prediction.sequence_evidence})" if prediction.sequence_evidence else ""
    rows = [("Sequence", name + evidence)]
    if volume is not None:
        step = volume.spacing[prediction.slice_axis]
        count = volume.array.shape[prediction.slice_axis]
        rows.append(("Slices", f"{count} {prediction.plane}, one every {step:.1f} mm"))
    if prediction.skull_stripped is not None:
        rows.append(("Skull", "removed" if prediction.skull_stripped else "present"))
    items = "".join(f"<dt>{what}</dt><dd>{html.escape(value)}</dd>" for what, value in rows)
    return f'<dl class="facts">{items}</dl>'


def series_panel(
    predictions: "Sequence[VolumePrediction]", shown: int | None, together: "StudyPrediction | None"
) -> str:
    """Of several series: the answer for all, and a list; the one that is shown is marked, others open on a click.

    Args:
        predictions: of every series.
        shown: which one stands below.
        together: of all of them; None where they are of several studies, or none was answered.
    """
    if len(predictions) < 2:
        return ""
    items = []
    for number, prediction in enumerate(predictions):
        name = html.escape(f"{number + 1}. {SEQUENCE_TITLES.get(prediction.sequence, prediction.sequence)}")
        if prediction.error is not None:
            items.append(f"<li><b>{name}</b><span>Not answered: {html.escape(prediction.error)}</span></li>")
            continue
        words = finding(prediction)
        if prediction.decision is not None and prediction.decision != NOT_A_BRAIN_MRI:
            words += f" ({DECISIONS[prediction.decision]})"
        current = ' aria-current="true"' if number == shown else ""
        items.append(
            f'<li><button type="button" data-series="{number}"{current}>{name}</button>'
            f"<span>{decision_mark(prediction.decision)}{html.escape(words)}</span></li>"
        )
    head = f"<h2>{len(predictions)} series; not one examination, so there is no answer for all of them</h2>"
    if together is None and shown is None:
        head = f"<h2>{len(predictions)} series</h2>"
    if together is not None and together.error is None:
        missing = ", ".join(SEQUENCE_TITLES[name] for name in together.missing)
        missing = f'<p class="words subdued">Missing: {html.escape(missing)}.</p>' if missing else ""
        head = (
            f"<h2>{decision_mark(together.decision)}All {len(predictions)} series together</h2>"
            f'<p class="finding">{html.escape(finding(together))}</p>'
            f'<p class="words">{html.escape(why(together))}</p>{_numbers(together, "the patient")}{missing}'
        )
    return f'<section class="panel" {drawing()}>{head}<ol class="series">{"".join(items)}</ol></section>'


def _numbers(answer: "VolumePrediction | StudyPrediction", what: str) -> str:
    """The probabilities; folded where they are not to be used."""
    if not answer.probabilities:
        return ""
    if answer.decision in (UNFAMILIAR, NOT_A_BRAIN_MRI):
        return (
            '<details class="meaningless"><summary>What the network gives for its four classes all the same</summary>'
            f"<p>Nobody measured what such numbers are worth here.</p>{bars(answer.probabilities)}</details>"
        )
    return f'<h3 class="quantity">Probabilities for {what}</h3>{bars(answer.probabilities)}'
