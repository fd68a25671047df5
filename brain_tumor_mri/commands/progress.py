"""The progress bar of commands, shown only when they take longer than two seconds."""

import sys
import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


PATIENCE = 2.0
"""Seconds before a progress bar appears."""


class DelayedProgress(AbstractContextManager["DelayedProgress"]):
    """A progress bar on stderr, where that is a terminal, that appears once the work has taken ``PATIENCE`` seconds."""

    def __init__(self, total: int, started: float) -> None:
        self.total, self.started, self.count = total, started, 0
        self.bar: Progress | None = None

    def advance(self) -> None:
        """Count one image."""
        self.count += 1
        if self.bar is None and time.monotonic() - self.started > PATIENCE and sys.stderr.isatty():
            self._show()
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=self.count)

    def stop(self) -> None:
        """Take the bar away; safe to call twice."""
        if self.bar is not None:
            self.bar.stop()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self.bar.add_task("Reading slices", total=self.total)
        self.bar.start()
