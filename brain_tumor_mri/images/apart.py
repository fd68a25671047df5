"""Files of strangers, read in a process of their own: ``ReaderApart().read("slice.png", "slice.png")``.

``images.read`` bounds what it knows of; this bounds the rest. Whatever a file does to a decoder, it takes at most
``CPU_SECONDS`` and ``MEMORY_BYTES``, no two are read at once, and what dies is the child and not who asked.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import first_line
from .facts import SliceFacts, slice_facts
from .quiet import quiet_decoders
from .read import UnreadableImageError, load_image

CPU_SECONDS = 5.0
"""Most that one file may compute; where the system has no such timer (Windows), ``WALL_SECONDS`` alone holds."""
WALL_SECONDS = 60.0
MEMORY_BYTES = 3 * 2**29
"""1.5 GB: of the whole child, with Python and the decoders in it."""

Reply = tuple[dict[str, Any], Any]
"""What goes out as JSON, and bytes that come with it."""
_REPOSITORY = Path(__file__).resolve().parents[2]
_TOO_LONG = f"reading it takes over {CPU_SECONDS:.0f} s of computing; export the slice again, as PNG"
_DIED = "reading it ended the reader, so the file is damaged or no picture; export the slice again, as PNG"


class Child:
    """A process that answers requests, one at a time; it starts with the first, and anew when one has killed it.

    Attributes:
        serve: the code that it runs, which answers on stdin and stdout.
        wall_seconds: most that one answer may take.
    """

    serve: str
    wall_seconds: float

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the child now, so that the first request need not wait for it."""
        with self._lock:
            self._child = self._child or _start(self.serve)

    def ask(self, request: dict[str, Any], content: bytes = b"") -> tuple[dict[str, Any], bytearray]:
        """Return the reply and the bytes that come with it; threads wait for each other.

        Raises:
            ChildDied: the child ended before it had answered.
        """
        with self._lock:
            return self._ask(request, content)

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._end()

    def _ask(self, request: dict[str, Any], content: bytes) -> tuple[dict[str, Any], bytearray]:
        if self._child is None or self._child.poll() is not None:
            self._end()
            self._child = _start(self.serve)
        child = self._child
        assert child.stdin is not None and child.stdout is not None
        deadline = threading.Timer(self.wall_seconds, child.kill)
        deadline.start()
        try:
            child.stdin.write(json.dumps(request).encode() + b"\n" + content)
            child.stdin.flush()
            reply = json.loads(child.stdout.readline())
            payload = bytearray(reply.get("bytes", 0))
            if child.stdout.readinto(payload) != len(payload):  # type: ignore[attr-defined]
                raise EOFError
        except (OSError, ValueError, EOFError):
            code = child.wait() if deadline.is_alive() else -signal.SIGTERM
            self._end()
            timed_out = not deadline.is_alive() or -code == getattr(signal, "SIGPROF", None)
            raise ChildDied(timed_out) from None
        finally:
            deadline.cancel()
        return reply, payload

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                with suppress(OSError):  # what was written and nobody read
                    pipe.close()  # type: ignore[union-attr]
            self._child = None


class ChildDied(Exception):
    """The child ended before it had answered; ``timed_out`` says whether it took too long."""

    def __init__(self, timed_out: bool) -> None:
        self.timed_out = timed_out


class ReaderApart(Child):
    """Reads slices one after the other in a child process."""

    serve = f"from {__name__} import serve; serve()"

    wall_seconds = WALL_SECONDS

    def read(self, source: str | bytes, name: str) -> tuple[Image.Image, SliceFacts]:
        """Return the picture, as ``load_image`` does, and what its header says.

        Args:
            source: path of the file, or its content.
            name: what errors call it.

        Raises:
            UnreadableImageError: it cannot be read, or takes too much time or memory.
        """
        content = source if isinstance(source, bytes) else b""
        request = {"bytes": len(content)} if content else {"path": os.path.abspath(source)}
        try:
            reply, pixels = self.ask(request, content)
        except ChildDied as died:
            raise UnreadableImageError(name, _TOO_LONG if died.timed_out else _DIED) from None
        if "error" in reply:
            raise UnreadableImageError(name, reply["error"])
        facts = reply["facts"]
        lines = tuple((key, value) for key, value in facts["lines"])
        image = Image.frombytes("RGB", tuple(reply["size"]), pixels)
        image.info |= reply["info"]
        return image, SliceFacts(lines, facts["left"], facts["right"])


def _start(serve: str) -> "subprocess.Popen[bytes]":
    # One thread, and the system's own way of handing out memory: others reserve more than the limit.
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_ARENA_MAX")}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    if uploads := os.environ.get("GRADIO_TEMP_DIR"):
        kept["TMPDIR"] = uploads  # what a decoder needs as a file lies where the page sweeps, should the child die
    return subprocess.Popen(
        [sys.executable, "-c", serve],
        cwd=_REPOSITORY,  # where a Space, which installs nothing, has the package
        env=kept | threads,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # decoders quote headers, which name patients
    )


def serve() -> None:
    """Be the child that reads slices."""
    serve_requests(MEMORY_BYTES, _answer)


def serve_requests(memory_bytes: int, answer: Callable[[dict[str, Any]], Reply]) -> None:
    """Be a child: answer requests on stdin, each a line of JSON, until it ends; within so much memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this by closing the pipe
    quiet_decoders()
    with suppress(ImportError, ValueError, OSError):  # Windows has no such limits
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints comes in between no reply
    for line in sys.stdin.buffer:
        reply, payload = answer(json.loads(line))
        replies.write(json.dumps(reply | {"bytes": memoryview(payload).nbytes}).encode() + b"\n")
        replies.write(payload)
        replies.flush()


def _answer(request: dict[str, Any]) -> Reply:
    source = request["path"] if "path" in request else sys.stdin.buffer.read(request["bytes"])
    allow(CPU_SECONDS)
    try:
        image = load_image(source, name="")
        return {"size": image.size, "info": image.info, "facts": asdict(slice_facts(source))}, image.tobytes()
    except UnreadableImageError as error:
        return {"error": error.reason}, b""
    except MemoryError:
        return {"error": "reading it needs more memory than one file may take; export the slice again, as PNG"}, b""
    except Exception as error:  # whatever a decoder raises is the file's fault
        return {"error": f"the file is damaged or of an unsupported kind ({first_line(error)[:120]})"}, b""
    finally:
        allow(0)


def allow(seconds: float) -> None:
    """Let the system end this process, even within a decoder, after so much computing; 0 lifts that."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)
