"""Reads the files named on stdin as the product does, in a process of its own, and writes a line of JSON for each.

Run by ``files.py``, which starts it anew where a file ends it.
"""

import hashlib
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from brain_tumor_mri.errors import UserError
from brain_tumor_mri.images.archive import Archive, is_archive
from brain_tumor_mri.images.quiet import quiet_decoders
from brain_tumor_mri.images.read import load_image

MEMORY = 6 * 2**30
"""Address space, so that a file that fills it does not stop the machine."""


def outcome(path: str) -> dict[str, Any]:
    """What became of a file: a digest of its pixels, what was said, or an error that nobody foresaw."""
    try:
        if is_archive(path):
            with Archive(path, "file") as archive:
                return {"said": [_member(archive, number) for number in range(len(archive.members))]}
        return {"digest": _digest(path)}
    except UserError as error:
        return {"said": str(error)}
    except Exception as error:  # what this looks for
        return {"unforeseen": f"{type(error).__name__}: {error}"[:200]}


def _member(archive: Archive, number: int) -> str:
    try:
        return _digest(archive.read(number))
    except UserError as error:
        return str(error)


def _digest(source: str | bytes) -> str:
    image = load_image(source, "file")
    image.resize((224, 224))  # as preprocessing does, whose memory grows with the sides
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()[:16]


def _memory(name: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process in kB."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name))


def main() -> None:
    """Answer until stdin ends."""
    quiet_decoders()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before, began = _memory("VmRSS"), time.process_time()
        found = outcome(line.rstrip("\n"))
        found |= {"seconds": time.process_time() - began, "mb": max(0, _memory("VmHWM") - before) / 1024}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
