"""Many files, some of them zip archives, to answers one after the other; for the page's table and its API.

``Files(paths)`` lists what there is, ``answer_files(classifier, files)`` yields a ``Row`` each. Memory holds a few
slices at a time, however many there are, and a file that cannot be read becomes a row with its error.
"""

import io
import logging
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from ..errors import UserError
from ..images.apart import ReaderApart
from ..images.archive import MAX_MEMBER_BYTES, MAX_MEMBERS, Archive, ArchiveError, is_archive, shown_name
from ..images.facts import SliceFacts
from ..images.read import UnreadableImageError
from ..inference.prediction import SCHEMA_VERSION, Prediction, Reading, Tally, csv_columns, csv_row, csv_writer
from ..labels import LABELS, RESEARCH_NOTICE
from .fragments import data_uri, picture_uri

if TYPE_CHECKING:
    from PIL import Image

    from ..inference.classifier import TumorClassifier


logger = logging.getLogger(__name__)

READER = ReaderApart()
"""Reads every file of every visitor: one at a time, with limits on time and memory."""
MAX_FILES = MAX_MEMBERS
"""Most files of one call, those in archives included."""
CHUNK = 8
"""Slices a forward pass: few, so that progress shows, a stop is quick, and one visitor leaves room for the others."""
THUMBNAIL_PIXELS = 72


@dataclass(frozen=True)
class Row:
    """One file's answer.

    Attributes:
        prediction: with the file's name, and an error where it could not be read.
        thumbnail: data URI of a small picture; "" where there is none.
    """

    prediction: Prediction
    thumbnail: str = ""


Reader = Callable[[], "str | bytes"]


class Files(ExitStack):
    """The files of one call, archives opened; to be closed.

    Attributes:
        entries: (name, how to get the content or path), in order. An archive that cannot be opened is an entry whose
            reader raises.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        """Open the archives.

        Args:
            paths: of the files.
        """
        super().__init__()
        self.entries: list[tuple[str, Reader]] = []
        try:
            for path in paths:
                self._add(path)
                if len(self.entries) > MAX_FILES:
                    raise UserError(f"These are over {MAX_FILES} files; send them in parts")
        except BaseException:
            self.close()
            raise
        if not self.entries:
            raise UserError("No file was given; choose several images, or a zip of them")

    def _add(self, path: str) -> None:
        name = shown_name(Path(path).name)
        if not is_archive(path):
            self.entries.append((name, lambda: checked(path)))
            return
        try:
            archive = self.enter_context(Archive(path))
        except ArchiveError as error:
            self.entries.append((name, _raising(error)))
            return
        for number, member in enumerate(archive.members):
            self.entries.append((f"{name}/{member}", lambda number=number: archive.read(number)))


def _raising(error: ArchiveError) -> Reader:
    def read() -> bytes:
        raise error

    return read


def answer_files(
    classifier: "TumorClassifier", files: Files, *, thumbnails: bool = True, stopped: Callable[[], bool] = bool
) -> Iterator[Row]:
    """Answer files in order.

    Args:
        classifier: the model.
        files: open.
        thumbnails: whether rows get one.
        stopped: asked before each chunk; True ends.
    """
    pending = iter(files.entries)
    while not stopped() and (chunk := list(islice(pending, CHUNK))):
        readings, small = zip(*(_read(classifier, *entry, thumbnails) for entry in chunk), strict=True)
        yield from map(Row, classifier.answer_readings(readings), small)


def _read(classifier: "TumorClassifier", name: str, reader: Reader, thumbnails: bool) -> tuple[Reading, str]:
    """Return a file as the classifier takes it, and its thumbnail."""
    try:
        image, _ = read_upload(reader(), name)
        # the picture itself is let go here: a chunk of the largest would take gigabytes
        small = picture_uri(image, THUMBNAIL_PIXELS, quality=80) if thumbnails else ""
        return classifier.reading(image, name), small
    except (ArchiveError, UnreadableImageError) as error:
        return Reading(name, error=error), ""
    except Exception as error:  # one file ends no batch, whatever it does
        return Reading(name, error=UnreadableImageError(name, unforeseen(error))), ""


def unforeseen(error: Exception) -> str:
    """What a person is told of an error that nobody thought of; the log has kind and place, and no name of a file."""
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    logger.error("not answered: %s at %s:%d", type(error).__name__, frame.f_globals.get("__name__"), line)
    return f"it cannot be answered ({type(error).__name__}); export the slice again, as PNG"


def summary(predictions: Sequence[Prediction], total: int, names: Sequence[str] = LABELS) -> dict[str, Any]:
    """Count the answers, as ``brain-tumor-mri predict --json`` does."""
    tally = Tally(names)
    for prediction in predictions:
        tally.add(prediction)
    return tally.to_dict(total)


def csv_uri(predictions: Sequence[Prediction]) -> str:
    """Return the table that ``brain-tumor-mri predict --csv`` writes, as a data URI: no file is made on the server."""
    buffer = io.StringIO()
    writer = csv_writer(buffer)
    names = next((tuple(p.probabilities) for p in predictions if p.probabilities), LABELS)
    writer.writerow(csv_columns(names))
    writer.writerows(csv_row(prediction, names) for prediction in predictions)
    return data_uri("text/csv;charset=utf-8", buffer.getvalue().encode("utf-8", errors="replace"))


def batch_answer(classifier: "TumorClassifier", model_name: str, paths: Sequence[str]) -> dict[str, Any]:
    """Return what the API's ``/batch`` gives for files."""
    with Files(paths) as files:
        predictions = [row.prediction for row in answer_files(classifier, files, thumbnails=False)]
        return {
            "schema_version": SCHEMA_VERSION,
            "model": model_name,
            "notice": RESEARCH_NOTICE,
            "predictions": [prediction.to_dict() for prediction in predictions],
            "summary": summary(predictions, len(files.entries), classifier.labels),
        }


def read_upload(source: str | bytes, name: str) -> "tuple[Image.Image, SliceFacts]":
    """Return a visitor's picture and what its header says.

    Raises:
        UnreadableImageError: it cannot be read.
    """
    return READER.read(source, name)


MAX_IMAGE_BYTES = MAX_MEMBER_BYTES
"""Largest image, whether it comes alone or in an archive."""


def file_input(**options: Any) -> gr.File:
    """Make a file input.

    Gradio's own (6.31) makes an empty temporary file for each upload that it hands over, and never removes one. A
    subclass is no way out: Gradio writes a .pyi file beside the source of every new kind of component.

    Args:
        **options: of ``gr.File``.
    """
    component = gr.File(**options)
    # Gradio's own example, in its page about the API, is a PDF
    example = "examples/phantom-glioma.png"
    component.example_value = lambda: example if component.file_count == "single" else [example]  # type: ignore
    component.example_payload = component.example_value  # type: ignore[method-assign]
    several = component.file_count != "single"

    def paths(payload: Any) -> str | list[str] | None:
        if payload is None:
            return None
        files = [payload] if hasattr(payload, "path") else list(payload)
        found = [str(file.path) for file in files]
        return found if several else found[0] if found else None

    component.preprocess = paths  # type: ignore[method-assign]
    return component


def checked(path: str) -> str:
    """Return the path of an upload as it is, for ``load_image`` to read.

    Raises:
        UnreadableImageError: the file is larger than ``MAX_IMAGE_BYTES``.
    """
    if os.path.exists(path) and os.path.getsize(path) > MAX_IMAGE_BYTES:
        raise UnreadableImageError(Path(path).name, f"the file is over {MAX_IMAGE_BYTES // 2**20} MB; export one slice")
    return path
