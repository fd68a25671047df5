"""Asks about one thing after the other, in a process that is started anew after what it did not survive."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ASKED = str(Path(__file__).with_name("asked.py"))
DEADLINE = 300
"""Seconds by the clock until an answer counts as a hang, on a machine that may be busy."""


def ask(
    script: Sequence[str], paths: Iterable[Path], words: list[int], environment: Mapping[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """Write each path, when its turn comes, on a line to a Python file with its arguments, and yield its JSON.

    Or ``ended``, the status with which the process ended, or ``hangs``; ``seconds`` and ``mb`` always. ``words`` gets
    the number of bytes that each process wrote to stderr. Of glibc's variables only those of ``environment`` are set.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    waiting = iter(paths)
    ended = True
    while ended:
        ended = False
        with tempfile.TemporaryFile() as stderr:
            child = subprocess.Popen(
                [sys.executable, *script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=kept | dict(environment or {}),
            )
            for path in waiting:
                killer = threading.Timer(DEADLINE, child.kill)
                killer.start()
                line = _answer(child, path)
                in_time = killer.is_alive()
                killer.cancel()
                if line:
                    yield json.loads(line)
                    continue
                ended = True
                code = child.wait()
                yield {"seconds": 0.0, "mb": 0.0} | ({"ended": code} if in_time else {"hangs": True})
                break
            child.stdin.close()  # type: ignore[union-attr]
            child.wait()
            words.append(stderr.tell())


def _answer(child: subprocess.Popen[str], path: Path) -> str:
    try:
        child.stdin.write(f"{path}\n")  # type: ignore[union-attr]
        child.stdin.flush()  # type: ignore[union-attr]
        return child.stdout.readline()  # type: ignore[union-attr]
    except OSError:
        return ""
