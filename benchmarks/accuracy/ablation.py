"""What each step of a recipe changes: models that differ by a step, asked about the same test slices, in order.

    python benchmarks/accuracy/ablation.py --step "plain recipe" runs/lite --step "+ augmentation" runs/augmentation \
        --data_dir ../shared/data/brain-tumor-mri-dataset --external_dir ../shared/data/br35h-tumour \
        --output results/ablation/metrics.json

Every model must have been trained by train.py under the protocol and fold that are measured, and its folder say so. A
step's change is against the step before, by the same slices: its interval is drawn over groups of patients and copies,
of both models' answers together. It is one training a step, so it holds the luck of the slices but not of the training.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness import add_data_arguments, run
from brain_tumor_mri.data.br35h import load_external
from brain_tumor_mri.data.protocols import OFFICIAL, PATIENT_DISJOINT, ProtocolArguments
from brain_tumor_mri.data.slices import load_slices
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.evaluation.metrics import external_figures, mean_figure
from brain_tumor_mri.evaluation.record import describe_data, describe_model, run_record
from brain_tumor_mri.evaluation.split import predict_split, split_figures
from brain_tumor_mri.files import read_json
from brain_tumor_mri.inference.classifier import TumorClassifier
from brain_tumor_mri.labels import LABEL2ID, NO_TUMOR
from brain_tumor_mri.reports.tables import ablation_table

SETTINGS = (
    "model_name_or_path", "num_train_epochs", "train_sizes", "metric_for_best_model", "gamma", "framing", "artefacts",
    "jpeg", "external_train", "external_repeats", "outlines_dir", "guidance", "seed",
)  # fmt: skip


def read_model(folder: str, protocol: ProtocolArguments) -> tuple[TumorClassifier, dict[str, Any]]:
    """Load a model and what its folder says of its training."""
    classifier = TumorClassifier.from_pretrained(folder)
    file = Path(folder) / "metrics.json"
    try:
        record = read_json(file)
        trained_under, weights = record["protocol"], record["model"]["weights_sha256"]
        settings = {name: record["config"].get(name) for name in SETTINGS}
    except (UserError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} does not say how the model was trained; give a folder that train.py wrote") from error
    if weights != classifier.describe()["sha256"]:
        raise UserError(f"{file} belongs to other weights; give the folder that train.py wrote")
    if trained_under != protocol.title:
        raise UserError(f"{folder}: trained under {trained_under}, so these test slices may have trained it")
    return classifier, settings


def differences(
    before: np.ndarray, after: np.ndarray, labels: np.ndarray, groups: Sequence[str]
) -> dict[str, dict[str, float] | None]:
    """Return what one model answers otherwise, (N, 4) each, as figures in -1..1 with paired intervals over groups."""
    first, second = before.argmax(1), after.argmax(1)
    gained = (second == labels).astype(float) - (first == labels)
    return {"accuracy": mean_figure(gained, groups), "answers": mean_figure(first != second, groups)}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return the record: a row for each step."""
    protocol = ProtocolArguments(args.protocol, args.fold)
    loaded = [(title, *read_model(folder, protocol), folder) for title, folder in args.step]
    data, tumours = load_slices(str(args.data_dir), protocol), load_external(args.external_dir)["test"]
    test = data.splits["test"]
    groups, healthy = np.asarray(test["group"][:]), np.asarray(test["label"][:]) == LABEL2ID[NO_TUMOR]
    steps: list[dict[str, Any]] = []
    before: tuple[np.ndarray, np.ndarray] | None = None
    for title, classifier, settings, folder in loaded:
        print(f"{title} ...", file=sys.stderr, flush=True)
        (probabilities, labels), (other, _) = (predict_split(classifier, split) for split in (test, tumours))
        row = {
            "title": title,
            "model": describe_model(folder, classifier),
            "settings": settings,
            "test": split_figures(probabilities, labels, groups),
            "external": external_figures(
                other, probabilities[healthy], tumour_groups=tumours["group"][:], healthy_groups=groups[healthy]
            ),
            "change": None,
        }
        if before:
            found = [(p.argmax(1) != LABEL2ID[NO_TUMOR]).astype(float) for p in (before[1], other)]
            row["change"] = differences(before[0], probabilities, labels, groups)
            row["change"]["sensitivity"] = mean_figure(found[1] - found[0], tumours["group"][:])
        steps.append(row)
        before = probabilities, other
    record = run_record(protocol=protocol, model={}, data=describe_data(str(args.data_dir), data), splits={})
    return record | {"benchmark": "ablation", "steps": steps}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--step",
        nargs=2,
        action="append",
        required=True,
        metavar=("TITLE", "FOLDER"),
        help="a row of the table and the folder that train.py wrote; in the order in which changes are shown",
    )
    add_data_arguments(parser, (PATIENT_DISJOINT, OFFICIAL))


def show(record: dict[str, Any], _: argparse.Namespace) -> None:
    print(ablation_table(record))


def main(argv: Sequence[str] | None = None) -> int:
    return run(__doc__, add_arguments, measure, argv, show=show, output="results/ablation/metrics.json")


if __name__ == "__main__":
    raise SystemExit(main())
