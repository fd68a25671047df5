"""``brain-tumor-mri evaluate``: measure a model on a labelled data set."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.protocols import EXTERNAL, ProtocolArguments
from ..errors import UserError
from ..evaluation.record import describe_data, describe_model
from ..evaluation.split import evaluate_external, evaluate_split, predict_split, split_figures
from ..inference.model_folder import DEFAULT_MODEL
from .model_flags import add_model_arguments, load_classifier

if TYPE_CHECKING:
    import datasets

    from ..data.slices import SliceData
    from ..inference.classifier import TumorClassifier


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

    from ..data.br35h import load_external
    from ..files import write_json
    from ..reports.tables import class_table, external_note, external_table, interval_note, leak_note, summary_table

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
    from ..evaluation.record import run_record

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

    from ..data.protocols import FOLDS, OFFICIAL
    from ..evaluation.record import run_record

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
    from ..data.slices import load_slices

    classifier = load_classifier(args)
    data = load_slices(
        args.data_dir, protocol, seed=args.seed, skip_unreadable=args.skip_unreadable, progress=not args.json
    )
    return classifier, data
