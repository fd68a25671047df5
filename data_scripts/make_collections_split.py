"""Groups the slices of further collections by patient and near-copies, and deals the groups to parts.

``python data_scripts/make_collections_split.py --collections_dir D --kaggle_dir D --external_dir D`` rewrites
collections.csv in the folder of the splits.
"""

import argparse
import csv
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a clone that is not installed

from brain_tumor_mri.audit.copies import connected_groups, find_copies
from brain_tumor_mri.audit.inventory import take_inventory
from brain_tumor_mri.data.collections import SPLIT_FILE, TABLE, TEST_SHARE, VALIDATION_SHARE
from data_scripts.make_splits import LINK_SCORE

IN_KAGGLE = "in-kaggle"


def make_collections_split(
    collections_dir: str | Path, kaggle_dir: str | Path, external_dir: str | Path, seed: int = 0
) -> list[dict[str, str]]:
    """Group by patient and near-copies, and deal whole groups of each collection to train, validation and test.

    A group with a near-copy in the Kaggle set or in Br35H is left out (part ``in-kaggle``): its image has a fold there.
    """
    with Path(collections_dir, TABLE).open(newline="", encoding="utf-8") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    ours = take_inventory(collections_dir)
    others = [take_inventory(folder) for folder in (kaggle_dir, Path(external_dir, "images"))]
    count = len(ours.thumbnails)
    pairs = find_copies(np.concatenate([ours.thumbnails, *(o.thumbnails for o in others)]), min_score=LINK_SCORE)
    content_of = {path: int(pixel) for path, pixel in zip(ours.paths, ours.pixels, strict=True) if path in rows}

    # One node a distinct picture; patients link their slices, near-copies link pictures.
    first, second = [], []
    by_patient = defaultdict(list)
    for path, content in content_of.items():
        if rows[path]["patient"]:
            by_patient[rows[path]["collection"], rows[path]["patient"]].append(content)
    for contents in by_patient.values():
        first += contents[:-1]
        second += contents[1:]
    inside = pairs.select(pairs.second < count)
    groups = connected_groups(count, np.array([*first, *inside.first], int), np.array([*second, *inside.second], int))
    linked = set(groups[pairs.select((pairs.first < count) & (pairs.second >= count)).first].tolist())

    members = defaultdict(list)
    for path, content in content_of.items():
        members[int(groups[content])].append(path)
    order = np.random.default_rng(seed).permutation(sorted(members)).tolist()
    wanted = {"test": TEST_SHARE, "validation": VALIDATION_SHARE, "train": 1 - TEST_SHARE - VALIDATION_SHARE}
    sizes = Counter(rows[path]["collection"] for path in content_of)
    dealt: dict[str, Counter] = defaultdict(Counter)
    part_of = {}
    for group in sorted(order, key=lambda group: -len(members[group])):  # stable: shuffled among groups of one size
        collection = rows[members[group][0]]["collection"]
        owed = {part: share * sizes[collection] - dealt[collection][part] for part, share in wanted.items()}
        part_of[group] = IN_KAGGLE if group in linked else max(owed, key=owed.__getitem__)
        dealt[collection][part_of[group]] += len(members[group])
    names = {group: f"{rows[paths[0]]['family']}-{n:04d}" for n, (group, paths) in enumerate(members.items(), 1)}
    return [
        {"file": path, "group": names[int(groups[content])], "part": part_of[int(groups[content])]}
        for path, content in content_of.items()
    ]


def main(argv: list[str] | None = None) -> int:
    """Write the table and print how many groups and slices each collection has in each part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--collections_dir", required=True)
    parser.add_argument("--kaggle_dir", required=True)
    parser.add_argument("--external_dir", required=True)
    args = parser.parse_args(argv)
    split = make_collections_split(args.collections_dir, args.kaggle_dir, args.external_dir)
    with SPLIT_FILE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ("file", "group", "part"), lineterminator="\n")
        writer.writeheader()
        writer.writerows(split)
    slices = Counter((row["file"].split("/")[0], row["part"]) for row in split)
    groups = Counter(
        (row["split"], row["part"])
        for row in {r["group"]: {"split": r["file"].split("/")[0], **r} for r in split}.values()
    )
    for key in sorted(slices):
        print(*key, slices[key], "slices", groups[key], "groups")
    return 0


if __name__ == "__main__":
    sys.exit(main())
