"""The node beside a real Orthanc, many series in a row: ``python benchmarks/speed/node.py --series_dir DIR``.

One DICOM series, sent again and again under new UIDs, half in each of two ways in turn: by C-STORE to the node, or into
Orthanc, where the node finds it. Says how long a series takes and whether the node's memory stays flat.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid
from rich.console import Console
from rich.progress import track

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from clinical.orthanc import Orthanc
from clinical.synthetic_series import push

from benchmarks.harness import ROOT, run
from brain_tumor_mri.clinical.queue import DONE, FAILED, Queue
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.images.series import find_series
from brain_tumor_mri.inference.model_folder import DEFAULT_MODEL

SETTLED = 10
"""Series after which memory is looked at: by then libraries are loaded and buffers have their size."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--series_dir", required=True, type=Path, help="a folder of one DICOM series")
    parser.add_argument("--series", type=int, default=100, help="how many to send (%(default)s)")
    parser.add_argument("--minutes", type=float, default=60.0, help="send no more after so long (%(default)s)")
    parser.add_argument("--model", default=DEFAULT_MODEL)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Send the series one after the other, each when the one before is answered."""
    frames = find_series(args.series_dir)[0].frames
    original = [dcmread(path) for path in sorted({frame.file for frame in frames})]
    if not original:
        raise UserError(f"{args.series_dir}: no DICOM series")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "orthanc").mkdir()
        orthanc = Orthanc(folder / "orthanc").start()
        settings = {
            "folder": str(folder / "node"), "port": orthanc.node, "stable_seconds": 1,
            "send": {"dicomweb": orthanc.web}, "poll": {"dicomweb": orthanc.web, "seconds": 1, "days": None},
        }  # fmt: skip
        (folder / "node.yaml").write_text(json.dumps(settings))
        command = [sys.executable, "-m", "brain_tumor_mri.commands.main", "node", "--config", str(folder / "node.yaml")]
        node = subprocess.Popen([*command, "--model", str(args.model)], stdout=subprocess.PIPE, cwd=ROOT)
        try:
            assert node.stdout is not None
            node.stdout.readline()  # it listens
            seconds, memory, processor = _send_all(original, args, orthanc, folder, psutil.Process(node.pid))
            answered = orthanc.rest("/statistics")
        finally:
            node.terminate()
            node.wait(60)
            orthanc.stop()
    settled = memory[SETTLED:] or memory
    growth = float(np.polyfit(np.arange(len(settled)), settled, 1)[0]) if len(settled) > 1 else 0.0
    record: dict[str, Any] = {
        "protocol": "one series again and again under new UIDs, by C-STORE and by DICOMweb in turn; results by STOW",
        "model": Path(str(args.model)).name,
        "series": len(seconds),
        "slices": len(original),
        "stable_seconds": 1,
        "median_seconds": round(float(np.median(seconds)), 2),
        "p95_seconds": round(float(np.percentile(seconds, 95)), 2),
        "median_processor_seconds": round(float(np.median(processor)), 2),
        "series_per_hour": round(3600 / float(np.mean(seconds))),
        "memory_mb": {"after_first": memory[0], "after_settled": settled[0], "last": memory[-1], "peak": max(memory)},
        "memory_growth_mb_per_series": round(growth, 3),
        "every_memory_mb": memory,
        "orthanc_instances": answered["CountInstances"],
        "load_of_machine": round(psutil.getloadavg()[1], 1),
    }
    record["summary"] = [
        [f"{len(seconds)} series of {len(original)} slices", "one after the other, stable after 1 s",
         f"median {record['median_seconds']} s from the first slice sent to the answer stored, 95 % within "
         f"{record['p95_seconds']} s; {record['median_processor_seconds']} s of processor; an hour "
         f"{record['series_per_hour']} series"],
        ["memory of the node", f"{settled[0]} MB after {SETTLED} series", f"{memory[-1]} MB at the end, "
         f"{record['memory_growth_mb_per_series']} MB a series"],
    ]  # fmt: skip
    return record


def _send_all(
    original: list[Dataset], args: argparse.Namespace, orthanc: Orthanc, folder: Path, node: psutil.Process
) -> tuple[list[float], list[int], list[float]]:
    """Seconds, the node's memory (MB) and its processor seconds, of each series."""
    queue = Queue(folder / "node" / "queue.sqlite")
    seconds, memory, processor = [], [], []
    begun = time.monotonic()
    for n in track(range(args.series), "Sending", console=Console(stderr=True)):
        if time.monotonic() - begun > 60 * args.minutes:
            break
        datasets = _renamed(original, n)
        before, start = sum(node.cpu_times()[:2]), time.perf_counter()
        if n % 2:
            for dataset in datasets:
                buffer = BytesIO()
                dataset.save_as(buffer, enforce_file_format=True)
                orthanc.rest("/instances", buffer.getvalue())
        else:
            push(orthanc.node, datasets)
        while (state := queue.state(str(datasets[0].SeriesInstanceUID))) != DONE:
            if state == FAILED or not node.is_running():
                raise UserError(f"series {n} was not answered: {queue.entries()[-1].reason}")
            time.sleep(0.05)
        seconds.append(time.perf_counter() - start)
        memory.append(round(node.memory_info().rss / 2**20))
        processor.append(sum(node.cpu_times()[:2]) - before)
    return seconds, memory, processor


def _renamed(original: list[Dataset], n: int) -> list[Dataset]:
    """The series as another one, in a study of its own."""
    study, series = (generate_uid(entropy_srcs=[f"benchmark {n} {level}"]) for level in ("study", "series"))
    for k, dataset in enumerate(original):
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=[f"benchmark {n} {k}"])
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return original


if __name__ == "__main__":
    sys.exit(run(__doc__, add_arguments, measure, output="results/clinical/node.json"))
