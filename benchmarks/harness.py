"""What the benchmarks share: the command that writes a record, turns by the clock, peak memory, slices to ask about."""

from __future__ import annotations

import argparse
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch  # noqa: F401, so that hardware() can ask it

from brain_tumor_mri.commands.script import run_script
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.files import check_writable, write_json
from brain_tumor_mri.labels import LABELS
from brain_tumor_mri.machine import hardware, versions
from data_scripts.draw_phantoms import make_phantom

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 3
"""Turns that are not counted: the first passes set up memory and kernels."""


def run(
    doc: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    measure: Callable[[argparse.Namespace], dict[str, Any]],
    argv: Sequence[str] | None = None,
    *,
    show: Callable[[dict[str, Any], argparse.Namespace], None] | None = None,
    output: str | None = None,
) -> int:
    """Measure what the flags say, write the record to ``--output``, and show it, by default the rows of ``summary``."""

    def add_all(parser: argparse.ArgumentParser) -> None:
        add_arguments(parser)
        parser.add_argument("--output", type=Path, default=output, help="write the record here (default: %(default)s)")

    def work(args: argparse.Namespace) -> None:
        if args.output:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            check_writable(args.output)
        record = measure(args)
        if "versions" not in record:
            record |= {"versions": versions(), "hardware": hardware()}
        if args.output:
            write_json(args.output, record)
        if show:
            show(record, args)
        else:
            print("\n".join(" | ".join(row) for row in record["summary"]))

    return run_script(doc, add_all, work, argv)


def add_data_arguments(parser: argparse.ArgumentParser, protocols: Sequence[str] = ()) -> None:
    """Define the flags of the data sets and, of several ``protocols``, which one: the first by default."""
    parser.add_argument("--data_dir", type=Path, required=True, help="the Kaggle set: holds Training/ and Testing/")
    parser.add_argument("--external_dir", type=Path, required=True, help="the Br35H tumours: holds images/")
    if protocols:
        parser.add_argument("--protocol", default=protocols[0], choices=protocols)
        parser.add_argument("--fold", type=int, default=1)


def take_turns(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Time each by turns; every other round in reverse order, so that none always follows the same."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(WARM_UP + rounds):
        for name in list(contestants)[:: -1 if number % 2 else 1]:
            start = time.perf_counter()
            contestants[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values[WARM_UP:]) for name, values in seconds.items()}


def spread(values: np.ndarray) -> dict[str, float]:
    """Return median, 10 % and 90 % quantile as ``value``, ``low`` and ``high``."""
    low, value, high = np.quantile(values, (0.1, 0.5, 0.9))
    return {"value": float(value), "low": float(low), "high": float(high)}


def run_watched(command: Sequence[str]) -> tuple[str, float, float]:
    """Run a command to its end."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True)
    peak = [0]
    threading.Thread(target=_watch, args=(process.pid, peak), daemon=True).start()
    output, _ = process.communicate()
    if process.returncode:
        raise UserError(f"{' '.join(map(str, command))} exited with {process.returncode}")
    return output, time.perf_counter() - start, peak[0] / 1e9


def _watch(pid: int, peak: list[int]) -> None:
    try:
        parent = psutil.Process(pid)
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
            total = 0
            for process in (parent, *parent.children(recursive=True)):
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            peak[0] = max(peak[0], total)
            time.sleep(2)  # to read it costs the watched process time
    except psutil.Error:
        return


def write_slices(folder: Path, n: int) -> list[Path]:
    """Write n synthetic 512 px grayscale JPEGs, in the four classes by turns."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    drawn = [make_phantom(LABELS[i % 4], rng, size=512) for i in range(40)]
    paths = [folder / f"slice-{i:04}.jpg" for i in range(n)]
    for i, path in enumerate(paths):
        drawn[i % len(drawn)].save(path, quality=85 + i % 10)
    return paths
