"""Kill a small training wherever it writes, start it again, and compare its weights with an uninterrupted run's; Linux.

    python benchmarks/hostile/kills.py --output results/hostile/kills.json

The run counts how often it opens a file to write, renames or removes one in its folder. Each trial is killed at one of
these moments, drawn by a seed, right before it or right after (an opened file is empty then), and every seventh at a
time by the clock. The same command then ends it. Synthetic slices, a toy network, one process a run.
"""

import argparse
import hashlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness import ROOT, run
from brain_tumor_mri.errors import UserError
from data_scripts.make_phantoms import write_phantoms

START = multiprocessing.get_context("forkserver")
RUN_LIMIT_S = 300
WHENS = ("before", "after") * 3 + ("clock",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=1500, help="no further trials after so long")
    parser.add_argument("--seed", type=int, default=0)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    stop = time.monotonic() + args.seconds
    START.set_forkserver_preload(["train"])
    trials: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        write_phantoms(scratch / "data", 6, 2, seed=args.seed, size=48)
        for whole in ("first", "whole"):  # the first is slower, as it loads what the next ones find in memory
            began = time.monotonic()
            if (end := train(scratch, whole))["status"]:
                raise RuntimeError(f"an uninterrupted run ended with {end['status']}: {end['told']}")
        seconds = time.monotonic() - began
        moments = int((scratch / "whole.count").read_text())
        expected, again = weights(scratch / "whole"), weights(scratch / "first")
        draw = random.Random(args.seed)
        for number in range(args.kills):
            if time.monotonic() > stop:
                break
            when, trial = WHENS[number % len(WHENS)], f"trial-{number}"
            at = draw.uniform(0, seconds / 2) if when == "clock" else draw.randint(1, moments)
            killed = train(scratch, trial, at, when)
            ended = train(scratch, trial)
            folder = scratch / trial
            left = sorted(path.name for path in (*folder.rglob(".tmp*"), *folder.rglob("*.part")))
            trials.append({"when": when, "at": round(at, 2), "killed": killed["status"] == -signal.SIGKILL})
            trials[-1] |= {"same_weights": weights(folder) == expected, "left": left, **ended}
    killed = [trial for trial in trials if trial["killed"]]
    same = [trial for trial in killed if trial["same_weights"]]
    return {
        "protocol": f"{moments} moments of writing in a run of two epochs",
        "seed": args.seed,
        "two_uninterrupted_runs_agree": again == expected,
        "kills": len(killed),
        "kinds": dict(Counter(trial["when"] for trial in killed)),
        "ended_in_the_same_weights": len(same),
        "with_leftovers": sum(bool(trial["left"]) for trial in killed),
        "trials": trials,
        "summary": [
            [
                "a training killed while it writes, or by the clock",
                f"{len(killed)} kills",
                f"ended in the weights of an uninterrupted run: {len(same)}",
            ]
        ],
    }


def train(scratch: Path, name: str, at: float = 0, when: str = "") -> dict[str, Any]:
    """Run the training in a process of its own, killed when and where it is said; else it ends."""
    folder = scratch / name
    flags = ["configs/smoke.yaml", "--data_dir", str(scratch / "data"), "--output_dir", str(folder)]
    flags += ["--num_train_epochs", "2", "--image_size", "32", "--per_device_train_batch_size", "8"]
    told = scratch / f"{name}.told"
    told.write_text("")
    process = START.Process(target=attempt, args=(flags, folder, told, scratch / f"{name}.count", at, when))
    process.start()
    process.join(at if when == "clock" else RUN_LIMIT_S)
    if process.exitcode is None:
        process.kill()
        process.join()
    finished = "holds a finished run" in told.read_text()  # killed after its last write
    return {"status": 0 if finished else process.exitcode, "told": told.read_text().replace(str(scratch), "")[:300]}


def attempt(flags: list[str], folder: Path, told: Path, count: Path, at: int, when: str) -> None:
    """Train, in the process to be killed; a line of it goes to ``told``, how often it wrote to ``count``."""
    seen = 0

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if not (writes or event in ("os.rename", "os.remove")) or not str(args[0]).startswith(f"{folder}/"):
            return
        seen += 1
        if seen == at and when != "clock":
            if when == "after" and event == "open":
                os.open(args[0], args[2], 0o644)
            elif when == "after" and event == "os.rename":
                os.rename(args[0], args[1])
            os.kill(os.getpid(), signal.SIGKILL)

    import train  # of the checkout's root; the server that forks has it already

    os.chdir(ROOT)
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    sys.addaudithook(watch)
    try:
        train.main([*flags, "--disable_tqdm", "true"])
    except UserError as error:
        told.write_text(str(error))
        raise SystemExit(2) from None
    except BaseException as error:
        told.write_text(f"{type(error).__name__}: {error}")
        raise SystemExit(1) from None
    count.write_text(str(seen))


def weights(folder: Path) -> str:
    """The checksum of a run's weights; empty without any."""
    file = folder / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


if __name__ == "__main__":
    raise SystemExit(run(__doc__, add_arguments, measure, output="results/hostile/kills.json"))
