"""Precision and recall of the copy finder on copies made of real slices, with neighbouring slices as hard negatives.

``python benchmarks/accuracy/audit_accuracy.py --data_dir DATA --output results/audit-accuracy/metrics.json``. For every
kind of copy a pool is searched that holds 500 slices, one copy of each, and the slices next to them of the same
patient: a pair is right if both show the same slice, and wrong otherwise. The same is done on the published Kaggle
files that trace to a Figshare slice, where nobody made the copies for this purpose. ``--growth 5000 10000 20000``
instead tells time and peak memory of a search among so many synthetic thumbnails, a process a number.
"""

import argparse
import csv
import io
import itertools
import json
import multiprocessing
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness import run
from brain_tumor_mri.audit.copies import (
    CANDIDATE_CORRELATION,
    COPY_SCORE,
    THUMBNAIL_SIZE,
    copy_scores,
    find_copies,
    orient,
    thumbnail,
)
from brain_tumor_mri.data.outlines import read_provenance
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.images.read import load_image
from brain_tumor_mri.machine import cpu_count, hardware, versions

Change = Callable[[Image.Image], Image.Image]


def resized(size: int) -> Change:
    return lambda image: image.resize((size, size), Image.Resampling.LANCZOS)


def gamma(value: float) -> Change:
    table = [round(255 * (level / 255) ** value) for level in range(256)]
    return lambda image: image.point(table * len(image.getbands()))


def brightness(factor: float) -> Change:
    return lambda image: ImageEnhance.Brightness(image).enhance(factor)


def contrast(factor: float) -> Change:
    return lambda image: ImageEnhance.Contrast(image).enhance(factor)


def turned(how: Image.Transpose) -> Change:
    return lambda image: image.transpose(how)


def chain(*changes: Change) -> Change:
    def apply(image: Image.Image) -> Image.Image:
        for change in changes:
            image = change(image)
        return image

    return apply


def cropped(share: float) -> Change:
    return lambda image: ImageOps.crop(image, round(image.width * share)).resize(image.size)


def noisy(sigma: float) -> Change:
    def apply(image: Image.Image) -> Image.Image:
        pixels = np.asarray(image, np.float32)
        noise = np.random.default_rng(int(pixels.sum()) % 2**32).normal(0, sigma, pixels.shape[:2])
        return Image.fromarray(np.clip(pixels + noise[..., None], 0, 255).astype(np.uint8))

    return apply


T = Image.Transpose
# Kind -> (JPEG quality the copy is saved with, what is done to it).
PROMISED: dict[str, tuple[int, Change]] = {
    **{f"jpeg quality {q}": (q, lambda image: image) for q in (90, 70, 50, 30)},
    **{f"resized to {s} px": (95, resized(s)) for s in (256, 224, 128, 64)},
    "mirrored": (95, turned(T.FLIP_LEFT_RIGHT)),
    "upside down": (95, turned(T.FLIP_TOP_BOTTOM)),
    "turned 90": (95, turned(T.ROTATE_90)),
    "turned 180": (95, turned(T.ROTATE_180)),
    "turned 270": (95, turned(T.ROTATE_270)),
    "transposed": (95, turned(T.TRANSPOSE)),
    **{f"brightness x{f}": (95, brightness(f)) for f in (0.5, 0.8, 1.2, 1.5, 2.0)},
    **{f"contrast x{f}": (95, contrast(f)) for f in (0.5, 0.7, 1.3, 1.5)},
    **{f"gamma {g}": (95, gamma(g)) for g in (0.5, 0.7, 0.8, 1.25, 1.4)},
    "mirrored, 224 px, jpeg 70": (70, chain(turned(T.FLIP_LEFT_RIGHT), resized(224))),
    "turned 90, 128 px, brightness x1.2, jpeg 50": (50, chain(turned(T.ROTATE_90), resized(128), brightness(1.2))),
}
# What the audit does not promise to find; measured so that its limits are known.
BEYOND: dict[str, tuple[int, Change]] = {
    "gamma 2": (95, gamma(2.0)),
    "sharpened x3": (95, lambda image: ImageEnhance.Sharpness(image).enhance(3)),
    "noise sigma 10": (95, noisy(10)),
    "cropped 1 % a side": (95, cropped(0.01)),
    "cropped 3 % a side": (95, cropped(0.03)),
    "turned by 2 degrees": (95, lambda image: image.rotate(2, Image.Resampling.BILINEAR)),
    "turned by 5 degrees": (95, lambda image: image.rotate(5, Image.Resampling.BILINEAR)),
}


def proportion(name: str, hits: int, total: int) -> dict[str, Any]:
    """Return a proportion and its 95 % interval (Wilson 1927), rounded."""
    interval = binomtest(hits, total).proportion_ci(method="wilson")
    return {name: round(hits / total, 4), f"{name}_ci95": [round(float(end), 4) for end in interval]}


def copy_thumbnail(original: Image.Image, quality: int, change: Change) -> np.ndarray:
    """The copy goes through a file and the project's own loader, as a real one does."""
    file = io.BytesIO()
    change(original).save(file, "JPEG", quality=quality)
    return thumbnail(load_image(file.getvalue()))


def measure_made(data_dir: Path, count: int, seed: int) -> dict[str, Any]:
    root = data_dir / "figshare-brain-tumor"
    with (root / "slices.csv").open(newline="") as file:
        patient = {int(row["image_id"]): row["patient_id"] for row in csv.DictReader(file)}
    chosen = sorted(np.random.default_rng(seed).choice(sorted(patient), count, replace=False).tolist())
    near = {n for i in chosen for n in (i - 1, i + 1) if patient.get(n) == patient[i]} - set(chosen)
    slices = chosen + sorted(near)
    with ThreadPoolExecutor(cpu_count()) as pool:
        originals = list(pool.map(lambda i: load_image(root / "images" / f"{i}.jpg"), chosen))
        small = list(pool.map(thumbnail, originals))
        small += pool.map(lambda i: thumbnail(load_image(root / "images" / f"{i}.jpg")), sorted(near))
        base = np.stack(small)
        shown = np.array(slices + chosen)  # what each image of the pool shows
        neighbours = [
            (a, b)
            for a, b in itertools.combinations(range(len(slices)), 2)
            if abs(slices[a] - slices[b]) == 1 and patient[slices[a]] == patient[slices[b]]
        ]
        first, second = np.array(neighbours).T
        neighbour_scores = copy_scores(base[first], base[second], enough=2.0)

        kinds: dict[str, Any] = {}
        wrong_slices: set[tuple[int, int]] = set()
        right = wrong = 0
        for name, (quality, change) in {**PROMISED, **BEYOND}.items():
            copies = list(pool.map(lambda im, q=quality, c=change: copy_thumbnail(im, q, c), originals))
            pairs = find_copies(np.concatenate([base, np.stack(copies)]))
            same = shown[pairs.first] == shown[pairs.second]
            found, false = int(same.sum()), int((~same).sum())
            kinds[name] = {
                "promised": name in PROMISED,
                "copies": count,
                "found": found,
                **proportion("recall", found, count),
                "wrong_pairs": false,
            }
            if name in PROMISED:
                right, wrong = right + found, wrong + false
            wrong_slices |= {
                (int(a), int(b)) for a, b in zip(shown[pairs.first[~same]], shown[pairs.second[~same]], strict=True)
            }
            print(f"{name:45s} recall {found / count:.3f}  wrong pairs {false}", file=sys.stderr, flush=True)
    total = count * len(PROMISED)
    return {
        "slices": count,
        "images_in_a_pool": len(slices) + count,
        "neighbouring_pairs": len(neighbours),
        "neighbouring_pairs_highest_score": round(float(neighbour_scores.max()), 4),
        "neighbouring_pairs_taken_for_copies": int((neighbour_scores >= COPY_SCORE).sum()),
        **proportion("recall", right, total),
        **proportion("precision", right, right + wrong),
        "right_pairs": right,
        "wrong_pairs": wrong,
        "wrong_slice_pairs": sorted(wrong_slices)[:20],
        "kinds": kinds,
    }


def measure_kaggle(data_dir: Path) -> dict[str, Any]:
    """Pairs among the published files that trace to a slice: right if both trace to the same slice."""
    slice_of = {path: slice_ for path, (slice_, _) in read_provenance().items()}
    root = data_dir / "brain-tumor-mri-dataset"
    paths = [path for path in slice_of if (root / path).is_file()]
    with ThreadPoolExecutor(cpu_count()) as pool:
        small = np.stack(list(pool.map(lambda path: thumbnail(load_image(root / path)), paths)))
    pairs = find_copies(small)
    shown = np.array([int(slice_of[path]) for path in paths])
    right = int((shown[pairs.first] == shown[pairs.second]).sum())
    possible = sum(n * (n - 1) // 2 for n in Counter(shown.tolist()).values())
    return {
        "images": len(paths),
        "right_pairs": right,
        "wrong_pairs": len(pairs) - right,
        "pairs_of_the_same_slice": possible,
        **proportion("recall", right, possible),
        **proportion("precision", right, len(pairs)),
    }


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


def measure_growth(count: int) -> dict[str, Any]:
    """Return time and memory of one search; run in a process of its own, so that its peak memory is its own."""
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data_dir", type=Path, help="holds figshare-brain-tumor, brain-tumor-mri-dataset")
    parser.add_argument("--count", type=int, default=500, help="slices to copy (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--growth", type=int, nargs="+", metavar="N", help="numbers of images to search among")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    if args.growth:
        rows = []
        for count in args.growth:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append(pool.apply(measure_growth, (count,)))
        return {"what": "time and memory of find_copies", "growth": rows}
    if not args.data_dir:
        raise UserError("give --data_dir, or --growth")
    packages = ("numpy", "pillow", "scikit-learn", "scipy")
    return {
        "what": "pairs of copies found by brain_tumor_mri.audit.copies.find_copies",
        "min_score": COPY_SCORE,
        "min_correlation": CANDIDATE_CORRELATION,
        "seed": args.seed,
        "constructed": measure_made(args.data_dir, args.count, args.seed),
        "kaggle_traced": measure_kaggle(args.data_dir),
        "hardware": hardware(),
        "versions": versions() | {name: metadata.version(name) for name in packages},
    }


def show(record: dict[str, Any], _: argparse.Namespace) -> None:
    keys = ("recall", "recall_ci95", "precision", "precision_ci95")
    parts = ("constructed", "kaggle_traced")
    shown = record.get("growth") or {part: {key: record[part][key] for key in keys} for part in parts}
    print(json.dumps(shown, indent=1))


if __name__ == "__main__":
    raise SystemExit(run(__doc__, add_arguments, measure, show=show))
