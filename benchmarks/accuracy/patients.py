"""Answers patients from their slices, next to the slices one by one: ``patients.py --data_dir D --collections_dir C``.

Rules that combine a patient's slices are compared on validation patients and, with ``--left_out_models``, on patients
of collections that trained nothing, each a series; test patients only measure. ``--write`` keeps what these say of how
sure an answer must be beside the weights, as patients.json. Slices of a patient come without their places here.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from rich.progress import track
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness import run
from brain_tumor_mri.data.collections import load_collections, read_collections
from brain_tumor_mri.data.protocols import FIGSHARE_5FOLD, FOLDS, PATIENT_DISJOINT, ProtocolArguments
from brain_tumor_mri.data.slices import load_slices
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.evaluation.split import predict_split
from brain_tumor_mri.files import write_json
from brain_tumor_mri.inference.classifier import TumorClassifier
from brain_tumor_mri.inference.model_folder import DEFAULT_MODEL
from brain_tumor_mri.inference.patients import FILE_NAME, SCHEMA, log_mean
from brain_tumor_mri.labels import LABELS, NO_TUMOR
from brain_tumor_mri.machine import versions
from brain_tumor_mri.trust.decision import COVERAGES, DEFAULT_COVERAGE

NONE = LABELS.index(NO_TUMOR)
TOP = 3
"""Slices, as of a volume: its most suspicious stretch has three at least."""
PARTS = ("validation", "test")
_Rule = Callable[[np.ndarray], np.ndarray]


def top(rows: np.ndarray, count: int = TOP) -> np.ndarray:
    """The mean of the most suspicious slices."""
    return rows[np.argsort(rows[:, NONE])[:count]].mean(0)


def noisy_or(rows: np.ndarray) -> np.ndarray:
    """A tumour unless every slice is without one; the kinds share it as in the mean."""
    none = float(np.prod(rows[:, NONE]))
    kinds = rows.mean(0)
    kinds[NONE] = 0
    found = (1 - none) * kinds / max(kinds.sum(), 1e-12)
    found[NONE] = none
    return found


RULES: dict[str, _Rule] = {
    "mean": lambda rows: rows.mean(0),
    f"most suspicious {TOP}": top,
    "most suspicious half": lambda rows: top(rows, -(-len(rows) // 2)),
    "most suspicious slice": lambda rows: top(rows, 1),
    "noisy-or": noisy_or,
    "log mean": log_mean,
    f"log mean of most suspicious {TOP}": lambda rows: log_mean(rows[np.argsort(rows[:, NONE])[:TOP]]),
}
CHOSEN = "log mean"
"""The rule of volumes, for their most suspicious stretch."""
FAMILIES = {"tcga-lgg": "brats", "rsna-miccai": "brats", "ageing-2mm": "ageing"}
"""Collections whose patients are known and have several slices, and the family that a model was trained without."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--data_dir", required=True, help="the Kaggle set: patients of Figshare, patient-disjoint")
    parser.add_argument("--collections_dir", help="further collections, of which those with known patients count")
    parser.add_argument("--figshare_dir", help="the Figshare set, for figshare-5fold")
    parser.add_argument("--figshare_models", help="models of its folds, {fold} standing for the number")
    parser.add_argument("--left_out_models", help="models that a family trained nothing of, {family} standing for it")
    parser.add_argument("--write", action="store_true", help="write patients.json beside the weights")
    parser.add_argument("--fold", type=int, default=1, help="of patient-disjoint, as the model was trained")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Compare the rules on validation patients, measure them on test patients."""
    if bool(args.figshare_dir) != bool(args.figshare_models):
        raise UserError("--figshare_dir and --figshare_models go together: give both or neither")
    classifier = TumorClassifier.from_pretrained(args.model)
    splits = load_slices(args.data_dir, ProtocolArguments(PATIENT_DISJOINT, args.fold), parts=PARTS).splits
    data = {PATIENT_DISJOINT: {part: _patients(classifier, splits[part]) for part in PARTS}}
    if args.collections_dir:
        parts = load_collections(args.collections_dir)
        data["collections"] = {part: _patients(classifier, parts[part]) for part in PARTS}
    found = {name: compare(**parts) for name, parts in data.items()}
    if args.figshare_dir:
        found[FIGSHARE_5FOLD] = compare(**_of_folds(args.figshare_dir, args.figshare_models))
    if args.left_out_models:
        if not args.collections_dir or classifier.trust is None:
            raise UserError("--left_out_models needs --collections_dir and a model with trust.json")
        groups = {"figshare": data[PATIENT_DISJOINT]["validation"]}
        temperature = classifier.trust.calibration(False).temperatures[1]  # most of these slices are unfamiliar
        groups |= _left_out(args.collections_dir, args.left_out_models, temperature)
        found["left_out"] = left_out_figures(groups)
        if args.write:
            _write(classifier, found["left_out"])
    described = {key: value for key, value in classifier.describe().items() if key != "source"}
    cells = [
        [name, rule, f"{f['accuracy']['hits']} of {f['accuracy']['n']}", f"NLL {f['nll']:.3f}"]
        for name, figures in found.items()
        if name != "left_out"
        for rule, f in {"slices": figures["slices"], **figures["patients"]}.items()
    ]
    for name, figures in found.get("left_out", {}).get("collections", {}).items():
        cells += [[name, rule, f"{f['hits']} of {f['n']}", f"NLL {f['nll']:.3f}"] for rule, f in figures.items()]
    return {
        "benchmark": "patients",
        "protocol": f"patient-disjoint fold {args.fold}: rules compared on validation, measured on test patients",
        "model": described,
        **found,
        "summary": cells,
    }


class Patients:
    """Probabilities of each patient's slices, (n, 4), and the labels: of slices, and of the patients."""

    def __init__(self, probabilities: np.ndarray, labels: np.ndarray, groups: Sequence[str]) -> None:
        names = np.asarray(groups)
        known = [name for name in np.unique(names) if len(set(labels[names == name]) - {NONE}) <= 1]
        self.rows = [probabilities[names == name] for name in known]
        self.slice_labels = [labels[names == name] for name in known]
        # who has a tumour on one slice has one
        self.labels = np.array([next((k for k in own if k != NONE), NONE) for own in self.slice_labels], int)

    def combined(self, rule: _Rule) -> np.ndarray:
        """(patients, 4)."""
        return np.array([rule(rows) for rows in self.rows])


def _patients(classifier: TumorClassifier, split: datasets.Dataset) -> Patients:
    """Groups that are patients, and slices of which the class is known."""
    groups, labels = np.array(split["group"][:]), np.array(split["label"][:])
    sizes = Counter(groups.tolist())
    # Kaggle's n0001 are near-copies of one slice, and so may be a collection's group of one slice: not people
    people = [not group.startswith("n0") and sizes[group] > 1 for group in groups.tolist()]
    part = split.select(np.flatnonzero(np.array(people) & (labels >= 0)))
    return Patients(*predict_split(classifier, part, progress=True), part["group"][:])


def _of_folds(folder: str, models: str) -> dict[str, Patients]:
    parts: dict[str, list[tuple[np.ndarray, np.ndarray, list[str]]]] = {"validation": [], "test": []}
    for fold in FOLDS:
        classifier = TumorClassifier.from_pretrained(models.replace("{fold}", str(fold)))
        splits = load_slices(folder, ProtocolArguments(FIGSHARE_5FOLD, fold), parts=tuple(parts)).splits
        for part, found in parts.items():
            groups = [f"{group}, fold {fold}" for group in splits[part]["group"][:]]
            found.append((*predict_split(classifier, splits[part], progress=True), groups))
    return {part: Patients(*map(np.concatenate, zip(*found, strict=True))) for part, found in parts.items()}


def compare(validation: Patients, test: Patients) -> dict[str, Any]:
    """Slices one by one, and each rule: what it says of test patients, and the one that validation patients choose."""
    figures = {}
    for name, rule in RULES.items():
        fitted, measured = validation.combined(rule), test.combined(rule)
        sets = measured >= _limit(fitted, validation.labels, DEFAULT_COVERAGE)
        sets[np.arange(len(sets)), measured.argmax(1)] = True
        figures[name] = {
            "validation_nll": _nll(fitted, validation.labels),
            "accuracy": _share(measured.argmax(1) == test.labels),
            "nll": _nll(measured, test.labels),
            "covered": _share(sets[np.arange(len(sets)), test.labels]),
            "set_size": float(sets.sum(1).mean()),
        }
    slices, labels = np.concatenate(test.rows), np.concatenate(test.slice_labels)
    return {
        "chosen_on_validation": min(figures, key=lambda name: figures[name]["validation_nll"]),
        "validation_patients": len(validation.labels),
        "slices": {"accuracy": _share(slices.argmax(1) == labels), "nll": _nll(slices, labels)},
        "patients": figures,
    }


def _nll(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float(_losses(probabilities, labels).mean())


def _limit(fitted: np.ndarray, labels: np.ndarray, coverage: int) -> float:
    """Split conformal by patient (Vovk 2012), over all classes at once, as patients of one are too few.

    The least probability with which a class is possible; 0 where there are too few patients to tell.
    """
    own = np.sort(fitted[np.arange(len(labels)), labels])
    rank = int(np.floor((len(own) + 1) * (1 - coverage / 100)))
    return float(own[rank - 1]) if rank else 0.0


def _left_out(folder: str, models: str, temperature: float) -> dict[str, Patients]:
    """Patients of each collection, a series each, by a model without its family, with the temperature.

    Series on which the kinds are decided, T1 with contrast, and those of people without a tumour.
    """
    found = {}
    for collection, family in FAMILIES.items():
        rows = [
            row
            for row in read_collections(folder)
            if row.collection == collection and (row.sequence == "t1c" or row.label == NO_TUMOR)
        ]
        names = [f"{row.group}, {row.sequence}" for row in rows]
        sizes = Counter(names)
        kept = [k for k, name in enumerate(names) if sizes[name] > 1]
        classifier = TumorClassifier.from_pretrained(models.replace("{family}", family), use_trust=False)
        answers = classifier.predict_stream(Path(folder, rows[k].file) for k in kept)
        plain = np.array([list(a.probabilities.values()) for a in track(answers, collection, total=len(kept))])
        scaled = np.clip(plain, 1e-9, 1) ** (1 / temperature)
        # a slice without tumour of somebody who has one
        labels = np.array([NONE if rows[k].label == "clear" else LABELS.index(rows[k].label) for k in kept])
        found[collection] = Patients(scaled / scaled.sum(1, keepdims=True), labels, [names[k] for k in kept])
    return found


def left_out_figures(groups: Mapping[str, Patients]) -> dict[str, Any]:
    """What each rule says of patients whose collection trained nothing; collections weigh alike.

    ``learned``, a logistic regression on the log mean, the log mean of the most suspicious slices and the most
    suspicious slice, is fitted to the other families. Differences in NLL are paired by patient, with a 95 % bootstrap
    interval.
    """
    combined = {rule: {name: own.combined(RULES[rule]) for name, own in groups.items()} for rule in RULES}
    combined["learned"] = _learned(groups)
    losses = {
        rule: {name: _losses(rows[name], own.labels) for name, own in groups.items()} for rule, rows in combined.items()
    }
    by_collection = {
        name: {
            rule: _share(rows[name].argmax(1) == own.labels) | {"nll": float(losses[rule][name].mean())}
            for rule, rows in combined.items()
        }
        for name, own in groups.items()
    }
    limits = {
        coverage: min(_limit(combined[CHOSEN][name], own.labels, coverage) for name, own in groups.items())
        for coverage in COVERAGES
    }
    told = {name: (rows >= limits[DEFAULT_COVERAGE]).sum(1) <= 1 for name, rows in combined[CHOSEN].items()}
    return {
        "nll": {rule: float(np.mean([own.mean() for own in rows.values()])) for rule, rows in losses.items()},
        "difference_to_mean": {rule: _difference(rows, losses["mean"]) for rule, rows in losses.items()},
        "limits": {str(coverage): limit for coverage, limit in limits.items()},
        "one_class_left": {
            name: {"n": len(own.labels), "told": int(told[name].sum())}
            | {"right": int((told[name] & (combined[CHOSEN][name].argmax(1) == own.labels)).sum())}
            for name, own in groups.items()
        },
        "collections": by_collection,
    }


def _learned(groups: Mapping[str, Patients]) -> dict[str, np.ndarray]:
    def features(own: Patients) -> np.ndarray:
        rules = (CHOSEN, f"log mean of most suspicious {TOP}", "most suspicious slice")
        return np.log(np.clip(np.concatenate([own.combined(RULES[rule]) for rule in rules], axis=1), 1e-4, 1))

    found = {}
    for name, own in groups.items():
        others = [other for key, other in groups.items() if FAMILIES.get(key, key) != FAMILIES.get(name, name)]
        rows, labels = np.concatenate([*map(features, others)]), np.concatenate([other.labels for other in others])
        weights = np.concatenate([np.full(len(other.labels), 1 / len(other.labels)) for other in others])
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
        model.fit(rows, labels, logisticregression__sample_weight=weights * len(weights) / weights.sum())
        found[name] = np.zeros((len(own.labels), len(LABELS)))
        found[name][:, model.classes_] = model.predict_proba(features(own))
    return found


def _losses(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return -np.log(np.clip(rows[np.arange(len(labels)), labels], 1e-6, 1))


def _difference(rows: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]) -> dict[str, float]:
    rng = np.random.default_rng(0)
    paired = [rows[name] - others[name] for name in rows]
    drawn = [np.mean([rng.choice(own, len(own)).mean() for own in paired]) for _ in range(2000)]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return {"value": float(np.mean([own.mean() for own in paired])), "low": float(low), "high": float(high)}


def _write(classifier: TumorClassifier, figures: Mapping[str, Any]) -> None:
    folder = classifier.folder
    record = {key: figures[key] for key in ("limits", "one_class_left")}
    protocol = "split conformal by patient, in the worst of the collections, by models that they trained nothing of"
    content = {"schema": SCHEMA, "weights_sha256": folder.sha256(), **record, "protocol": protocol}
    write_json(folder.path / FILE_NAME, content | {"versions": versions()})


def _share(hits: np.ndarray) -> dict[str, float]:
    """The share with its 95 % interval, exact binomial (Clopper & Pearson 1934); of slices too narrow."""
    found = binomtest(int(hits.sum()), len(hits))
    low, high = found.proportion_ci(method="exact")
    return {"hits": int(hits.sum()), "n": len(hits), "value": found.statistic, "low": low, "high": high}


def main(argv: Sequence[str] | None = None) -> int:
    return run(__doc__, add_arguments, measure, argv, output="results/volumes/patients.json")


if __name__ == "__main__":
    raise SystemExit(main())
