"""What a run learns from and is judged by: ``load_parts`` puts its collections together, every file decoded once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets

from ..data.br35h import load_external
from ..data.collections import load_collections
from ..data.outlines import Outlines, load_outlines
from ..data.protocols import draw_seed
from ..data.slices import SliceData, load_slices, resolve_class_weights, with_slices
from .arguments import RunArguments


@dataclass
class Parts:
    """The slices of a run.

    Attributes:
        slices: the data set under its protocol, which the figures are of.
        train: what trains: the protocol's part, and what ``--external_train`` and ``--collections_dir`` add.
        validation: what an epoch is judged by, with their validation parts.
        tumours: those of ``--external_dir``; None without.
        outlines: path -> outlines of the tumours in a slice, of ``--outlines_dir``; None without.
        class_weights: of the loss, one a class; None for all equal.
        fingerprints: of the data and of the three parts, by which a run that goes on knows its own.
    """

    slices: SliceData
    train: datasets.Dataset
    validation: datasets.Dataset
    tumours: datasets.DatasetDict | None
    outlines: dict[str, Outlines] | None
    class_weights: list[float] | None
    fingerprints: dict[str, str]


def run_slices(args: RunArguments, **options: Any) -> SliceData:
    """Load a run's data set under its protocol; ``options`` are further ones of ``load_slices``."""
    options |= {"seed": draw_seed(args.training.to_dict()), "skip_unreadable": args.data.skip_unreadable}
    return load_slices(args.data.data_dir, args.protocol, **options)


def load_parts(args: RunArguments, *, progress: bool = False) -> Parts:
    """Load what the arguments name."""
    slices = run_slices(args, progress=progress, labels=args.data.names)
    weights = resolve_class_weights(args.data.class_weights, slices.splits["train"]["label"], slices.labels)
    train, validation = slices.splits["train"], slices.splits["validation"]
    tumours = load_external(args.external.external_dir) if args.external.external_dir else None
    if tumours and args.external.external_train:
        train = with_slices(train, tumours["train"], args.external.external_repeats)
        validation = with_slices(validation, tumours["validation"])
    if args.collections.collections_dir:
        further = load_collections(args.collections.collections_dir, args.protocol.collection)
        train, validation = with_slices(train, further["train"]), with_slices(validation, further["validation"])
    guide = args.guidance.outlines_dir
    fingerprints = {
        "data_fingerprint": slices.fingerprint,
        "split_fingerprint": _split_fingerprint(
            {"train": train, "validation": validation, "test": slices.splits["test"]}
        ),
    }
    return Parts(
        slices,
        train,
        validation,
        tumours,
        outlines=load_outlines(guide, args.external.external_dir) if guide else None,
        class_weights=weights,
        fingerprints=fingerprints,
    )


def _split_fingerprint(parts: Mapping[str, datasets.Dataset]) -> str:
    """Return a SHA-256 over part, path, label and bytes of each slice, in their order."""
    digest = hashlib.sha256()
    for name, split in parts.items():
        files = split.cast_column("image", datasets.Image(decode=False))["image"][:]
        for path, label, file in zip(split["path"][:], split["label"][:], files, strict=True):
            digest.update(f"{name} {path} {label} {os.path.getsize(file['path'])}\n".encode())
    return digest.hexdigest()
