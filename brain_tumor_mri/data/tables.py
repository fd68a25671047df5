"""The versioned tables of ``splits/``: group, part or fold of each slice, by its published path.

Each is empty where the package is installed without it.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SPLITS_FILE = Path(__file__).with_name("splits") / "patient_disjoint.csv"
BR35H_FILE = SPLITS_FILE.with_name("br35h.csv")
COLLECTIONS_FILE = SPLITS_FILE.with_name("collections.csv")
IN_KAGGLE = "in-kaggle"
"""Part of slices that are, or are grouped with, a copy of a Kaggle image: neither trained on nor measured."""


@dataclass(frozen=True)
class SplitRow:
    """A line of patient_disjoint.csv: corrected label, folder's label, group of patient or near-copies, fold 1..5."""

    label: str
    source_label: str
    group: str
    fold: int


@dataclass(frozen=True)
class ExternalRow:
    """A line of br35h.csv: the group of near-copies, and the part: train, validation, test or in-kaggle."""

    group: str
    part: str


@cache
def split_rows() -> dict[str, SplitRow]:
    """Return the patient-disjoint folds of the Kaggle set by path."""
    return {
        row["path"]: SplitRow(row["label"], row["source_label"], row["group"], int(row["fold"]))
        for row in rows_of(SPLITS_FILE)
    }


@cache
def external_rows() -> dict[str, ExternalRow]:
    """Return the split of Br35H's tumours by path."""
    return {row["path"]: ExternalRow(row["group"], row["part"]) for row in rows_of(BR35H_FILE)}


@cache
def collection_rows() -> dict[str, tuple[str, str]]:
    """Return group and part of each slice of the further collections by file."""
    return {row["file"]: (row["group"], row["part"]) for row in rows_of(COLLECTIONS_FILE)}


def rows_of(file: Path) -> list[dict[str, str]]:
    """Return a table's lines; none where it is missing."""
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
