"""A folder of slices as a ``datasets.DatasetDict``, verified before anything is trained on it.

``load_slices("data/brain-tumor-mri-dataset")`` gives train, validation and test as the protocol has them, with columns
``image``, ``label`` (always glioma, meningioma, notumor, pituitary), ``path`` (as published, e.g.
``Training/glioma/Tr-gl_0010.jpg``) and ``group`` (patient, or group of near-copies).
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import datasets
from rich.progress import track

from ..errors import UserError
from ..images.find import IMAGE_SUFFIXES
from ..images.read import UnreadableImageError, load_image
from ..labels import FOLDER_TO_LABEL, LABELS
from .protocols import (
    FIGSHARE_5FOLD,
    PARTS,
    AssignedSlice,
    Assignment,
    FoundSlice,
    ProtocolArguments,
    assign,
    read_figshare_table,
)

SPLIT_FOLDERS = {"training": "train", "train": "train", "testing": "test", "test": "test"}


@dataclass
class DataArguments:
    """Which images, and how the classes are weighted."""

    data_dir: str = field(
        default="data/brain-tumor-mri-dataset",
        metadata={
            "help": "Holds Training/ and Testing/ with one folder a class (figshare-5fold: images/, slices.csv)."
        },
    )
    skip_unreadable: bool = field(
        default=False, metadata={"help": "Leave bad files out (listed in metrics.json) instead of stopping."}
    )
    class_weights: str = field(
        default="inverse",
        metadata={"help": "inverse (N/n_c on the training images), none, or four numbers: w1,w2,w3,w4."},
    )


@dataclass(frozen=True)
class SkippedFile:
    """A file left out, by its path under the data folder, and why."""

    path: str
    reason: str


@dataclass
class SliceData:
    """A loaded data set.

    Attributes:
        splits: train, validation and test; columns ``image``, ``label`` (ClassLabel), ``path`` and ``group`` (str).
        assignment: what the protocol made of the files, with those it does not know, misses or relabels.
        skipped: files left out under ``skip_unreadable``.
        fingerprint: SHA-256 over the sorted relative paths and contents of all readable files.
    """

    splits: datasets.DatasetDict
    assignment: Assignment
    skipped: list[SkippedFile] = field(default_factory=list)
    fingerprint: str = ""

    def counts(self) -> dict[str, dict[str, int]]:
        """Return images by split and class."""
        return {
            name: dict(zip(LABELS, label_counts(split["label"]), strict=True)) for name, split in self.splits.items()
        }


def load_slices(
    data_dir: str | os.PathLike[str],
    protocol: ProtocolArguments | None = None,
    *,
    seed: int = 42,
    skip_unreadable: bool = False,
    progress: bool = False,
) -> SliceData:
    """Load a data set under a protocol, every file decoded once to verify it.

    Args:
        data_dir: holds ``Training`` and ``Testing``, each with the four class folders (published or SARTAJ names); for
            ``figshare-5fold`` the folder that ``data_scripts/download_figshare.py`` wrote.
        protocol: which image trains, validates and tests; None is ``official``.
        seed: of the validation draw under ``official``.
        skip_unreadable: leave bad files out instead of raising.
        progress: show a bar on stderr while verifying.

    Raises:
        UserError: a folder is missing or empty, a file is unreadable and ``skip_unreadable`` is off, or the folder
            does not fit the protocol.
    """
    root = Path(data_dir)
    protocol = protocol or ProtocolArguments()
    figshare = protocol.protocol == FIGSHARE_5FOLD
    found, bad = (read_figshare_table(root), []) if figshare else scan_folders(root)
    digests, unreadable = verify_files(root, found, progress=progress)
    bad += unreadable
    if bad and not skip_unreadable:
        shown = "; ".join(f"{file.path} ({file.reason})" for file in bad[:10])
        shown += f"; and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise UserError(
            f"{root}: {len(bad)} files cannot be used: {shown}; repair them, or leave them out with --skip_unreadable"
        )
    found = [file for file in found if file.relative in digests]
    if not figshare:
        _require_every_class(root, found)
    assignment = assign(found, protocol, seed)
    fingerprint = hashlib.sha256("\n".join(f"{k} {digests[k]}" for k in sorted(digests)).encode()).hexdigest()
    return SliceData(_load_imagefolder(root, assignment.slices), assignment, bad, fingerprint)


def scan_folders(root: Path) -> tuple[list[FoundSlice], list[SkippedFile]]:
    """List a data set's files without opening them.

    Hidden files and folders (a real download has ``.ipynb_checkpoints``) are ignored.

    Returns:
        The image files, sorted by path; and files in class folders that are no images by name.

    Raises:
        UserError: the folder, a split folder or a class folder is missing, or a class folder's name is unknown.
    """
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder; download the data with data_scripts/download_kaggle.py, or give --data_dir "
            "the folder that holds Training/ and Testing/"
        )
    split_dirs: dict[str, Path] = {}
    for path in _visible(root):
        if path.is_dir() and (split := SPLIT_FOLDERS.get(path.name.lower())):
            split_dirs[split] = path
    for split, name in (("train", "Training"), ("test", "Testing")):
        if split not in split_dirs:
            raise UserError(
                f"{root}: has no {name}/ folder; give --data_dir the folder that holds Training/ and Testing/"
            )

    files: list[FoundSlice] = []
    misnamed: list[SkippedFile] = []
    for split, split_dir in sorted(split_dirs.items(), reverse=True):
        for class_dir in (p for p in _visible(split_dir) if p.is_dir()):
            label = FOLDER_TO_LABEL.get(class_dir.name.lower())
            if label is None:
                raise UserError(f"{class_dir}: not a known class folder; known are {', '.join(FOLDER_TO_LABEL)}")
            for path in _visible(class_dir):
                relative = path.relative_to(root).as_posix()
                if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
                    files.append(FoundSlice(relative, label, split))
                else:
                    kind = "a folder inside a class folder" if path.is_dir() else "not an image file by its name"
                    misnamed.append(SkippedFile(relative, kind))
    _require_every_class(root, files)
    return files, misnamed


def verify_files(
    root: Path, files: Sequence[FoundSlice], *, progress: bool = False
) -> tuple[dict[str, str], list[SkippedFile]]:
    """Decode every file once.

    Returns:
        SHA-256 of each readable file by relative path, and the unreadable ones with the reason.
    """

    def check(file: FoundSlice) -> str | SkippedFile:
        try:
            content = (root / file.relative).read_bytes()
            load_image(content, name=file.relative)
        except UnreadableImageError as error:
            return SkippedFile(file.relative, error.reason)
        except OSError as error:
            return SkippedFile(file.relative, error.strerror or str(error))
        return hashlib.sha256(content).hexdigest()

    digests: dict[str, str] = {}
    bad: list[SkippedFile] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = zip(files, pool.map(check, files), strict=True)
        for file, result in track(results, "Verifying images", total=len(files), disable=not progress, transient=True):
            if isinstance(result, SkippedFile):
                bad.append(result)
            else:
                digests[file.relative] = result
    return digests, bad


def label_counts(labels: Sequence[int]) -> list[int]:
    """Return how many of ``labels`` (class indices) fall in each of the four classes, in their order."""
    counter = Counter(labels)
    return [counter[i] for i in range(len(LABELS))]


def resolve_class_weights(setting: str, labels: Sequence[int]) -> list[float] | None:
    """Return the loss weight of each class.

    Args:
        setting: ``inverse`` for N/n_c (as the source's recipe; 4.32, 4.27, 3.58, 3.92 on the published training set),
            ``none``, or four positive numbers separated by commas, in label order.
        labels: class indices of the training images.

    Returns:
        Four weights, or None for an unweighted loss.
    """
    if setting == "none":
        return None
    if setting == "inverse":
        return [len(labels) / n for n in label_counts(labels)]
    try:
        weights = [float(part) for part in setting.split(",")]
    except ValueError:
        weights = []
    if len(weights) != len(LABELS) or not all(0 < w < float("inf") for w in weights):
        raise UserError(f"--class_weights {setting}: give inverse, none, or {len(LABELS)} positive numbers w1,w2,w3,w4")
    return weights


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _require_every_class(root: Path, files: Sequence[FoundSlice]) -> None:
    present = Counter((file.split, file.label) for file in files)
    for split, folder in (("train", "Training"), ("test", "Testing")):
        missing = [label for label in LABELS if not present[split, label]]
        if len(missing) == len(LABELS):
            raise UserError(f"{root / folder}: holds no images; check the download")
        if missing:
            raise UserError(f"{root / folder}: no images of {', '.join(missing)}; check the download")


def _load_imagefolder(root: Path, slices: Sequence[AssignedSlice]) -> datasets.DatasetDict:
    """Load by explicit file lists: left to itself, imagefolder puts Training and Testing into one ``train`` split."""
    parts = {part: [s for s in slices if s.part == part] for part in PARTS}
    files = {part: [str((root / s.relative).resolve()) for s in ours] for part, ours in parts.items()}
    was_enabled = datasets.utils.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset("imagefolder", data_files=files, drop_labels=True)
        for part, ours in parts.items():
            paths = [
                image["path"] for image in loaded[part].cast_column("image", datasets.Image(decode=False))["image"]
            ]
            if paths != files[part]:
                raise RuntimeError("imagefolder changed the order of the files it was given")
            loaded[part] = (
                loaded[part]
                .add_column("label", [LABELS.index(s.label) for s in ours])
                .cast_column("label", datasets.ClassLabel(names=list(LABELS)))
                .add_column("path", [s.relative for s in ours])
                .add_column("group", [s.group for s in ours])
            )
    finally:
        if was_enabled:
            datasets.enable_progress_bars()
    return loaded
