"""``brain-tumor-mri average``: the mean of the weights of two trainings, one of which began with the other.

A network that was fine-tuned on slices of further scanners loses some of what it knew of the first; the mean of both
keeps more of each than either (WiSE-FT: Wortsman et al. 2022, arXiv:2109.01903). Choose the share on validation slices.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from ..data.br35h import load_external
from ..data.slices import load_slices
from ..errors import UserError
from ..evaluation.record import describe_data, describe_model, run_record
from ..evaluation.split import evaluate_external, evaluate_split
from ..files import read_json
from ..inference.classifier import TumorClassifier
from ..inference.model_folder import TORCH, find_model
from ..reports.tables import evaluation_tables
from ..training.run import write_run
from .calibrate import training_settings

_PREFIX = "timm_model."
"""Of transformers' names; the release has timm's own."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("models", nargs=2, metavar="DIR", help="folder of the first training, and of the second")
    parser.add_argument("--share", type=float, default=0.5, help="of the second, in 0..1 (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="new folder")
    parser.add_argument("--data_dir", required=True, help="what both were trained on: measures the mean")
    parser.add_argument("--external_dir", help="the Br35H tumours: measures the external protocol too")


def run(args: argparse.Namespace) -> int:
    """Average, measure and write a folder like that of a training."""
    if not 0 <= args.share <= 1:
        raise UserError(f"--share {args.share}: give a number from 0 to 1")
    if args.output.exists():
        raise UserError(f"--output {args.output} is there already; give a new folder")
    folders = [find_model(Path(name), backend=TORCH) for name in args.models]
    first, second = ({_own(k): v for k, v in load_file(folder.weights[0]).items()} for folder in folders)
    if {k: v.shape for k, v in first.items()} != {k: v.shape for k, v in second.items()}:
        raise UserError(f"{args.models[0]} and {args.models[1]} are not of one architecture")
    protocol, seed, _ = training_settings(folders[1].path, folders[1].sha256())
    mean = {
        name: ((1 - args.share) * first[name].astype(np.float32) + args.share * value.astype(np.float32)).astype(
            value.dtype
        )
        if value.dtype.kind == "f"
        else value
        for name, value in second.items()
    }
    args.output.mkdir(parents=True)
    config = read_json(folders[1].path / "config.json")
    config["model_args"] = config.get("model_args") or {}  # timm takes no null
    (args.output / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(mean, args.output / "model.safetensors", metadata={"format": "pt"})

    classifier = TumorClassifier.from_pretrained(args.output, backend=TORCH)
    data = load_slices(args.data_dir, protocol, seed=seed, parts=["validation", "test"])
    tumours = load_external(args.external_dir) if args.external_dir else None
    trained = read_json(folders[1].path / "metrics.json")
    shares = (1 - args.share, args.share)
    averaged = [{"weights_sha256": f.sha256(), "share": s} for f, s in zip(folders, shares, strict=True)]
    record = run_record(
        protocol=protocol,
        model=describe_model(str(args.output), classifier),
        data=trained["data"] | {k: v for k, v in describe_data(args.data_dir, data).items() if k == "fingerprint"},
        splits={n: evaluate_split(classifier, data.splits[n], progress=True) for n in ("validation", "test")},
        config=trained["config"],
        training=trained["training"] | {"averaged": averaged},
        external=tumours and evaluate_external(classifier, tumours, data.splits, progress=True),
    )
    write_run(args.output, record, [])
    print("\n".join(evaluation_tables(record, "test")))
    return 0


def _own(name: str) -> str:
    return name.removeprefix(_PREFIX)
