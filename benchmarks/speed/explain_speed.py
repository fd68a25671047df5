"""What a Grad-CAM map of one image costs, in forward passes of the same model.

    python benchmarks/speed/explain_speed.py --model model --model runs/other --output results/benchmarks/explain.json

Four things take turns in one process, round by round, on one synthetic 512 px slice that is decoded already:
``heat_maps`` of its pixels, the bare forward pass of them, ``explain`` of the picture, and ``predict`` of it. A round
gives two ratios, a map to a forward pass and ``explain`` to ``predict``; kept are medians and the middle 80 %.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.speed.training_speed import environment
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.files import write_json
from brain_tumor_mri.heat_maps.explain import DEFAULT_METHOD, METHODS, explain, heat_maps

FORWARD, MAP, PREDICT, EXPLAIN = "forward pass", "heat_maps", "predict", "explain"
RATIOS = {"map_to_forward": (MAP, FORWARD), "explain_to_predict": (EXPLAIN, PREDICT)}
WARM_UP = 3
"""Rounds that are not counted: the first passes set up memory and kernels."""


def take_turns(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Time each by turns; every other round in reverse order, so that none always follows the same.

    Returns:
        Seconds of each, (rounds,), the warm-up left out.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(WARM_UP + rounds):
        names = list(contestants)[:: -1 if number % 2 else 1]
        for name in names:
            start = time.perf_counter()
            contestants[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values[WARM_UP:]) for name, values in seconds.items()}


def spread(values: np.ndarray) -> dict[str, float]:
    """Return median, 10 % and 90 % quantile as ``value``, ``low`` and ``high``."""
    low, value, high = np.quantile(values, (0.1, 0.5, 0.9))
    return {"value": float(value), "low": float(low), "high": float(high)}


def measure(model: str, *, rounds: int, method: str, device: str | None) -> dict[str, Any]:
    """Return the figures of one model.

    Raises:
        UserError: the model cannot be loaded, or has no feature map to explain.
    """
    import torch

    from brain_tumor_mri.inference.classifier import TumorClassifier
    from data_scripts.make_phantoms import make_phantom

    classifier = TumorClassifier.from_pretrained(model, device=device)
    image = make_phantom("glioma", np.random.default_rng(0), size=512).convert("RGB")
    pixels = classifier.preprocess(image)[None].to(classifier.device, memory_format=torch.channels_last)

    def settled(work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            work()
            if classifier.device.type == "cuda":
                torch.cuda.synchronize()

        return run

    @torch.inference_mode()
    def forward() -> None:
        classifier.model(pixel_values=pixels)

    seconds = take_turns(
        {
            FORWARD: settled(forward),
            MAP: settled(lambda: heat_maps(classifier, pixels, method=method)),
            PREDICT: settled(lambda: classifier.predict(image)),
            EXPLAIN: settled(lambda: explain(classifier, image, method=method)),
        },
        rounds,
    )
    ratios = {name: spread(seconds[ours] / seconds[theirs]) for name, (ours, theirs) in RATIOS.items()}
    network = getattr(classifier.model, "timm_model", classifier.model)
    return {
        "model": Path(model).name,
        "architecture": classifier.model.config.architecture,
        "parameters": sum(p.numel() for p in network.parameters()),
        "image_size": list(classifier.image_size),
        "trust": classifier.trust is not None,
        "device": str(classifier.device),
        "milliseconds": {name: spread(1000 * values) for name, values in seconds.items()},
        **ratios,
    }


def summary_rows(figures: Mapping[str, Any], method: str) -> list[list[str]]:
    """Return two rows for README's table of speeds."""
    name = {"grad-cam": "Grad-CAM", "layer-cam": "LayerCAM", "fused-cam": "Grad-CAM times LayerCAM"}[method]
    ratio, whole = ("{value:.2f} ({low:.2f}-{high:.2f}) times".format(**figures[key]) for key in RATIOS)
    what = f"{figures['architecture']}, {figures['device'].split(':')[0]}"
    return [
        [f"{name} map of one decoded image, {what}: time", "the bare forward pass", ratio],
        [f"`explain` on one decoded image, {what}: time", "`predict` on it", whole],
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", help="folder of a model (default: model); may be given again")
    parser.add_argument("--method", choices=METHODS, default=DEFAULT_METHOD)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: %(default)s)")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    try:
        models = [
            measure(model, rounds=args.rounds, method=args.method, device=args.device)
            for model in args.model or ["model"]
        ]
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    record = {
        "benchmark": "explain_speed",
        "setting": {
            "method": args.method,
            "rounds": args.rounds,
            "images": 1,
            "interval": "10 % to 90 % of the rounds",
        },
        "models": models,
        **environment(),
        "summary": [row for figures in models for row in summary_rows(figures, args.method)],
    }
    print(json.dumps({"models": models}, indent=2))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.output, record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
