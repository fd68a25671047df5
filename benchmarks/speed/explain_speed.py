"""What a Grad-CAM map of one image costs, in forward passes of the same model.

    python benchmarks/speed/explain_speed.py --model model --model runs/other --output results/benchmarks/explain.json

Four things take turns in one process, round by round, on one synthetic 512 px slice that is decoded already:
``heat_maps`` of its pixels, the bare forward pass of them, ``explain`` of the picture, and ``predict`` of it. A round
gives two ratios, a map to a forward pass and ``explain`` to ``predict``; kept are medians and the middle 80 %.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness import run, spread, take_turns
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.heat_maps import FUSED_CAM, METHODS
from brain_tumor_mri.heat_maps.explain import explain, heat_maps
from brain_tumor_mri.inference.classifier import TumorClassifier
from data_scripts.draw_phantoms import make_phantom

FORWARD, MAP, PREDICT, EXPLAIN = "forward pass", "heat_maps", "predict", "explain"
RATIOS = {"map_to_forward": (MAP, FORWARD), "explain_to_predict": (EXPLAIN, PREDICT)}


def measure_model(model: str, *, rounds: int, method: str, device: str | None) -> dict[str, Any]:
    """Return the figures of one model."""
    classifier = TumorClassifier.from_pretrained(model, device=device, backend="torch")
    image = make_phantom("glioma", np.random.default_rng(0), size=512).convert("RGB")
    pixels = classifier.preprocess(image)[None]
    tensor = torch.from_numpy(pixels).to(classifier.device, memory_format=torch.channels_last)

    def settled(work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            work()
            if classifier.device.startswith("cuda"):
                torch.cuda.synchronize()

        return run

    @torch.inference_mode()
    def forward() -> None:
        classifier.model(pixel_values=tensor)

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
        "device": classifier.device,
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", action="append", help="folder of a model (default: model); may be given again")
    parser.add_argument("--method", choices=METHODS, default=FUSED_CAM)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: %(default)s)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    if args.rounds < 1:
        raise UserError(f"--rounds {args.rounds}: give 1 or more")
    options = {"rounds": args.rounds, "method": args.method, "device": args.device}
    models = [measure_model(model, **options) for model in args.model or ["model"]]
    setting = {"method": args.method, "rounds": args.rounds, "images": 1, "interval": "10 % to 90 % of the rounds"}
    summary = [row for figures in models for row in summary_rows(figures, args.method)]
    return {"benchmark": "explain_speed", "setting": setting, "models": models, "summary": summary}


def main(argv: Sequence[str] | None = None) -> int:
    return run(__doc__, add_arguments, measure, argv)


if __name__ == "__main__":
    raise SystemExit(main())
