"""What a large volume costs from the file to the answer: ``python benchmarks/speed/volume_speed.py``.

384 slices of 512 x 512, made; answered by the command that a user types, in a process of its own, its start included.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness import ROOT, run
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.inference.model_folder import DEFAULT_MODEL

SHAPE = (512, 512, 384)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--shape", type=int, nargs=3, default=SHAPE, metavar="N", help="voxels (default: %(default)s)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Answer the volume once for its class alone, and once with a heat map."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "t1c.nii.gz")
        write_head(file, args.shape)
        alone = answered([str(file), "--model", args.model])
        mapped = answered([str(file), "--model", args.model, "--heat_map", str(Path(folder, "heat.nii.gz"))])
    figures = {"answer": alone, "with_heat_map": mapped}
    return {
        "benchmark": "volume_speed",
        "protocol": f"one volume of {' x '.join(map(str, args.shape))} voxels; each once, with the command's start",
        **figures,
        "summary": [[name, *(f"{key} {value}" for key, value in row.items())] for name, row in figures.items()],
    }


def write_head(file: Path, shape: Sequence[int]) -> None:
    """Write a ball with grain as NIfTI, slice by slice, as this process's memory would count for the command's."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header.set_sform(np.array([[0.45, 0, 0, -115], [0, 0.45, 0, -115], [0, 0, 0.45, -86], [0, 0, 0, 1]]), code=1)
    header["vox_offset"] = 352
    y, x = np.ogrid[-1 : 1 : shape[1] * 1j, -1 : 1 : shape[0] * 1j]
    rng = np.random.default_rng(0)
    with gzip.open(file, "wb", 1) as out:
        out.write(header.binaryblock + bytes(4))
        for z in np.linspace(-0.94, 0.94, shape[2]):
            grain = rng.integers(900, 1000, (shape[1], shape[0]), np.int16)
            out.write(((x * x + y * y < 0.9 - z * z) * grain).astype("<i2").tobytes())


def answered(arguments: Sequence[str]) -> dict[str, float]:
    """Run ``predict`` and return what it took."""
    command = [sys.executable, "-m", "brain_tumor_mri.commands.main", "predict", *arguments, "--json"]
    with tempfile.TemporaryFile() as out:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, cwd=ROOT)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)  # told, as it was waited for here
        if process.returncode:
            raise UserError(f"{' '.join(command)} exited with {process.returncode}")
        out.seek(0)
        slices = len(json.load(out)["volumes"][0]["slices"])
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    return {
        "slices_answered": slices, "seconds": round(seconds, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1), "peak_mb": round(peak),
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    return run(__doc__, add_arguments, measure, argv, output="results/volumes/large.json")


if __name__ == "__main__":
    raise SystemExit(main())
