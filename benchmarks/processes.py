"""The parent's side of ``worker.py``: a contestant in a process of its own, asked line by line."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brain_tumor_mri.errors import UserError

WORKER = Path(__file__).with_name("worker.py")


class RefusedError(UserError):
    """The worker lives, but has no answer; ``said`` tells why."""

    def __init__(self, name: str, said: str) -> None:
        self.said = " ".join(said.split())
        super().__init__(f"{name}: {self.said[:300]}")


class Worker:
    """A contestant's process; a context manager."""

    def __init__(
        self,
        name: str,
        kind: str,
        arguments: Sequence[str] = (),
        *,
        python: str = sys.executable,
        first: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.idle = name, [0.0, 0.0]
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        spec = {"kind": kind, "arguments": list(arguments), "first": first and str(first.resolve())}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors, "encoding": "utf-8"}
        start = time.perf_counter()
        try:
            self.process = subprocess.Popen([python, str(WORKER), json.dumps(spec)], env=environment, **pipes)
        except OSError as error:
            raise UserError(f"{python}: {error.strerror}; give another interpreter") from error
        self.peak_memory = self._read()["peak_memory"]
        self.start_seconds = time.perf_counter() - start

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def ask(self, do: str, **request: Any) -> Any:
        """Return what the worker says to a request."""
        if self.process.poll() is None:
            print(json.dumps({"do": do, **request}), file=self.process.stdin, flush=True)
        answer = self._read()
        if "error" in answer:
            raise RefusedError(self.name, answer["error"])
        self.idle = [sum(pair) for pair in zip(self.idle, answer["idle"], strict=True)]
        self.peak_memory = answer["peak_memory"]
        return answer["reply"]

    def _read(self) -> dict[str, Any]:
        if line := self.process.stdout.readline():
            return json.loads(line)
        code = self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().decode(errors="replace").strip().splitlines() or ["it says nothing"]
        raise UserError(f"{self.name}: its process stopped with exit code {code}: {said[-1][:300]}")
