"""Slices whose sequence, plane and skull are known: ``known_slices("collections", "kaggle")``; fits and measures heads.

Collections say it in their table. ``splits/appearance.csv`` adds what was told by eye on contact sheets (or stands in
the file's name), and the Figshare slices of the Kaggle set are T1 with contrast as published.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .collections import read_collections
from .tables import SPLITS_FILE, rows_of

SEQUENCES = ("t1", "t1c", "t2", "flair")
PLANES = ("axial", "coronal", "sagittal")
_BY_EYE = SPLITS_FILE.with_name("appearance.csv")
_PROVENANCE = SPLITS_FILE.with_name("provenance.csv")
_MOST = 150
"""Of one collection, sequence and plane, drawn at random: more of a kind take time and tell nothing new."""
_FIGSHARE_SLICES = 500
"""Of the Figshare slices in the Kaggle set, drawn at random from the folds that train no released network."""


@dataclass(frozen=True)
class KnownSlice:
    """A slice and what is known of its looks; empty text where it is not known.

    Attributes:
        path: of the image.
        collection: whose slices are left out together.
        sequence: one of ``SEQUENCES``.
        plane: one of ``PLANES``.
        skull_stripped: ``yes`` or ``no``.
    """

    path: Path
    collection: str
    sequence: str
    plane: str
    skull_stripped: str


def known_slices(collections_dir: str | Path, data_dir: str | Path | None = None) -> list[KnownSlice]:
    """List slices that something is known of, no more than ``_MOST`` of a kind.

    Args:
        collections_dir: as of ``collections.read_collections``.
        data_dir: the Kaggle set; None leaves it out.
    """
    by_eye = {(row["source"], row["file"]): (row["sequence"], row["plane"]) for row in rows_of(_BY_EYE)}
    found = []
    for row in read_collections(collections_dir):
        if row.label != "ct":
            sequence, plane = by_eye.get(("collections", row.file), (row.sequence, row.plane))
            stripped = {"0": "no", "1": "yes"}.get(row.skull_stripped, "")
            found.append(_known(Path(collections_dir, row.file), row.collection, sequence, plane, stripped))
    if data_dir is None:
        return _drawn(found)
    held_out = {row["path"] for row in rows_of(SPLITS_FILE) if row["fold"] in ("1", "2")}
    traced = [row["path"] for row in rows_of(_PROVENANCE) if row["figshare_id"] and row["path"] in held_out]
    listed = {file: looks for (source, file), looks in by_eye.items() if source == "kaggle"}
    drawn = {file: ("t1c", "") for file in random.Random(1).sample(traced, min(_FIGSHARE_SLICES, len(traced)))}
    for file, (sequence, plane) in (drawn | listed).items():
        path = Path(data_dir, file)
        if not path.is_file():
            raise UserError(f"{path} is missing; give --data_dir the Kaggle set")
        found.append(_known(path, "figshare" if sequence == "t1c" else "kaggle, others", sequence, plane, "no"))
    return _drawn(found)


def _drawn(slices: list[KnownSlice]) -> list[KnownSlice]:
    kinds: dict[tuple[str, ...], list[KnownSlice]] = defaultdict(list)
    for slice_ in slices:
        kinds[slice_.collection, slice_.sequence, slice_.plane].append(slice_)
    return [s for kind in kinds.values() for s in random.Random(1).sample(kind, min(len(kind), _MOST))]


def _known(path: Path, collection: str, sequence: str, plane: str, stripped: str) -> KnownSlice:
    known = sequence if sequence in SEQUENCES else "", plane if plane in PLANES else ""
    return KnownSlice(path, collection, *known, stripped)
