"""``brain-tumor-mri evaluate``: measure a model on a labelled data set, and on slices of further collections."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.markdown import Markdown

from ..data.protocols import EXTERNAL, FOLDS, LEAVE_COLLECTION_OUT, NOTES, OFFICIAL, ProtocolArguments
from ..errors import UserError
from ..evaluation.record import describe_data, describe_model, run_record
from ..files import check_writable, write_json
from ..inference.model_folder import DEFAULT_MODEL
from ..labels import LABELS, require_project_classes
from ..reports.tables import evaluation_tables, markdown_table
from .model_flags import add_model_arguments, load_classifier
from .protocol_flags import add_protocol_arguments, protocol_of

if TYPE_CHECKING:
    import datasets

    from ..data.slices import SliceData
    from ..inference.classifier import TumorClassifier

WIDE = 130
"""Characters a line that the widest table needs with its intervals whole."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    add_model_arguments(parser)
    parser.add_argument(
        "--all_folds",
        action="store_true",
        help="test each fold with its own model, {fold} in --model standing for it, and pool",
    )
    parser.add_argument("--external_dir", help="the Br35H tumours (images/): measures the external protocol too")
    parser.add_argument(
        "--collections_dir",
        metavar="DIR",
        help="holds collections.csv and its slices: measures their test parts too; under leave-collection-out, all "
        "slices of the family left out",
    )
    parser.add_argument(
        "--all_collections",
        action="store_true",
        help="test each family of --collections_dir with the model that had it left out, {collection} in --model "
        "standing for it, and pool; measures nothing else",
    )
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"))
    add_protocol_arguments(parser)
    parser.add_argument("--skip_unreadable", action="store_true", help="leave bad files out and list them")
    parser.add_argument("--title", help="what stands in tables for the model (default: architecture and input size)")
    parser.add_argument("--output", type=Path, help="write the figures to this metrics.json")
    parser.add_argument("--json", action="store_true", help="print the record as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Evaluate and print a table, or JSON."""
    if args.output:
        check_writable(args.output)
    args.model = args.model or [DEFAULT_MODEL]
    if args.all_collections:
        record = _all_collections(args)
    else:
        protocol = protocol_of(args)
        if protocol.protocol == EXTERNAL and not args.external_dir:
            raise UserError(f"--protocol {EXTERNAL}: give --external_dir, the folder of the Br35H tumours")
        if protocol.protocol == LEAVE_COLLECTION_OUT and not args.collections_dir:
            raise UserError(f"--protocol {LEAVE_COLLECTION_OUT}: give --collections_dir, the folder of the collections")
        record = _all_folds(args, protocol) if args.all_folds else _one_model(args, protocol)
    if args.output:
        write_json(args.output, record)
    if args.json:
        print(json.dumps(record, indent=2))
        return 0
    console = Console()
    for text in evaluation_tables(record, args.split):
        console.print(Markdown(one_column(text) if console.width < WIDE else text))
    for file in record.get("collections", {}).get("data", {}).get("unreadable", ()):
        print(f"not readable: {file['path']}: {file['reason']}", file=sys.stderr)
    return 0


def one_column(table: str) -> str:
    """Turn a table of one row into one of two columns, so that no interval is cut; other texts stay."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    if len(lines) != 3:
        return table
    head, _, row = lines
    return markdown_table([head[0], row[0]], list(zip(head[1:], row[1:], strict=True)))


def _one_model(args: argparse.Namespace, protocol: ProtocolArguments) -> dict[str, Any]:
    """Evaluate one model, or ensemble, on one part, and on what else the flags name."""
    from ..data import br35h, collections  # datasets: seconds
    from ..evaluation.split import evaluate_collections, evaluate_external, evaluate_split  # torch: seconds

    progress = not args.json
    tumours = br35h.load_external(args.external_dir) if args.external_dir else None
    further = None
    if args.collections_dir:
        further = collections.load_collections(args.collections_dir, protocol.collection)["test"]
    classifier = load_classifier(args)
    if tumours or further is not None:
        require_project_classes(classifier.labels, "--external_dir and --collections_dir")
    data = _load_slices(args, protocol, classifier.labels)
    parts = () if protocol.protocol == EXTERNAL else (args.split,)
    record = run_record(
        protocol=protocol,
        model=describe_model(args.model, classifier),
        data=describe_data(args.data_dir, data),
        splits={part: evaluate_split(classifier, data.splits[part], progress=progress) for part in parts},
        external=evaluate_external(classifier, tumours, data.splits, progress=progress) if tumours else None,
        title=args.title,
    )
    if further is not None:
        record["collections"] = evaluate_collections([(classifier, further)], args.collections_dir, progress=progress)
    return record


def _all_folds(args: argparse.Namespace, protocol: ProtocolArguments) -> dict[str, Any]:
    """Evaluate the model of each fold on the fold's test part, and pool the answers: each slice is tested once."""
    from ..evaluation.split import predict_split, split_figures  # torch: seconds

    without = (OFFICIAL, EXTERNAL, LEAVE_COLLECTION_OUT)
    if protocol.protocol in without or args.split != "test" or args.external_dir or args.collections_dir:
        raise UserError(
            f"--all_folds: needs a protocol with folds and its test part, not {protocol.title} {args.split}"
        )
    named = _named_models(args, "fold", FOLDS, "runs/lite-figshare-{fold}")
    answers, models, by_fold = [], [], {}
    for fold, names in named.items():
        classifier, data = load_classifier(_with_model(args, names)), _load_slices(args, replace(protocol, fold=fold))
        test = data.splits["test"]
        answers.append((*predict_split(classifier, test, progress=not args.json), test["group"][:]))
        models.append(describe_model(names, classifier))
        by_fold[str(fold)] = split_figures(*answers[-1])["accuracy"]
    pooled = split_figures(*(np.concatenate(column) for column in zip(*answers, strict=True)))
    record = run_record(
        protocol=protocol,
        model=_one_of(models, args.model, named),
        data=describe_data(args.data_dir, data),
        splits={"test": pooled | {"accuracy_by_fold": by_fold}},
        title=args.title,
    )
    return record | {"protocol": f"{protocol.protocol}, all folds"}


def _all_collections(args: argparse.Namespace) -> dict[str, Any]:
    """Ask each family's slices of the model that had the family left out, and pool the answers."""
    from ..data.collections import TRAINING_LABELS, load_collections, read_collections  # datasets: seconds
    from ..evaluation.split import evaluate_collections  # torch: seconds

    if not args.collections_dir or args.all_folds or args.external_dir:
        raise UserError("--all_collections: give --collections_dir, and neither --all_folds nor --external_dir")
    families = sorted({row.family for row in read_collections(args.collections_dir) if row.label in TRAINING_LABELS})
    named = _named_models(args, "collection", families, "runs/without-{collection}")
    models = []

    def asked() -> Iterator[tuple[TumorClassifier, datasets.Dataset]]:
        for family, names in named.items():
            classifier = load_classifier(_with_model(args, names))
            models.append(describe_model(names, classifier))
            yield classifier, load_collections(args.collections_dir, family)["test"]

    figures = evaluate_collections(asked(), args.collections_dir, progress=not args.json)
    record = run_record(
        protocol=ProtocolArguments(), model=_one_of(models, args.model, named), data={}, splits={}, title=args.title
    )
    record |= {"protocol": f"{LEAVE_COLLECTION_OUT}, all families", "protocol_note": NOTES[LEAVE_COLLECTION_OUT]}
    return record | {"collections": figures}


def _named_models(args: argparse.Namespace, what: str, values: Sequence[Any], example: str) -> dict[Any, list[str]]:
    """Return the models of each fold or family; none may be missing, as hours of work would end there."""
    if not all(f"{{{what}}}" in name for name in args.model):
        raise UserError(f"--all_{what}s: give --model a name with {{{what}}} in it, such as {example}")
    named = {value: [name.replace(f"{{{what}}}", str(value)) for name in args.model] for value in values}
    for name in (name for names in named.values() for name in names):
        if not Path(name).exists() and name.count("/") != 1:  # as owner/name it may be on the Hub
            raise UserError(
                f"--model {name}: there is no such model folder, and --all_{what}s needs one of each {what}"
            )
    return named


def _with_model(args: argparse.Namespace, names: list[str]) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(args), "model": names})


def _one_of(models: Sequence[dict[str, Any]], given: Sequence[str], named: dict[Any, list[str]]) -> dict[str, Any]:
    """Return what the record says of several models; of a folder its name, as its path is the machine's."""
    first = next(iter(named.values()))
    names = [Path(name).name if Path(one).is_dir() else name for name, one in zip(given, first, strict=True)]
    return models[0] | {"name": " ".join(names), "weights_sha256": [model["weights_sha256"] for model in models]}


def _load_slices(args: argparse.Namespace, protocol: ProtocolArguments, labels: Sequence[str] = LABELS) -> SliceData:
    from ..data.slices import load_slices  # datasets: seconds

    # the healthy slices of both set the threshold of the external figures and measure it
    parts = {args.split, "validation", "test"} if args.external_dir else {args.split}
    options = {"seed": args.seed, "skip_unreadable": args.skip_unreadable, "progress": not args.json}
    return load_slices(args.data_dir, protocol, parts=sorted(parts), labels=labels, **options)
