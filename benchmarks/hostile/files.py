"""Feed thousands of spoiled files, and the costliest that are read, to Python and to the command line; Linux.

    python benchmarks/hostile/files.py --model model-lite --output results/hostile/files.json

Synthetic slices in every kind that is read are spoiled by a seed: bytes changed, cut, dropped, repeated, spliced. A
process of its own reads each file and is started anew where one ends it. Each is read twice, in two processes that fill
memory with different bytes before it is used (glibc's MALLOC_PERTURB_): a picture that differs shows memory that nobody
cleared. Then the command line reads a part of them as one batch.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness import ROOT, run
from benchmarks.hostile.children import ASKED, ask
from benchmarks.hostile.samples import costly_files, mutations, whole_files

CHUNK = 200
"""Files on disk at a time."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="model-lite", help="answers the batch of the command line")
    parser.add_argument("--files", type=int, default=5000, help="spoiled files for Python")
    parser.add_argument("--batch", type=int, default=500, help="spoiled files for the command line")
    parser.add_argument("--seconds", type=float, default=1200, help="Python gets no further files after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", type=Path, help="a folder of further files, each read as it is")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        spoiled = Trial()
        stop = time.monotonic() + args.seconds
        source = mutations(args.seed)
        while spoiled.files < args.files and time.monotonic() < stop:
            spoiled.add(_written(islice(source, min(CHUNK, args.files - spoiled.files)), Path(scratch)))
        costly = Trial()
        further = sorted(args.inputs.iterdir()) if args.inputs else []
        costly.add(_written(costly_files(), Path(scratch)) + [(path.name, path) for path in further if path.is_file()])
        batch = command_line(args.model, mutations(args.seed + 1), args.batch, Path(scratch))
    record = {"seed": args.seed, "spoiled": spoiled.to_dict(), "costly": costly.to_dict(each=True), "batch": batch}
    return record | {"summary": summary(record)}


class Trial:
    """What became of files that were each read in two processes."""

    def __init__(self) -> None:
        self.files = 0
        self.words: list[int] = []
        self.found: list[dict[str, Any]] = []

    def add(self, files: list[tuple[str, Path]]) -> None:
        """Read files, given as kind and path."""
        paths = [path for _, path in files]
        first, second = (
            list(ask([ASKED, "files"], paths, self.words, {"MALLOC_PERTURB_": fill})) for fill in ("1", "254")
        )
        for (kind, path), one, other in zip(files, first, second, strict=True):
            same = all(one.get(key) == other.get(key) for key in ("digest", "said", "unforeseen", "ended", "hangs"))
            self.found.append(one | {"kind": kind, "bytes": path.stat().st_size, "differs": not same})
        self.files += len(files)

    def to_dict(self, each: bool = False) -> dict[str, Any]:
        """The counts, and the worst; with ``each``, every file."""

        def count(key: str) -> int:
            return sum(bool(found.get(key)) for found in self.found)

        def worst(key: str) -> dict[str, Any]:
            found = max(self.found, key=lambda one: one[key])
            return {key: round(found[key], 2), "kind": found["kind"], "bytes": found["bytes"]}

        record = {
            "files": self.files,
            "pictures": count("digest"),
            "refused_in_a_line": count("said"),
            "unforeseen_errors": count("unforeseen"),
            "crashes": count("ended"),
            "hangs": count("hangs"),
            "differ_between_readings": count("differs"),
            "bytes_on_stderr": sum(self.words),
            "worst_cpu_seconds": worst("seconds"),
            "worst_memory_mb": worst("mb"),
        }
        faults = [one for one in self.found if {"unforeseen", "ended", "hangs"} & one.keys() or one["differs"]]
        shown = [
            {key: round(value, 2) if isinstance(value, float) else value for key, value in one.items()}
            for one in (self.found if each else faults[:20])
        ]
        return record | {"each" if each else "faults": shown}


def _written(files: Iterable[tuple[str, bytes]], folder: Path) -> list[tuple[str, Path]]:
    written = []
    for number, (kind, content) in enumerate(files):
        path = folder / f"{number:05}"
        path.write_bytes(content)
        written.append((kind, path))
    return written


def command_line(model: str, spoiled: Iterator[tuple[str, bytes]], number: int, scratch: Path) -> dict[str, Any]:
    """Give a batch of spoiled files, with whole ones first and last, to ``predict``."""
    folder, table = scratch / "batch", scratch / "batch.csv"
    folder.mkdir()
    whole = whole_files(np.random.default_rng(0))["PNG"]
    files = [("PNG", whole), *((k, c) for k, c in islice(spoiled, number) if k != "zip"), ("PNG", whole)]
    for place, (kind, content) in enumerate(files):
        (folder / f"{place:05}{'.dcm' if kind.startswith('DICOM') else '.png'}").write_bytes(content)
    command = [sys.executable, "-m", "brain_tumor_mri.commands.main", "predict", str(folder), "--model", model]
    began = time.monotonic()
    done = subprocess.run(
        [*command, "--json", "--csv", str(table)], capture_output=True, text=True, cwd=ROOT, timeout=3600
    )
    answers = _answers(done.stdout)
    errors = [answer["error"] for answer in answers]
    return {
        "files": len(files),
        "exit_status": done.returncode,
        "rows": len(answers),
        "csv_rows": len(list(csv.reader(table.read_text().splitlines()))) - 1 if table.is_file() else 0,
        "answered": errors.count(None),
        "first_and_last_answered": errors[:1] == errors[-1:] == [None],
        "bytes_on_stderr": len(done.stderr),
        "seconds": round(time.monotonic() - began, 1),
    }


def _answers(output: str) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        return json.loads(output, parse_constant=refuse)["predictions"]
    except ValueError:
        return []


def summary(record: dict[str, Any]) -> list[list[str]]:
    """Rows to print: what was tried, how often, what came of it."""
    rows = []
    for name, what in (("spoiled", "spoiled files, each read twice"), ("costly", "costly files, each read twice")):
        found = record[name]
        bad = sum(found[key] for key in ("unforeseen_errors", "crashes", "hangs"))
        rows.append([what, str(found["files"]), f"crashes, hangs, unforeseen errors: {bad}"])
        rows[-1][2] += f"; other pixels the second time: {found['differ_between_readings']}"
    worst = record["costly"]
    cpu, memory = worst["worst_cpu_seconds"]["seconds"], worst["worst_memory_mb"]["mb"]
    rows.append(["the costliest of them", "-", f"{cpu:.1f} s of a core, {memory:.0f} MB"])
    batch = record["batch"]
    told = f"{batch['rows']} rows, exit status {batch['exit_status']}, {batch['bytes_on_stderr']} bytes on stderr"
    return [*rows, ["spoiled files as one batch of `predict`", str(batch["files"]), told]]


if __name__ == "__main__":
    raise SystemExit(run(__doc__, add_arguments, measure, output="results/hostile/files.json"))
