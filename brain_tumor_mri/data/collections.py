"""Slices of further collections, by a table: ``load_collections(folder)`` reads ``collections.csv`` beside the images.

A collection of your own is a folder of images and lines in that table. The columns that matter:

- ``file``: path under the folder; ``collection``: its name; ``family``: collections that may share patients, or scans.
- ``label``: glioma, meningioma, notumor or pituitary; ``tumour`` (of another or unknown kind); ``clear`` (no tumour on
  this slice of somebody who has one: trains as ``notumor``, is measured by itself); anything else, such as ``ct``, is
  no brain MRI and trains no class.
- ``patient``, ``sequence``, ``plane``, ``skull_stripped`` (0 or 1): empty where not known.

``data/splits/collections.csv`` has the group (patient, or near-copies) and the part of each slice that was to be had;
a slice that it does not list is grouped by its patient, and the group's name decides its part.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from ..errors import UserError
from ..labels import ANY_TUMOR, LABEL2ID, NO_TUMOR
from ..settings import setting
from .protocols import PARTS
from .slices import image_dataset
from .tables import COLLECTIONS_FILE, collection_rows

TABLE = COLLECTIONS_FILE.name
CLEAR = "clear"
TRAINING_LABELS = {**LABEL2ID, "tumour": ANY_TUMOR, CLEAR: LABEL2ID[NO_TUMOR]}
"""What a label of the table trains as; others, such as ``ct``, train no class."""
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1


@dataclass
class CollectionArguments:
    """Slices of further collections, added to the training part, and how collections are balanced."""

    collections_dir: str | None = setting(
        None, "Holds collections.csv and the slices it lists: their training parts train."
    )
    balance: float = setting(
        1.0,
        "An epoch draws slices of one collection and label in proportion to their number to this power: "
        "1 draws all slices alike, 0 all collections and labels.",
    )
    epoch_slices: int | None = setting(None, "Slices that an epoch draws, with replacement; default: each slice once.")

    def __post_init__(self) -> None:
        if not 0 <= self.balance <= 1:
            raise UserError(f"--balance {self.balance}: give a number from 0 to 1")
        if self.epoch_slices is not None and self.epoch_slices < 1:
            raise UserError(f"--epoch_slices {self.epoch_slices}: give 1 or more")
        if self.balance < 1 and self.epoch_slices is None:
            raise UserError(f"--balance {self.balance}: give --epoch_slices, how many slices an epoch draws")


@dataclass(frozen=True)
class CollectionSlice:
    """A line of a collections table, with the group and part of the versioned split. Text as in the table."""

    file: str
    collection: str
    family: str
    label: str
    sequence: str
    plane: str
    skull_stripped: str
    group: str
    part: str


def read_collections(folder: str | Path) -> list[CollectionSlice]:
    """Return the slices of a collections table, in its order.

    Args:
        folder: holds ``collections.csv`` and the files it lists.
    """
    root = Path(folder)
    try:
        with (root / TABLE).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        found = []
        for row in rows:
            if None in row.values():
                raise KeyError("a line is shorter than the first")
            group = f"{row['family']}/{row.get('patient') or row['file']}"
            group, part = collection_rows().get(row["file"]) or (group, part_of(group))
            rest = {key: row.get(key) or "" for key in ("sequence", "plane", "skull_stripped")}
            found.append(
                CollectionSlice(
                    row["file"], row["collection"], row["family"], row["label"], **rest, group=group, part=part
                )
            )
    except (OSError, KeyError, UnicodeError, csv.Error) as error:
        raise UserError(
            f"{root / TABLE}: no table of slices ({error}); give --collections_dir a folder whose {TABLE} has the "
            "columns file, collection, family and label"
        ) from error
    if missing := [row.file for row in found if not (root / row.file).is_file()]:
        raise UserError(f"{root}: {len(missing)} files of {TABLE} are missing, the first {missing[0]}")
    return found


def part_of(group: str) -> str:
    """Return the part (train, validation or test) that a group's name decides: the same on every machine."""
    share = int.from_bytes(hashlib.sha256(group.encode()).digest()[:4], "big") / 2**32
    return "test" if share < TEST_SHARE else "validation" if share < TEST_SHARE + VALIDATION_SHARE else "train"


def load_collections(folder: str | Path, left_out: str | None = None) -> datasets.DatasetDict:
    """Load the slices that train or measure a class.

    Args:
        folder: as of :func:`read_collections`.
        left_out: a family, or several separated by commas, of which nothing trains or validates: all of it is in
            ``test``, and nothing else is.

    Returns:
        ``train``, ``validation`` and ``test``; columns ``image``, ``label`` (int64, of ``TRAINING_LABELS``), ``path``,
        ``group``, and as text ``stratum`` (collection and label), ``collection``, ``family``, ``true_label``,
        ``sequence``, ``plane`` and ``skull_stripped``.
    """
    root = Path(folder)
    rows = [row for row in read_collections(root) if row.label in TRAINING_LABELS]
    families = sorted({row.family for row in rows})
    without = left_out.split(",") if left_out else []
    if unknown := sorted(set(without) - set(families)):
        raise UserError(f"--collection {unknown[0]}: not a family of {root / TABLE}; it has {', '.join(families)}")

    def part_under_protocol(row: CollectionSlice) -> str:
        if row.part not in PARTS:  # it has a near-copy in the Kaggle set, which trains
            return "unused"
        if row.family in without:
            return "test"
        return "unused" if without and row.part == "test" else row.part

    parts = {}
    for part in PARTS:
        ours = [row for row in rows if part_under_protocol(row) == part]
        texts = ("group", "collection", "family", "sequence", "plane", "skull_stripped")
        parts[part] = image_dataset(
            root,
            [row.file for row in ours],
            label=[TRAINING_LABELS[row.label] for row in ours],
            true_label=[row.label for row in ours],
            stratum=[f"{row.collection} {row.label}" for row in ours],
            **{name: [getattr(row, name) for row in ours] for name in texts},
        )
    return datasets.DatasetDict(parts)


def draw_shares(split: datasets.Dataset, balance: float) -> np.ndarray:
    """Return how likely each slice is to be drawn, (N,) float64 that sum to 1.

    A stratum (the slices of one collection and label) of n slices is drawn in proportion to n^balance, its slices
    alike: the sampling by temperature of Conneau et al. 2020.

    Args:
        split: with ``label``, and ``stratum`` where slices are not of the main collection.
        balance: 0 for all strata alike, 1 for all slices alike.
    """
    labels = split["label"][:]
    strata = split["stratum"][:] if "stratum" in split.column_names else [None] * len(labels)
    keys = [stratum or label for stratum, label in zip(strata, labels, strict=True)]
    sizes = Counter(keys)
    weights = np.array([sizes[key] ** (balance - 1.0) for key in keys])
    return weights / weights.sum()


def load_label(folder: str | Path, label: str) -> dict[str, datasets.Dataset]:
    """Load the slices of one label that trains no class, such as ``ct``, by part of the versioned split.

    Returns:
        ``train``, ``validation`` and ``test``; columns ``image``, ``label`` (``ANY_TUMOR``, of no meaning), ``path``
        and ``group``.
    """
    root = Path(folder)
    parts = {}
    for part in PARTS:
        ours = [row for row in read_collections(root) if row.label == label and row.part == part]
        parts[part] = image_dataset(
            root,
            [row.file for row in ours],
            label=[ANY_TUMOR] * len(ours),
            group=[row.group for row in ours],
            collection=[row.collection for row in ours],
        )
    return parts
