"""A folder of slices as a ``datasets.DatasetDict``, verified before anything is trained on it.

``load_slices("data/brain-tumor-mri-dataset")`` gives train, validation and test as the protocol has them, with columns
``image``, ``label`` (glioma, meningioma, notumor, pituitary, or your own), ``path`` (as published, e.g.
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
from typing import Any

import datasets
from rich.console import Console
from rich.progress import track

from ..errors import UserError, safe_line
from ..images.read import UnreadableImageError, load_image
from ..labels import FOLDERS, LABELS, own_labels
from ..machine import cpu_count
from ..settings import setting
from .folders import (
    FoundSlice,
    SkippedFile,
    is_utf8,
    read_figshare_table,
    require_every_class,
    scan_folders,
    split_folders,
    visible,
)
from .protocols import (
    FIGSHARE_5FOLD,
    OFFICIAL,
    PARTS,
    Assignment,
    ProtocolArguments,
    assign,
)


@dataclass
class DataArguments:
    """Which images, and how the classes are weighted."""

    data_dir: str = setting(
        "data/brain-tumor-mri-dataset",
        "Holds Training/ and Testing/ with one folder a class (figshare-5fold: images/, slices.csv).",
    )
    labels: str | None = setting(
        None,
        f"Your own classes, a,b,c, each with its folders; {FOLDERS}: those that Training/ has, by name. "
        "Default: glioma, meningioma, notumor, pituitary.",
    )
    skip_unreadable: bool = setting(False, "Leave bad files out (listed in metrics.json) instead of stopping.")
    class_weights: str = setting(
        "inverse", "inverse (N/n_c on the training images), none, or a number a class: w1,w2,w3,w4."
    )

    def __post_init__(self) -> None:
        if self.labels != FOLDERS:  # a wrong setting is told at once
            names = self.names
            resolve_class_weights(self.class_weights, list(range(len(names))), names)

    @property
    def names(self) -> tuple[str, ...]:
        """The classes in output order; reads the training folder where ``labels`` is ``folders``."""
        if self.labels is None:
            return LABELS
        if self.labels != FOLDERS:
            return own_labels(self.labels.split(","))
        training = split_folders(Path(self.data_dir))["train"]
        return own_labels([path.name for path in visible(training) if path.is_dir()])


@dataclass
class SliceData:
    """A loaded data set.

    Attributes:
        splits: train, validation and test; columns ``image``, ``label`` (ClassLabel), ``path`` and ``group`` (str).
        assignment: what the protocol made of the files, with those it does not know, misses or relabels.
        skipped: files left out under ``skip_unreadable``.
        fingerprint: SHA-256 over the sorted relative paths and contents of all image files, whatever part they are in.
    """

    splits: datasets.DatasetDict
    assignment: Assignment
    skipped: list[SkippedFile] = field(default_factory=list)
    fingerprint: str = ""

    def counts(self) -> dict[str, dict[str, int]]:
        """Return images by split and class."""
        return {
            name: dict(zip(self.labels, label_counts(split["label"], len(self.labels)), strict=True))
            for name, split in self.splits.items()
        }

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of their indices."""
        return tuple(self.splits["test"].features["label"].names)


def load_slices(
    data_dir: str | os.PathLike[str],
    protocol: ProtocolArguments | None = None,
    *,
    seed: int = 42,
    skip_unreadable: bool = False,
    progress: bool = False,
    parts: Sequence[str] = PARTS,
    labels: Sequence[str] = LABELS,
) -> SliceData:
    """Load a data set under a protocol, every file of the parts that are used decoded once to verify it.

    Args:
        data_dir: holds ``Training`` and ``Testing``, each with the four class folders (published or SARTAJ names), and
            where you have one ``Validation``; for ``figshare-5fold`` the folder that
            ``data_scripts/download_figshare.py`` wrote.
        protocol: which image trains, validates and tests; None is ``official``.
        seed: of the validation draw under ``official``.
        skip_unreadable: leave bad files out instead of raising.
        progress: show a bar on stderr while verifying.
        parts: those that will be used; the files of the others are listed, and not decoded.
        labels: the classes; other ones than this project's have ``official`` alone.
    """
    root = Path(data_dir)
    protocol = protocol or ProtocolArguments()
    if tuple(labels) != LABELS and protocol.protocol != OFFICIAL:
        raise UserError(f"--protocol {protocol.protocol}: it is for this project's classes; give --protocol official")
    figshare = protocol.protocol == FIGSHARE_5FOLD
    found, bad = (read_figshare_table(root), []) if figshare else scan_folders(root, labels)
    assignment = assign(found, protocol, seed)
    if protocol.protocol == OFFICIAL and set(parts) != {"test"}:
        parts = PARTS  # what validates is drawn from the readable ones
    used = {s.relative for s in assignment.slices if s.part in parts}
    digests, unreadable = _verify(root, found, used, progress=progress)
    bad += unreadable
    if bad and not skip_unreadable:
        shown = "; ".join(f"{file.path} ({file.reason})" for file in bad[:10])
        shown += f"; and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise UserError(
            f"{root}: {len(bad)} files cannot be used: {shown}; repair them, or leave them out with --skip_unreadable"
        )
    if unreadable:
        left_out = {file.path for file in unreadable}
        found = [file for file in found if file.relative not in left_out]
        if not figshare:
            require_every_class(root, found, labels)
        assignment = assign(found, protocol, seed)
    fingerprint = hashlib.sha256("\n".join(f"{k} {digests[k]}" for k in sorted(digests)).encode()).hexdigest()
    return SliceData(_splits(root, assignment, labels), assignment, bad, fingerprint)


def label_counts(labels: Sequence[int], classes: int = len(LABELS)) -> list[int]:
    """Return how many of ``labels`` (class indices) fall in each of the classes, in their order."""
    counter = Counter(labels)
    return [counter[i] for i in range(classes)]


def resolve_class_weights(setting: str, labels: Sequence[int], names: Sequence[str] = LABELS) -> list[float] | None:
    """Return the loss weight of each class.

    Args:
        setting: ``inverse`` for N/n_c (as the source's recipe; 4.32, 4.27, 3.58, 3.92 on the published training set),
            ``none``, or a positive number for each class, separated by commas, in label order.
        labels: class indices of the training images.
        names: the classes.

    Returns:
        A weight for each class, or None for an unweighted loss.
    """
    if setting == "none":
        return None
    if setting == "inverse":
        counts = label_counts(labels, len(names))
        if missing := [name for name, n in zip(names, counts, strict=True) if not n]:
            raise UserError(
                f"--class_weights inverse: no training images of {', '.join(missing)}; give none, or numbers"
            )
        return [len(labels) / n for n in counts]
    try:
        weights = [float(part) for part in setting.split(",")]
    except ValueError:
        weights = []
    if len(weights) != len(names) or not all(0 < w < float("inf") for w in weights):
        raise UserError(f"--class_weights {setting}: give inverse, none, or {len(names)} positive numbers w1,w2,...")
    return weights


def image_dataset(root: Path, paths: Sequence[str], **columns: Sequence[Any]) -> datasets.Dataset:
    """Return a table of images: ``image`` (decoded when asked for), ``path`` under ``root``, and further columns."""
    if not is_utf8(str(root.absolute())):
        raise UserError(f"{safe_line(str(root))}: a folder's name here is not UTF-8; rename it")
    table = {"image": [str((root / path).absolute()) for path in paths], "path": list(paths), **columns}
    text = {name: datasets.Value("string") for name in table if name not in ("image", "label")}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64"), **text})
    return datasets.Dataset.from_dict(table, features=features)


def with_slices(split: datasets.Dataset, further: datasets.Dataset, repeats: int = 1) -> datasets.Dataset:
    """Return a split followed by ``repeats`` times further slices, with their ``stratum`` where they have one.

    The column ``label`` becomes a plain int64, as ``ANY_TUMOR`` names no class.
    """
    plain = split.cast_column("label", datasets.Value("int64"))
    known = [name for name in (*plain.column_names, "stratum") if name in further.column_names]
    return datasets.concatenate_datasets([plain, *[further.select_columns(list(dict.fromkeys(known)))] * repeats])


def _verify(
    root: Path, files: Sequence[FoundSlice], used: set[str], *, progress: bool
) -> tuple[dict[str, str], list[SkippedFile]]:
    """Return the SHA-256 of each file by relative path, and those of ``used`` that do not decode, with the reason."""

    def check(file: FoundSlice) -> tuple[str | None, str | None]:
        try:
            content = (root / file.relative).read_bytes()
        except OSError as error:
            return None, error.strerror or str(error)
        try:
            if file.relative in used:
                load_image(content, name=file.relative)
        except UnreadableImageError as error:
            return hashlib.sha256(content).hexdigest(), error.reason
        return hashlib.sha256(content).hexdigest(), None

    digests: dict[str, str] = {}
    bad: list[SkippedFile] = []
    shown = {"total": len(files), "disable": not progress, "transient": True, "console": Console(stderr=True)}
    with ThreadPoolExecutor(cpu_count()) as pool:
        for file, (digest, reason) in track(
            zip(files, pool.map(check, files), strict=True), "Verifying images", **shown
        ):
            if digest:
                digests[file.relative] = digest
            if reason:
                bad.append(SkippedFile(file.relative, reason))
    return digests, bad


def _splits(root: Path, assignment: Assignment, labels: Sequence[str]) -> datasets.DatasetDict:
    parts = {}
    for part in PARTS:
        ours = [s for s in assignment.slices if s.part == part]
        table = image_dataset(
            root,
            [s.relative for s in ours],
            label=[labels.index(s.label) for s in ours],
            group=[s.group for s in ours],
        )
        parts[part] = table.cast_column("label", datasets.ClassLabel(names=list(labels)))
    return datasets.DatasetDict(parts)
