"""Hospitals alone, together and pooled, with one budget: ``python benchmarks/accuracy/federated_table.py FLAGS``.

Runs in ``.venv-federated``. Each case is a federation of ``brain-tumor-mri federate`` in a folder of its own: what is
finished is not trained again, and the record is written after each case.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import datasets
import yaml

from benchmarks.accuracy.federated_report import summary_rows
from benchmarks.harness import add_data_arguments, run
from brain_tumor_mri.data.br35h import load_external
from brain_tumor_mri.data.collections import load_collections
from brain_tumor_mri.evaluation.collections import collection_figures
from brain_tumor_mri.evaluation.split import predict_split
from brain_tumor_mri.files import read_json, write_json, write_text
from brain_tumor_mri.inference.classifier import TumorClassifier
from brain_tumor_mri.machine import hardware, versions

NOTE = (
    "patient-disjoint fold 1: its test part, whose patients trained nowhere; left out: collections of which no slice "
    "trained anywhere (Br35H's test tumours and the families named)"
)
TOGETHER = {
    "FedAvg": {"strategy": "fedavg"},
    "FedAvg-often": {"strategy": "fedavg"},  # twice as many rounds of half as many slices
    # the mean of n hospitals steps as a batch n times as large does: a learning rate times the square root of n
    "FedAvg-scaled": {"strategy": "fedavg"},
    "FedAvg-frozen": {"strategy": "fedavg", "batch_norm": "frozen"},
    "FedProx": {"strategy": "fedprox"},
    "FedAdam": {"strategy": "fedadam", "server_learning_rate": 0.01},
    "FedAvg-private": {"clipping_norm": 1.0, "noise_multiplier": 1.0, "batch_norm": "frozen"},
    "FedAvg-clipped": {"clipping_norm": 1.0, "noise_multiplier": 1e-3, "batch_norm": "frozen"},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser)
    parser.add_argument("--fold", type=int, default=1)
    parser.add_argument("--collections_dir", type=Path, required=True, help="holds collections.csv")
    parser.add_argument("--config", default="configs/federated.yaml")
    parser.add_argument("--partition", default="patient", choices=("patient", "collection", "dirichlet"))
    parser.add_argument("--left_out", default="ageing,healthy-7t,metastases,ms", help="families that only test")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--share", type=float, default=0.08, help="of its slices that each hospital draws a round")
    parser.add_argument("--clients", type=int, default=3, help="partitions patient and dirichlet: hospitals")
    parser.add_argument("--together", nargs="*", default=list(TOGETHER), choices=TOGETHER, help="kinds of federation")
    parser.add_argument("--runs", type=Path, default=Path("runs/federated-table"), help="a folder a case goes here")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="further settings of all cases")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train what is not finished and measure each model."""
    # Flower is in an environment of its own, and the tables are rendered without it
    from brain_tumor_mri.federated.arguments import read_settings
    from brain_tumor_mri.federated.simulate import simulate
    from brain_tumor_mri.federated.task import simulated_hospitals

    common: dict[str, Any] = read_settings(args.config, args.set) | {
        "data_dir": str(args.data_dir), "protocol": "patient-disjoint", "fold": args.fold, "rounds": args.rounds,
        "partition": args.partition, "slices_per_round": args.share, "evaluate_clients": False,
    }  # fmt: skip
    if args.partition == "collection":
        common |= {"protocol": "leave-collection-out", "collection": args.left_out}
        common |= {"collections_dir": str(args.collections_dir)}
    else:
        common["clients"] = args.clients
    file = args.runs / f"{args.partition}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, yaml.safe_dump(common))
    hospitals = simulated_hospitals(str(file))
    names = sorted(hospitals, key=lambda name: -len(hospitals[name].train))
    pooled = {"partition": "pooled", "clients": 1}
    # as many slices drawn as all hospitals draw together; where it has fewer, some more than once
    sizes = {name: len(hospitals[name].train) for name in names}
    total = round(args.share * sum(sizes.values()))
    alone = {
        name: {"hospitals": name, "slices_per_round": total, "num_train_epochs": max(1.0, total / sizes[name])}
        for name in names
    }
    further = {
        "FedAvg-often": {"rounds": 2 * args.rounds, "slices_per_round": args.share / 2},
        "FedAvg-scaled": {"learning_rate": float(common["learning_rate"]) * len(names) ** 0.5},
    }
    federated = {f"federated, {name}": TOGETHER[name] | further.get(name, {}) for name in args.together}
    cases = {"pooled": pooled, **dict(list(federated.items())[:1])}  # what says most comes first
    cases |= {f"{name} alone": settings for name, settings in alone.items()} | federated
    left_out = _left_out(args)
    record = {
        "benchmark": "federated", "protocol": f"patient-disjoint fold {args.fold}, and left out", "protocol_note": NOTE,
        "partition": args.partition, "hospitals": names, "left_out": args.left_out, "settings": _plain(common),
        "cases": {}, "summary": [], "versions": versions(), "hardware": hardware(),
    }  # fmt: skip
    for case, settings in cases.items():
        folder = args.runs / args.partition / case.replace(", ", "-").replace(" ", "-")
        if not (folder / "metrics.json").is_file():
            print(f"--- {case}", flush=True)
            simulate(common | settings | {"output_dir": str(folder)})
        if not (folder / "left_out.json").is_file():
            classifier = TumorClassifier.from_pretrained(folder)
            probabilities, _ = predict_split(classifier, left_out)
            write_json(folder / "left_out.json", collection_figures(probabilities, left_out))
        record["cases"][case] = _case(read_json(folder / "metrics.json"), read_json(folder / "left_out.json"))
        record["summary"] = summary_rows(record)
        if args.output:
            write_json(args.output, record)
    return record


def _left_out(args: argparse.Namespace) -> datasets.Dataset:
    """The slices of the left-out families, and Br35H's test tumours as a family of their own."""
    families = load_collections(args.collections_dir, args.left_out)["test"]
    tumours = load_external(args.external_dir)["test"]
    n = len(tumours)
    texts = {"collection": "br35h", "family": "br35h", "true_label": "tumour", "stratum": "br35h tumour"}
    for name in set(families.column_names) - set(tumours.column_names):
        tumours = tumours.add_column(name, [texts.get(name, "")] * n)
    tumours = tumours.select_columns(families.column_names)
    return datasets.concatenate_datasets([families, tumours.cast(families.features)])


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: Path(value).name if str(value).startswith(("/", ".")) else value for name, value in settings.items()}


def _case(record: dict[str, Any], left_out: dict[str, Any]) -> dict[str, Any]:
    federation, test = record["federation"], record["splits"]["test"]
    drawn = [told.get("num-examples") for entry in federation["rounds"] for told in entry["hospitals"].values()]
    return {
        "hospitals": federation["hospitals"],
        "failed": [entry["failed"] for entry in federation["rounds"]],
        "slices_drawn": None if federation["privacy"] else round(sum(drawn) * record["config"]["num_train_epochs"]),
        "test": {name: test[name] for name in ("n", "accuracy", "macro_f1")},
        "left_out": left_out["pooled"],
        "by_family": left_out["by_family"],
        "interval": left_out["interval"],
        "bytes_sent": federation["bytes_sent"],
        "seconds": record["training"]["seconds"],
        "privacy": federation["privacy"],
        "weights_sha256": record["model"]["weights_sha256"],
    }


def main(argv: Sequence[str] | None = None) -> int:
    return run(__doc__, add_arguments, measure, argv, output="results/federated/patient.json")


if __name__ == "__main__":
    raise SystemExit(main())
