"""The Kaggle folders as a ``datasets.DatasetDict``, verified before anything is trained on them.

``load_kaggle("data/brain-tumor-mri-dataset")`` gives train, validation and test with columns ``image``, ``label``
(always glioma, meningioma, notumor, pituitary) and ``path`` (as published, e.g. ``Training/glioma/Tr-gl_0010.jpg``).
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

from .errors import UserError
from .imaging import IMAGE_SUFFIXES, UnreadableImageError, load_image
from .labels import FOLDER_TO_LABEL, LABELS

SPLIT_FOLDERS = {"training": "train", "train": "train", "testing": "test", "test": "test"}


@dataclass
class DataArguments:
    """Which images, and how they are split."""

    data_dir: str = field(
        default="data/brain-tumor-mri-dataset",
        metadata={"help": "Folder that holds Training/ and Testing/ with one folder a class."},
    )
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Share of the training images, stratified and seeded, kept for validation."}
    )
    skip_unreadable: bool = field(
        default=False, metadata={"help": "Leave bad files out (listed in metrics.json) instead of stopping."}
    )
    class_weights: str = field(
        default="inverse",
        metadata={"help": "inverse (N/n_c on the training images), none, or four numbers: w1,w2,w3,w4."},
    )

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            raise UserError(f"--validation_fraction {self.validation_fraction}: give a number between 0 and 1")


@dataclass(frozen=True)
class SliceFile:
    """One image file of a data set folder: its split (train or test), label, and path under the folder."""

    split: str
    label: str
    relative: str


@dataclass(frozen=True)
class SkippedFile:
    """A file left out, by its path under the data folder, and why."""

    path: str
    reason: str


@dataclass
class SliceData:
    """A loaded data set.

    Attributes:
        splits: train, validation and test; columns ``image``, ``label`` (ClassLabel), ``path`` (str).
        skipped: files left out under ``skip_unreadable``.
        fingerprint: SHA-256 over the sorted relative paths and contents of all files used.
    """

    splits: datasets.DatasetDict
    skipped: list[SkippedFile] = field(default_factory=list)
    fingerprint: str = ""

    def counts(self) -> dict[str, dict[str, int]]:
        """Return images by split and class."""
        return {
            name: {label: n for label, n in zip(LABELS, label_counts(split["label"]), strict=True)}
            for name, split in self.splits.items()
        }


def load_kaggle(
    data_dir: str | os.PathLike[str],
    *,
    validation_fraction: float = 0.1,
    seed: int = 42,
    skip_unreadable: bool = False,
    progress: bool = False,
) -> SliceData:
    """Load the folders, every file decoded once to verify it.

    Args:
        data_dir: holds ``Training`` and ``Testing``, each with the four class folders (published or SARTAJ names).
        validation_fraction: share of ``Training`` that becomes validation, stratified by class.
        seed: of that draw.
        skip_unreadable: leave bad files out instead of raising.
        progress: show a bar on stderr while verifying.

    Raises:
        UserError: a folder is missing or empty, or a file is unreadable and ``skip_unreadable`` is off.
    """
    root = Path(data_dir)
    files, bad = scan_folders(root)
    digests, unreadable = verify_files(root, files, progress=progress)
    bad += unreadable
    if bad and not skip_unreadable:
        shown = "; ".join(f"{file.path} ({file.reason})" for file in bad[:10])
        shown += f"; and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise UserError(
            f"{root}: {len(bad)} files cannot be used: {shown}; repair them, or leave them out with --skip_unreadable"
        )
    files = [file for file in files if file.relative in digests]
    _require_every_class(root, files)
    splits = _load_imagefolder(root, files)
    parts = splits["train"].train_test_split(validation_fraction, stratify_by_column="label", seed=seed)
    splits = datasets.DatasetDict(train=parts["train"], validation=parts["test"], test=splits["test"])
    fingerprint = hashlib.sha256("\n".join(f"{k} {digests[k]}" for k in sorted(digests)).encode()).hexdigest()
    return SliceData(splits, bad, fingerprint)


def scan_folders(root: Path) -> tuple[list[SliceFile], list[SkippedFile]]:
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

    files: list[SliceFile] = []
    misnamed: list[SkippedFile] = []
    for split, split_dir in sorted(split_dirs.items(), reverse=True):
        for class_dir in (p for p in _visible(split_dir) if p.is_dir()):
            label = FOLDER_TO_LABEL.get(class_dir.name.lower())
            if label is None:
                raise UserError(f"{class_dir}: not a known class folder; known are {', '.join(FOLDER_TO_LABEL)}")
            for path in _visible(class_dir):
                relative = path.relative_to(root).as_posix()
                if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
                    files.append(SliceFile(split, label, relative))
                else:
                    kind = "a folder inside a class folder" if path.is_dir() else "not an image file by its name"
                    misnamed.append(SkippedFile(relative, kind))
    _require_every_class(root, files)
    return files, misnamed


def verify_files(
    root: Path, files: Sequence[SliceFile], *, progress: bool = False
) -> tuple[dict[str, str], list[SkippedFile]]:
    """Decode every file once.

    Returns:
        SHA-256 of each readable file by relative path, and the unreadable ones with the reason.
    """

    def check(file: SliceFile) -> str | SkippedFile:
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


def _require_every_class(root: Path, files: Sequence[SliceFile]) -> None:
    present = Counter((file.split, file.label) for file in files)
    for split, folder in (("train", "Training"), ("test", "Testing")):
        missing = [label for label in LABELS if not present[split, label]]
        if len(missing) == len(LABELS):
            raise UserError(f"{root / folder}: holds no images; check the download")
        if missing:
            raise UserError(f"{root / folder}: no images of {', '.join(missing)}; check the download")


def _load_imagefolder(root: Path, files: Sequence[SliceFile]) -> datasets.DatasetDict:
    """Load by explicit file lists: left to itself, imagefolder puts Training and Testing into one ``train`` split."""
    by_split: dict[str, list[str]] = {"train": [], "test": []}
    for file in files:
        by_split[file.split].append(str((root / file.relative).resolve()))
    was_enabled = datasets.utils.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset("imagefolder", data_files=by_split, drop_labels=True)
    finally:
        if was_enabled:
            datasets.enable_progress_bars()
    features = datasets.ClassLabel(names=list(LABELS))
    for split in by_split:
        ours = [file for file in files if file.split == split]
        table = loaded[split].cast_column("image", datasets.Image(decode=False))
        names = [os.path.basename(image["path"]) for image in table["image"]]
        if names != [os.path.basename(file.relative) for file in ours]:
            raise RuntimeError("imagefolder changed the order of the files it was given")
        loaded[split] = (
            loaded[split]
            .add_column("label", [LABELS.index(file.label) for file in ours])
            .cast_column("label", features)
            .add_column("path", [file.relative for file in ours])
        )
    return loaded
