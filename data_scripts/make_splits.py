"""Traces the Kaggle files to their Figshare slices and patients, and builds splits in which no patient is on two sides.

``python data_scripts/make_splits.py --kaggle_dir D --figshare_dir D`` rewrites ``brain_tumor_mri/data/splits``. The
splits are keyed by published path (``Training/glioma/Tr-gl_0010.jpg``) and so serve a download in any image size.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

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
from brain_tumor_mri.audit.inventory import take_inventory
from brain_tumor_mri.data.br35h import IN_KAGGLE
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.files import write_text
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
    parser.add_argument("--figshare_dir", required=True, help="what download_figshare.py wrote: slices.csv and images")
    parser.add_argument("--external_dir", help="the Br35H tumours (images/): writes br35h.csv too")
    parser.add_argument("--output_dir", default="brain_tumor_mri/data/splits", help="where the tables go (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the untraced groups' folds (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the counts as one JSON object, and nothing else")


def run(args: argparse.Namespace) -> int:
    """Build the splits, write provenance.csv, patient_disjoint.csv and counts.json, print a summary; returns 0."""
    output = Path(args.output_dir)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        splits = make_splits(args.kaggle_dir, args.figshare_dir, seed=args.seed, progress=update)
        external = make_external_split(args.external_dir, args.kaggle_dir, seed=args.seed) if args.external_dir else []
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_text(output / "provenance.csv", _csv(splits.provenance))
        write_text(output / "patient_disjoint.csv", _csv(splits.patient_disjoint))
        if external:
            write_text(output / "br35h.csv", _csv(external))
            splits.counts["external"] = _external_counts(external)
        elif (output / "br35h.csv").is_file():  # which stays, and so do its counts
            with (output / "br35h.csv").open(newline="", encoding="utf-8") as file:
                splits.counts["external"] = _external_counts(list(csv.DictReader(file)))
        write_text(output / "counts.json", json.dumps(splits.counts, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--output_dir {output}: {error.strerror}; choose a folder that can be written") from error
    counts = splits.counts
    if args.json:
        print(json.dumps(counts))
        return 0
    console = Console(highlight=False)
    console.print(
        f"{counts['traced']:,} of {counts['tumour_images']:,} tumour images are copies of {counts['slices_found']:,} "
        f"Figshare slices; {counts['test_traced']:,} of {counts['test_tumour_images']:,} in Testing, "
        f"{counts['test_traced_of_training_patients']:,} of them of patients who are in Training too."
    )
    console.print(
        f"{counts['groups']:,} groups in five folds; near-copies across folds: {counts['near_copies_across_folds']}; "
        f"labels corrected: {len(counts['corrected_labels'])}; written to {output}/"
    )
    for path in counts["unreadable_files"]:
        console.print(f"not readable and left out: {path}", markup=False)
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


def _external_counts(rows: Sequence[dict[str, str]]) -> dict[str, Any]:
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


TEST_SHARE, VALIDATION_SHARE = 0.5, 0.1


def make_external_split(
    external_dir: str | Path,
    kaggle_dir: str | Path,
    *,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[dict[str, str]]:
    """Group the external tumours by near-copies and deal whole groups to the parts.

    A group with a near-copy in the Kaggle set is left out (``IN_KAGGLE``): its image has a fold there.
    """
    from brain_tumor_mri.audit.copies import connected_groups, find_copies
    from brain_tumor_mri.audit.inventory import take_inventory

    ours = take_inventory(Path(external_dir) / "images", progress=progress)
    kaggle = take_inventory(kaggle_dir, progress=progress)
    count = len(ours.thumbnails)
    pairs = find_copies(np.concatenate([ours.thumbnails, kaggle.thumbnails]), min_score=LINK_SCORE)
    inside = pairs.select(pairs.second < count)
    groups = connected_groups(count, inside.first, inside.second)
    across = pairs.select((pairs.first < count) & (pairs.second >= count))
    linked = set(groups[across.first].tolist())

    images = np.bincount(groups[ours.pixels])
    free = [group for group in range(len(images)) if group not in linked]
    order = np.random.default_rng(seed).permutation(free).tolist()
    part_of = dict.fromkeys(linked, IN_KAGGLE)
    wanted = {"test": TEST_SHARE, "validation": VALIDATION_SHARE, "train": 1 - TEST_SHARE - VALIDATION_SHARE}
    dealt = dict.fromkeys(wanted, 0)
    for group in sorted(order, key=lambda group: -images[group]):  # stable: shuffled among groups of one size
        part_of[group] = max(wanted, key=lambda part: wanted[part] * images[free].sum() - dealt[part])
        dealt[part_of[group]] += int(images[group])
    return [
        {"path": f"images/{path}", "group": f"b{groups[pixel] + 1:03d}", "part": part_of[int(groups[pixel])]}
        for path, pixel in zip(ours.paths, ours.pixels, strict=True)
    ]


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 done, 2 the user's input is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
