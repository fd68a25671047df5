"""``brain-tumor-mri predict scan.nii.gz``: volumes, DICOM series and zips of them; one answer each."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import UserError
from ..files import check_writable
from ..images.series import UnreadableVolumeError
from ..inference.volume import VolumeClassifier, VolumePrediction
from ..labels import NO_TUMOR, RESEARCH_NOTICE, TITLES
from ..trust.decision import DECISIONS
from .model_flags import load_classifier


def run(args: argparse.Namespace) -> int:
    """Answer each volume; 0 when one was answered, else 2."""
    if args.csv:
        raise UserError("--csv is for slices; give --json for volumes")
    if args.heat_map and len(args.paths) > 1:
        raise UserError("--heat_map is the file of one volume; give one path")
    if args.heat_map:
        check_writable(args.heat_map, "--heat_map")
        if not args.heat_map.name.endswith((".nii", ".nii.gz")):
            raise UserError(f"--heat_map {args.heat_map}: give a name that ends in .nii or .nii.gz")
    classifier = VolumeClassifier(load_classifier(args))
    predictions: list[VolumePrediction] = []
    for path in args.paths:
        try:
            predictions += classifier.predict_all(path, heat_map=args.heat_map is not None)
        except UnreadableVolumeError as error:
            predictions.append(VolumePrediction(error.name, error=error.reason))
    answered = [prediction for prediction in predictions if prediction.error is None]
    if args.json:
        volumes = [prediction.to_dict() for prediction in predictions]
        json.dump({"model": classifier.slice_classifier.describe(), "volumes": volumes}, sys.stdout, indent=2)
        print()
    else:
        _print(predictions)
    if args.heat_map and answered:
        _only(answered, args.heat_map).write_heat_map(args.heat_map)
    return 0 if answered else 2


def _only(answered: list[VolumePrediction], file: Path) -> VolumePrediction:
    if len(answered) > 1:
        raise UserError(f"--heat_map {file}: there are {len(answered)} series; give one of them")
    return answered[0]


def _print(predictions: list[VolumePrediction]) -> None:
    # where output is piped there is no width to keep to, and a path cut in two helps nobody
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("volume", "class", "P(tumour)", "sequence", "plane", "key slices", "decision"):
        table.add_column(title)
    for prediction in predictions:
        if prediction.error is not None:
            table.add_row(Text(prediction.name), "Not readable", "", "", "", "", Text(prediction.error))
            continue
        decision = DECISIONS.get(prediction.decision, "")
        table.add_row(
            Text(prediction.name),
            TITLES[prediction.label],
            f"{100 * (1 - prediction.probabilities[NO_TUMOR]):.1f}%",
            prediction.sequence,
            prediction.plane,
            ", ".join(map(str, prediction.key_slices[:3])),
            Text(f"{decision}: {prediction.reason}" if prediction.reason else decision),
        )
    console.print(table)
    for prediction in predictions:
        for warning in prediction.warnings:
            console.print(Text(f"{prediction.name}: {warning}"))
    print(RESEARCH_NOTICE)
