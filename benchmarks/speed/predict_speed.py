"""Images per second of `predict` on a folder of JPEGs against the bare model on a batch in memory.

    python benchmarks/speed/predict_speed.py --model model --output results/benchmarks/predict.json

The folder holds 500 synthetic 512 px JPEGs, written for the run. Baseline: forward passes of the same model, float32,
batch 32, nothing read or decoded. Both in one process, taking turns. Then the command itself on 500 and on 1,000
images, for its peak memory, and `info --json`, for its start.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness import run, run_watched, take_turns, write_slices
from brain_tumor_mri.inference.classifier import TumorClassifier

BATCH = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="model")
    parser.add_argument("--rounds", type=int, default=3)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    command = [str(Path(sys.executable).with_name("brain-tumor-mri"))]
    with tempfile.TemporaryDirectory() as folder:
        many = write_slices(Path(folder) / "1000", 1000)
        few = Path(folder) / "500"
        few.mkdir()
        for path in many[:500]:
            (few / path.name).symlink_to(path)
        speed = compare(args.model, sorted(few.iterdir()), args.rounds)
        predict = [*command, "predict", "--model", args.model, "--json"]
        memory = {str(n): run_watched([*predict, str(Path(folder) / str(n))])[2] for n in (500, 1000)}
    info = min(run_watched([*command, "info", "--json", "--model", args.model])[1] for _ in range(5))
    ratio, gigabytes = speed["predict"] / speed["bare model"], " and ".join(f"{v:.2f} GB" for v in memory.values())
    what = "`predict` on 500 JPEGs of 512 px, ResNet50, batch 32, float32: images/s"
    return {
        "benchmark": "predict_speed",
        "setting": {"model": Path(args.model).name, "images": 500, "batch_size": BATCH, "rounds": args.rounds},
        "images_per_second": speed,
        "ratio_to_bare_model": ratio,
        "peak_memory_gb_by_images": memory,
        "info_seconds": info,
        "summary": [
            [what, "the bare model on a batch in memory", f"{ratio:.2f} times"],
            ["peak memory of `predict` on 500 and on 1,000 images", "-", gigabytes],
            ["`info --json`, whole command", "-", f"{info:.2f} s"],
        ],
    }


def compare(model: str, paths: list[Path], rounds: int) -> dict[str, float]:
    """Return the median images/s of both, measured by turns."""
    classifier = TumorClassifier.from_pretrained(model, batch_size=BATCH)
    pixels = torch.randn(BATCH, 3, *classifier.image_size).contiguous(memory_format=torch.channels_last)

    def predict() -> None:
        assert all(p.error is None for p in classifier.predict_stream(paths))

    @torch.inference_mode()
    def bare() -> None:
        for _ in range(len(paths) // BATCH):
            classifier.model(pixels)

    seconds = take_turns({"predict": predict, "bare model": bare}, rounds)
    counts = {"predict": len(paths), "bare model": len(paths) // BATCH * BATCH}
    return {name: float(counts[name] / np.median(values)) for name, values in seconds.items()}


if __name__ == "__main__":
    raise SystemExit(run(__doc__, add_arguments, measure))
