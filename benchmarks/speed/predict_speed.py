"""Images per second of `predict` on a folder of JPEGs against the bare model on a batch in memory.

    python benchmarks/speed/predict_speed.py --model model --output results/benchmarks/predict.json

The folder holds 500 synthetic 512 px JPEGs, written for the run. Baseline: forward passes of the same model, float32,
batch 32, nothing read or decoded. Both in one process, taking turns. Then the command itself on 500 and on 1,000
images, for its peak memory, and `info --json`, for its start.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from training_speed import environment, watch_memory

ROOT = Path(__file__).resolve().parents[2]
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        many = write_slices(Path(folder) / "1000", 1000)
        few = Path(folder) / "500"
        few.mkdir()
        for path in many[:500]:
            (few / path.name).symlink_to(path)
        speed = compare(args.model, sorted(few.iterdir()), args.rounds)
        command = [str(Path(sys.executable).with_name("brain-tumor-mri"))]
        memory = {
            str(n): peak_memory([*command, "predict", str(Path(folder) / str(n)), "--model", args.model, "--json"])
            for n in (500, 1000)
        }
    record = {
        "benchmark": "predict_speed",
        "setting": {"model": Path(args.model).name, "images": 500, "batch_size": BATCH, "rounds": args.rounds},
        "images_per_second": speed,
        "ratio_to_bare_model": speed["predict"] / speed["bare model"],
        "peak_memory_gb_by_images": memory,
        "info_seconds": min(seconds([*command, "info", "--json", "--model", args.model]) for _ in range(5)),
        **environment(),
    }
    record["summary"] = [
        [
            "`predict` on 500 JPEGs of 512 px, ResNet50, batch 32, float32: images/s",
            "the bare model on a batch in memory",
            f"{record['ratio_to_bare_model']:.2f} times",
        ],
        [
            "peak memory of `predict` on 500 and on 1,000 images",
            "-",
            " and ".join(f"{v:.2f} GB" for v in memory.values()),
        ],
        ["`info --json`, whole command", "-", f"{record['info_seconds']:.2f} s"],
    ]
    print(
        json.dumps(
            {
                k: record[k]
                for k in ("images_per_second", "ratio_to_bare_model", "peak_memory_gb_by_images", "info_seconds")
            }
        )
    )
    if args.output:
        from brain_tumor_mri.files import write_json

        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.output, record)


def write_slices(folder: Path, n: int) -> list[Path]:
    """Write n synthetic 512 px grayscale JPEGs, in the four classes by turns."""
    from brain_tumor_mri.labels import LABELS
    from data_scripts.make_phantoms import make_phantom

    folder.mkdir()
    rng = np.random.default_rng(0)
    drawn = [make_phantom(LABELS[i % 4], rng, size=512) for i in range(40)]
    paths = [folder / f"slice-{i:04}.jpg" for i in range(n)]
    for i, path in enumerate(paths):
        drawn[i % len(drawn)].save(path, quality=85 + i % 10)
    return paths


def compare(model: str, paths: list[Path], rounds: int) -> dict[str, float]:
    """Return the median images/s of both, measured by turns."""
    import torch

    from brain_tumor_mri.inference.classifier import TumorClassifier

    classifier = TumorClassifier.from_pretrained(model, batch_size=BATCH)
    pixels = torch.randn(BATCH, 3, *classifier.image_size).contiguous(memory_format=torch.channels_last)
    speeds: dict[str, list[float]] = {"predict": [], "bare model": []}
    with torch.inference_mode():
        for _ in range(2):
            classifier.model(pixels)
    list(classifier.predict_stream(paths[:64]))
    for _ in range(rounds):
        start = time.perf_counter()
        assert all(p.error is None for p in classifier.predict_stream(paths))
        speeds["predict"].append(len(paths) / (time.perf_counter() - start))
        start = time.perf_counter()
        with torch.inference_mode():
            for _ in range(len(paths) // BATCH):
                classifier.model(pixels)
        speeds["bare model"].append(len(paths) // BATCH * BATCH / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in speeds.items()}


def peak_memory(command: list[str]) -> float:
    """Return a command's peak memory in GB (proportional set size)."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    peak = [0]
    watcher = threading.Thread(target=watch_memory, args=(process.pid, peak), daemon=True)
    watcher.start()
    if process.wait():
        raise SystemExit(f"{' '.join(command)} exited with {process.returncode}")
    return peak[0] / 1e9


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
