"""The view of one examination: a NIfTI, a zip or DICOM files in; three planes, profile, answer and report out.

``examine`` answers what a visitor gave, as the command line does. The planes are drawn in the browser (examination.js)
from voxels that travel inside the HTML, so that no file is written for it to fetch.
"""

import html
import json
import os
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from ..errors import UserError
from ..images.archive import MAX_ARCHIVE_BYTES, MAX_TOTAL_BYTES, is_archive, shown_name
from ..images.sequence import SEQUENCE_TITLES
from ..images.series import Series, UnreadableVolumeError, find_series
from ..labels import NO_TUMOR, RESEARCH_NOTICE
from ..trust.decision import DECISIONS, NOT_A_BRAIN_MRI, UNFAMILIAR
from .examination_words import KEY_SLICES, SIDES_HIDDEN, finding, heading, position, slice_words, why
from .fragments import bars, data_uri, decision_mark, drawing, info, percent, picture_uri, problem_panel
from .uploads import file_input, unforeseen
from .view_slice import GONE

if TYPE_CHECKING:
    from ..images.volume import Volume
    from ..inference.study import StudyPrediction
    from ..inference.volume import VolumeClassifier, VolumePrediction
    from .examination_picture import Shown
    from .handle import ModelHandle

MAX_FILES = 2000
"""Most files of one examination."""
MAX_VOXELS = 128_000_000
"""Of a series, 1 GB at work: one stranger's file leaves room for others."""
QUEUED: dict[str, Any] = {"concurrency_id": "examination", "concurrency_limit": 1}
"""One at a time, beside the queue of single slices: a visitor with one slice does not wait for whole examinations."""
OPACITY = 60  # percent, where the heat map's slider starts
THUMBNAIL_PIXELS = 120
FAILED = "This examination cannot be answered"
EXAMINE = (
    "Answer whole volumes. Input: files, a list: one volume (NIfTI, MGZ, NRRD, MHA), one zip of DICOM files (up to "
    f"{MAX_ARCHIVE_BYTES // 2**20} MB each), or the DICOM files of an examination (up to {MAX_FILES}); with_heat_map, "
    "whether to add it (default: false). Output: JSON with model, notice, volumes, an object a series, as "
    "`brain-tumor-mri predict --json` gives it: name, label (null of a refused volume), top_class (of a refused one, "
    "too), confidence, probabilities, error, decision, reason, sequence, sequence_evidence, plane, "
    "skull_stripped, slice_axis, slices (index, position_mm, p_tumour, "
    "probabilities, used, side, sop_instance_uid), key_slices, warnings, study_uid, series_uid; with_heat_map adds "
    "heat_map (data URI of a NIfTI in the input's geometry). A series that cannot be answered has an error, in one "
    "line; an input that holds no series gives it as the call's. together: of several series of one study the answer "
    "for the patient (label, confidence, probabilities, decision, reason, error, used, missing, study_uid, name, and "
    "volumes, the series' names), else null."
)


@dataclass(frozen=True)
class Examination:
    """What the page shows of an examination.

    Attributes:
        viewer: HTML of the three planes; of the empty place where there is no answer.
        panel: HTML of the answer.
        predictions: of every series, without voxels, for the list of them.
    """

    viewer: str
    panel: str
    predictions: "tuple[VolumePrediction, ...]" = ()


@dataclass(frozen=True, eq=False)
class _Asked:
    """What a visitor asked for last; an answer to anything else is not shown, as it may be of another patient."""

    paths: tuple[str, ...]
    number: int | None = None
    known: "Sequence[VolumePrediction]" = ()


@contextmanager
def found_series(paths: Sequence[str]) -> Iterator[list[Series]]:
    """List the series among uploads, under names that a visitor knows; readable until the context ends.

    Raises:
        UserError: no files, too many or too large, gone, or without a volume; it names no path of this machine.
    """
    if not paths:
        raise UserError("No file was given; choose a NIfTI, a zip or the DICOM files of an examination")
    if len(paths) > MAX_FILES:
        raise UserError(f"These are over {MAX_FILES} files; send one examination at a time")
    if missing := [path for path in paths if not Path(path).is_file()]:
        raise UserError(f"{shown_name(Path(missing[0]).name)}: {GONE}")
    if sum(os.path.getsize(path) for path in paths) > MAX_TOTAL_BYTES:
        raise UserError(f"These are over {MAX_TOTAL_BYTES // 2**20} MB; send fewer series")
    if len(paths) > 1 and any(is_archive(path) for path in paths):
        raise UserError("There is a zip among other files; send it alone")
    with _temporary_folder() as folder:
        where = Path(paths[0]) if len(paths) == 1 else _linked(paths, Path(folder))
        title = shown_name(where.name) if len(paths) == 1 else f"{len(paths)} files"
        try:
            found = find_series(where)
        except UnreadableVolumeError as error:
            raise UserError(f"{title}: {error.reason}") from None
        yield [replace(series, name=_known_name(series, where, title)) for series in found]


def _temporary_folder() -> tempfile.TemporaryDirectory:
    """One among the uploads, so that the page's sweep finds it after a kill."""
    return tempfile.TemporaryDirectory(prefix="examination-", dir=os.environ.get("GRADIO_TEMP_DIR"))


def _linked(paths: Sequence[str], folder: Path) -> Path:
    """A folder of links to uploads, which lie in a folder each; names stay, as they may tell the sequence."""
    for number, path in enumerate(paths):
        (folder / f"{number:05d}").mkdir()
        (folder / f"{number:05d}" / Path(path).name.lstrip(".")).symlink_to(Path(path).resolve())
    return folder


def _known_name(series: Series, where: Path, title: str) -> str:
    if series.path != where:  # a volume in one file, among others
        return shown_name(series.path.name)
    return title + series.name.removeprefix(str(where))


@dataclass(frozen=True)
class Progress:
    """What is being done, for people, and how far it is."""

    words: str
    done: int = 0
    total: int = 0


class _Stopped(Exception):
    """Nobody waits for the answer any more."""


def examine(
    model: "ModelHandle",
    paths: Sequence[str],
    number: int | None = None,
    known: "Sequence[VolumePrediction]" = (),
    stopped: Callable[[], bool] = bool,
) -> Iterator[Progress | Examination]:
    """Answer an examination for the page.

    Args:
        model: the classifier to ask.
        paths: of the uploads.
        number: of the one series that is to be answered and shown; None answers all and shows the first T1 with
            contrast, on which the model was measured, else the first that was answered.
        known: with ``number``, what was said of every series before.
        stopped: asked after each slice; True ends without an answer.

    Yields:
        How far it is, about twice a second, and at last the examination.
    """
    try:
        yield from _examined(model, paths, number, known, stopped)
    except UserError as error:
        yield Examination(waiting_viewer(), problem_panel(FAILED, str(error)))
    except _Stopped:
        return
    except Exception as error:  # a file that nobody thought of: one line here, and the next visitor is answered
        yield Examination(waiting_viewer(), problem_panel(FAILED, unforeseen(error)))


def _examined(
    model: "ModelHandle",
    paths: Sequence[str],
    number: int | None,
    known: "Sequence[VolumePrediction]",
    stopped: Callable[[], bool],
) -> Iterator[Progress | Examination]:
    # torch and SimpleITK take seconds that the page need not wait for
    from ..inference.volume import VolumeClassifier, VolumePrediction
    from .examination_picture import Shown

    classifier = VolumeClassifier(model.get())
    shown: tuple[int, VolumePrediction] | None = None
    with found_series(paths) as found:
        predictions = list(known) if number is not None else [VolumePrediction(series.name) for series in found]
        for k in range(len(found)) if number is None else [number]:
            which = f"series {k + 1} of {len(found)}" if len(found) > 1 else "the volume"
            try:
                answer = yield from _answered(classifier, found[k], which, stopped)
            except UnreadableVolumeError as error:
                predictions[k] = VolumePrediction(found[k].name, error=error.reason, sequence=found[k].sequence.name)
                continue
            # voxels are kept of the one that is shown alone
            predictions[k] = replace(answer, volume=None, heat_map=None, mask=None)
            if shown is None or (answer.sequence == "t1c" and shown[1].sequence != "t1c"):
                shown = k, answer
        together = combined(found, predictions)
    if shown is None:
        failed = predictions if number is None else [predictions[number]]
        line = f"{failed[0].name}: {failed[0].error}"
        if len(failed) > 1:
            line = f"None of {len(failed)} series can be answered"
        panel = problem_panel(FAILED, line) + series_panel(predictions, number, None)
        yield Examination(waiting_viewer(), panel, tuple(predictions))
        return
    yield Progress("Drawing ...")
    number, answer = shown
    picture = Shown.of(answer)
    several = series_panel(predictions, number, together)
    panel = several + answer_panel(answer, picture, model.name, together, named=bool(several))
    yield Examination(viewer(answer, picture), panel, tuple(predictions))


def _answered(
    classifier: "VolumeClassifier", series: Series, which: str, stopped: Callable[[], bool]
) -> "Generator[Progress, None, VolumePrediction]":
    """Answer one series in a thread, and say meanwhile how far it is."""
    counts = [0, 0]
    left = threading.Event()

    def on_slice(done: int, total: int) -> None:
        counts[:] = done, total
        if left.is_set() or stopped():
            raise _Stopped

    def work() -> "VolumePrediction":
        return classifier.predict(_read(series), heat_map=True, on_slice=on_slice)

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="examination") as executor:
        future = executor.submit(work)
        try:
            yield Progress(f"Reading {which} ...")
            while not future.done():
                wait([future], timeout=0.5)
                done, total = counts
                if total:
                    words = f"Answering {which}" if done < total else f"Drawing the heat map of {which}"
                    yield Progress(f"{words} ...", done, total)
        finally:  # also where the visitor has gone
            left.set()
        return future.result()


def _read(series: Series) -> "Volume":
    from ..images.volume import read_volume

    volume = read_volume(series)
    if volume.array.size > MAX_VOXELS:
        line = f"over {MAX_VOXELS / 1e6:.0f} million voxels are too much for the page; use the command line"
        raise UnreadableVolumeError(series.name, line)
    return volume


def combined(found: Sequence[Series], predictions: "Sequence[VolumePrediction]") -> "StudyPrediction | None":
    """The answer for all series of one patient; None of one series, and of those of several studies."""
    from ..inference.study import combine_study

    studies = {series.study_uid for series in found}
    if len(found) < 2 or len(studies) > 1:
        return None
    return combine_study("", predictions, studies.pop())


def examination_answer(model: "ModelHandle", paths: Sequence[str], with_heat_map: bool) -> dict[str, Any]:
    """Return what the API's ``/examine`` gives for files.

    Raises:
        UserError: there is no series in them.
    """
    from ..inference.volume import VolumeClassifier, VolumePrediction

    classifier = VolumeClassifier(model.get())
    volumes: list[dict[str, Any]] = []
    predictions: list[VolumePrediction] = []
    with found_series(paths) as found:
        for series in found:
            try:
                answer = classifier.predict(_read(series), heat_map=with_heat_map)
            except UnreadableVolumeError as error:
                answer = VolumePrediction(series.name, error=error.reason, sequence=series.sequence.name)
            heat_map = heat_map_uri(answer) if answer.heat_map is not None else None
            volumes.append(answer.to_dict() | ({"heat_map": heat_map} if with_heat_map else {}))
            predictions.append(replace(answer, volume=None, heat_map=None, mask=None))
        study = combined(found, predictions)
    together = None if study is None else study.to_dict()
    return {"model": model.name, "notice": RESEARCH_NOTICE, "volumes": volumes, "together": together}


def heat_map_uri(prediction: "VolumePrediction") -> str:
    """Return the heat map as a data URI of a NIfTI in the input's geometry."""
    with _temporary_folder() as folder:
        path = Path(folder, "heat_map.nii.gz")
        prediction.write_heat_map(path)
        return data_uri("application/gzip", path.read_bytes())


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
    from .examination_picture import PLANES, packed, palette

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
    from .examination_report import report_pdf

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
        f"{MAX_ARCHIVE_BYTES // 2**20}\u00a0MB a file. Nothing is unpacked to disk, and uploads are removed after ten "
        "minutes.</p>",
        elem_classes="lead",
    )
    with gr.Row(equal_height=False, elem_id="examination-view"):
        upload = file_input(
            label="Examination: drop a volume, a zip, DICOM files or their folder",
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
