"""``brain-tumor-mri predict PATH...``: a table for people, ``--csv`` and ``--json`` for programs; a bad file is a row.

Answers are handed on as they come: neither the memory needed nor what Ctrl-C can lose grows with the folder.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import UserError
from ..images.find import DICOM_SUFFIXES, IMAGE_SUFFIXES, find_images
from ..inference.prediction import CSV_COLUMNS, csv_row, harmless_name
from ..labels import LABELS, RESEARCH_NOTICE, TITLES
from ..trust.decision import DECISIONS
from .model_flags import add_model_arguments, load_classifier
from .progress import DelayedProgress

if TYPE_CHECKING:
    from ..inference.prediction import Prediction


SHOWN_ROWS = 30
"""Rows of the table on the console."""
SHOWN_ERRORS = 10


class Output(Protocol):
    """Somewhere that answers go."""

    def add(self, prediction: "Prediction") -> None:
        """Take the next answer."""

    def finish(self, counts: "Counter[str]", total: int) -> None:
        """Close with the number of answers per label (``error`` for none); fewer than ``total`` when interrupted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image file, folder (with all below it) or pattern")
    add_model_arguments(parser)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write one row an image to FILE")
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
    if args.batch_size < 1:
        raise UserError(f"--batch_size must be at least 1, not {args.batch_size}")
    files = find_images(args.paths)
    if args.csv:
        check_target(args.csv)

    classifier = load_classifier(args)  # seconds, so after everything that can be wrong without it
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        model = classifier.describe()
        outputs: list[Output] = [JsonOutput(model) if args.json else TableOutput(args.csv)]
        done: list[Prediction] = []
        table = None
        if args.csv:
            table = stack.enter_context(
                CsvOutput(args.csv, files, "{sha256} {mirror} {coverage} {trust}".format(**model))
            )
            done = table.done
            outputs.append(table)
        progress = stack.enter_context(DelayedProgress(len(files), started))

        def answers() -> "Iterator[Prediction]":
            yield from done
            yield from classifier.predict_stream(files[len(done) :], on_error="record")

        interrupted = False
        try:
            for prediction in answers():
                for output in outputs:
                    output.add(prediction)
                counts[prediction.label or "error"] += 1
                progress.advance()
        except KeyboardInterrupt:
            interrupted = True
        progress.stop()
        for output in outputs:
            output.finish(counts, len(files))
    if interrupted:
        kept = f"; the same command goes on from there ({table.part} keeps what is done)" if table else ""
        raise KeyboardInterrupt(f"stopped after {counts.total():,} of {len(files):,} images{kept}")
    if counts.total() == counts["error"]:
        print("brain-tumor-mri: no image could be read", file=sys.stderr)
        return 2
    return 0


class TableOutput:
    """The table for people; keeps ``SHOWN_ROWS`` answers and ``SHOWN_ERRORS`` errors, however many there are."""

    def __init__(self, csv_file: Path | None) -> None:
        self.csv_file = csv_file
        self.rows: list[Prediction] = []
        self.errors: list[Prediction] = []
        self.decisions: Counter[str] = Counter()

    def add(self, prediction: "Prediction") -> None:
        """Keep the answer if it will be shown."""
        if len(self.rows) < SHOWN_ROWS:
            self.rows.append(prediction)
        if prediction.decision:
            self.decisions[prediction.decision] += 1
        if prediction.error is not None and len(self.errors) < SHOWN_ERRORS:
            self.errors.append(prediction)

    def finish(self, counts: "Counter[str]", total: int) -> None:
        """Print the table, what could not be read, the summary and the notice."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        # where output is piped there is no width to keep to, and a path cut in two helps nobody
        console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("file", overflow="fold")
        table.add_column("class")
        for heading in ("confidence", *LABELS):
            table.add_column(heading, justify="right", no_wrap=True)
        if self.decisions:
            table.add_column("decision")
        for row in self.rows:
            cells = [f"{row.confidence:.1%}", *(f"{p:.3f}" for p in row.probabilities.values())] if row.label else []
            style = "" if row.label else "red"
            cells += [decision_text(row)] if row.decision else []
            table.add_row(Text(printable(row.name)), Text(row.title, style), *cells)
        console.print(table)
        seen = counts.total()
        if seen > len(self.rows):
            where = self.csv_file or "--csv FILE or --json"
            console.print(Text(f"... and {seen - len(self.rows):,} more: see {where}"))
        for row in self.errors:
            console.print(Text(f"{printable(row.name)}: {row.error}", "red"))
        if counts["error"] > len(self.errors):
            console.print(Text(f"... and {counts['error'] - len(self.errors):,} more that could not be read", "red"))
        parts = [f"{counts[label]:,} {TITLES[label]}" for label in LABELS if counts[label]]
        parts += [f"{counts['error']:,} not readable"] if counts["error"] else []
        console.print()
        console.print(Text(f"{seen:,} image{'' if seen == 1 else 's'}: {', '.join(parts) or 'none'}"))
        if self.decisions:
            decided = (f"{self.decisions[name]:,} {title}" for name, title in DECISIONS.items() if self.decisions[name])
            console.print(Text(f"Decisions: {', '.join(decided)}"))
        if self.csv_file and seen == total:
            console.print(Text(f"Written to {printable(str(self.csv_file))}"))
        console.print(Text(RESEARCH_NOTICE))


class JsonOutput:
    """One JSON object on stdout, written as answers come and closed properly even after Ctrl-C."""

    def __init__(self, model: dict[str, Any]) -> None:
        head = json.dumps({"model": model, "labels": list(LABELS), "notice": RESEARCH_NOTICE})
        sys.stdout.write(head[:-1] + ', "predictions": [')
        self.separator = "\n"
        self.decisions: Counter[str] = Counter()

    def add(self, prediction: "Prediction") -> None:
        """Write one element of ``predictions``."""
        self.decisions[prediction.decision or ""] += 1
        sys.stdout.write(self.separator + json.dumps(prediction.to_dict()))
        self.separator = ",\n"

    def finish(self, counts: "Counter[str]", total: int) -> None:
        """Close the object with ``summary``."""
        summary: dict[str, Any] = {
            "images": total,
            "answered": counts.total() - counts["error"],
            "errors": counts["error"],
            "per_label": {label: counts[label] for label in LABELS},
            "per_decision": {decision: self.decisions[decision] for decision in DECISIONS},
            "complete": counts.total() == total,
        }
        sys.stdout.write('\n], "summary": ' + json.dumps(summary) + "}\n")


class CsvOutput(AbstractContextManager["CsvOutput"]):
    """The CSV, written beside as ``FILE.HASH.part`` and renamed when complete; an interrupted one is taken up again.

    The hash is of the weights, the mirroring, and the files' names, sizes and times, so that rows of another model, or
    of a file that has changed since, are never mixed in.

    Attributes:
        part: the file written to until all is done.
        done: the answers that an interrupted run of the same command left, in order; written already.
    """

    def __init__(self, target: Path, files: list[Path], model: str) -> None:
        """Open the part file, taking over the complete rows of an earlier one.

        Raises:
            UserError: the file cannot be written.
        """
        self.target = target
        self.part = target.with_name(f"{target.name}.{_fingerprint(files, model)}.part")
        self.done = _read_rows(self.part, [os.fspath(file) for file in files])
        try:
            # surrogateescape: a file name that is no UTF-8 is written with the bytes that it has on disk
            self.stream = self.part.open("w", newline="", encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise UserError(f"--csv {target} cannot be written: {error.strerror}") from error
        self.writer = csv.writer(self.stream)
        self.writer.writerow(CSV_COLUMNS)
        for prediction in self.done:
            self.writer.writerow(csv_row(prediction))
        self.stream.flush()
        self.written = 0

    def add(self, prediction: "Prediction") -> None:
        """Write one row, at once, so that a kill loses at most the row being written."""
        self.written += 1
        if self.written <= len(self.done):
            return
        try:
            self.writer.writerow(csv_row(prediction))
            self.stream.flush()
        except OSError as error:
            raise UserError(f"--csv {self.target} cannot be written: {error.strerror}; {self.part} is kept") from error

    def finish(self, counts: "Counter[str]", total: int) -> None:
        """Rename to the wanted name when every image has its row."""
        self.stream.close()
        if counts.total() == total:
            os.replace(self.part, self.target)

    def __exit__(self, *_: object) -> None:
        self.stream.close()


def decision_text(prediction: "Prediction") -> str:
    """The decision as the table shows it, with what is left or the reason."""
    title = DECISIONS[prediction.decision]
    if prediction.reason:
        return f"{title}: {prediction.reason}"
    return f"{title}: {' or '.join(prediction.prediction_set)}" if len(prediction.prediction_set) > 1 else title


def check_target(target: Path) -> None:
    """Find out before minutes of work whether the CSV can be written.

    Raises:
        UserError: it cannot, or it would overwrite an image.
    """
    if target.is_dir():
        raise UserError(f"--csv {target} is a folder; give a file name")
    if target.suffix.lower() in (*IMAGE_SUFFIXES, *DICOM_SUFFIXES):
        raise UserError(
            f"--csv {target} has an image's name; give the name of the table first, as in --csv answers.csv"
        )
    if not target.parent.is_dir():
        raise UserError(f"--csv {target}: there is no folder {target.parent}; create it first")
    if not os.access(target.parent, os.W_OK):
        raise UserError(f"--csv {target} cannot be written: no permission in {target.parent}")


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


def _read_rows(part: Path, names: list[str]) -> "list[Prediction]":
    """The complete rows that an interrupted run left, as far as they are in the order of ``names``."""
    from ..inference.prediction import Prediction

    try:
        text = part.read_bytes().decode("utf-8", errors="surrogateescape")
    except OSError:
        return []
    # the row that a kill cut off has no line end yet
    rows = csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    if next(rows, None) != list(CSV_COLUMNS):
        return []
    found: list[Prediction] = []
    for row, name in zip(rows, names, strict=False):
        if len(row) != len(CSV_COLUMNS) or row[0] != harmless_name(name):
            break
        _, label, confidence, *probabilities, decision, left, unlikeness, foreign, reason, error = row
        if error:
            found.append(Prediction(name, None, None, {}, error))
        elif label in LABELS:
            numbers = [float(p) for p in probabilities]
            found.append(
                Prediction(
                    name,
                    label,
                    float(confidence),
                    dict(zip(LABELS, numbers, strict=True)),
                    decision=decision or None,
                    reason=reason or None,
                    prediction_set=tuple(left.split()),
                    unlikeness=float(unlikeness) if unlikeness else None,
                    foreign=float(foreign) if foreign else None,
                )
            )
        else:
            break
    return found
