"""Traces the Kaggle files to their Figshare slices and patients, and builds splits in which no patient is on two sides.

``python data_scripts/make_splits.py --kaggle_dir D --figshare_dir D`` rewrites ``brain_tumor_mri/data/splits``; with
``--external_dir`` and ``--collections_dir`` also the parts of Br35H's tumours and of further collections. The
splits are keyed by published path (``Training/glioma/Tr-gl_0010.jpg``) and so serve a download in any image size.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
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
from brain_tumor_mri.audit.inventory import take_inventory
from brain_tumor_mri.commands.progress import ProgressBar
from brain_tumor_mri.commands.script import run_script
from brain_tumor_mri.errors import UserError, first_line
from brain_tumor_mri.files import read_json, write_text
from brain_tumor_mri.images.read import UnreadableImageError, load_image
from brain_tumor_mri.labels import NO_TUMOR
from data_scripts.deal_parts import LINK_SCORE, make_collections_split, make_external_split

TRACE_CORRELATION = 0.99
"""An image is traced to a slice when their 64x64 thumbnails correlate above this, as they are or mirrored.

Nothing lies near it: of the Kaggle images the traced ones stay above 0.999, all others below 0.94.
"""
FOLDS = (1, 2, 3, 4, 5)
_BLOCK = 1024


@dataclass(frozen=True)
class Slices:
    """The S Figshare slices, in the order of slices.csv; patients are numbers by first appearance, from 0.

    The patients' ids themselves go no further. Folds are the published ones, 1..5; thumbnails uint8 (S, 64, 64).
    """

    ids: np.ndarray
    labels: list[str]
    patients: np.ndarray
    folds: np.ndarray
    thumbnails: np.ndarray


@dataclass(frozen=True)
class Traces:
    """For each of N images the slice most like it, whether as its mirror image, and their correlation in [-1, 1]."""

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
        rows = pd.read_csv(table)
        ids, folds = (rows[name].to_numpy(np.int64) for name in ("image_id", "fold"))
        labels, patients = rows["label_name"].tolist(), pd.factorize(rows["patient_id"])[0]
    except OSError as error:
        raise UserError(
            f"{table}: {error.strerror}; --figshare_dir takes the folder written by data_scripts/download_figshare.py"
        ) from error
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{table}: needs the columns image_id, label, label_name, patient_id, fold, with numbers for id and fold"
        ) from error
    if rows.empty:
        raise UserError(f"{table}: lists no slice; download the data set again")
    thumbnails = np.empty((len(ids), THUMBNAIL_SIZE, THUMBNAIL_SIZE), np.uint8)
    for position, image_id in enumerate(ids):
        try:
            thumbnails[position] = thumbnail(load_image(Path(figshare_dir, "images", f"{image_id}.jpg")))
        except UnreadableImageError as error:
            raise UserError(f"{error}; download the Figshare data set again") from error
        if progress is not None:
            progress(position + 1, len(ids))
    return Slices(ids, labels, patients, folds, thumbnails)


def trace(thumbnails: np.ndarray, slices: np.ndarray) -> Traces:
    """Find the slice, of uint8 (S, 64, 64), most like each image (N, 64, 64), as it is or mirrored left-right."""
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
    """Groups (N,) that must not be divided: a patient's images (-1: of none), and near-copies from ``LINK_SCORE``."""
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
    The seed decides between groups of one size and between folds that are as good.
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
    at, slice_of = inventory.pixels, of_content.slices[inventory.pixels]
    files = pd.DataFrame({
        "path": inventory.paths,
        "source_label": inventory.labels,
        "traced": of_content.found[at],
        "label": np.where(of_content.found[at], np.array(slices.labels)[slice_of], inventory.labels),
        "figshare_id": slices.ids[slice_of],
        "mirrored": of_content.mirrored[at],
        "score": of_content.scores[at],
        "number": content_groups[at],
        "patient": slices.patients[slice_of],
        "published_fold": slices.folds[slice_of],
    })  # fmt: skip
    fixed, joined = _published_folds(files[files.traced])
    folds = assign_folds(files.number.to_numpy(), files.label.astype("category").cat.codes.to_numpy(), fixed, seed)
    files["group"] = files.number.map(_group_names(files))
    files["fold"] = files.number.map(folds)
    files = files.sort_values("path")
    across = content_pairs.select(content_pairs.score >= COPY_SCORE)
    content_folds = np.array([folds[int(g)] for g in content_groups])
    untraced = files[~files.traced]
    counts = _counts(files, len(slices.ids)) | {
        "seed": seed,
        "unreadable_files": [path for path, _ in inventory.bad_files],
        "patients_joined_by_near_copies": joined,
        "untraced_images_joined_to_a_patient": int(untraced.group.str.startswith("p").sum()),
        "near_copies_across_folds": int((content_folds[across.first] != content_folds[across.second]).sum()),
        "score_lowest_traced": round(float(files.score[files.traced].min()), 4),
        "score_highest_untraced": round(float(untraced.score.max()), 4),
    }
    known = {"figshare_id": files.figshare_id.astype(str), "mirrored": files.mirrored.astype(str).str.lower()}
    written = files.assign(
        **{name: values.where(files.traced, "") for name, values in known.items()},
        score=files.score.map("{:.4f}".format),
        fold=files.fold.astype(str),
    )
    provenance, table = (
        written[columns].to_dict("records")
        for columns in (
            ["path", "figshare_id", "mirrored", "score", "group"],
            ["path", "label", "source_label", "group", "fold"],
        )
    )
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
            write_text(output / f"{name}.csv", pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
        counts = counts or (read_json(output / "counts.json") if (output / "counts.json").is_file() else {})
        if (output / "br35h.csv").is_file():  # where it was not made anew it stays, and so do its counts
            parts = pd.read_csv(output / "br35h.csv").groupby("part")["group"]
            counts["external"] = {"images": parts.size().to_dict(), "groups": parts.nunique().to_dict()}
        write_text(output / "counts.json", json.dumps(counts, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--output_dir {output}: {first_line(error)}; choose a folder that can be written") from error
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


def _published_folds(traced: pd.DataFrame) -> tuple[dict[int, int], list[dict[str, Any]]]:
    """The published fold of each group with traced images; where near-copies joined patients, the most frequent one."""
    fixed: dict[int, int] = {}
    joined = []
    for group, inside in traced.groupby("number"):
        votes = inside.published_fold.value_counts().sort_index()
        fixed[int(group)] = int(votes.idxmax())  # of folds with as many, the first
        if inside.patient.nunique() > 1:
            members = [_patient_name(patient) for patient in sorted(inside.patient.unique())]
            joined.append({"patients": members, "published_folds": votes.index.tolist()})
    return fixed, joined


def _group_names(files: pd.DataFrame) -> dict[int, str]:
    """p001... for groups with a known patient, n0001... by first appearance for the others."""
    patients = files[files.traced].groupby("number").patient.min()
    others = files.number[~files.number.isin(patients.index)].unique()
    named = {group: _patient_name(patient) for group, patient in patients.items()}
    return named | {group: f"n{place:04d}" for place, group in enumerate(others, 1)}


def _patient_name(number: int) -> str:
    return f"p{number + 1:03d}"


def _counts(files: pd.DataFrame, figshare_slices: int) -> dict[str, Any]:
    """The figures of the data's README, and the sizes of the folds."""
    files = files.assign(part=files.path.str.partition("/")[0])
    tumours, traced = files[files.source_label != NO_TUMOR], files[files.traced]
    upright, mirrored = traced[~traced.mirrored], traced[traced.mirrored]
    test, training = (traced[traced.part == name] for name in ("Testing", "Training"))
    corrected = files[files.label != files.source_label]
    untraced = Counter((tumours.part + "/" + tumours.source_label)[~tumours.traced])
    groups = files.drop_duplicates(["group", "label"]).label
    return {
        "images": len(files),
        "tumour_images": len(tumours),
        "traced": len(traced),
        "traced_notumor": int((traced.source_label == NO_TUMOR).sum()),
        "figshare_slices": figshare_slices,
        "slices_found": traced.figshare_id.nunique(),
        "slices_found_mirrored": mirrored.figshare_id.nunique(),
        "slices_found_unmirrored": upright.figshare_id.nunique(),
        "files_unmirrored": len(upright),
        "test_tumour_images": int((tumours.part == "Testing").sum()),
        "test_traced": len(test),
        "test_traced_of_training_patients": int(test.group.isin(training.group).sum()),
        "test_traced_same_slice_in_training": int(test.figshare_id.isin(training.figshare_id).sum()),
        "test_patients": test.group.nunique(),
        "untraced_tumour_images": dict(sorted(untraced.items())),
        "corrected_labels": corrected[["path", "label", "source_label", "figshare_id"]].to_dict("records"),
        "groups": files.group.nunique(),
        "groups_by_class": dict(sorted(Counter(groups).items())),
        "largest_untraced_groups": Counter(g for g in files.group if g[0] == "n").most_common(5),
        "images_by_fold": {str(fold): dict(sorted(Counter(files.label[files.fold == fold]).items())) for fold in FOLDS},
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 done, 2 the user's input is wrong."""
    return run_script(__doc__, add_arguments, run, argv)


if __name__ == "__main__":
    sys.exit(main())
