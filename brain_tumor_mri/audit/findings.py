"""The audit's findings: copies counted within and across splits and classes, and listed by file.

:func:`count_findings` takes what was read (``inventory.py``) and which images are copies (``copies.py``); what it
returns is written down by ``report.py``.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .copies import CANDIDATE_CORRELATION, ORIENTATIONS, CopyPairs, connected_groups
from .inventory import Inventory, split_title

KINDS: tuple[str, ...] = ("same file", "same pixels", "near-copy", "mirrored", "turned")
"""How close two copies are, closest first: same bytes; same decoded pixels; changed but lying the same way; mirrored
left-right; turned by 90 degrees or more, or upside down."""
STRICT_CORRELATION = 0.999
"""A second, stricter count is given for pairs whose 32x32 thumbnails correlate above this, as they are or mirrored."""
_LISTED_CONFLICTS = 500
_SHEET_EXAMPLES = 15


@dataclass(frozen=True)
class Audit:
    """What an audit found: ``report`` is audit.json; the rest serves pictures and further questions."""

    report: dict[str, Any]
    inventory: Inventory
    pairs: CopyPairs
    examples: list[tuple[str, int, int, str]]


def count_findings(inventory: Inventory, pairs: CopyPairs, name: str, min_score: float) -> Audit:
    """Count and list the copies of an inventory.

    Returns:
        The findings; the report is complete but for the seconds it took.
    """
    distinct = len(inventory.thumbnails)
    copies = _Copies(inventory, pairs)
    groups = connected_groups(distinct, pairs.first, pairs.second)[inventory.pixels]
    sizes = np.bincount(groups) if len(groups) else np.zeros(0, np.int64)
    group_files: dict[int, list[str]] = defaultdict(list)
    for file, group in enumerate(groups):
        if sizes[group] > 1:
            group_files[int(group)].append(inventory.paths[file])

    leaks, across = _leaks(copies)
    report: dict[str, Any] = {
        "schema": 1,
        "data_dir": name,
        "images": len(inventory.paths),
        "bad_files": [{"path": path, "reason": reason} for path, reason in inventory.bad_files],
        "min_score": min_score,
        "min_correlation": CANDIDATE_CORRELATION,
        "classes": sorted(set(inventory.labels)),
        "splits": {
            split: dict(Counter(c for s, c in zip(inventory.splits, inventory.labels, strict=True) if s == split))
            for split in copies.split_names
        },
        "identical": {
            "repeated_files": len(inventory.paths) - len(set(inventory.digests)),
            "repeated_pixels": len(inventory.paths) - distinct,
        },
        "copy_groups": {
            "count": int((sizes > 1).sum()),
            "images": int(sizes[sizes > 1].sum()),
            "largest": int(sizes.max(initial=0)),
            "distinct": len(sizes),
        },
        "orientations": {
            ORIENTATIONS[o]: int(n) for o, n in enumerate(np.bincount(pairs.orientation, minlength=8)) if n
        },
        "pairs_by_place": _pairs_by_place(copies),
        "across_splits": across,
        "label_conflicts": _label_conflicts(copies),
        "leaks": leaks,
        "groups": sorted(group_files.values(), key=len, reverse=True),
    }
    return Audit(report, inventory, pairs, _examples(copies))


class _Copies:
    """What was read and which of it are copies, with what every count asks for."""

    def __init__(self, inventory: Inventory, pairs: CopyPairs) -> None:
        self.inventory, self.pairs = inventory, pairs
        self.split_names = sorted(set(inventory.splits))
        self.split_of = np.array([self.split_names.index(s) for s in inventory.splits], np.int64)
        self.kind_of_pair = np.select([pairs.orientation == 0, pairs.orientation == 1], [2, 3], default=4)
        self.members: list[list[int]] = [[] for _ in inventory.thumbnails]
        for file, number in enumerate(inventory.pixels):
            self.members[number].append(file)


def _leaks(copies: _Copies) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Per file of a split, its closest copy in another split; listed for the smaller split of two, counted for both."""
    inventory, pairs, members = copies.inventory, copies.pairs, copies.members
    split_names, split_of, kind_of_pair = copies.split_names, copies.split_of, copies.kind_of_pair
    listed: list[dict[str, Any]] = []
    counted: list[dict[str, Any]] = []
    split_sizes = np.bincount(split_of, minlength=len(split_names))
    # Both directions of every pair, closest first, so that the first hit of an image is its closest copy.
    source = np.concatenate([pairs.first, pairs.second])
    target = np.concatenate([pairs.second, pairs.first])
    both = np.tile(np.arange(len(pairs)), 2)
    order = np.lexsort((-pairs.score[both], kind_of_pair[both]))
    neighbours: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for position in order:
        neighbours[int(source[position])].append((int(target[position]), int(both[position])))
    strict_as_is = pairs.correlation[:, 0] > STRICT_CORRELATION
    strict_either = pairs.correlation[:, :2].max(axis=1, initial=-1) > STRICT_CORRELATION

    for here, there in itertools.permutations(range(len(split_names)), 2):
        if "" in (split_names[here], split_names[there]):
            continue  # a file beside the split folders is in none
        present = [next((f for f in files if split_of[f] == there), None) for files in members]
        kinds, classes = Counter[str](), Counter[str]()
        strict = Counter[str]()
        list_it = (split_sizes[here], here) < (split_sizes[there], there)
        for file in np.flatnonzero(split_of == here):
            number = int(inventory.pixels[file])
            near = [(t, p) for t, p in neighbours[number] if present[t] is not None]
            if present[number] is not None:
                same = [f for f in members[number] if split_of[f] == there]
                twin = next((f for f in same if inventory.digests[f] == inventory.digests[file]), None)
                kind, copy = (0, twin) if twin is not None else (1, same[0])
                score, orientation = 1.0, 0
                strict.update(["as_is", "as_is_or_mirrored"])
            elif near:
                t, p = near[0]
                kind, copy, score = int(kind_of_pair[p]), present[t], float(pairs.score[p])
                orientation = int(pairs.orientation[p])
                strict["as_is"] += any(strict_as_is[p] for _, p in near)
                strict["as_is_or_mirrored"] += any(strict_either[p] for _, p in near)
            else:
                continue
            kinds[KINDS[kind]] += 1
            classes[inventory.labels[file]] += 1
            if list_it:
                listed.append(
                    {
                        "path": inventory.paths[file],
                        "copy": inventory.paths[copy],
                        "kind": KINDS[kind],
                        "orientation": ORIENTATIONS[orientation],
                        "score": round(score, 4),
                    }
                )
        total = int(split_sizes[here])
        counted.append(
            {
                "split": split_names[here],
                "copy_in": split_names[there],
                "images": total,
                "with_copy": kinds.total(),
                "share": round(kinds.total() / total, 4),
                "by_kind": {kind: kinds[kind] for kind in KINDS},
                "by_class": dict(sorted(classes.items())),
                "strict": {key: strict[key] for key in ("as_is", "as_is_or_mirrored")},
            }
        )
    return listed, [leak for leak in counted if leak["with_copy"]]


def _label_conflicts(copies: _Copies) -> dict[str, Any]:
    """Pairs of files that are copies and lie in different class folders."""
    inventory, pairs, members = copies.inventory, copies.pairs, copies.members
    label_of = inventory.labels
    examples: list[dict[str, Any]] = []
    involved: set[int] = set()
    count = 0

    def check(first_files: Sequence[int], second_files: Iterable[int], kind: str | None, score: float) -> None:
        nonlocal count
        for a, b in itertools.product(first_files, second_files):
            known = label_of[a] and label_of[b]
            if not known or label_of[a] == label_of[b] or (kind is None and a >= b):
                continue
            count += 1
            involved.update((a, b))
            if len(examples) < _LISTED_CONFLICTS:
                same = "same file" if inventory.digests[a] == inventory.digests[b] else "same pixels"
                examples.append(
                    {
                        "first": inventory.paths[a],
                        "second": inventory.paths[b],
                        "kind": kind or same,
                        "score": round(score, 4),
                    }
                )

    labels = [{label_of[f] for f in files} for files in members]
    for number, files in enumerate(members):
        if len(labels[number]) > 1:
            check(files, files, None, 1.0)
    for p in range(len(pairs)):
        i, j = int(pairs.first[p]), int(pairs.second[p])
        if len(labels[i] | labels[j]) > 1:
            check(members[i], members[j], KINDS[int(copies.kind_of_pair[p])], float(pairs.score[p]))
    return {"pairs": count, "images": len(involved), "examples": examples}


def _pairs_by_place(copies: _Copies) -> dict[str, dict[str, int]]:
    """Pairs of files by where they lie (within a split, across two) and by kind."""
    inventory, pairs, split_names = copies.inventory, copies.pairs, copies.split_names
    counts: dict[str, Counter[str]] = {}
    per_image = np.zeros((len(copies.members), len(split_names)), np.int64)
    np.add.at(per_image, (inventory.pixels, copies.split_of), 1)
    by_digest: dict[str, Counter[str]] = defaultdict(Counter)
    for digest, split in zip(inventory.digests, inventory.splits, strict=True):
        by_digest[digest][split] += 1
    x, y = per_image[pairs.first], per_image[pairs.second]
    for s, t in itertools.combinations_with_replacement(range(len(split_names)), 2):
        a, b = split_names[s], split_names[t]
        row = Counter[str]()
        if s == t:
            place = f"within {split_title(a)}"
            row["same pixels"] = int((per_image[:, s] * (per_image[:, s] - 1) // 2).sum())
            row["same file"] = sum(n[a] * (n[a] - 1) // 2 for n in by_digest.values())
            near = x[:, s] * y[:, s]
        else:
            place = f"between {split_title(a)} and {split_title(b)}"
            row["same pixels"] = int((per_image[:, s] * per_image[:, t]).sum())
            row["same file"] = sum(n[a] * n[b] for n in by_digest.values())
            near = x[:, s] * y[:, t] + x[:, t] * y[:, s]
        row["same pixels"] -= row["same file"]
        for kind in (2, 3, 4):
            row[KINDS[kind]] = int(near[copies.kind_of_pair == kind].sum())
        counts[place] = row
    return {place: {kind: row[kind] for kind in KINDS} for place, row in counts.items()}


def _examples(copies: _Copies) -> list[tuple[str, int, int, str]]:
    """Pairs for the contact sheet: (kind, file, file, note); each kind, different labels and other splits first."""
    inventory, pairs, members = copies.inventory, copies.pairs, copies.members
    chosen: list[tuple[str, int, int, str]] = []

    def interest(a: int, b: int) -> tuple[bool, bool]:
        return inventory.labels[a] != inventory.labels[b], inventory.splits[a] != inventory.splits[b]

    each = _SHEET_EXAMPLES // len(KINDS)
    same: dict[int, list[tuple[tuple[bool, bool], int, int]]] = {0: [], 1: []}
    for files in members:
        if len(files) > 1:
            a, b = max(itertools.combinations(files[:10], 2), key=lambda pair: interest(*pair))
            same[int(inventory.digests[a] != inventory.digests[b])].append((interest(a, b), a, b))
    for kind, found in same.items():
        found.sort(key=lambda item: item[0], reverse=True)
        chosen += [(KINDS[kind], a, b, "score 1") for _, a, b in found[:each]]
    for kind in (2, 3, 4):
        rows = []
        for p in np.flatnonzero(copies.kind_of_pair == kind):
            a, b = members[pairs.first[p]][0], members[pairs.second[p]][0]
            rows.append((interest(a, b), -float(pairs.score[p]), a, b, int(pairs.orientation[p])))
        # The least alike of the most telling ones: what the threshold lets in is what a reader needs to judge.
        rows.sort(key=lambda row: (row[0], row[1]), reverse=True)
        step = max(len(rows) // (2 * each), 1)
        for _, score, a, b, orientation in rows[: each * step : step]:
            how = f"{ORIENTATIONS[orientation]}, " if kind == 4 else ""
            chosen.append((KINDS[kind], a, b, f"{how}score {-score:.4f}"))
    return chosen
