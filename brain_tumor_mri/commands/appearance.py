"""``brain-tumor-mri appearance --model DIR``: writes ``appearance.json``, what tells sequence and skull.

Fitted on slices whose looks are known; each collection measured by a fit without it. Calibrate first: the features are
those of trust.json. Takes a few minutes.
"""

from __future__ import annotations

import argparse
import json
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from ..data.appearance import known_slices
from ..errors import UserError
from ..evaluation.appearance import fit_head
from ..files import write_json
from ..images.read import load_image
from ..inference.appearance import FILE_NAME, TASKS, AppearanceHeads, grey_profile
from ..inference.classifier import TumorClassifier
from ..inference.model_folder import DEFAULT_MODEL
from ..inference.network import CPU_BATCH
from ..machine import versions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help=f"folder of a calibrated model (default: {DEFAULT_MODEL})"
    )
    parser.add_argument("--collections_dir", required=True, help="further collections, with their table")
    parser.add_argument("--data_dir", help="the Kaggle set, for T1 with contrast and T2 of whole heads")
    parser.add_argument("--report", type=Path, metavar="FILE", help="also write what was measured to FILE")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best one here)")
    parser.add_argument("--json", action="store_true", help="print what was measured as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Fit, write, and print a summary."""
    classifier = TumorClassifier.from_pretrained(Path(args.model), device=args.device)
    if classifier.trust is None:
        raise UserError(f"{args.model} has no trust.json, which names the features; run `brain-tumor-mri calibrate`")
    known = known_slices(args.collections_dir, args.data_dir)
    features = _features(classifier, [slice_.path for slice_ in known], quiet=args.json)
    heads, measured = {}, {}
    for task in TASKS:
        rows = [i for i, slice_ in enumerate(known) if getattr(slice_, task)]
        labels = [getattr(known[i], task) for i in rows]
        if len(set(labels)) < 2:
            raise UserError(f"{args.collections_dir}: no slices of two kinds of {task}; give --data_dir too")
        heads[task], measured[task] = fit_head(features[rows], labels, [known[i].collection for i in rows])
    record = {
        "protocol": "each collection judged by a fit and limits without it; the network trained on slices of most",
        "measured": measured,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
    }
    sha256 = classifier.folder.sha256()
    write_json(classifier.folder.path / FILE_NAME, AppearanceHeads(sha256, heads, record).to_dict())
    if args.report:
        args.report.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.report, {"architecture": classifier.folder.architecture, "weights_sha256": sha256, **record})
    if args.json:
        print(json.dumps(record, indent=2))
        return 0
    for task, figures in measured.items():
        print(
            f"{task}: right on collections left out {figures['right_by_collection']:.1%}, told "
            f"{figures['told_by_collection']:.1%}, right when told {figures['right_when_told_by_collection'] or 0:.1%} "
            f"({figures['n']} slices; collections weigh alike)"
        )
    print(f"Written to {classifier.folder.path / FILE_NAME}")
    return 0


def _features(classifier: TumorClassifier, paths: list[Path], *, quiet: bool) -> np.ndarray:
    """Features of the network and grey profiles, (N, D) float32."""
    network, found, pending = classifier.network, [], iter(paths)
    with Progress(console=Console(stderr=True), transient=True, disable=quiet) as bar:
        task = bar.add_task("Reading slices", total=len(paths))
        while files := list(islice(pending, CPU_BATCH)):
            images = [load_image(file) for file in files]
            _, features = network(np.stack([classifier.preprocess(image) for image in images]))
            found.append(np.concatenate([features, [grey_profile(image) for image in images]], axis=1))
            bar.update(task, advance=len(files))
    return np.concatenate(found).astype(np.float32)
