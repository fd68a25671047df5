"""How time and memory of the copy search grow with the number of images, on synthetic thumbnails.

``python benchmarks/audit_growth.py --counts 5000 10000 20000`` prints a table and, with ``--output``, writes JSON. Each
count runs in a process of its own, so that its peak memory is its own. The thumbnails are smooth random images
with the spectrum of brain slices (power falling with the square of the frequency) inside an ellipse; every tenth is a
changed copy of an earlier one. Comparing is quadratic in time with a small constant; memory must be linear.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from brain_tumor_mri.audit.copies import THUMBNAIL_SIZE, find_copies, orient


def synthetic_thumbnails(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Thumbnails uint8 (count, 64, 64), and the indices int64 (count // 10,) of those that are copies."""
    rng = np.random.default_rng(seed)
    size = THUMBNAIL_SIZE
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]) * size
    amplitude = 1 / (1 + frequency)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    out = np.empty((count, size, size), np.uint8)
    for start in range(0, count, 1000):
        n = min(1000, count - start)
        noise = rng.normal(size=(n, *amplitude.shape)) + 1j * rng.normal(size=(n, *amplitude.shape))
        texture = np.fft.irfft2(noise * amplitude, s=(size, size))
        texture = (texture - texture.mean()) / texture.std()
        axes = rng.uniform(0.6, 0.95, (n, 2, 1, 1))
        head = ((x / axes[:, 0]) ** 2 + (y / axes[:, 1]) ** 2) < 1
        # Two thirds of the contrast is the head itself, which all slices share.
        out[start : start + n] = np.clip(head * (110 + 35 * texture), 0, 255)
    copies = np.arange(9, count, 10)
    for copy in copies:
        original = int(rng.integers(0, copy))
        changed = orient(out[original], int(rng.integers(8))) * rng.uniform(0.7, 1.0) + rng.normal(0, 2, (size, size))
        out[copy] = np.clip(changed, 0, 255)
    return out, copies


def measure(count: int) -> dict[str, Any]:
    thumbnails, copies = synthetic_thumbnails(count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    pairs = find_copies(thumbnails)
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "images": count,
        "seconds": round(seconds, 1),
        "peak_memory_mb": round(peak / 1024),
        "memory_before_mb": round(before / 1024),
        "pairs": len(pairs),
        "copies_found": int(np.isin(copies, np.concatenate([pairs.first, pairs.second])).sum()),
        "copies_made": len(copies),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[5000, 10000, 20000, 40000])
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    rows = []
    print(f"{'images':>8} {'seconds':>8} {'peak MB':>8} {'found':>13} {'pairs':>9}")
    for count in args.counts:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measure, (count,))
        rows.append(row)
        found = f"{row['copies_found']}/{row['copies_made']}"
        print(
            f"{row['images']:8d} {row['seconds']:8.1f} {row['peak_memory_mb']:8d} {found:>13} {row['pairs']:9d}",
            flush=True,
        )
    if args.output:
        hardware = f"{os.cpu_count()} cores, {platform.machine()}; load {os.getloadavg()[0]:.1f} at the end"
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({"hardware": hardware, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
