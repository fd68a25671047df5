"""The audit of an image folder: identical files, near-copies, copies across splits and copies with different labels.

``brain-tumor-mri audit DATA_DIR`` runs it (:func:`add_arguments`, :func:`run`); :func:`audit` is the same from Python.
What counts as a copy is decided in ``duplicates.py``; here files are read, and findings counted and written down.
"""

import argparse
import hashlib
import itertools
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .duplicates import (
    CANDIDATE_CORRELATION,
    COPY_SCORE,
    ORIENTATIONS,
    THUMBNAIL_SIZE,
    CopyPairs,
    connected_groups,
    find_copies,
    thumbnail,
)
from .errors import UserError
from .imaging import UnreadableImageError, find_images, load_image
from .labels import FOLDER_TO_LABEL

KINDS: tuple[str, ...] = ("same file", "same pixels", "near-copy", "mirrored", "turned")
"""How close two copies are, closest first: same bytes; same decoded pixels; changed but lying the same way; mirrored
left-right; turned by 90 degrees or more, or upside down."""

STRICT_CORRELATION = 0.999
"""A second, stricter count is given for pairs whose 32x32 thumbnails correlate above this, as they are or mirrored."""

_NO_COPY = len(KINDS)
_MAX_SPLITS = 20
_READ_AHEAD = 512
_LISTED_CONFLICTS = 500
_SHEET_EXAMPLES = 15
_TILE = 200

ProgressCallback = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Inventory:
    """The readable images of a folder, those with the same pixels gathered under one number.

    Attributes:
        paths: (N,) paths relative to the folder, with forward slashes.
        splits: (N,) first-level folder; "" where there are no splits.
        labels: (N,) class folder, by the project's class name where it is known; "" where there is none.
        digests: (N,) SHA-256 of the file, hexadecimal.
        pixels: int64 (N,), which of the U distinct pixel contents a file has.
        thumbnails: uint8 (U, 64, 64), of the distinct contents.
        bad_files: (path, reason) of every file that could not be read.
    """

    paths: list[str]
    splits: list[str]
    labels: list[str]
    digests: list[str]
    pixels: np.ndarray
    thumbnails: np.ndarray
    bad_files: list[tuple[str, str]]


@dataclass(frozen=True)
class Audit:
    """What :func:`audit` found: ``report`` is audit.json; the rest serves pictures and further questions."""

    report: dict[str, Any]
    inventory: Inventory
    pairs: CopyPairs
    examples: list[tuple[str, int, int, str]]


def take_inventory(
    data_dir: str | Path, *, workers: int | None = None, progress: ProgressCallback | None = None
) -> Inventory:
    """Read every image below a folder once.

    Args:
        data_dir: folder of images; hidden files and folders are left out.
        workers: threads that decode; by default one a core.
        progress: called with the number of files read.

    Returns:
        The inventory. Memory: 4.1 kB a distinct image.

    Raises:
        UserError: the folder is missing or holds no image.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise UserError(f"{data_dir}: no such folder; give the folder that holds the images")
    files = find_images([root])
    names = [file.relative_to(root).as_posix() for file in files]
    splits, labels = _splits_and_labels(names)
    keep: list[int] = []
    digests: list[str] = []
    pixels: list[int] = []
    numbers: dict[bytes, int] = {}
    thumbnails = np.zeros((len(files), THUMBNAIL_SIZE, THUMBNAIL_SIZE), np.uint8)
    bad: list[tuple[str, str]] = []
    with ThreadPoolExecutor(workers or _cores()) as pool:
        # In batches: map() submits all it is given at once, and 100,000 waiting thumbnails are 400 MB.
        for start in range(0, len(files), _READ_AHEAD):
            batch = slice(start, start + _READ_AHEAD)
            for position, result in enumerate(pool.map(_read, files[batch], names[batch]), start):
                if isinstance(result, UnreadableImageError):
                    bad.append((names[position], result.reason))
                else:
                    digest, pixel_digest, small = result
                    number = numbers.setdefault(pixel_digest, len(numbers))
                    thumbnails[number] = small
                    keep.append(position)
                    digests.append(digest)
                    pixels.append(number)
                if progress is not None:
                    progress("Reading images", position + 1, len(files))
    return Inventory(
        [names[k] for k in keep],
        [splits[k] for k in keep],
        [labels[k] for k in keep],
        digests,
        np.array(pixels, np.int64),
        thumbnails[: len(numbers)],
        bad,
    )


def audit(
    data_dir: str | Path,
    *,
    min_score: float = COPY_SCORE,
    workers: int | None = None,
    progress: ProgressCallback | None = None,
) -> Audit:
    """Find all copies in a folder and count them within and across splits and classes.

    Args:
        data_dir: ``split/class/image``, ``class/image`` or plain images.
        min_score: score from which two images count as copies; see ``duplicates.COPY_SCORE``.
        workers: threads that decode; by default one a core.
        progress: called while reading and while comparing.

    Returns:
        The findings.

    Raises:
        UserError: the folder is missing or holds no image, or ``min_score`` is out of range.
    """
    if not CANDIDATE_CORRELATION <= min_score <= 1:
        raise UserError(f"--min_score {min_score}: give a number from {CANDIDATE_CORRELATION} to 1")
    started = time.monotonic()
    inventory = take_inventory(data_dir, workers=workers, progress=progress)

    def compared(done: int, total: int) -> None:
        if progress is not None:
            progress("Comparing images", done, total)

    pairs = find_copies(inventory.thumbnails, min_score=min_score, progress=compared)
    report, examples = _report(inventory, pairs, Path(data_dir).resolve().name, min_score)
    report["seconds"] = round(time.monotonic() - started, 1)
    return Audit(report, inventory, pairs, examples)


def summarise(report: dict[str, Any]) -> dict[str, Any]:
    """The report without its lists of files: what ``--json`` prints."""
    brief = {key: value for key, value in report.items() if key not in ("leaks", "groups")}
    brief["label_conflicts"] = {k: v for k, v in report["label_conflicts"].items() if k != "examples"}
    return brief


def render_markdown(report: dict[str, Any]) -> str:
    """The report as a Markdown page for people."""
    identical, groups, conflicts = report["identical"], report["copy_groups"], report["label_conflicts"]
    lines = [
        f"# Copies in `{report['data_dir']}`",
        "",
        f"{report['images']:,} images read, {len(report['bad_files']):,} not readable. "
        f"A pair counts as copies from a score of {report['min_score']} (see `brain_tumor_mri/duplicates.py`).",
        "",
        *_markdown_table(
            ["split", *report["classes"], "all"],
            [
                [_shown(split), *(counts.get(c, 0) for c in report["classes"]), sum(counts.values())]
                for split, counts in report["splits"].items()
            ],
        ),
        "",
        "## Copies across splits",
        "",
    ]
    if not report["across_splits"]:
        lines += ["The folder has no splits." if len(report["splits"]) < 2 else "None."]
    for leak in report["across_splits"]:
        by_class = ", ".join(f"{name or 'no class'} {count:,}" for name, count in leak["by_class"].items())
        lines += [
            f"**{leak['with_copy']:,} of {leak['images']:,} images in {_shown(leak['split'])} "
            f"({leak['share']:.1%}) have a copy in {_shown(leak['copy_in'])}** ({by_class}).",
            "",
            *_markdown_table(["closest copy", "images"], [[k, v] for k, v in leak["by_kind"].items()]),
            "",
            f"By the stricter count (correlation above {STRICT_CORRELATION} on 32x32 thumbnails): "
            f"{leak['strict']['as_is_or_mirrored']:,} as they are or mirrored, "
            f"{leak['strict']['as_is']:,} as they are.",
            "",
        ]
    lines += [
        "",
        "## All copies",
        "",
        f"- {identical['repeated_files']:,} files repeat another byte for byte; "
        f"{identical['repeated_pixels']:,} repeat another's pixels.",
        f"- {groups['count']:,} groups of copies hold {groups['images']:,} images; "
        f"the largest holds {groups['largest']:,}. The folder shows {groups['distinct']:,} different images.",
        "",
        "Pairs of files:",
        "",
        *_markdown_table(
            ["where", *KINDS, "all"],
            [
                [place, *(counts[k] for k in KINDS), sum(counts.values())]
                for place, counts in report["pairs_by_place"].items()
            ],
        ),
        "",
        "Near-copies by what was done to one of them (pairs of distinct images): "
        + (", ".join(f"{name} {count:,}" for name, count in report["orientations"].items()) or "none")
        + ".",
        "",
        "## Copies with different labels",
        "",
        f"{conflicts['pairs']:,} pairs, of {conflicts['images']:,} images.",
        "",
    ]
    if conflicts["examples"]:
        rows = [
            [f"`{e['first']}`", f"`{e['second']}`", e["kind"], f"{e['score']:.4f}"] for e in conflicts["examples"][:50]
        ]
        lines += [*_markdown_table(["one", "other", "kind", "score"], rows), ""]
    if report["bad_files"]:
        rows = [[f"`{bad['path']}`", bad["reason"]] for bad in report["bad_files"]]
        lines += ["## Files that could not be read", "", *_markdown_table(["file", "reason"], rows), ""]
    return "\n".join(lines).replace("\n\n\n", "\n\n")


def draw_contact_sheet(data_dir: str | Path, found: Audit) -> Image.Image | None:
    """Example pairs side by side, as the files lie on disk, of each kind and across splits first.

    Returns:
        An RGB image, or None where there is no pair.
    """
    if not found.examples:
        return None
    font, columns = ImageFont.load_default(12), 3
    rows = -(-len(found.examples) // columns)
    cell_width, cell_height = 2 * _TILE + 24, _TILE + 60
    sheet = Image.new("RGB", (columns * cell_width, rows * cell_height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (kind, first, second, note) in enumerate(found.examples):
        left, top = number % columns * cell_width + 8, number // columns * cell_height + 8
        draw.text((left, top), f"{kind}, {note}", fill="black", font=font)
        for side, index in enumerate((first, second)):
            x, path = left + side * (_TILE + 4), found.inventory.paths[index]
            try:
                tile = load_image(Path(data_dir, path))
                tile.thumbnail((_TILE, _TILE))
                sheet.paste(tile, (x, top + 16))
            except UnreadableImageError:  # the file was there a minute ago
                draw.text((x, top + 80), "gone", fill="red", font=font)
            folder, _, name = path.rpartition("/")
            draw.text((x, top + _TILE + 18), _printable(folder[-30:]), fill="black", font=font)
            draw.text((x, top + _TILE + 32), _printable(name[-30:]), fill="black", font=font)
    return sheet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the audit's arguments to a parser, the command line's or the script's."""
    parser.add_argument("data_dir", metavar="DATA_DIR", help="folder: split/class/image, class/image or plain images")
    parser.add_argument(
        "--output_dir", default="runs/audit", help="where audit.json, audit.md and audit_pairs.png go (%(default)s)"
    )
    parser.add_argument(
        "--min_score",
        type=float,
        default=COPY_SCORE,
        help=f"score from which two images are copies, {CANDIDATE_CORRELATION}..1 (%(default)s)",
    )
    parser.add_argument("--workers", type=_positive, default=None, help="threads that decode images (one a core)")
    parser.add_argument("--no_contact_sheet", action="store_true", help="write no picture of example pairs")
    parser.add_argument("--fail_on_leak", action="store_true", help="exit with 1 when copies cross splits")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the summary")


def run(args: argparse.Namespace) -> int:
    """Audit ``args.data_dir``, write the files, print the summary.

    Returns:
        0, or 1 with ``--fail_on_leak`` when copies cross splits.

    Raises:
        UserError: the folder is missing or holds no image, or the output folder cannot be written.
    """
    output = Path(args.output_dir)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {output}: {error.strerror}; choose a folder that can be written") from error
    with _ProgressBar() as progress:
        found = audit(args.data_dir, min_score=args.min_score, workers=args.workers, progress=progress)
    written = [output / "audit.json", output / "audit.md"]
    try:
        _write(written[0], dump_report(found.report).encode())
        _write(written[1], render_markdown(found.report).encode("utf-8", "backslashreplace"))
        sheet = None if args.no_contact_sheet else draw_contact_sheet(args.data_dir, found)
        if sheet is not None:
            written.append(output / "audit_pairs.png")
            beside = written[-1].with_suffix(".png.part")
            sheet.save(beside, "PNG")
            os.replace(beside, written[-1])
    except OSError as error:
        raise UserError(f"--output_dir {output}: {error.strerror}; choose a folder that can be written") from error
    if args.json:
        print(json.dumps(summarise(found.report) | {"files": [str(path) for path in written]}))
    else:
        _print_summary(found.report, written)
    leaks = any(leak["with_copy"] for leak in found.report["across_splits"])
    return 1 if args.fail_on_leak and leaks else 0


def dump_report(report: dict[str, Any]) -> str:
    """JSON with one finding a line, so that a report of thousands of files stays readable and small."""
    parts = []
    for key, value in report.items():
        if isinstance(value, list) and value:
            body = "[\n  " + ",\n  ".join(json.dumps(item) for item in value) + "\n ]"
        else:
            body = json.dumps(value)
        parts.append(f" {json.dumps(key)}: {body}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _report(
    inventory: Inventory, pairs: CopyPairs, name: str, min_score: float
) -> tuple[dict[str, Any], list[tuple[str, int, int, str]]]:
    split_names = sorted(set(inventory.splits))
    label_names = sorted(set(inventory.labels))
    split_of = np.array([split_names.index(s) for s in inventory.splits], np.int64)
    label_of = np.array([label_names.index(c) for c in inventory.labels], np.int64)
    distinct = len(inventory.thumbnails)
    members: list[list[int]] = [[] for _ in range(distinct)]
    for file, number in enumerate(inventory.pixels):
        members[number].append(file)
    kind_of_pair = np.select([pairs.orientation == 0, pairs.orientation == 1], [2, 3], default=4)

    groups = connected_groups(distinct, pairs.first, pairs.second)[inventory.pixels]
    sizes = np.bincount(groups) if len(groups) else np.zeros(0, np.int64)
    group_files: dict[int, list[str]] = defaultdict(list)
    for file, group in enumerate(groups):
        if sizes[group] > 1:
            group_files[int(group)].append(inventory.paths[file])

    leaks, across = _leaks(inventory, pairs, kind_of_pair, split_names, split_of, members)
    conflicts = _label_conflicts(inventory, pairs, kind_of_pair, label_of, members)
    report: dict[str, Any] = {
        "schema": 1,
        "data_dir": name,
        "images": len(inventory.paths),
        "bad_files": [{"path": path, "reason": reason} for path, reason in inventory.bad_files],
        "min_score": min_score,
        "min_correlation": CANDIDATE_CORRELATION,
        "classes": label_names,
        "splits": {
            split: dict(Counter(c for s, c in zip(inventory.splits, inventory.labels, strict=True) if s == split))
            for split in split_names
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
        "pairs_by_place": _pairs_by_place(inventory, pairs, kind_of_pair, split_names, split_of, label_of, members),
        "across_splits": across,
        "label_conflicts": conflicts,
        "leaks": leaks,
        "groups": sorted(group_files.values(), key=len, reverse=True),
    }
    return report, _examples(inventory, pairs, kind_of_pair, members)


def _leaks(
    inventory: Inventory,
    pairs: CopyPairs,
    kind_of_pair: np.ndarray,
    split_names: list[str],
    split_of: np.ndarray,
    members: list[list[int]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Per file of a split, its closest copy in another split; listed for the smaller split of two, counted for both."""
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


def _label_conflicts(
    inventory: Inventory,
    pairs: CopyPairs,
    kind_of_pair: np.ndarray,
    label_of: np.ndarray,
    members: list[list[int]],
) -> dict[str, Any]:
    """Pairs of files that are copies and lie in different class folders."""
    examples: list[dict[str, Any]] = []
    involved: set[int] = set()
    count = 0

    def check(first_files: Sequence[int], second_files: Iterable[int], kind: str | None, score: float) -> None:
        nonlocal count
        for a, b in itertools.product(first_files, second_files):
            known = inventory.labels[a] and inventory.labels[b]
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

    labels = [{int(label_of[f]) for f in files} for files in members]
    for number, files in enumerate(members):
        if len(labels[number]) > 1:
            check(files, files, None, 1.0)
    for p in range(len(pairs)):
        i, j = int(pairs.first[p]), int(pairs.second[p])
        if len(labels[i] | labels[j]) > 1:
            check(members[i], members[j], KINDS[int(kind_of_pair[p])], float(pairs.score[p]))
    return {"pairs": count, "images": len(involved), "examples": examples}


def _pairs_by_place(
    inventory: Inventory,
    pairs: CopyPairs,
    kind_of_pair: np.ndarray,
    split_names: list[str],
    split_of: np.ndarray,
    label_of: np.ndarray,
    members: list[list[int]],
) -> dict[str, dict[str, int]]:
    """Pairs of files by where they lie (within a split, across two) and by kind."""
    counts: dict[str, Counter[str]] = {}
    per_image = np.zeros((len(members), len(split_names)), np.int64)
    np.add.at(per_image, (inventory.pixels, split_of), 1)
    twins = Counter(zip(inventory.digests, inventory.splits, strict=True))
    by_digest: dict[str, dict[str, int]] = defaultdict(dict)
    for (digest, split), n in twins.items():
        by_digest[digest][split] = n
    x, y = per_image[pairs.first], per_image[pairs.second]
    for s, t in itertools.combinations_with_replacement(range(len(split_names)), 2):
        a, b = split_names[s], split_names[t]
        row = Counter[str]()
        if s == t:
            place = f"within {_shown(a)}"
            row["same pixels"] = int((per_image[:, s] * (per_image[:, s] - 1) // 2).sum())
            row["same file"] = sum(n.get(a, 0) * (n.get(a, 0) - 1) // 2 for n in by_digest.values())
            near = x[:, s] * y[:, s]
        else:
            place = f"between {_shown(a)} and {_shown(b)}"
            row["same pixels"] = int((per_image[:, s] * per_image[:, t]).sum())
            row["same file"] = sum(n.get(a, 0) * n.get(b, 0) for n in by_digest.values())
            near = x[:, s] * y[:, t] + x[:, t] * y[:, s]
        row["same pixels"] -= row["same file"]
        for kind in (2, 3, 4):
            row[KINDS[kind]] = int(near[kind_of_pair == kind].sum())
        counts[place] = row
    return {place: {kind: row[kind] for kind in KINDS} for place, row in counts.items()}


def _examples(
    inventory: Inventory, pairs: CopyPairs, kind_of_pair: np.ndarray, members: list[list[int]]
) -> list[tuple[str, int, int, str]]:
    """Pairs for the contact sheet: (kind, file, file, note); each kind, different labels and other splits first."""
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
        for p in np.flatnonzero(kind_of_pair == kind):
            a, b = members[pairs.first[p]][0], members[pairs.second[p]][0]
            rows.append((interest(a, b), -float(pairs.score[p]), a, b, int(pairs.orientation[p])))
        # The least alike of the most telling ones: what the threshold lets in is what a reader needs to judge.
        rows.sort(key=lambda row: (row[0], row[1]), reverse=True)
        step = max(len(rows) // (2 * each), 1)
        for _, score, a, b, orientation in rows[: each * step : step]:
            how = f"{ORIENTATIONS[orientation]}, " if kind == 4 else ""
            chosen.append((KINDS[kind], a, b, f"{how}score {-score:.4f}"))
    return chosen


def _read(path: Path, name: str) -> tuple[str, bytes, np.ndarray] | UnreadableImageError:
    """Digest of the file, digest of its pixels, thumbnail; or the error, as a bad file must not end the audit."""
    try:
        if not path.is_file():
            load_image(path, name)  # words the reason
        data = path.read_bytes()
        image = load_image(data, name)
    except UnreadableImageError as error:
        return error
    except OSError as error:
        return UnreadableImageError(name, error.strerror or str(error))
    pixels = hashlib.sha256(repr(image.size).encode() + image.tobytes())
    return hashlib.sha256(data).hexdigest(), pixels.digest(), thumbnail(image)


def _splits_and_labels(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split and class of each relative path; two levels of folders are split/class, one level is class."""
    folders = [name.split("/")[:-1] for name in names]
    tops = {parts[0] for parts in folders if parts}
    # glioma/patient_7/1.jpg has two levels, too, but its first level is known not to be a split.
    classes_on_top = bool(tops) and all(top.lower() in FOLDER_TO_LABEL for top in tops)
    two_levels = not classes_on_top and any(len(parts) > 1 for parts in folders)
    # Dozens of folders on top are patients or studies. They are no splits, and to compare each with each says nothing.
    use_splits = two_levels and len(tops) <= _MAX_SPLITS
    splits = [parts[0] if use_splits and parts else "" for parts in folders]
    rest = [parts[1:] if two_levels else parts for parts in folders]
    return splits, [FOLDER_TO_LABEL.get(p[0].lower(), p[0]) if p else "" for p in rest]


class _ProgressBar:
    """A progress bar on stderr that switches tasks as the work does; gone when done."""

    def __enter__(self) -> ProgressCallback:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._tasks: dict[str, Any] = {}
        self._bar.start()
        return self._update

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _update(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total)
        self._bar.update(self._tasks[what], completed=done)


def _print_summary(report: dict[str, Any], written: list[Path]) -> None:
    console = Console()
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(justify="right", style="bold")
    table.add_column()
    table.add_row(f"{report['images']:,}", "images read")
    if report["bad_files"]:
        table.add_row(f"{len(report['bad_files']):,}", "[red]files could not be read[/red]; the report names them")
    table.add_row(f"{report['identical']['repeated_files']:,}", "repeat another byte for byte")
    groups = report["copy_groups"]
    table.add_row(
        f"{groups['images']:,}", f"are in {groups['count']:,} groups of copies (largest: {groups['largest']:,})"
    )
    table.add_row(f"{report['label_conflicts']['pairs']:,}", "pairs of copies with different labels")
    for leak in report["across_splits"]:
        table.add_row(
            f"{leak['with_copy']:,}",
            f"[red]of {leak['images']:,} images in {escape(_shown(leak['split']))} ({leak['share']:.1%}) "
            f"have a copy in {escape(_shown(leak['copy_in']))}[/red]",
        )
    if len(report["splits"]) > 1 and not report["across_splits"]:
        table.add_row("0", "[green]copies across splits[/green]")
    console.print(table)
    console.print(
        f"Written in {report['seconds']:.0f} s: {', '.join(map(str, written))}", markup=False, highlight=False
    )


def _markdown_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> list[str]:
    def line(cells: Sequence[object]) -> str:
        shown = (f"{c:,}" if isinstance(c, int) else str(c).replace("|", "\\|") for c in cells)
        return "| " + " | ".join(shown) + " |"

    return [line(header), "|" + "---|" * len(header), *map(line, rows)]


def _write(path: Path, data: bytes) -> None:
    beside = path.with_name(path.name + ".part")
    beside.write_bytes(data)
    os.replace(beside, path)


def _shown(split: str) -> str:
    return split or "(no split)"


def _printable(text: str) -> str:
    return text.encode("ascii", "replace").decode()


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("give a whole number from 1")
    return value


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
