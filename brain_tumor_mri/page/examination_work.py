"""An examination that a visitor gave, answered as the command line does: ``examine`` for the page, and for its API."""

import os
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..images.archive import MAX_ARCHIVE_BYTES, MAX_TOTAL_BYTES, is_archive, shown_name
from ..images.series import Series, UnreadableVolumeError
from ..labels import RESEARCH_NOTICE
from .examination_panels import Progress, answer_panel, heat_map_uri, series_panel, viewer, waiting_viewer
from .fragments import problem_panel
from .uploads import unforeseen
from .view_slice import GONE

if TYPE_CHECKING:
    from ..images.examination import ExaminationApart
    from ..images.volume import Volume
    from ..inference.study import StudyPrediction
    from ..inference.volume import VolumeClassifier, VolumePrediction  # SimpleITK and SciPy: seconds
    from .handle import ModelHandle

MAX_FILES = 2000
"""Most files of one examination."""
MAX_VOXELS = 128_000_000
"""Of a series, 1 GB at work: one stranger's file leaves room for others."""
FAILED = "This examination cannot be answered"
EXAMINE = (
    "Answer whole volumes. Input: files, a list: one volume (NIfTI, MGZ, NRRD, MHA), one zip of DICOM files (up to "
    f"{MAX_ARCHIVE_BYTES // 2**20} MB each), or the DICOM files of an examination (up to {MAX_FILES}); with_heat_map, "
    "whether to add it (default: false). Output: JSON with model, notice, volumes, an object a series, as "
    "`brain-tumor-mri predict --json` gives it: name, label (null of a refused volume), top_class (of a refused one, "
    "too), confidence, probabilities, error, decision, reason, sequence, sequence_evidence, plane, "
    "skull_stripped, slice_axis, slices (index, position_mm, p_tumour, "
    "probabilities, used, side, sop_instance_uid, frame), key_slices, warnings, study_uid, series_uid; with_heat_map "
    "adds heat_map (data URI of a NIfTI in the input's geometry). A series that cannot be answered has an error, in "
    "one line; an input that holds no series gives it as the call's. together: of several series of one study the "
    "answer for the patient (label, confidence, probabilities, decision, reason, error, used, missing, study_uid, "
    "name, and volumes, the series' names), else null."
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


@contextmanager
def found_series(paths: Sequence[str]) -> "Iterator[ExaminationApart]":
    """List the series among uploads, under names that a visitor knows; readable, apart, until the context ends."""
    from ..images.examination import ExaminationApart  # SimpleITK takes seconds that the page need not wait for

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
            found = ExaminationApart(where, MAX_VOXELS)
        except UnreadableVolumeError as error:
            raise UserError(f"{title}: {error.reason}") from None
        with found:
            found.series = tuple(replace(series, name=_known_name(series, where, title)) for series in found.series)
            yield found


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
    from ..inference.volume import VolumeClassifier, VolumePrediction  # SimpleITK and SciPy: seconds
    from .examination_picture import Shown  # SimpleITK and SciPy: seconds

    classifier = VolumeClassifier(model.get())
    shown: tuple[int, VolumePrediction] | None = None
    with found_series(paths) as found:
        series = found.series
        predictions = list(known) if number is not None else [VolumePrediction(one.name) for one in series]
        for k in range(len(series)) if number is None else [number]:
            which = f"series {k + 1} of {len(series)}" if len(series) > 1 else "the volume"
            try:
                answer = yield from _answered(classifier, partial(found.read, k), which, stopped)
            except UnreadableVolumeError as error:
                predictions[k] = VolumePrediction(series[k].name, error=error.reason, sequence=series[k].sequence.name)
                continue
            # voxels are kept of the one that is shown alone
            predictions[k] = replace(answer, volume=None, heat_map=None, mask=None)
            if shown is None or (answer.sequence == "t1c" and shown[1].sequence != "t1c"):
                shown = k, answer
        together = combined(series, predictions)
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
    classifier: "VolumeClassifier", read: "Callable[[], Volume]", which: str, stopped: Callable[[], bool]
) -> "Generator[Progress, None, VolumePrediction]":
    """Answer one series in a thread, and say meanwhile how far it is."""
    counts = [0, 0]
    left = threading.Event()

    def on_slice(done: int, total: int) -> None:
        counts[:] = done, total
        if left.is_set() or stopped():
            raise _Stopped

    def work() -> "VolumePrediction":
        return classifier.predict(read(), heat_map=True, on_slice=on_slice)

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


def combined(found: Sequence[Series], predictions: "Sequence[VolumePrediction]") -> "StudyPrediction | None":
    """The answer for all series of one patient; None of one series, and of those of several studies."""
    from ..inference.study import combine_study  # SimpleITK and SciPy: seconds

    studies = {series.study_uid for series in found}
    if len(found) < 2 or len(studies) > 1:
        return None
    return combine_study("", predictions, studies.pop())


def examination_answer(model: "ModelHandle", paths: Sequence[str], with_heat_map: bool) -> dict[str, Any]:
    """Return what the API's ``/examine`` gives for files."""
    from ..inference.volume import VolumeClassifier, VolumePrediction  # SimpleITK and SciPy: seconds

    classifier = VolumeClassifier(model.get())
    volumes: list[dict[str, Any]] = []
    predictions: list[VolumePrediction] = []
    with found_series(paths) as found:
        for k, series in enumerate(found.series):
            try:
                answer = classifier.predict(found.read(k), heat_map=with_heat_map)
            except UnreadableVolumeError as error:
                answer = VolumePrediction(series.name, error=error.reason, sequence=series.sequence.name)
            heat_map = heat_map_uri(answer) if answer.heat_map is not None else None
            volumes.append(answer.to_dict() | ({"heat_map": heat_map} if with_heat_map else {}))
            predictions.append(replace(answer, volume=None, heat_map=None, mask=None))
        study = combined(found.series, predictions)
    together = None if study is None else study.to_dict()
    return {"model": model.name, "notice": RESEARCH_NOTICE, "volumes": volumes, "together": together}
