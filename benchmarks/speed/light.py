"""The command as one who wants answers has it, against an earlier commit of this project: time and memory.

    python benchmarks/speed/light.py --output results/benchmarks/light.json

In each round both answer one PNG and a folder of 500 synthetic 512 px JPEGs, each in a process of its own, by turns.
The earlier commit is unpacked for the run and answers with its own model-lite; ratios are medians of each round's.
Answers are compared too. ``--python`` names an interpreter that has only `pip install .`, whose packages are weighed as
well.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness import ROOT, run, spread, write_slices
from brain_tumor_mri.errors import UserError

BEFORE = "a821315"
WATCH = """\
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE)
seconds = time.perf_counter() - start
memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
print(json.dumps({"status": done.returncode, "seconds": seconds, "mb": memory, "said": done.stdout.decode()}))
"""
"""A small parent, as a process's peak memory counts from its parent's."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="model-lite", help="with its ONNX file (default: %(default)s)")
    parser.add_argument("--before", default=BEFORE, metavar="COMMIT", help="(default: %(default)s)")
    parser.add_argument("--python", default=sys.executable, help="that runs this commit's command (default: this one)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=500)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        before = Path(scratch) / "before"
        before.mkdir()
        archive = subprocess.run(["git", "archive", args.before], cwd=ROOT, stdout=subprocess.PIPE)
        if archive.returncode:
            raise UserError(f"--before {args.before}: no such commit here")
        subprocess.run(["tar", "-x", "-C", before], input=archive.stdout, check=True)
        slices = write_slices(Path(scratch) / "slices", args.images)
        asked = {"one": [ROOT / "examples" / "phantom-glioma.png"], "many": [slices[0].parent]}
        sides = {
            "before": ([sys.executable], before, "model-lite"),
            "now": ([args.python], ROOT, str(Path(args.model).resolve())),
        }
        found: dict[str, dict[str, list[dict[str, Any]]]] = {w: {s: [] for s in sides} for w in asked}
        for number in range(args.rounds + 1):  # the first warms up the disk's cache
            for what, paths in asked.items():
                for side in list(sides)[:: -1 if number % 2 else 1]:
                    python, cwd, model = sides[side]
                    line = [*python, "-m", "brain_tumor_mri.commands.main", "predict", *map(str, paths), "--json"]
                    answer = watched([*line, "--model", model], cwd)
                    if number:
                        found[what][side].append(answer)
            print(f"round {number} of {args.rounds}" if number else "warmed up", file=sys.stderr)
    record = {
        "benchmark": "light",
        "setting": {
            "model": Path(args.model).name,
            "before": args.before,
            "images": args.images,
            "rounds": args.rounds,
        },
        "packages_mb": packages(args.python) if args.python != sys.executable else None,
    } | {what: compared(sides_) for what, sides_ in found.items()}
    return record | {"summary": summary(record)}


def watched(line: list[str], cwd: Path) -> dict[str, Any]:
    """Run a command; its seconds, its peak memory in MB and what it wrote as JSON."""
    done = subprocess.run([sys.executable, "-c", WATCH, *line], cwd=cwd, stdout=subprocess.PIPE, check=True)
    told = json.loads(done.stdout)
    if told["status"]:
        raise UserError(f"{' '.join(line[1:4])} in {cwd.name} exited with {told['status']}")
    return told | {"said": json.loads(told["said"])}


def compared(sides: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Time and memory of both sides, their ratio, and how far their answers are apart."""
    seconds = {side: np.array([answer["seconds"] for answer in answers]) for side, answers in sides.items()}
    rows = {
        side: np.array([list(p["probabilities"].values()) for p in answers[0]["said"]["predictions"]])
        for side, answers in sides.items()
    }
    return {
        "seconds": {side: spread(values) for side, values in seconds.items()},
        "times_as_fast": spread(seconds["before"] / seconds["now"]),
        "peak_memory_mb": {side: max(answer["mb"] for answer in answers) for side, answers in sides.items()},
        "backend": {side: answers[0]["said"]["model"]["backend"] for side, answers in sides.items()},
        "same_weights": len({_weights(answers[0]["said"]["model"]) for answers in sides.values()}) == 1,
        "largest_difference": float(np.abs(rows["before"] - rows["now"]).max()),
    }


def _weights(model: dict[str, Any]) -> str:
    return str(model.get("trust"))  # fitted to weights; the file that answers differs


def packages(python: str) -> float:
    """MB of an interpreter's packages, without pip and setuptools, which are there before."""
    script = "import sysconfig; print(sysconfig.get_path('purelib'))"
    folder = Path(subprocess.run([python, "-c", script], stdout=subprocess.PIPE, text=True, check=True).stdout.strip())
    files = (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    ours = (f for f in files if not f.relative_to(folder).parts[0].startswith(("pip", "setuptools", "_distutils_hack")))
    return sum(file.stat().st_size for file in ours) / 1e6


def summary(record: dict[str, Any]) -> list[list[str]]:
    """The rows of the documentation's table."""
    before = f"commit {record['setting']['before']}"
    rows = []
    for what, title in (("one", "`predict` on one PNG"), ("many", f"`predict` on {record['setting']['images']} JPEGs")):
        said, times = record[what], record[what]["times_as_fast"]
        seconds, memory = said["seconds"], said["peak_memory_mb"]
        ratio = f"{times['value']:.1f} ({times['low']:.1f}-{times['high']:.1f}) times as fast"
        rows.append([f"{title}, whole command", before, f"{seconds['now']['value']:.2f} s, {ratio}"])
        rows.append([f"peak memory of it, {memory['before']:,.0f} MB before", before, f"{memory['now']:,.0f} MB"])
    if record["packages_mb"]:
        rows.append(["packages that `pip install .` brings", "-", f"{record['packages_mb']:,.0f} MB"])
    return rows


if __name__ == "__main__":
    raise SystemExit(run(__doc__, add_arguments, measure))
