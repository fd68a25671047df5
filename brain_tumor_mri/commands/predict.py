"""``brain-tumor-mri predict PATH...``: a table for people, ``--csv`` and ``--json`` for programs; a bad file is a row.

Answers are handed on as they come: neither the memory needed nor what Ctrl-C can lose grows with the folder.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Protocol

from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import UserError, first_line
from ..files import check_writable, is_stream, replacing
from ..images.find import DICOM_SUFFIXES, IMAGE_SUFFIXES, SEQUENCE_PATH, VOLUME_SUFFIXES, find_images
from ..inference.prediction import SCHEMA_VERSION, Prediction, Tally, csv_columns, csv_row, csv_writer
from ..labels import LABELS, RESEARCH_NOTICE, TITLES
from ..trust.decision import DECISIONS
from .model_flags import add_model_arguments, load_classifier
from .progress import DelayedProgress

SHOWN_ROWS = 30
"""Rows of the table on the console."""
SHOWN_ERRORS = 10
WIDE = 130
"""Characters a line that the probability of each class and reasons need; on narrower consoles they are left out."""
_VOLUMES = (*VOLUME_SUFFIXES, ".zip")
"""What the name of a path to whole volumes ends with; a folder beside one is taken for an examination, too."""
_SERIES = 8
"""DICOM files that could be a series."""


class Output(Protocol):
    """Somewhere that answers go."""

    def add(self, prediction: Prediction) -> None:
        """Take the next answer."""

    def finish(self, tally: Tally, total: int) -> None:
        """Close with the count of the answers; fewer than ``total`` when interrupted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="image file, folder (with all below it) or pattern; or volumes: NIfTI, MGZ, NRRD, MHA, zip of DICOM; "
        "t1c=FILE flair=FILE for one patient",
    )
    add_model_arguments(parser)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write one row an image to FILE")
    parser.add_argument(
        "--volume", action="store_true", help="folders are DICOM series or volumes: one answer a series"
    )
    parser.add_argument("--heat_map", type=Path, metavar="FILE", help="of a volume: write its heat map as NIfTI")
    parser.add_argument("--key_images", type=Path, metavar="DIR", help="of volumes: write the strongest slices as PNG")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, and nothing else there")


def run(args: argparse.Namespace) -> int:
    """Classify the images and write the answers.

    Returns:
        0 when at least one image was answered, else 2.

    Raises:
        UserError: no images, no model, or nowhere to write to.
        KeyboardInterrupt: Ctrl-C, after what was done is written; its text says where.
    """
    started = time.monotonic()
    volumes = [p for p in args.paths if args.volume or p.lower().endswith(_VOLUMES) or SEQUENCE_PATH.match(p)]
    slices = [p for p in args.paths if p not in volumes and not (volumes and os.path.isdir(p))]
    if volumes and slices:
        raise UserError(f"{volumes[0]} is a volume and {slices[0]} is none; give volumes and slices in two commands")
    if volumes:
        return import_module(f"{__package__}.predict_volumes").run(args)
    if args.heat_map or args.key_images:
        flag = "--heat_map" if args.heat_map else "--key_images"
        raise UserError(f"{flag} is for volumes; brain-tumor-mri explain draws heat maps of slices")
    files = find_images(args.paths)
    if args.csv:
        check_target(args.csv, args.json)

    classifier = load_classifier(args)  # seconds, so after everything that can be wrong without it
    tally = Tally(classifier.labels)
    with ExitStack() as stack:
        model = classifier.describe()
        outputs: list[Output] = [
            JsonOutput(model, classifier.labels) if args.json else TableOutput(args.csv, classifier.labels)
        ]
        done: list[Prediction] = []
        table = None
        if args.csv:
            table = stack.enter_context(
                CsvOutput(args.csv, files, "{sha256} {mirror} {coverage} {trust}".format(**model), classifier.labels)
            )
            done = table.done
            outputs.insert(0, table)  # kept before anything else is shown: the console may be full or gone
        progress = stack.enter_context(DelayedProgress(len(files), started))

        def answers() -> Iterator[Prediction]:
            yield from done
            yield from classifier.predict_stream(files[len(done) :], on_error="record")

        interrupted = False
        try:
            for prediction in answers():
                for output in outputs:
                    output.add(prediction)
                tally.add(prediction)
                progress.advance()
        except KeyboardInterrupt:
            interrupted = True
        progress.stop()
        for output in outputs:
            output.finish(tally, len(files))
    if not args.json and sum(file.suffix.lower() in DICOM_SUFFIXES for file in files) >= _SERIES:
        print("Each DICOM file was answered alone; --volume answers a series as a whole.")
    if interrupted:
        kept = (
            f"; the same command goes on from there ({table.part} keeps what is done)" if table and table.part else ""
        )
        raise KeyboardInterrupt(f"stopped after {tally.seen:,} of {len(files):,} images{kept}")
    if tally.seen == tally.errors:
        print("brain-tumor-mri: no image could be read", file=sys.stderr)
        return 2
    return 0


class TableOutput:
    """The table for people; keeps ``SHOWN_ROWS`` answers and ``SHOWN_ERRORS`` errors, however many there are."""

    def __init__(self, csv_file: Path | None, labels: Sequence[str] = LABELS) -> None:
        self.csv_file, self.labels = csv_file, labels
        self.rows: list[Prediction] = []
        self.errors: list[Prediction] = []

    def add(self, prediction: Prediction) -> None:
        """Keep the answer if it will be shown."""
        if len(self.rows) < SHOWN_ROWS:
            self.rows.append(prediction)
        if prediction.error is not None and len(self.errors) < SHOWN_ERRORS:
            self.errors.append(prediction)

    def finish(self, tally: Tally, total: int) -> None:
        """Print the table, what could not be read, the summary and the notice."""
        # where output is piped there is no width to keep to, and a path cut in two helps nobody
        console = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False)
        wide = console.width >= WIDE
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("file", overflow="fold")
        table.add_column("class", no_wrap=not wide)
        for heading in ("confidence", *(self.labels if wide else ())):
            table.add_column(heading, justify="right", no_wrap=True)
        if tally.decisions:
            table.add_column("decision")
        for row in self.rows:
            shares = row.probabilities.values() if wide else ()
            cells = [f"{row.confidence:.1%}", *(f"{p:.3f}" for p in shares)] if row.label else []
            shown = Text("-" if row.refused else row.title, "" if row.label else "red")
            cells += [decision_text(row, with_reason=wide)] if row.decision else []
            table.add_row(Text(printable(row.name)), shown, *cells)
        console.print(table)
        if tally.seen > len(self.rows):
            where = self.csv_file or "--csv FILE or --json"
            console.print(Text(f"... and {tally.seen - len(self.rows):,} more: see {where}"))
        for row in self.errors:
            console.print(Text(f"{printable(row.name)}: {row.error}", "red"))
        if tally.errors > len(self.errors):
            console.print(Text(f"... and {tally.errors - len(self.errors):,} more that could not be read", "red"))
        parts = [f"{tally.labels[label]:,} {TITLES[label]}" for label in self.labels if tally.labels[label]]
        parts += [f"{tally.refused:,} refused"] if tally.refused else []
        parts += [f"{tally.errors:,} not readable"] if tally.errors else []
        console.print()
        console.print(Text(f"{tally.seen:,} image{'' if tally.seen == 1 else 's'}: {', '.join(parts) or 'none'}"))
        if tally.decisions:
            decided = (
                f"{tally.decisions[name]:,} {title}" for name, title in DECISIONS.items() if tally.decisions[name]
            )
            console.print(Text(f"Decisions: {', '.join(decided)}"))
        if self.csv_file and tally.seen == total:
            console.print(Text(f"Written to {printable(str(self.csv_file))}"))
        console.print(Text(RESEARCH_NOTICE))


class JsonOutput:
    """One JSON object on stdout, written as answers come and closed properly even after Ctrl-C."""

    def __init__(self, model: dict[str, Any], labels: Sequence[str] = LABELS) -> None:
        head = json.dumps(
            {"schema_version": SCHEMA_VERSION, "model": model, "labels": list(labels), "notice": RESEARCH_NOTICE}
        )
        # before the first answer and not at once: a model that cannot answer leaves stdout empty
        self.separator = head[:-1] + ', "predictions": [\n'

    def add(self, prediction: Prediction) -> None:
        """Write one element of ``predictions``."""
        sys.stdout.write(self.separator + json.dumps(prediction.to_dict(), allow_nan=False))
        self.separator = ",\n"

    def finish(self, tally: Tally, total: int) -> None:
        """Close the object with ``summary``."""
        before = "\n" if tally.seen else self.separator
        sys.stdout.write(f'{before}], "summary": {json.dumps(tally.to_dict(total))}}}\n')


class CsvOutput(AbstractContextManager["CsvOutput"]):
    """The CSV, written when every image has its answer; an interrupted run is taken up again.

    Until then answers are kept beside it, in ``FILE.HASH.part``, a line of JSON each, so that those of a resumed run
    are the same to the last digit. The hash is of the weights, the mirroring, and the files' names, sizes and times:
    answers of another model, or of a file that has changed since, are never mixed in. Devices and pipes get their rows
    at once.

    Attributes:
        part: the file written to until all is done; None of a device or pipe.
        done: the answers that an interrupted run of the same command left, in order.
    """

    def __init__(self, target: Path, files: list[Path], model: str, labels: Sequence[str] = LABELS) -> None:
        """Open the part file, taking over the answers of an earlier one."""
        self.target, self.labels = target, labels
        self.part: Path | None = None
        self.done: list[Prediction] = []
        self.written = 0
        try:
            if is_stream(target):
                self.stream: IO[Any] = target.open("w", newline="", encoding="utf-8", errors="surrogateescape")
                csv_writer(self.stream).writerow(csv_columns(self.labels))
                self.stream.flush()
            else:
                real = Path(os.path.realpath(target))
                self.lock = FileLock(real.with_name(f".{real.name}.lock"), timeout=0)
                with suppress(NotImplementedError):  # a file system without locks
                    self.lock.acquire()
                self.part = real.with_name(f"{real.name}.{_fingerprint(files, model)}.part")
                self.stream = self.part.open("a+b")
                self.stream.seek(0)
                self.done = _taken_over(self.stream, [os.fspath(file) for file in files])
        except Timeout as error:
            told = "another run is writing it; wait for that, or name another file"
            raise UserError(f"--csv {target} cannot be written: {told}") from error
        except OSError as error:
            with suppress(OSError, AttributeError):
                self._close()
            raise self._error(error) from error

    def add(self, prediction: Prediction) -> None:
        """Write one answer, at once, so that a kill loses at most the one being written."""
        self.written += 1
        if self.written <= len(self.done):
            return
        try:
            if self.part:
                self.stream.write(json.dumps(prediction.to_dict()).encode() + b"\n")
            else:
                csv_writer(self.stream).writerow(csv_row(prediction, self.labels))
            self.stream.flush()
        except OSError as error:
            raise self._error(error) from error

    def finish(self, tally: Tally, total: int) -> None:
        """Write the CSV when every image has its answer."""
        if self.part and tally.seen == total:
            try:
                # surrogateescape: a file name that is no UTF-8 is written with the bytes that it has on disk
                with replacing(self.target, newline="", errors="surrogateescape") as file:
                    writer = csv_writer(file)
                    writer.writerow(csv_columns(self.labels))
                    self.stream.seek(0)
                    writer.writerows(
                        csv_row(Prediction.from_dict(json.loads(line)), self.labels) for line in self.stream
                    )
            except UserError as error:
                raise UserError(f"--csv {error}{self._kept()}") from error
        try:
            self._close()
            if self.part and tally.seen == total:
                self.part.unlink()
        except OSError as error:
            raise self._error(error) from error

    def _close(self) -> None:
        self.stream.close()
        if self.part:
            Path(self.lock.lock_file).unlink(missing_ok=True)
            self.lock.release()

    def _error(self, error: OSError) -> UserError:
        return UserError(f"--csv {self.target} cannot be written: {first_line(error)}{self._kept()}")

    def _kept(self) -> str:
        return f"; the same command goes on from there ({self.part} keeps what is done)" if self.written else ""

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # told already, by what ended the run
            self._close()


def decision_text(prediction: Prediction, *, with_reason: bool = True) -> str:
    """The decision as the table shows it, with what is left or the reason."""
    title = DECISIONS[prediction.decision]
    if prediction.reason:
        return f"{title}: {prediction.reason}" if with_reason else title
    return f"{title}: {' or '.join(prediction.prediction_set)}" if len(prediction.prediction_set) > 1 else title


def check_target(target: Path, with_json: bool = False) -> None:
    """Find out before minutes of work whether the CSV can be written.

    Args:
        target: of ``--csv``.
        with_json: whether stdout is to hold one JSON object and nothing else.
    """
    if target.suffix.lower() in (*IMAGE_SUFFIXES, *DICOM_SUFFIXES):
        raise UserError(
            f"--csv {target} has an image's name; give the name of the table first, as in --csv answers.csv"
        )
    check_writable(target, "--csv")
    with suppress(OSError, ValueError):
        if with_json and is_stream(target) and os.path.samestat(os.stat(target), os.fstat(sys.stdout.fileno())):
            raise UserError(f"--csv {target} is where --json writes; name another file")


def printable(name: str) -> str:
    """A file name without what would break or steer a terminal: line ends, escape codes, undecodable bytes."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)


def _fingerprint(files: list[Path], model: str) -> str:
    digest = hashlib.sha256(model.encode())
    for file in files:
        try:
            status = file.stat()
            state = f"{status.st_size} {status.st_mtime_ns}"
        except (OSError, ValueError):
            state = "missing"
        digest.update(b"\0" + os.fsencode(file) + b"\0" + state.encode())
    return digest.hexdigest()[:8]


def _taken_over(stream: IO[bytes], names: list[str]) -> list[Prediction]:
    """The answers that an interrupted run left, as far as they are in the order of ``names``; what follows is cut."""
    found: list[Prediction] = []
    end = 0
    for line, name in zip(stream, names, strict=False):
        try:
            prediction = Prediction.from_dict(json.loads(line)) if line.endswith(b"\n") else None
        except (ValueError, TypeError, KeyError, AttributeError):  # a kill cut the line off, or another program wrote
            break
        if prediction is None or prediction.name != name:
            break
        found.append(prediction)
        end += len(line)
    stream.seek(end)
    stream.truncate()
    return found
