"""A run's folder while it trains: held by one training at a time, each checkpoint sealed by checksums.

``claim_output_dir`` before the work, ``seal`` after each checkpoint, ``last_complete_checkpoint`` to go on from.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from huggingface_hub.utils.sha import sha_fileobj
from safetensors import SafetensorError, safe_open

from ..errors import UserError
from ..files import read_json, write_json

RUN_FILE = "run.json"
LOCK_FILE = ".lock"
CHECKSUMS = "checksums.json"
WEIGHTS, STATE = "model.safetensors", "trainer_state.json"
CHECKPOINT_FILES = (WEIGHTS, "optimizer.pt", "scheduler.pt", STATE)
LEFTOVERS = (".tmp*", ".*.part")
"""Files that a killed write leaves beside its place: those of safetensors and of ``files.replacing``."""
SECONDS_TO_LET_GO = 10
"""Workers that load data notice within five that their training was killed, and hold its lock until then."""


def claim_output_dir(folder: Path) -> FileLock:
    """Make a run's folder, try it, and keep other trainings out of it as long as the lock lives.

    What a killed write left there is removed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
        lock = FileLock(folder / LOCK_FILE)
        lock.acquire(timeout=SECONDS_TO_LET_GO)
    except Timeout as error:
        raise UserError(f"{folder}: another training runs in it; let it end, or choose another --output_dir") from error
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another --output_dir") from error
    if (folder / "metrics.json").is_file():
        lock.release()
        raise UserError(f"{folder}: holds a finished run; choose another --output_dir, or remove it to train anew")
    for pattern in LEFTOVERS:
        for path in (*folder.glob(pattern), *folder.glob(f"checkpoint-*/{pattern}")):
            path.unlink(missing_ok=True)
    return lock


def seal(checkpoint: Path) -> None:
    """Finish a checkpoint: the run's settings beside its states, and last the checksum of every file."""
    if (run := checkpoint.parent / RUN_FILE).is_file():
        shutil.copyfile(run, checkpoint / RUN_FILE)
    write_json(checkpoint / CHECKSUMS, {file.name: _sha256(file) for file in sorted(checkpoint.iterdir())})


def last_complete_checkpoint(
    folder: Path, files: Sequence[str] = CHECKPOINT_FILES, *, with_best: bool = False, tell: bool = False
) -> Path | None:
    """Return the newest whole ``checkpoint-N``: one that a kill cut, or whose bytes changed since, is passed over.

    Args:
        folder: of the run.
        files: what a checkpoint has to hold.
        with_best: the best epoch's checkpoint, which the run ends in, has to be whole, too.
        tell: print a line for each that is passed over.
    """
    found = [p for p in folder.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    for path in sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")), reverse=True):
        fault = checkpoint_fault(path, files)
        if fault is None and with_best and (best := read_json(path / STATE).get("best_model_checkpoint")):
            named = folder / Path(best).name  # the folder may have moved since
            if fault := checkpoint_fault(named, (WEIGHTS,)):
                fault = f"its best epoch is {named.name}, whose {fault}"
        if fault is None:
            return path
        if tell:
            print(f"{path}: {fault}; it is passed over", file=sys.stderr)
    return None


def checkpoint_fault(path: Path, files: Sequence[str]) -> str | None:
    """Return what is missing, cut or changed in a checkpoint, or None where training can go on from it."""
    # earlier versions, and a kill right before the seal, leave whole checkpoints without checksums
    sums = {}
    if (path / CHECKSUMS).is_file():
        try:
            sums = read_json(path / CHECKSUMS)
        except UserError:
            return f"{CHECKSUMS} is cut off or unreadable"
    states = {file.name for file in path.glob("*.pt*")}  # of each process's random numbers, too
    for name in sorted({*files, *states, *sums}):
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        try:
            if name in sums and _sha256(file) != sums[name]:
                return f"{name} is damaged"
            if name.endswith(".safetensors"):
                with safe_open(file, "pt"):  # compares the header with the file's length
                    pass
            elif name.endswith(".json"):
                read_json(file)
            elif name in states:
                with zipfile.ZipFile(file) as archive:
                    if archive.testzip():
                        return f"{name} is damaged"
        except (OSError, UserError, SafetensorError, zipfile.BadZipFile):
            return f"{name} is cut off or unreadable"
    return None


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return sha_fileobj(stream).hex()
