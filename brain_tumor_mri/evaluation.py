"""``brain-tumor-mri evaluate``: a model's figures on one part of a data set, and the figures that end a training run.

Both go through ``TumorClassifier``, so a figure is of what users run: float32, the model's own preprocessing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .loading import add_model_arguments, load_classifier
from .protocols import EXTERNAL, ProtocolArguments
from .weights import DEFAULT_MODEL

if TYPE_CHECKING:
    import datasets
    import numpy as np

    from .classifier import TumorClassifier
    from .data import SliceData


def predict_split(
    classifier: TumorClassifier, split: datasets.Dataset, *, progress: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Run the classifier over one split.

    Returns:
        Probabilities (N, 4) float64 and labels (N,) int64, in the split's order.
    """
    import datasets
    import numpy as np
    from rich.console import Console
    from rich.progress import track

    from .labels import LABELS

    images = split.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    sources = (row["image"]["bytes"] or row["image"]["path"] for row in images)
    predictions = track(
        classifier.predict_stream(sources),
        "Evaluating",
        total=len(split),
        disable=not progress,
        console=Console(stderr=True),
        transient=True,
    )
    probabilities = [[prediction.probabilities[label] for label in LABELS] for prediction in predictions]
    return np.asarray(probabilities), np.asarray(split["label"][:])


def split_figures(probabilities: np.ndarray, labels: np.ndarray, groups: Sequence[str]) -> dict[str, Any]:
    """Return :func:`~brain_tumor_mri.metrics.classification_figures` by the project's metric, intervals over groups."""
    from .metrics import TumorClassificationMetric

    return TumorClassificationMetric().compute(predictions=probabilities, references=labels, groups=groups)


def evaluate_split(classifier: TumorClassifier, split: datasets.Dataset, *, progress: bool = False) -> dict[str, Any]:
    """Return :func:`~brain_tumor_mri.metrics.classification_figures` on one split, intervals over its groups."""
    probabilities, labels = predict_split(classifier, split, progress=progress)
    return split_figures(probabilities, labels, split["group"][:])


def evaluate_external(
    classifier: TumorClassifier,
    tumours: datasets.DatasetDict,
    splits: datasets.DatasetDict,
    *,
    with_threshold: bool = True,
    progress: bool = False,
) -> dict[str, Any]:
    """Return :func:`~brain_tumor_mri.external.external_figures`, the threshold chosen on validation slices.

    Args:
        classifier: the model.
        tumours: of :func:`~brain_tumor_mri.external.load_external`; its test part is measured.
        splits: of :func:`~brain_tumor_mri.data.load_slices`; their ``notumor`` slices are the healthy ones.
        with_threshold: whether the validation part, which did not train, may choose a threshold.
        progress: show a bar on stderr.
    """
    import numpy as np

    from .external import external_figures
    from .labels import LABEL2ID, NO_TUMOR

    def healthy(part: str) -> datasets.Dataset:
        labels = np.asarray(splits[part]["label"][:])
        return splits[part].select(np.flatnonzero(labels == LABEL2ID[NO_TUMOR]))

    parts = {"tumours": tumours["test"], "healthy": healthy("test")}
    if with_threshold:
        parts["validation_healthy"] = healthy("validation")
    probabilities = {name: predict_split(classifier, part, progress=progress)[0] for name, part in parts.items()}
    return external_figures(
        **probabilities, tumour_groups=parts["tumours"]["group"][:], healthy_groups=parts["healthy"]["group"][:]
    )


def describe_model(folder_or_id: str | Sequence[str], classifier: TumorClassifier) -> dict[str, Any]:
    """Return what metrics.json says of the model: name, architecture, input size, parameters, hash of the weights.

    What differs between the members of an ensemble is joined by ``+``.
    """
    names = [folder_or_id] if isinstance(folder_or_id, str) else folder_or_id
    members = classifier.members
    return {
        "name": " + ".join(Path(name).resolve().name if Path(name).is_dir() else name for name in names),
        "architecture": " + ".join(member.folder.architecture for member in members),
        "image_size": classifier.image_size[0],
        "mirror": classifier.mirror,
        "parameters": sum(member.folder.parameters for member in members),
        "weights_sha256": classifier.describe()["sha256"],
    }


def describe_data(data_dir: str, data: SliceData) -> dict[str, Any]:
    """Return what metrics.json says of the data. The folder's name only: its path belongs to the machine.

    ``leaking_share``: by part, the share of its images with a copy or a slice of the same patient among the training
    images, as far as the versioned splits know.
    """
    from .protocols import leaking_share

    groups = {name: split["group"][:] for name, split in data.splits.items()}
    return {
        "name": Path(data_dir).resolve().name,
        "fingerprint": data.fingerprint,
        "counts": data.counts(),
        "leaking_share": {name: leaking_share(groups["train"], groups[name]) for name in ("validation", "test")},
        "corrected_labels": data.assignment.corrected,
        "not_in_splits": data.assignment.unlisted,
        "missing_from_folder": data.assignment.missing,
        "skipped": [{"path": file.path, "reason": file.reason} for file in data.skipped],
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    add_model_arguments(parser)
    parser.add_argument(
        "--all_folds",
        action="store_true",
        help="test each fold with its own model, {fold} in --model standing for it, and pool",
    )
    parser.add_argument("--data_dir", default="data/brain-tumor-mri-dataset", help="holds Training/ and Testing/")
    parser.add_argument("--external_dir", help="the Br35H tumours (images/): measures the external protocol too")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"))
    for setting in fields(ProtocolArguments):
        kind = {"action": "store_true"} if setting.type == "bool" else {"type": type(setting.default)}
        parser.add_argument(f"--{setting.name}", default=setting.default, help=setting.metadata["help"], **kind)
    parser.add_argument("--seed", type=int, default=42, help="of the validation draw, as in training")
    parser.add_argument("--skip_unreadable", action="store_true", help="leave bad files out and list them")
    parser.add_argument("--title", help="what stands in tables for the model (default: architecture and input size)")
    parser.add_argument("--output", type=Path, help="write the figures to this metrics.json")
    parser.add_argument("--json", action="store_true", help="print the record as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Evaluate and print a table, or JSON.

    Raises:
        UserError: the model or the data cannot be used.
    """
    from rich.console import Console
    from rich.markdown import Markdown

    from .external import load_external
    from .report import class_table, external_note, external_table, interval_note, leak_note, summary_table, write_json

    protocol = ProtocolArguments(**{setting.name: getattr(args, setting.name) for setting in fields(ProtocolArguments)})
    if protocol.protocol == EXTERNAL and not args.external_dir:
        raise UserError(f"--protocol {EXTERNAL}: give --external_dir, the folder of the Br35H tumours")
    args.model = args.model or [DEFAULT_MODEL]
    tumours = load_external(args.external_dir) if args.external_dir else None
    record = _pooled_record(args, protocol) if args.all_folds else _single_record(args, protocol, tumours)
    if args.output:
        write_json(args.output, record)
    if args.json:
        json.dump(record, sys.stdout, indent=2)
        print()
        return 0
    console = Console()
    texts: list[str] = []
    if record["splits"]:
        texts += [summary_table([record], args.split), class_table(record, args.split)]
        texts += [interval_note(record, args.split), leak_note(record, args.split)]
    if record["external"]:
        texts += [external_table([record]), external_note(record)]
    for text in texts:
        console.print(Markdown(text))
    return 0


def _single_record(
    args: argparse.Namespace, protocol: ProtocolArguments, tumours: datasets.DatasetDict | None
) -> dict[str, Any]:
    """Evaluate one model, or ensemble, on one part."""
    from .report import run_record

    progress = not args.json
    classifier, data = _load(args, protocol)
    parts = () if protocol.protocol == EXTERNAL else (args.split,)
    return run_record(
        protocol=protocol,
        model=describe_model(args.model, classifier),
        data=describe_data(args.data_dir, data),
        splits={part: evaluate_split(classifier, data.splits[part], progress=progress) for part in parts},
        external=evaluate_external(classifier, tumours, data.splits, progress=progress) if tumours else None,
        title=args.title,
    )


def _pooled_record(args: argparse.Namespace, protocol: ProtocolArguments) -> dict[str, Any]:
    """Evaluate the model of each fold on the fold's test part, and pool the answers: each slice is tested once.

    Raises:
        UserError: the protocol has no folds, more is asked for than the test part, or the models have no ``{fold}``.
    """
    import numpy as np

    from .protocols import FOLDS, OFFICIAL
    from .report import run_record

    if protocol.protocol in (OFFICIAL, EXTERNAL) or args.split != "test" or args.external_dir:
        raise UserError(
            f"--all_folds: needs a protocol with folds and its test part, not {protocol.title} {args.split}"
        )
    if not all("{fold}" in name for name in args.model):
        raise UserError("--all_folds: give --model a name with {fold} in it, such as runs/lite-figshare-{fold}")
    answers, models, by_fold = [], [], {}
    for fold in FOLDS:
        names = [name.replace("{fold}", str(fold)) for name in args.model]
        fold_args = argparse.Namespace(**{**vars(args), "model": names})
        classifier, data = _load(fold_args, replace(protocol, fold=fold))
        test = data.splits["test"]
        probabilities, labels = predict_split(classifier, test, progress=not args.json)
        answers.append((probabilities, labels, test["group"][:]))
        models.append(describe_model(names, classifier))
        by_fold[str(fold)] = split_figures(*answers[-1])["accuracy"]
    pooled = split_figures(*(np.concatenate(column) for column in zip(*answers, strict=True)))
    pooled["accuracy_by_fold"] = by_fold
    record = run_record(
        protocol=protocol,
        model=models[0] | {"name": " ".join(args.model), "weights_sha256": [m["weights_sha256"] for m in models]},
        data=describe_data(args.data_dir, data),
        splits={"test": pooled},
        title=args.title,
    )
    return record | {"protocol": f"{protocol.protocol}, all folds"}


def _load(args: argparse.Namespace, protocol: ProtocolArguments) -> tuple[TumorClassifier, SliceData]:
    from .data import load_slices

    classifier = load_classifier(args)
    data = load_slices(
        args.data_dir, protocol, seed=args.seed, skip_unreadable=args.skip_unreadable, progress=not args.json
    )
    return classifier, data
