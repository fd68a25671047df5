"""The progress bars of commands, on stderr."""

import sys
import time
from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PATIENCE = 2.0
"""Seconds before a progress bar appears."""


class DelayedProgress(AbstractContextManager["DelayedProgress"]):
    """A bar, where stderr is a terminal, that appears once the work has taken ``PATIENCE`` seconds."""

    def __init__(self, total: int, started: float) -> None:
        self.total, self.started, self.count = total, started, 0
        self.bar: Progress | None = None

    def advance(self) -> None:
        """Count one image."""
        self.count += 1
        if self.bar is None and time.monotonic() - self.started > PATIENCE and sys.stderr.isatty():
            self.bar = _bar()
            self.bar.add_task("Reading slices", total=self.total)
            self.bar.start()
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=self.count)

    def stop(self) -> None:
        """Take the bar away; safe to call twice."""
        if self.bar is not None:
            self.bar.stop()

    def __exit__(self, *_: object) -> None:
        self.stop()


class ProgressBar(AbstractContextManager["ProgressBar"]):
    """Called with what is being done, how much is done and how much there is: a line for each task."""

    def __init__(self) -> None:
        self.bar, self.tasks = _bar(), dict[str, Any]()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show how far a task is."""
        if what not in self.tasks:
            self.tasks[what] = self.bar.add_task(what, total=total)
        self.bar.update(self.tasks[what], completed=done, total=total)

    def __enter__(self) -> "ProgressBar":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
