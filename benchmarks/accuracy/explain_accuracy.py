"""How often a heat map points at the tumour, against the outlines that radiologists drew.

    python benchmarks/accuracy/explain_accuracy.py --model model --data_dir ../shared/data/brain-tumor-mri-dataset \
        --figshare_dir ../shared/data/figshare-brain-tumor --external_dir ../shared/data/br35h-tumour

Scored are the tumours of a protocol's test part that are copies of a Figshare slice, whose outline is known, and those
of Br35H's test part; each map is for the class answered. Beside the model's maps stand a centred Gaussian, a random
map, and the maps of the same model with its head, then all of its weights, randomised: a map that does not change with
the weights tells nothing of the model (Adebayo et al. 2018, arXiv:1810.03292).
"""

import argparse
import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import track

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.accuracy.heat_map_scores import (
    GAUSSIAN_SIGMA,
    GRID,
    TOLERANCE,
    centred_gaussian,
    random_map,
    randomised,
    rank_correlation,
    score,
)
from benchmarks.accuracy.shortcut import images_met
from benchmarks.harness import add_data_arguments, run
from brain_tumor_mri.data.outlines import (
    FILE_NAME,
    PROVENANCE,
    Outlines,
    external_outlines,
    load_outlines,
    outline_mask,
    read_provenance,
)
from brain_tumor_mri.data.protocols import OFFICIAL, PATIENT_DISJOINT, ProtocolArguments
from brain_tumor_mri.data.slices import load_slices
from brain_tumor_mri.data.tables import external_rows
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.evaluation.metrics import bootstrap, describe_interval, figure, weighted_share
from brain_tumor_mri.evaluation.record import describe_data, describe_model, run_record
from brain_tumor_mri.heat_maps import DECODER, METHODS
from brain_tumor_mri.heat_maps.explain import heat_maps, method_of
from brain_tumor_mri.images.read import load_image
from brain_tumor_mri.inference.classifier import TumorClassifier
from brain_tumor_mri.labels import LABEL2ID, LABELS, NO_TUMOR
from brain_tumor_mri.reports.tables import markdown_table, percent

BATCH = 16
GAUSSIAN, RANDOM = "centred gaussian", "random map"
RANDOMISED = {"head": "head randomised", "all": "all weights randomised"}


@dataclass(frozen=True)
class Tumour:
    """A slice with its outlines; ``name`` is its path under the data folder."""

    path: Path
    name: str
    group: str
    label: str | None  # None where only "some tumour" is known
    outlines: Outlines


def mean(values: np.ndarray, draws: np.ndarray) -> dict[str, float] | None:
    """Return the mean of ``values`` (N), NaN left out, with its 95 % interval by ``draws`` of ``bootstrap``."""
    known = ~np.isnan(values)
    return figure(weighted_share(values[known], draws[:, known]))


def measure_set(
    classifier: TumorClassifier,
    tumours: Sequence[Tumour],
    *,
    method: str | None = None,
    seed: int = 0,
    n_resamples: int = 2000,
) -> dict[str, Any]:
    """Score every method on a set of tumours."""
    size, method = classifier.image_size, method_of(classifier, method)
    preprocess: Callable[[Tumour], np.ndarray] = lambda tumour: classifier.preprocess(load_image(tumour.path))  # noqa: E731
    # spread over the set, so that the statistics are not those of one patient
    some = np.unique(np.linspace(0, len(tumours) - 1, min(2 * BATCH, len(tumours))).astype(int))
    calibration = np.stack([preprocess(tumours[i]) for i in some])
    others = {name: randomised(classifier, what, calibration, seed) for what, name in RANDOMISED.items()}
    rng = np.random.default_rng(seed)
    gaussian = centred_gaussian(size)
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in (method, GAUSSIAN, RANDOM, *others)}
    ranks: dict[str, list[float]] = {name: [] for name in others}
    answers: list[str] = []
    areas: list[float] = []
    starts = track(range(0, len(tumours), BATCH), "Explaining", console=Console(stderr=True), transient=True)
    for start in starts:
        batch = tumours[start : start + BATCH]
        pixels = np.stack([preprocess(tumour) for tumour in batch])
        ours, answered = heat_maps(classifier, pixels, method=method)
        classes = answered.probabilities.argmax(1).tolist()
        theirs = {name: heat_maps(other, pixels, classes, method=method)[0] for name, other in others.items()}
        for i, tumour in enumerate(batch):
            mask = outline_mask(tumour.outlines, size)
            maps = {method: ours[i], GAUSSIAN: gaussian, RANDOM: random_map(size, rng)}
            maps |= {name: heats[i] for name, heats in theirs.items()}
            for name, heat in maps.items():
                scores[name].append(score(heat, mask) | {"empty": float(not heat.any())})
            for name in others:
                ranks[name].append(rank_correlation(ours[i], maps[name]))
            answers.append(LABELS[classes[i]])
            areas.append(float(mask.mean()))

    groups = [tumour.group for tumour in tumours]
    weights = bootstrap(len(tumours), groups, n_resamples, seed)
    keys = ("hit", "hit_15px", "energy")
    columns = {
        name: {key: np.array([row[key] for row in rows]) for key in (*keys, "empty")} for name, rows in scores.items()
    }
    kinds = np.array([kind_of_answer(answer, tumour.label) for answer, tumour in zip(answers, tumours, strict=True)])
    by_answer = {}
    for kind in ("right", "another tumour", NO_TUMOR):
        chosen = kinds == kind
        if chosen.any():
            ours_of = {key: mean(columns[method][key][chosen], weights[:, chosen]) for key in keys}
            by_answer[kind] = {"n": int(chosen.sum())} | ours_of
    return {
        "n": len(tumours),
        "groups": len(set(groups)),
        "interval": describe_interval(n_resamples),
        "mean_tumour_share": float(np.mean(areas)),
        "methods": {
            name: {key: mean(values[key], weights) for key in keys} | {"empty_maps": int(values["empty"].sum())}
            for name, values in columns.items()
        },
        "ahead_of_gaussian": {key: mean(columns[method][key] - columns[GAUSSIAN][key], weights) for key in keys},
        "rank_correlation": {name: mean(np.array(values), weights) for name, values in ranks.items()},
        "by_answer": by_answer,
    }


def kind_of_answer(answer: str, label: str | None) -> str:
    """Return ``right``, ``another tumour`` or ``notumor``; of a tumour of unknown class, any tumour is right."""
    if answer == NO_TUMOR:
        return NO_TUMOR
    return "right" if label in (None, answer) else "another tumour"


def kaggle_tumours(
    root: Path, figshare: Path, split: Mapping[str, Sequence[Any]], provenance: Path = PROVENANCE
) -> list[Tumour]:
    """Return the tumours of a Kaggle split that are copies of a Figshare slice; others have no outline."""
    known = load_outlines(figshare, provenance=provenance)
    traced = read_provenance(provenance)
    rows = zip(split["path"][:], split["label"][:], split["group"][:], strict=True)
    tumours = [
        Tumour(root / name, name, group, LABELS[label], known[name])
        for name, label, group in rows
        if name in traced and label != LABEL2ID[NO_TUMOR]
    ]
    if not tumours:
        raise UserError(f"{root}: no test image is listed in {provenance.name} with a Figshare slice")
    return tumours


def external_tumours(root: Path) -> list[Tumour]:
    """Return the tumours of Br35H's test part."""
    known = external_outlines(root)
    tumours = []
    for name, row in external_rows().items():
        path = root / name
        if row.part != "test" or not path.is_file():
            continue
        if name not in known:
            raise UserError(f"{root / FILE_NAME}: has no outline of {path.name}; give another folder")
        tumours.append(Tumour(path, name, row.group, None, known[name]))
    if not tumours:
        raise UserError(f"{root}: holds no test image of Br35H; give --external_dir the folder above images/")
    return tumours


def at_even_distances(tumours: list[Tumour], limit: int | None) -> list[Tumour]:
    """Return ``limit`` of the tumours; None returns all."""
    if not limit or limit >= len(tumours):
        return tumours
    return [tumours[i] for i in np.linspace(0, len(tumours) - 1, limit).astype(int)]


def fingerprint(tumours: Sequence[Tumour], outlines: Path) -> str:
    """Return SHA-256 over the sorted names and contents of the images, and over the file of outlines."""
    rows = sorted(f"{t.name} {hashlib.sha256(t.path.read_bytes()).hexdigest()}" for t in tumours)
    rows.append(hashlib.sha256(outlines.read_bytes()).hexdigest())
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return the record."""
    protocol = ProtocolArguments(args.protocol, args.fold)
    models = args.model or ["model"]
    external = external_tumours(args.external_dir)
    classifier = TumorClassifier.from_pretrained(models, mirror=args.mirror, device=args.device)
    args.method = method_of(classifier, args.method)
    data = load_slices(args.data_dir, protocol)
    test = data.splits["test"]
    traced = kaggle_tumours(args.data_dir, args.figshare_dir, test, args.provenance)
    of_tumours = sum(label != LABEL2ID[NO_TUMOR] for label in test["label"][:])
    sets = {}
    for name, tumours, folder in (
        (protocol.title, traced, args.figshare_dir),
        ("br35h test part", external, args.external_dir),
    ):
        chosen = at_even_distances(tumours, args.limit)
        sets[name] = measure_set(classifier, chosen, method=args.method, seed=args.seed, n_resamples=args.n_resamples)
        sets[name]["fingerprint"] = fingerprint(chosen, folder / FILE_NAME)
    sets[protocol.title]["tumours_without_outline"] = of_tumours - len(traced)
    met = {Path(name).name: images_met(name, args.data_dir, [t.name for t in traced]) for name in models}
    record = run_record(
        protocol=protocol,
        model=describe_model(models, classifier),
        data=describe_data(str(args.data_dir), data),
        splits={},
        title=args.title,
        config={
            "method": args.method,
            "seed": args.seed,
            "limit": args.limit,
            "target": "the class answered",
            "tolerance_px": TOLERANCE,
            "gaussian_sigma": GAUSSIAN_SIGMA,
            "random_map_cell_px": GRID,
        },
    )
    for key in ("splits", "training", "external"):  # a record of accuracy has these, this one has ``sets``
        del record[key]
    packages = ("numpy", "scipy")
    record["versions"] |= {name: metadata.version(name) for name in packages}
    return record | {"benchmark": "explain_accuracy", "images_met": met, "sets": sets}


def method_table(record: dict[str, Any]) -> str:
    """Return one Markdown row a set and method: hit rates, energy, and rank correlation with the model's maps."""
    rows = []
    for title, figures in record["sets"].items():
        for name, scored in figures["methods"].items():
            rank = figures["rank_correlation"].get(name)
            correlation = f"{rank['value']:.2f} ({rank['low']:.2f}-{rank['high']:.2f})" if rank else "-"
            cells = [percent(scored[key]) for key in ("hit", "hit_15px", "energy")]
            rows.append([name, title, str(figures["n"]), *cells, correlation])
        for kind, scored in figures["by_answer"].items():
            cells = [percent(scored[key]) for key in ("hit", "hit_15px", "energy")]
            rows.append([f"{record['config']['method']}, answer: {kind}", title, str(scored["n"]), *cells, "-"])
    header = ["map", "tumours of", "images", "hit", f"hit within {TOLERANCE} px", "energy inside", "rank correlation"]
    return markdown_table(header, rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser, (PATIENT_DISJOINT, OFFICIAL))
    parser.add_argument("--figshare_dir", type=Path, required=True, help="the Figshare set: borders.jsonl")
    parser.add_argument(
        "--model", action="append", help="folder or Hub id (default: model); given again, an ensemble of all"
    )
    parser.add_argument("--mirror", action="store_true", help="average answers and maps with the mirror image's")
    parser.add_argument("--method", choices=(DECODER, *METHODS), help="default: the model's own")
    parser.add_argument("--seed", type=int, default=0, help="of random maps, randomised weights and the bootstrap")
    parser.add_argument("--n_resamples", type=int, default=2000, help="of the bootstrap over groups")
    parser.add_argument("--title", help="what stands in tables for the model (default: architecture and input size)")
    parser.add_argument("--limit", type=int, help="images of each set, for a trial")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best one here)")
    parser.add_argument("--provenance", type=Path, default=PROVENANCE, help="which file is which Figshare slice")


def show(record: dict[str, Any], _: argparse.Namespace) -> None:
    Console().print(Markdown(method_table(record)))


def main(argv: Sequence[str] | None = None) -> int:
    return run(__doc__, add_arguments, measure, argv, show=show, output="results/explain/metrics.json")


if __name__ == "__main__":
    raise SystemExit(main())
