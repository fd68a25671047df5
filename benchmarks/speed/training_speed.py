"""Samples per second of train.py against bare PyTorch loops with the same model, size, precision and batch.

    python benchmarks/speed/training_speed.py --data_dir DATA --output results/benchmarks/train.json

Two baselines: `bare loop`, twenty lines of PyTorch over torchvision's ImageFolder and a DataLoader; and `fixed batch`,
the model's training step alone on one batch in memory, which no real training reaches. The three take turns, each in
a process of its own, so that what else the machine does hits all alike. Peak memory is train.py's, workers included.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness import ROOT, run, run_watched

WARM_UP = 4
KINDS = ("train.py", "bare loop", "fixed batch")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=12, help="measured steps a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    if args.kind:
        return measure_alone(args)
    rounds = []
    for number in range(args.rounds):
        rounds.append({kind: run_alone(kind) for kind in KINDS[:: -1 if number % 2 else 1]})
        print({kind: f"{rounds[-1][kind]['samples_per_second']:.1f}/s" for kind in KINDS}, flush=True)
    speed = {kind: statistics.median(r[kind]["samples_per_second"] for r in rounds) for kind in KINDS}
    to_loop, to_batch = (speed["train.py"] / speed[kind] for kind in KINDS[1:])
    peak = max(r["train.py"]["peak_memory_gb"] for r in rounds)
    what = f"training ResNet50, {args.image_size} px, batch {args.batch_size}, bfloat16: samples/s of `train.py`"
    return {
        "benchmark": "training_speed",
        "setting": {
            "model": "resnet50",
            "image_size": args.image_size,
            "batch_size": args.batch_size,
            "precision": "bfloat16 autocast, channels_last",
            "steps": args.steps,
            "rounds": args.rounds,
        },
        "samples_per_second": speed,
        "ratio_to_bare_loop": to_loop,
        "ratio_to_fixed_batch": to_batch,
        "peak_memory_gb": peak,
        "rounds": rounds,
        "summary": [
            [what, "a bare PyTorch loop over ImageFolder", f"{to_loop:.2f} times"],
            [what, "its training step on one batch in memory", f"{to_batch:.2f} times"],
            ["peak memory of that training, workers included", "-", f"{peak:.1f} GB"],
        ],
    }


def run_alone(kind: str) -> dict[str, Any]:
    """Run one kind in a process of its own; add the peak of its and its workers' memory."""
    output, _, peak = run_watched([sys.executable, __file__, *sys.argv[1:], "--kind", kind])
    return json.loads(output.splitlines()[-1]) | {"peak_memory_gb": peak}


def measure_alone(args: argparse.Namespace) -> dict[str, Any]:
    """Measure one kind, print its figure for :func:`run_alone`, and stop."""
    times = {"train.py": time_trainer, "bare loop": time_bare_loop, "fixed batch": time_fixed_batch}[args.kind](args)
    seconds = times[-1] - times[WARM_UP - 1]
    print(json.dumps({"samples_per_second": args.batch_size * (len(times) - WARM_UP) / seconds}))
    raise SystemExit(0)


def time_trainer(args: argparse.Namespace) -> list[float]:
    """Return when each optimizer step of the real train.py ended."""
    from transformers import TrainerCallback

    import train

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            times.append(time.perf_counter())
            if len(times) == WARM_UP + args.steps:
                raise StopIteration

    # The run's own callback for its table is the place to hook in; everything else is train.py as it is.
    train.EpochTable = lambda folder: Clock()
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--data_dir", args.data_dir, "--output_dir", f"{folder}/run", "--image_size", str(args.image_size)]
        flags += ["--num_train_epochs", "1", "--train_sizes", f"{args.image_size}:1", "--disable_tqdm", "true"]
        flags += ["--per_device_train_batch_size", str(args.batch_size)]
        with contextlib.suppress(StopIteration):
            train.main([str(ROOT / "configs/scratch-cpu.yaml"), *flags])
    return times


def bare_step(args: argparse.Namespace):
    """Return a function of one batch that does what a plain PyTorch loop does."""
    import timm
    import torch

    model = timm.create_model("resnet50", num_classes=4).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, fused=True)

    def step(pixels, labels) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(pixels.contiguous(memory_format=torch.channels_last))
        torch.nn.functional.cross_entropy(logits.float(), labels, label_smoothing=0.05).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def time_bare_loop(args: argparse.Namespace) -> list[float]:
    import torch
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.Resize((args.image_size, args.image_size)),
            v2.RandomHorizontalFlip(),
            v2.RandomAffine(15, (0.08, 0.08), (0.88, 1.12), interpolation=v2.InterpolationMode.BILINEAR),
            v2.ColorJitter(0.3, 0.3),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    folder = ImageFolder(str(Path(args.data_dir) / "Training"), transform)
    step, times = bare_step(args), []
    for batch in torch.utils.data.DataLoader(folder, args.batch_size, shuffle=True, num_workers=2):
        step(*batch)
        times.append(time.perf_counter())
        if len(times) == WARM_UP + args.steps:
            break
    return times


def time_fixed_batch(args: argparse.Namespace) -> list[float]:
    import torch

    pixels = torch.randn(args.batch_size, 3, args.image_size, args.image_size)
    labels = torch.randint(0, 4, (args.batch_size,))
    step, times = bare_step(args), []
    for _ in range(WARM_UP + args.steps):
        step(pixels, labels)
        times.append(time.perf_counter())
    return times


if __name__ == "__main__":
    raise SystemExit(run(__doc__, add_arguments, measure))
