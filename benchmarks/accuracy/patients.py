"""Answers patients from their slices, next to the slices one by one: ``patients.py --data_dir D --collections_dir C``.

Rules that combine a patient's slices are compared on the validation part, with the one number that some of them have;
the test part only measures. Slices of a patient come without their places here, so the stretch of the rule for volumes
is that of the most suspicious slices.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness import run
from brain_tumor_mri.data.collections import load_collections
from brain_tumor_mri.data.protocols import FIGSHARE_5FOLD, FOLDS, PATIENT_DISJOINT, ProtocolArguments
from brain_tumor_mri.data.slices import load_slices
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.evaluation.split import predict_split
from brain_tumor_mri.inference.classifier import TumorClassifier
from brain_tumor_mri.inference.model_folder import DEFAULT_MODEL
from brain_tumor_mri.labels import LABELS, NO_TUMOR
from brain_tumor_mri.trust.decision import DEFAULT_COVERAGE

NONE = LABELS.index(NO_TUMOR)
TOP = 3
"""Slices of the fixed rule, as of a volume: the most suspicious stretch has three at least."""
PARTS = ("validation", "test")
_Rule = Callable[[np.ndarray], np.ndarray]


def top(rows: np.ndarray, count: int = TOP) -> np.ndarray:
    """The fixed rule of volumes, without places: the mean of the most suspicious slices."""
    return rows[np.argsort(rows[:, NONE])[:count]].mean(0)


def noisy_or(rows: np.ndarray) -> np.ndarray:
    """A tumour unless every slice is without one; the kinds share it as in the mean."""
    none = float(np.prod(rows[:, NONE]))
    kinds = rows.mean(0)
    kinds[NONE] = 0
    found = (1 - none) * kinds / max(kinds.sum(), 1e-12)
    found[NONE] = none
    return found


def log_mean(rows: np.ndarray) -> np.ndarray:
    """The mean of log-probabilities, normalised."""
    logs = np.log(np.clip(rows, 1e-6, 1)).mean(0)
    return np.exp(logs) / np.exp(logs).sum()


RULES: dict[str, _Rule] = {
    "mean": lambda rows: rows.mean(0),
    f"most suspicious {TOP} (fixed)": top,
    "most suspicious half": lambda rows: top(rows, -(-len(rows) // 2)),
    "most suspicious slice": lambda rows: top(rows, 1),
    "noisy-or": noisy_or,
    "log mean": log_mean,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--data_dir", required=True, help="the Kaggle set: patients of Figshare, patient-disjoint")
    parser.add_argument("--collections_dir", help="further collections, of which those with known patients count")
    parser.add_argument("--figshare_dir", help="the Figshare set, for figshare-5fold")
    parser.add_argument("--figshare_models", help="models of its folds, {fold} standing for the number")
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
    described = {key: value for key, value in classifier.describe().items() if key != "source"}
    cells = [
        [name, rule, f"{f['accuracy']['hits']} of {f['accuracy']['n']}", f"NLL {f['nll']:.3f}"]
        for name, figures in found.items()
        for rule, f in {"slices": figures["slices"], **figures["patients"]}.items()
    ]
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
        before = validation.combined(rule)
        temperature = _temperature(before, validation.labels)
        fitted, measured = _scaled(before, temperature), _scaled(test.combined(rule), temperature)
        sets = _sets(fitted, validation.labels, measured)
        figures[name] = {
            "validation_nll": _nll(fitted, validation.labels),
            "temperature": temperature,
            "accuracy": _share(measured.argmax(1) == test.labels),
            "nll": _nll(measured, test.labels),
            "nll_uncalibrated": _nll(test.combined(rule), test.labels),
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


def _scaled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    powered = np.clip(probabilities, 1e-9, 1) ** (1 / temperature)
    return powered / powered.sum(1, keepdims=True)


def _temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Guo et al. 2017, on log-probabilities of patients."""
    found = minimize_scalar(lambda t: _nll(_scaled(probabilities, t), labels), bounds=(0.2, 5), method="bounded")
    return float(found.x)


def _nll(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-6, 1)).mean())


def _sets(fitted: np.ndarray, labels: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Split conformal prediction sets by patient (Vovk 2012), over all classes at once: patients of one are too few."""
    scores = np.sort(1 - fitted[np.arange(len(labels)), labels])
    rank = int(np.ceil((len(scores) + 1) * DEFAULT_COVERAGE / 100)) - 1
    limit = scores[rank] if rank < len(scores) else 1.0
    inside = 1 - measured <= limit
    inside[np.arange(len(inside)), measured.argmax(1)] = True
    return inside


def _share(hits: np.ndarray) -> dict[str, float]:
    """The share with its 95 % interval, exact binomial (Clopper & Pearson 1934); of slices too narrow."""
    found = binomtest(int(hits.sum()), len(hits))
    low, high = found.proportion_ci(method="exact")
    return {"hits": int(hits.sum()), "n": len(hits), "value": found.statistic, "low": low, "high": high}


def main(argv: Sequence[str] | None = None) -> int:
    return run(__doc__, add_arguments, measure, argv, output="results/volumes/patients.json")


if __name__ == "__main__":
    raise SystemExit(main())
