"""``brain-tumor-mri decoder --model DIR``: writes ``decoder.json``, from which heat maps are made.

Fitted on training slices whose tumours radiologists outlined, and on healthy ones; ``explain_accuracy.py`` measures the
maps on test tumours. Takes minutes.
"""

from __future__ import annotations

import argparse
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from rich.console import Console
from rich.progress import track

from ..data.collections import load_collections
from ..data.outlines import load_outlines
from ..data.slices import load_slices
from ..evaluation.decoder import INSIDE, STRENGTH, fit_decoder
from ..files import write_json
from ..inference.classifier import TumorClassifier
from ..inference.decoder import FILE_NAME, Decoder
from ..inference.model_folder import DEFAULT_MODEL, TORCH
from ..labels import LABEL2ID, NO_TUMOR, require_project_classes
from ..machine import versions
from .calibrate import training_settings

TUMOURS, HEALTHY = 900, 500
"""Slices that the decoder is fitted to, drawn at random; of the healthy ones, those of the main set and of others."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"folder of a trained model (default: {DEFAULT_MODEL})")
    parser.add_argument("--data_dir", default="data/brain-tumor-mri-dataset", help="what the model was trained on")
    parser.add_argument("--outlines_dir", required=True, help="the Figshare set: borders.jsonl")
    parser.add_argument("--collections_dir", help="further collections: their healthy training slices hold no tumour")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best one here)")


def run(args: argparse.Namespace) -> int:
    """Fit, write, and print a summary."""
    classifier = TumorClassifier.from_pretrained(Path(args.model), device=args.device, backend=TORCH, use_trust=False)
    require_project_classes(classifier.labels, "the decoder")
    folder = classifier.folder
    protocol, seed, _ = training_settings(folder.path, folder.sha256())
    train = load_slices(args.data_dir, protocol, seed=seed, parts=["train"]).splits["train"]
    outlines = load_outlines(args.outlines_dir)
    rng = np.random.default_rng(0)
    labels = train["label"][:]
    paths = train["path"][:]
    healthy = [i for i, label in enumerate(labels) if label == LABEL2ID[NO_TUMOR]]
    drawn = [i for i, path in enumerate(paths) if labels[i] != LABEL2ID[NO_TUMOR] and path in outlines]
    drawn = rng.permutation(drawn)[:TUMOURS].tolist() + rng.permutation(healthy)[: HEALTHY // 2].tolist()
    slices = [(Path(args.data_dir, paths[i]), labels[i], outlines.get(paths[i], [])) for i in drawn]
    if args.collections_dir:
        slices += _healthy(load_collections(args.collections_dir)["train"], Path(args.collections_dir), rng)
    shown = track(slices, "Reading slices", console=Console(stderr=True), transient=True)
    decoder, fitted_on = fit_decoder(classifier, shown)
    record: dict[str, Any] = {
        "protocol": protocol.title,
        "fitted_on": fitted_on,
        "settings": {"inverse_of_penalty": STRENGTH, "tumour_share_of_a_cell": INSIDE},
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
    }
    file = folder.path / FILE_NAME
    whole = Decoder(decoder.weights_sha256, decoder.stages, decoder.weights, decoder.biases, record)
    write_json(file, whole.to_dict())
    print(f"Fitted to {fitted_on['slices']} slices of the training part, {protocol.title}. Written to {file}")
    return 0


def _healthy(part: datasets.Dataset, root: Path, rng: np.random.Generator) -> list[tuple[Path, int, list[np.ndarray]]]:
    healthy = [i for i, label in enumerate(part["true_label"][:]) if label == NO_TUMOR]
    paths = part["path"][:]
    return [(root / paths[i], LABEL2ID[NO_TUMOR], []) for i in rng.permutation(healthy)[: HEALTHY // 2].tolist()]
