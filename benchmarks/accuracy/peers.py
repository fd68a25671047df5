"""A published peer, the PyPI package detect-tumor 0.1.1 (VGG16 in ONNX), under this project's protocols.

    python benchmarks/accuracy/peers.py --data_dir ../shared/data/brain-tumor-mri-dataset \
        --external_dir ../shared/data/br35h-tumour

It runs in an environment of its own, made under --cache_dir unless --peer_python names the interpreter of one. Writes
official.json and patient-disjoint.json (fold 1, with the Br35H tumours); with --collections_dir instead
leave-collection-out.json, the slices of all further collections. With --answers the same command takes an interrupted
run up again.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import track

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness import add_data_arguments
from benchmarks.processes import RefusedError, Worker
from brain_tumor_mri.commands.script import run_script
from brain_tumor_mri.data.br35h import load_external
from brain_tumor_mri.data.collections import TRAINING_LABELS, load_collections, read_collections
from brain_tumor_mri.data.protocols import LEAVE_COLLECTION_OUT, NOTES, OFFICIAL, PATIENT_DISJOINT, ProtocolArguments
from brain_tumor_mri.data.slices import load_slices
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.evaluation.collections import collection_figures
from brain_tumor_mri.evaluation.metrics import classification_figures, external_figures
from brain_tumor_mri.evaluation.record import describe_data, run_record
from brain_tumor_mri.files import write_json, write_text
from brain_tumor_mri.labels import LABEL2ID, LABELS, NO_TUMOR
from brain_tumor_mri.reports.tables import class_table, collections_table, external_table, summary_table

NAME, VERSION = "detect-tumor", "0.1.1"
SAVE_EVERY = 20  # answers
TRAINING_DATA_NOTE = (
    "what this model was trained on is not published split by split, so any image measured here may have been in its "
    "training; the parts are disjoint for models of this project only"
)


class Asked(NamedTuple):
    """Answers on a split, (N, 4) in label order; ``unanswered`` are ``path`` and ``reason`` of images without one."""

    probabilities: np.ndarray
    labels: np.ndarray
    groups: list[str]
    slices: datasets.Dataset
    unanswered: list[dict[str, str]]


def describe_peer(worker: Worker, python: str) -> dict[str, Any]:
    """Return what the peer says of itself, with the hash of its weights; another release is refused."""
    about = worker.ask("about")
    if (found := about["versions"][NAME]) != VERSION:
        raise UserError(f"--peer_python {python}: has {NAME} {found}; install {NAME}=={VERSION} there")
    return about | {"weights_sha256": hashlib.sha256(Path(about["weights"]).read_bytes()).hexdigest()}


class Peer:
    """The package at work in its own interpreter; a context manager."""

    def __init__(self, python: str, kept: Path | None = None) -> None:
        self.worker = Worker(
            f"--peer_python {python}", NAME, python=python, environment=os.environ | {"PYTHONUTF8": "1"}
        )
        about = describe_peer(self.worker, python)
        self.model = {"name": f"{NAME} {VERSION}", "architecture": "vgg16 (ONNX)"}
        self.model |= {key: about[key] for key in ("image_size", "weights_sha256", "versions")}
        self.title = f"{NAME} {VERSION}, {self.model['architecture']}"
        self.kept = kept
        self.answers: dict[str, dict[str, float]] = {}
        if kept and kept.is_file():
            saved = json.loads(kept.read_text(encoding="utf-8"))
            self.answers = saved["answers"] if saved["model"] == self.model else {}

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.save()
        self.worker.__exit__()

    def save(self) -> None:
        """Write the answers to their file."""
        if self.kept:
            self.kept.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.kept, json.dumps({"model": self.model, "answers": self.answers}))

    def ask(self, path: Path) -> dict[str, float] | str:
        """Return an image file's probabilities by class name, or why there are none; equal files are asked once."""
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest not in self.answers:
            try:
                (answer,) = self.worker.ask("answer", paths=[str(path.resolve())])
            except RefusedError as error:
                return error.said
            self.answers[digest] = answer["probabilities"]
            if len(self.answers) % SAVE_EVERY == 0:
                self.save()
        return self.answers[digest]


def make_environment(cache_dir: Path) -> str:
    """Return the interpreter of a virtual environment with the package, made on first use."""
    folder = cache_dir.expanduser() / f"{NAME}-{VERSION}"
    python, finished = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"), folder / "finished"
    if not finished.is_file():
        make = [sys.executable, "-m", "venv", "--clear", str(folder)]
        for command in (make, [str(python), "-m", "pip", "install", "--quiet", f"{NAME}=={VERSION}"]):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                said = (done.stderr + done.stdout).strip().splitlines() or ["it says nothing"]
                why = next((line for line in said if line.startswith("ERROR")), said[-1])
                raise UserError(f"--cache_dir {cache_dir}: {command[2]} failed ({why}); --peer_python avoids this")
        finished.touch()
    return str(python)


def ask_split(peer: Peer, root: Path, split: datasets.Dataset, limit: int | None) -> Asked:
    """Ask about every image of a split, or about ``limit`` of them at even distances."""
    if limit and limit < len(split):
        split = split.select(np.linspace(0, len(split) - 1, limit).astype(int))
    rows, answered, unanswered = [], [], []
    paths = track(split["path"][:], f"Asking {NAME}", console=Console(stderr=True), transient=True)
    for i, path in enumerate(paths):
        answer = peer.ask(root / path)
        if isinstance(answer, str):
            unanswered.append({"path": path, "reason": answer.replace(f"{root.resolve()}{os.sep}", "")})
        else:
            rows.append([answer[name] for name in LABELS])
            answered.append(i)
    if not rows:
        raise UserError(f"{root}: {NAME} answers for none of {len(split)} images: {unanswered[-1]['reason']}")
    slices = split.select(answered)
    return Asked(np.asarray(rows), np.asarray(slices["label"][:]), slices["group"][:], slices, unanswered)


def add_peer_arguments(parser: argparse.ArgumentParser) -> None:
    """Define ``--peer_python`` and ``--cache_dir``."""
    parser.add_argument("--peer_python", help=f"interpreter that has {NAME}=={VERSION} (default: made in --cache_dir)")
    parser.add_argument("--cache_dir", type=Path, default=Path("~/.cache/brain-tumor-mri/peers"))


def start_peer(args: argparse.Namespace, kept: Path | None = None) -> Peer:
    """Start the peer in the environment that the flags of :func:`add_peer_arguments` mean."""
    return Peer(args.peer_python or make_environment(args.cache_dir), kept)


def measure(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the record of each protocol."""
    tumours = load_external(args.external_dir)["test"]
    records = {}
    with start_peer(args, args.answers) as peer:
        for protocol in (ProtocolArguments(OFFICIAL), ProtocolArguments(PATIENT_DISJOINT, 1)):
            data = load_slices(args.data_dir, protocol, progress=True)
            asked = [ask_split(peer, args.data_dir, data.splits["test"], args.limit)]
            external = None
            if protocol.protocol == PATIENT_DISJOINT:
                for part in (data.splits["test"], data.splits["validation"]):
                    healthy = part.select(np.flatnonzero(np.asarray(part["label"][:]) == LABEL2ID[NO_TUMOR]))
                    asked.append(ask_split(peer, args.data_dir, healthy, args.limit))
                asked.append(ask_split(peer, args.external_dir, tumours, args.limit))
                healthy, validation, found = asked[1:]
                external = external_figures(
                    found.probabilities,
                    healthy.probabilities,
                    tumour_groups=found.groups,
                    healthy_groups=healthy.groups,
                    validation_healthy=validation.probabilities,
                )
            test = asked[0]
            record = run_record(
                protocol=protocol,
                model=peer.model,
                data=describe_data(str(args.data_dir), data) | {"leaking_share": {}},  # its training is not known
                splits={"test": classification_figures(test.probabilities, test.labels, groups=test.groups)},
                config={"limit": args.limit},
                external=external,
                title=peer.title,
            )
            record["protocol_note"] += f"; {TRAINING_DATA_NOTE}"
            record["training_data_note"] = TRAINING_DATA_NOTE
            record["unanswered"] = list({file["path"]: file for a in asked for file in a.unanswered}.values())
            records[protocol.protocol] = record
    return records


def measure_collections(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the record of ``leave-collection-out``: what the peer says of the slices of all further collections."""
    families = sorted({row.family for row in read_collections(args.collections_dir) if row.label in TRAINING_LABELS})
    slices = load_collections(args.collections_dir, ",".join(families))["test"]
    with start_peer(args, args.answers) as peer:
        asked = ask_split(peer, args.collections_dir, slices, args.limit)
        record = run_record(
            protocol=ProtocolArguments(), model=peer.model, data={}, splits={}, title=peer.title,
            config={"limit": args.limit},
        )  # fmt: skip
    record |= {"protocol": f"{LEAVE_COLLECTION_OUT}, all families", "protocol_note": NOTES[LEAVE_COLLECTION_OUT]}
    record |= {"training_data_note": TRAINING_DATA_NOTE, "unanswered": asked.unanswered}
    return {LEAVE_COLLECTION_OUT: record | {"collections": collection_figures(asked.probabilities, asked.slices)}}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser)
    parser.add_argument("--collections_dir", type=Path, help="measure the slices of further collections, nothing else")
    add_peer_arguments(parser)
    parser.add_argument("--output_dir", type=Path, default=Path(f"results/peers/{NAME}-{VERSION}"))
    parser.add_argument("--answers", type=Path, help="keep the answers in this JSON file, and take up what it holds")
    parser.add_argument("--limit", type=int, help="images of each part, for a trial")


def write_and_show(args: argparse.Namespace) -> None:
    records = measure_collections(args) if args.collections_dir else measure(args)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name, record in records.items():
        write_json(args.output_dir / f"{name}.json", record)
        for file in record["unanswered"]:
            print(f"no answer: {file['path']}: {file['reason']}", file=sys.stderr)
    if args.collections_dir:
        tables = [collections_table([*records.values()])]
    else:
        tables = [summary_table([*records.values()]), *(class_table(record) for record in records.values())]
        tables.append(external_table([records[PATIENT_DISJOINT]]))
    for text in (*tables, TRAINING_DATA_NOTE):
        Console().print(Markdown(text))


def main(argv: Sequence[str] | None = None) -> int:
    return run_script(__doc__, add_arguments, write_and_show, argv)


if __name__ == "__main__":
    raise SystemExit(main())
