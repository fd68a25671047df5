"""Traces the Kaggle files to their Figshare slices and patients, and builds splits in which no patient is on two sides.

``python data_scripts/make_splits.py --kaggle_dir D --figshare_dir D`` rewrites ``brain_tumor_mri/data/splits``; with
``--external_dir`` and ``--collections_dir`` also the parts of Br35H's tumours and of further collections. The
splits are keyed by published path (``Training/glioma/Tr-gl_0010.jpg``) and so serve a download in any image size.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a clone that is not installed

from brain_tumor_mri.audit.copies import (
    COPY_SCORE,
    THUMBNAIL_SIZE,
    CopyPairs,
    connected_groups,
    find_copies,
    normalise,
    thumbnail,
)
from brain_tumor_mri.audit.inventory import Inventory, ProgressCallback, take_inventory
from brain_tumor_mri.commands.progress import ProgressBar
from brain_tumor_mri.commands.script import run_script
from brain_tumor_mri.data import collections
from brain_tumor_mri.data.collections import TABLE
from brain_tumor_mri.data.tables import IN_KAGGLE
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.files import read_json, write_text
from brain_tumor_mri.images.read import UnreadableImageError, load_image
from brain_tumor_mri.labels import NO_TUMOR

TRACE_CORRELATION = 0.99
"""An image is traced to a slice when their 64x64 thumbnails correlate above this, as they are or mirrored.

Nothing lies near it: of the Kaggle images the traced ones stay above 0.999, all others below 0.94.
"""
LINK_SCORE = 0.97
"""Two images, at least one of them untraced, share a group from this score.

Lower than ``duplicates.COPY_SCORE``: to join two neighbouring slices of one person does no harm, it is even wanted. Two
traced images are joined only by ``COPY_SCORE``, as their patients are known.
"""
FOLDS = (1, 2, 3, 4, 5)
_BLOCK = 1024


@dataclass(frozen=True)
class Slices:
    """The Figshare slices, in the order of slices.csv.

    Attributes:
        ids: int64 (S,), image_id.
        labels: (S,) class name.
        patients: int64 (S,), a number by first appearance from 0; the patient ids themselves go no further.
        folds: int64 (S,), published fold, 1..5.
        thumbnails: uint8 (S, 64, 64).
    """

    ids: np.ndarray
    labels: list[str]
    patients: np.ndarray
    folds: np.ndarray
    thumbnails: np.ndarray


@dataclass(frozen=True)
class Traces:
    """For each of N images the slice most like it.

    Attributes:
        slices: int64 (N,), index into ``Slices``.
        mirrored: bool (N,), whether the image is that slice mirrored left-right.
        scores: float32 (N,), correlation of the two, in [-1, 1].
    """

    slices: np.ndarray
    mirrored: np.ndarray
    scores: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """Whether each image is a copy, bool (N,), and not only the most alike."""
        return self.scores > TRACE_CORRELATION


@dataclass(frozen=True)
class Splits:
    """The two tables, rows as in the CSV files and sorted by path, and what was counted on the way."""

    provenance: list[dict[str, str]]
    patient_disjoint: list[dict[str, str]]
    counts: dict[str, Any]


def read_slices(figshare_dir: str | Path, progress: Callable[[int, int], None] | None = None) -> Slices:
    """Read slices.csv and the images of the Figshare data set, as ``download_figshare.py`` lays them out."""
    table = Path(figshare_dir, "slices.csv")
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(
            f"{table}: {error.strerror}; --figshare_dir takes the folder written by data_scripts/download_figshare.py"
        ) from error
    patients: dict[str, int] = {}
    try:
        ids = [int(row["image_id"]) for row in rows]
        labels = [row["label_name"] for row in rows]
        numbers = [patients.setdefault(row["patient_id"], len(patients)) for row in rows]
        folds = [int(row["fold"]) for row in rows]
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{table}: needs the columns image_id, label, label_name, patient_id, fold, with numbers for id and fold"
        ) from error
    if not rows:
        raise UserError(f"{table}: lists no slice; download the data set again")
    thumbnails = np.empty((len(ids), THUMBNAIL_SIZE, THUMBNAIL_SIZE), np.uint8)
    for position, image_id in enumerate(ids):
        try:
            thumbnails[position] = thumbnail(load_image(Path(figshare_dir, "images", f"{image_id}.jpg")))
        except UnreadableImageError as error:
            raise UserError(f"{error}; download the Figshare data set again") from error
        if progress is not None:
            progress(position + 1, len(ids))
    return Slices(np.array(ids), labels, np.array(numbers), np.array(folds), thumbnails)


def trace(thumbnails: np.ndarray, slices: np.ndarray) -> Traces:
    """Find the slice most like each image, as it is or mirrored left-right.

    Args:
        thumbnails: uint8 (N, 64, 64), of the images.
        slices: uint8 (S, 64, 64).
    """
    upright = normalise(slices)
    mirrored = normalise(slices[:, :, ::-1])
    best, flipped, scores = [], [], []
    for start in range(0, len(thumbnails), _BLOCK):
        images = normalise(thumbnails[start : start + _BLOCK])
        both = np.stack([images @ upright.T, images @ mirrored.T], axis=1).reshape(len(images), -1)
        position = both.argmax(axis=1)
        best.append(position % len(slices))
        flipped.append(position >= len(slices))
        scores.append(both[np.arange(len(images)), position])
    return Traces(np.concatenate(best), np.concatenate(flipped), np.concatenate(scores))


def group_images(patients: np.ndarray, pairs: CopyPairs) -> np.ndarray:
    """Groups that must not be divided: a patient's images, and whatever is a near-copy of one of a group's images.

    Args:
        patients: int64 (N,), number of the patient, -1 for untraced images.
        pairs: pairs of near-copies from ``LINK_SCORE``.

    Returns:
        int64 (N,), numbered from 0 by first appearance.
    """
    untraced = (patients[pairs.first] < 0) | (patients[pairs.second] < 0)
    links = pairs.select(untraced | (pairs.score >= COPY_SCORE))
    first_image: dict[int, int] = {}
    same_patient = [(first_image.setdefault(int(p), n), n) for n, p in enumerate(patients) if p >= 0]
    ends = np.array(same_patient, np.int64).reshape(-1, 2)
    return connected_groups(
        len(patients), np.concatenate([links.first, ends[:, 0]]), np.concatenate([links.second, ends[:, 1]])
    )


def assign_folds(groups: np.ndarray, classes: np.ndarray, fixed: dict[int, int], seed: int = 0) -> dict[int, int]:
    """Give every group a fold so that each fold holds nearly the same number of images of every class.

    Greedy, largest group first, each to the fold where it adds least to the sum over folds and classes of
    count^2 / class size; scikit-learn's StratifiedGroupKFold does the same but cannot start from folds that are taken.

    Args:
        groups: int64 (N,), group of each image.
        classes: int64 (N,), class of each image, 0..C-1.
        fixed: groups that have a fold already.
        seed: decides between groups of one size and between folds that are as good.
    """
    rng = np.random.default_rng(seed)
    sizes = np.zeros((int(groups.max()) + 1, int(classes.max()) + 1))
    np.add.at(sizes, (groups, classes), 1)
    totals = np.maximum(sizes.sum(axis=0), 1)
    filled = np.zeros((len(FOLDS), sizes.shape[1]))
    folds = dict(fixed)
    for group, fold in fixed.items():
        filled[FOLDS.index(fold)] += sizes[group]
    present = np.unique(groups)
    order = rng.permutation(present)
    for group in order[np.argsort(-sizes[order].sum(axis=1), kind="stable")]:
        if int(group) in folds:
            continue
        cost = ((2 * filled * sizes[group] + sizes[group] ** 2) / totals).sum(axis=1)
        choice = int(rng.choice(np.flatnonzero(cost <= cost.min() + 1e-12)))
        folds[int(group)] = FOLDS[choice]
        filled[choice] += sizes[group]
    return folds


def make_splits(
    kaggle_dir: str | Path,
    figshare_dir: str | Path,
    *,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Splits:
    """Trace, group and divide the Kaggle data set."""

    def stage(name: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, total: progress(name, done, total)

    inventory = take_inventory(kaggle_dir, progress=progress)
    if "" in inventory.labels or set(inventory.splits) - {"Training", "Testing"}:
        raise UserError(f"{kaggle_dir}: needs the published layout, Training and Testing with a folder a class")
    slices = read_slices(figshare_dir, stage("Reading slices"))
    of_content = trace(inventory.thumbnails, slices.thumbnails)
    content_pairs = find_copies(inventory.thumbnails, min_score=LINK_SCORE, progress=stage("Comparing images"))

    # Groups are formed of distinct contents: files with the same pixels are one thing and cannot be parted.
    content_patients = np.where(of_content.found, slices.patients[of_content.slices], -1)
    content_groups = group_images(content_patients, content_pairs)
    pixels = inventory.pixels
    groups, traced = content_groups[pixels], of_content.found[pixels]
    slice_of, mirrored, scores = (a[pixels] for a in (of_content.slices, of_content.mirrored, of_content.scores))
    labels = [
        slices.labels[s] if known else label for s, known, label in zip(slice_of, traced, inventory.labels, strict=True)
    ]
    fixed, joined = _published_folds(groups[traced], slices.patients[slice_of[traced]], slices.folds[slice_of[traced]])
    class_names = sorted(set(labels))
    classes = np.array([class_names.index(label) for label in labels])
    folds = assign_folds(groups, classes, fixed, seed)
    names = _group_names(groups, {int(g): int(p) for g, p in _first_patient(groups[traced], slices, slice_of[traced])})

    provenance, table = [], []
    for n in sorted(range(len(inventory.paths)), key=lambda n: inventory.paths[n]):
        path, group = inventory.paths[n], names[int(groups[n])]
        provenance.append(
            {
                "path": path,
                "figshare_id": str(slices.ids[slice_of[n]]) if traced[n] else "",
                "mirrored": str(bool(mirrored[n])).lower() if traced[n] else "",
                "score": f"{scores[n]:.4f}",
                "group": group,
            }
        )
        table.append(
            {
                "path": path,
                "label": labels[n],
                "source_label": inventory.labels[n],
                "group": group,
                "fold": str(folds[int(groups[n])]),
            }
        )
    across = content_pairs.select(content_pairs.score >= COPY_SCORE)
    content_folds = np.array([folds[int(g)] for g in content_groups])
    counts = _counts(provenance, table, slices)
    counts |= {
        "seed": seed,
        "unreadable_files": [path for path, _ in inventory.bad_files],
        "patients_joined_by_near_copies": joined,
        "untraced_images_joined_to_a_patient": int(sum(names[int(g)][0] == "p" for g in groups[~traced])),
        "near_copies_across_folds": int((content_folds[across.first] != content_folds[across.second]).sum()),
        "score_lowest_traced": round(float(scores[traced].min(initial=1)), 4),
        "score_highest_untraced": round(float(scores[~traced].max(initial=-1)), 4),
    }
    return Splits(provenance, table, counts)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``data_scripts/make_splits.py``."""
    parser.add_argument("--kaggle_dir", required=True, help="the Kaggle data set: holds Training and Testing")
    parser.add_argument("--figshare_dir", help="what download_figshare.py wrote: writes the tables of the Kaggle set")
    parser.add_argument("--external_dir", help="the Br35H tumours (images/): writes br35h.csv")
    parser.add_argument("--collections_dir", help="further collections (collections.csv): writes its parts, too")
    parser.add_argument("--output_dir", default="brain_tumor_mri/data/splits", help="where the tables go (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what is dealt to folds and parts (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the counts as one JSON object, and nothing else")


def run(args: argparse.Namespace) -> int:
    """Write the tables of the data sets that are given, and print what was counted."""
    if not (args.figshare_dir or args.external_dir):
        raise UserError("give --figshare_dir for the tables of the Kaggle set, --external_dir for br35h.csv, or both")
    if args.collections_dir and not args.external_dir:
        raise UserError("--collections_dir: give --external_dir too, as its slices may be among the collections'")
    output, tables, counts = Path(args.output_dir), {}, {}
    with ProgressBar() as progress:
        options = {"seed": args.seed, "progress": progress}
        if args.figshare_dir:
            splits = make_splits(args.kaggle_dir, args.figshare_dir, **options)
            tables = {"provenance": splits.provenance, "patient_disjoint": splits.patient_disjoint}
            counts = splits.counts
        if args.external_dir:
            tables["br35h"] = make_external_split(args.external_dir, args.kaggle_dir, **options)
        if args.collections_dir:
            folders = (args.collections_dir, args.kaggle_dir, args.external_dir)
            tables["collections"] = make_collections_split(*folders, **options)
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, rows in tables.items():
            write_text(output / f"{name}.csv", _csv(rows))
        counts = counts or (read_json(output / "counts.json") if (output / "counts.json").is_file() else {})
        if (output / "br35h.csv").is_file():  # where it was not made anew it stays, and so do its counts
            with (output / "br35h.csv").open(newline="", encoding="utf-8") as file:
                counts["external"] = _part_counts(list(csv.DictReader(file)))
        write_text(output / "counts.json", json.dumps(counts, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--output_dir {output}: {error.strerror}; choose a folder that can be written") from error
    if args.json:
        print(json.dumps(counts))
        return 0
    console = Console(highlight=False)
    if args.figshare_dir:
        console.print(
            f"{counts['traced']:,} of {counts['tumour_images']:,} tumour images are copies of "
            f"{counts['slices_found']:,} Figshare slices; {counts['test_traced']:,} of "
            f"{counts['test_tumour_images']:,} in Testing, "
            f"{counts['test_traced_of_training_patients']:,} of them of patients who are in Training too.\n"
            f"{counts['groups']:,} groups in five folds; near-copies across folds: "
            f"{counts['near_copies_across_folds']}; labels corrected: {len(counts['corrected_labels'])}"
        )
        for path in counts["unreadable_files"]:
            console.print(f"not readable and left out: {path}", markup=False)
    console.print(f"Written to {output}/: {', '.join(f'{name}.csv' for name in tables)}", markup=False)
    return 0


def _published_folds(
    groups: np.ndarray, patients: np.ndarray, folds: np.ndarray
) -> tuple[dict[int, int], list[dict[str, Any]]]:
    """The published fold of each group with traced images; where near-copies joined patients, the most frequent one."""
    fixed: dict[int, int] = {}
    joined = []
    for group in np.unique(groups):
        inside = groups == group
        votes = Counter(folds[inside].tolist())
        fixed[int(group)] = min(votes, key=lambda fold: (-votes[fold], fold))
        members = sorted(set(patients[inside].tolist()))
        if len(members) > 1:
            joined.append({"patients": [_patient_name(p) for p in members], "published_folds": sorted(votes)})
    return fixed, joined


def _first_patient(groups: np.ndarray, slices: Slices, slice_of: np.ndarray) -> list[tuple[int, int]]:
    lowest: dict[int, int] = {}
    for group, patient in zip(groups.tolist(), slices.patients[slice_of].tolist(), strict=True):
        lowest[group] = min(patient, lowest.get(group, patient))
    return list(lowest.items())


def _group_names(groups: np.ndarray, patient_of_group: dict[int, int]) -> dict[int, str]:
    """p001... for groups with a known patient, n0001... by first appearance for the others."""
    names: dict[int, str] = {}
    for group in dict.fromkeys(groups.tolist()):
        if group in patient_of_group:
            names[group] = _patient_name(patient_of_group[group])
        else:
            names[group] = f"n{sum(name[0] == 'n' for name in names.values()) + 1:04d}"
    return names


def _patient_name(number: int) -> str:
    return f"p{number + 1:03d}"


def _counts(provenance: Sequence[dict[str, str]], table: Sequence[dict[str, str]], slices: Slices) -> dict[str, Any]:
    """The figures of the data's README, and the sizes of the folds."""
    rows = [{**p, **t, "part": p["path"].split("/")[0]} for p, t in zip(provenance, table, strict=True)]
    tumours = [r for r in rows if r["source_label"] != NO_TUMOR]
    traced = [r for r in rows if r["figshare_id"]]
    upright = [r for r in traced if r["mirrored"] == "false"]
    test, training = ([r for r in traced if r["part"] == part] for part in ("Testing", "Training"))
    training_patients = {r["group"] for r in training}
    training_slices = {r["figshare_id"] for r in training}
    untraced = Counter(f"{r['part']}/{r['source_label']}" for r in tumours if not r["figshare_id"])
    per_fold = {fold: Counter(r["label"] for r in rows if r["fold"] == str(fold)) for fold in FOLDS}
    return {
        "images": len(rows),
        "tumour_images": len(tumours),
        "traced": len(traced),
        "traced_notumor": sum(r["source_label"] == NO_TUMOR for r in traced),
        "figshare_slices": len(slices.ids),
        "slices_found": len({r["figshare_id"] for r in traced}),
        "slices_found_mirrored": len({r["figshare_id"] for r in traced if r["mirrored"] == "true"}),
        "slices_found_unmirrored": len({r["figshare_id"] for r in upright}),
        "files_unmirrored": len(upright),
        "test_tumour_images": sum(r["part"] == "Testing" for r in tumours),
        "test_traced": len(test),
        "test_traced_of_training_patients": sum(r["group"] in training_patients for r in test),
        "test_traced_same_slice_in_training": sum(r["figshare_id"] in training_slices for r in test),
        "test_patients": len({r["group"] for r in test}),
        "untraced_tumour_images": dict(sorted(untraced.items())),
        "corrected_labels": [
            {
                "path": r["path"],
                "label": r["label"],
                "source_label": r["source_label"],
                "figshare_id": int(r["figshare_id"]),
            }
            for r in rows
            if r["label"] != r["source_label"]
        ],
        "groups": len({r["group"] for r in rows}),
        "groups_by_class": dict(
            sorted(Counter(label for _, label in {(r["group"], r["label"]) for r in rows}).items())
        ),
        "largest_untraced_groups": Counter(r["group"] for r in rows if r["group"][0] == "n").most_common(5),
        "images_by_fold": {str(fold): dict(sorted(per_fold[fold].items())) for fold in FOLDS},
    }


def _part_counts(rows: Sequence[dict[str, str]]) -> dict[str, Any]:
    parts = sorted({row["part"] for row in rows})
    return {
        "images": {part: sum(row["part"] == part for row in rows) for part in parts},
        "groups": {part: len({row["group"] for row in rows if row["part"] == part}) for part in parts},
    }


def _csv(rows: Sequence[dict[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def make_external_split(
    external_dir: str | Path,
    kaggle_dir: str | Path,
    *,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> list[dict[str, str]]:
    """Group the external tumours by near-copies, and deal whole groups to the parts: the rows of br35h.csv."""
    ours = take_inventory(Path(external_dir, "images"), progress=progress)
    groups, linked = _groups_and_linked(ours, [take_inventory(kaggle_dir, progress=progress)])
    images = np.bincount(groups[ours.pixels])
    free = [group for group in range(len(images)) if group not in linked]
    order = np.random.default_rng(seed).permutation(free).tolist()
    totals = {"br35h": int(images[free].sum())}
    part_of = _deal([*order, *linked], dict(enumerate(images.tolist())), lambda _: "br35h", totals, linked, (0.5, 0.1))
    return [
        {"path": f"images/{path}", "group": f"b{groups[pixel] + 1:03d}", "part": part_of[int(groups[pixel])]}
        for path, pixel in zip(ours.paths, ours.pixels, strict=True)
    ]


def make_collections_split(
    collections_dir: str | Path,
    kaggle_dir: str | Path,
    external_dir: str | Path,
    *,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> list[dict[str, str]]:
    """Group further slices by patient and near-copies, and deal whole groups of each collection: collections.csv."""
    try:
        with Path(collections_dir, TABLE).open(newline="", encoding="utf-8") as file:
            rows = {row["file"]: row for row in csv.DictReader(file)}
    except OSError as error:
        raise UserError(
            f"{Path(collections_dir, TABLE)}: {error.strerror}; give --collections_dir its folder"
        ) from error
    ours = take_inventory(collections_dir, progress=progress)
    others = [take_inventory(folder, progress=progress) for folder in (kaggle_dir, Path(external_dir, "images"))]
    content_of = {path: int(pixel) for path, pixel in zip(ours.paths, ours.pixels, strict=True) if path in rows}
    by_patient = defaultdict(list)
    for path, content in content_of.items():
        if rows[path]["patient"]:
            by_patient[rows[path]["collection"], rows[path]["patient"]].append(content)
    same_patient = [pair for contents in by_patient.values() for pair in itertools.pairwise(contents)]
    groups, linked = _groups_and_linked(ours, others, same_patient)

    members = defaultdict(list)
    for path, content in content_of.items():
        members[int(groups[content])].append(path)
    order = np.random.default_rng(seed).permutation(sorted(members)).tolist()
    images = {group: len(paths) for group, paths in members.items()}
    totals = Counter(rows[path]["collection"] for path in content_of)
    shares = (collections.TEST_SHARE, collections.VALIDATION_SHARE)
    part_of = _deal(order, images, lambda group: rows[members[group][0]]["collection"], totals, linked, shares)
    names = {group: f"{rows[paths[0]]['family']}-{n:04d}" for n, (group, paths) in enumerate(members.items(), 1)}
    return [
        {"file": path, "group": names[int(groups[content])], "part": part_of[int(groups[content])]}
        for path, content in content_of.items()
    ]


def _groups_and_linked(
    ours: Inventory, others: Sequence[Inventory], same_patient: Sequence[tuple[int, int]] = ()
) -> tuple[np.ndarray, set[int]]:
    """Group of each of our pictures by near-copies and patients, and the groups with a near-copy in another set."""
    count = len(ours.thumbnails)
    pairs = find_copies(np.concatenate([ours.thumbnails, *(o.thumbnails for o in others)]), min_score=LINK_SCORE)
    inside = pairs.select(pairs.second < count)
    ends = np.array(same_patient, np.int64).reshape(-1, 2)
    groups = connected_groups(
        count, np.concatenate([ends[:, 0], inside.first]), np.concatenate([ends[:, 1], inside.second])
    )
    across = pairs.select((pairs.first < count) & (pairs.second >= count))
    return groups, set(groups[across.first].tolist())


def _deal(
    order: Sequence[int],
    images: Mapping[int, int],
    collection_of: Callable[[int], str],
    totals: Mapping[str, int],
    linked: set[int],
    shares: tuple[float, float],
) -> dict[int, str]:
    """Give whole groups, the largest first, to the part that their collection owes most; linked ones to none."""
    wanted = {"test": shares[0], "validation": shares[1], "train": 1 - shares[0] - shares[1]}
    dealt: dict[str, Counter] = defaultdict(Counter)
    part_of: dict[int, str] = {}
    for group in sorted(order, key=lambda group: -images[group]):  # stable: in the given order among those of one size
        name = collection_of(group)
        owed = {part: share * totals[name] - dealt[name][part] for part, share in wanted.items()}
        part_of[group] = IN_KAGGLE if group in linked else max(owed, key=owed.__getitem__)
        dealt[name][part_of[group]] += images[group]
    return part_of


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 done, 2 the user's input is wrong."""
    return run_script(__doc__, add_arguments, run, argv)


if __name__ == "__main__":
    sys.exit(main())
