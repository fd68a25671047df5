"""Answers about what is named on stdin as the product does, in a process of its own, with a line of JSON each.

``asked.py files`` reads pictures, ``asked.py folders`` loads model folders and asks each about a slice. ``children.py``
starts it anew where something ends it.
"""

import hashlib
import json
import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from brain_tumor_mri.errors import UserError
from brain_tumor_mri.images.archive import Archive, is_archive
from brain_tumor_mri.images.quiet import quiet_decoders
from brain_tumor_mri.images.read import load_image
from data_scripts.draw_phantoms import make_phantom

MEMORY = 6 * 2**30
"""Address space, so that a file that fills it does not stop the machine."""


def read_file(path: str) -> dict[str, Any]:
    """A digest of a file's pixels; of an archive, of each picture in it, or what was said of that."""
    if is_archive(path):
        with Archive(path, "file") as archive:
            return {"said": [_member(archive, number) for number in range(len(archive.members))]}
    return {"digest": _digest(path)}


def _member(archive: Archive, number: int) -> str:
    try:
        return _digest(archive.read(number))
    except UserError as error:
        return str(error)


def _digest(source: str | bytes) -> str:
    image = load_image(source, "file")
    image.resize((224, 224))  # as preprocessing does, whose memory grows with the sides
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()[:16]


def ask_folder(folder: str) -> dict[str, Any]:
    """Whether a model's answer is made of finite numbers."""
    from brain_tumor_mri.inference.classifier import TumorClassifier  # seconds that files do not need

    classifier = TumorClassifier.from_pretrained(folder, device="cpu")
    answer = classifier.predict(np.asarray(make_phantom("glioma", np.random.default_rng(0))))
    numbers = [*answer.probabilities.values(), answer.unlikeness or 0, answer.foreign or 0]
    return {"answered": all(map(math.isfinite, numbers))}


def outcome(kind: str, path: str) -> dict[str, Any]:
    """What became of it: an answer, a line, or an error that nobody foresaw."""
    try:
        return read_file(path) if kind == "files" else ask_folder(path)
    except UserError as error:
        return {"said": str(error)[:300]} if "\n" not in str(error) else {"unforeseen": "a message of several lines"}
    except Exception as error:  # what this looks for
        return {"unforeseen": f"{type(error).__name__}: {error}"[:200]}


def _memory(name: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process in kB."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name))


def main(kind: str) -> None:
    """Answer until stdin ends."""
    if kind == "files":
        quiet_decoders()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before, began = _memory("VmRSS"), time.process_time()
        found = outcome(kind, line.rstrip("\n"))
        found |= {"seconds": time.process_time() - began, "mb": max(0, _memory("VmHWM") - before) / 1024}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
