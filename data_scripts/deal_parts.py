"""Deals the slices of Br35H and of further collections to parts, whole patients and groups of near-copies at a time.

Part of ``make_splits.py``, which writes what ``make_external_split`` and ``make_collections_split`` return.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from brain_tumor_mri.audit.copies import connected_groups, find_copies
from brain_tumor_mri.audit.inventory import Inventory, ProgressCallback, take_inventory
from brain_tumor_mri.data import collections
from brain_tumor_mri.data.collections import TABLE
from brain_tumor_mri.data.tables import IN_KAGGLE
from brain_tumor_mri.errors import UserError

LINK_SCORE = 0.97
"""Two images, at least one of them untraced, share a group from this score.

Lower than ``copies.COPY_SCORE``: to join two neighbouring slices of one person does no harm, it is even wanted. Two
traced images are joined only by ``COPY_SCORE``, as their patients are known.
"""


def make_external_split(
    external_dir: str | Path,
    kaggle_dir: str | Path,
    *,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> list[dict[str, str]]:
    """Group the external tumours by near-copies, and deal whole groups to the parts: the rows of br35h.csv."""
    ours = take_inventory(Path(external_dir, "images"), progress=progress)
    groups, linked = _groups_and_linked(ours, [take_inventory(kaggle_dir, progress=progress)])
    images = np.bincount(groups[ours.pixels])
    free = [group for group in range(len(images)) if group not in linked]
    order = np.random.default_rng(seed).permutation(free).tolist()
    totals = {"br35h": int(images[free].sum())}
    part_of = _deal([*order, *linked], dict(enumerate(images.tolist())), lambda _: "br35h", totals, linked, (0.5, 0.1))
    return [
        {"path": f"images/{path}", "group": f"b{groups[pixel] + 1:03d}", "part": part_of[int(groups[pixel])]}
        for path, pixel in zip(ours.paths, ours.pixels, strict=True)
    ]


def make_collections_split(
    collections_dir: str | Path,
    kaggle_dir: str | Path,
    external_dir: str | Path,
    *,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> list[dict[str, str]]:
    """Group further slices by patient and near-copies, and deal whole groups of each collection: collections.csv."""
    try:
        table = pd.read_csv(Path(collections_dir, TABLE), dtype=str, keep_default_na=False)
    except OSError as error:
        raise UserError(
            f"{Path(collections_dir, TABLE)}: {error.strerror}; give --collections_dir its folder"
        ) from error
    rows = table.set_index("file").to_dict("index")
    ours = take_inventory(collections_dir, progress=progress)
    others = [take_inventory(folder, progress=progress) for folder in (kaggle_dir, Path(external_dir, "images"))]
    content_of = {path: int(pixel) for path, pixel in zip(ours.paths, ours.pixels, strict=True) if path in rows}
    by_patient = defaultdict(list)
    for path, content in content_of.items():
        if rows[path]["patient"]:
            by_patient[rows[path]["collection"], rows[path]["patient"]].append(content)
    same_patient = [pair for contents in by_patient.values() for pair in itertools.pairwise(contents)]
    groups, linked = _groups_and_linked(ours, others, same_patient)

    members = defaultdict(list)
    for path, content in content_of.items():
        members[int(groups[content])].append(path)
    order = np.random.default_rng(seed).permutation(sorted(members)).tolist()
    images = {group: len(paths) for group, paths in members.items()}
    totals = Counter(rows[path]["collection"] for path in content_of)
    shares = (collections.TEST_SHARE, collections.VALIDATION_SHARE)
    part_of = _deal(order, images, lambda group: rows[members[group][0]]["collection"], totals, linked, shares)
    names = {group: f"{rows[paths[0]]['family']}-{n:04d}" for n, (group, paths) in enumerate(members.items(), 1)}
    return [
        {"file": path, "group": names[int(groups[content])], "part": part_of[int(groups[content])]}
        for path, content in content_of.items()
    ]


def _groups_and_linked(
    ours: Inventory, others: Sequence[Inventory], same_patient: Sequence[tuple[int, int]] = ()
) -> tuple[np.ndarray, set[int]]:
    """Group of each of our pictures by near-copies and patients, and the groups with a near-copy in another set."""
    count = len(ours.thumbnails)
    pairs = find_copies(np.concatenate([ours.thumbnails, *(o.thumbnails for o in others)]), min_score=LINK_SCORE)
    inside = pairs.select(pairs.second < count)
    ends = np.array(same_patient, np.int64).reshape(-1, 2)
    groups = connected_groups(
        count, np.concatenate([ends[:, 0], inside.first]), np.concatenate([ends[:, 1], inside.second])
    )
    across = pairs.select((pairs.first < count) & (pairs.second >= count))
    return groups, set(groups[across.first].tolist())


def _deal(
    order: Sequence[int],
    images: Mapping[int, int],
    collection_of: Callable[[int], str],
    totals: Mapping[str, int],
    linked: set[int],
    shares: tuple[float, float],
) -> dict[int, str]:
    """Give whole groups, the largest first, to the part that their collection owes most; linked ones to none."""
    wanted = {"test": shares[0], "validation": shares[1], "train": 1 - shares[0] - shares[1]}
    dealt: dict[str, Counter] = defaultdict(Counter)
    part_of: dict[int, str] = {}
    for group in sorted(order, key=lambda group: -images[group]):  # stable: in the given order among those of one size
        name = collection_of(group)
        owed = {part: share * totals[name] - dealt[name][part] for part, share in wanted.items()}
        part_of[group] = IN_KAGGLE if group in linked else max(owed, key=owed.__getitem__)
        dealt[name][part_of[group]] += images[group]
    return part_of
