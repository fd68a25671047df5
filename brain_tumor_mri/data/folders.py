"""What a data folder holds, listed without opening an image: ``scan_folders(root)``, ``read_figshare_table(root)``."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError, safe_line
from ..images.find import IMAGE_SUFFIXES
from ..labels import FOLDER_TO_LABEL, LABEL2ID, LABELS

PARTS = ("train", "validation", "test")
SPLIT_FOLDERS = {
    "training": "train", "train": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "testing": "test", "test": "test",
}  # fmt: skip


@dataclass(frozen=True)
class FoundSlice:
    """An image file as it was found.

    Attributes:
        relative: path under the data folder, as published.
        label: the class of the folder (or table) it was found in.
        split: ``train``, ``validation`` or ``test``, by the folder; empty for a table.
        group: patient, where the data set itself names one; else empty.
        fold: published fold, where there is one; else 0.
    """

    relative: str
    label: str
    split: str = ""
    group: str = ""
    fold: int = 0


@dataclass(frozen=True)
class SkippedFile:
    """A file left out, by its path under the data folder, and why."""

    path: str
    reason: str


def split_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each part of a data set."""
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder; download the data with data_scripts/download_kaggle.py, or give --data_dir "
            "the folder that holds Training/ and Testing/"
        )
    split_dirs: dict[str, Path] = {}
    for path in visible(root):
        if path.is_dir() and (split := SPLIT_FOLDERS.get(path.name.lower())):
            if split in split_dirs:
                raise UserError(
                    f"{root}: holds {split_dirs[split].name}/ and {path.name}/, both for the {split} part; "
                    "keep one, or move the other elsewhere"
                )
            split_dirs[split] = path
    for split, name in (("train", "Training"), ("test", "Testing")):
        if split not in split_dirs:
            raise UserError(
                f"{root}: has no {name}/ folder; give --data_dir the folder that holds Training/ and Testing/"
            )
    return split_dirs


def scan_folders(root: Path, labels: Sequence[str] = LABELS) -> tuple[list[FoundSlice], list[SkippedFile]]:
    """List a data set's files without opening them.

    Hidden files and folders (a real download has ``.ipynb_checkpoints``) are ignored.

    Args:
        root: holds ``Training`` and ``Testing``.
        labels: the classes, each of which has its folder in both.

    Returns:
        The image files, sorted by path; and files in class folders that are no images by name.
    """
    split_dirs = split_folders(root)
    label_of = FOLDER_TO_LABEL if tuple(labels) == LABELS else {name.lower(): name for name in labels}
    files: list[FoundSlice] = []
    misnamed: list[SkippedFile] = []
    for split in (part for part in PARTS if part in split_dirs):
        for class_dir in (p for p in visible(split_dirs[split]) if p.is_dir()):
            label = label_of.get(class_dir.name.lower())
            if label is None:
                raise UserError(
                    f"{safe_line(str(class_dir))}: not a known class folder; known are {', '.join(label_of)} "
                    "(classes of your own: train.py --labels)"
                )
            for path in visible(class_dir):
                relative = path.relative_to(root).as_posix()
                if not is_utf8(relative):
                    misnamed.append(SkippedFile(safe_line(relative), "its name is not UTF-8"))
                elif path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
                    files.append(FoundSlice(relative, label, split))
                else:
                    kind = "a folder inside a class folder" if path.is_dir() else "not an image file by its name"
                    misnamed.append(SkippedFile(relative, kind))
    require_every_class(root, files, labels)
    return files, misnamed


def read_figshare_table(root: Path) -> list[FoundSlice]:
    """List the Figshare slices of ``slices.csv`` with their published folds; patients become numbers."""
    table = root / "slices.csv"
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
        patients = {patient: f"p{i:03}" for i, patient in enumerate(dict.fromkeys(r["patient_id"] for r in rows), 1)}
        return [
            FoundSlice(
                relative=f"images/{row['image_id']}.jpg",
                label=LABELS[LABEL2ID[row["label_name"]]],
                group=patients[row["patient_id"]],
                fold=int(row["fold"]),
            )
            for row in rows
        ]
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise UserError(
            f"{table}: no table of Figshare slices ({type(error).__name__}); give --data_dir the folder that "
            "data_scripts/download_figshare.py wrote"
        ) from error


def visible(folder: Path) -> list[Path]:
    """What a folder holds but for hidden files, sorted."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"{safe_line(str(folder))}: cannot be listed ({error.strerror}); check --data_dir") from error


def is_utf8(name: str) -> bool:
    """Whether a name can be written into a table."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def require_every_class(root: Path, files: Sequence[FoundSlice], labels: Sequence[str]) -> None:
    """Raise UserError where a class has no image to train or to test."""
    present = Counter((file.split, file.label) for file in files)
    for split, folder in (("train", "Training"), ("test", "Testing")):
        missing = [label for label in labels if not present[split, label]]
        if len(missing) == len(labels):
            raise UserError(f"{root / folder}: holds no images; check the download")
        if missing:
            raise UserError(f"{root / folder}: no images of {', '.join(missing)}; check the download")
