"""The audit's files: audit.json for programs, audit.md for people, audit_pairs.png to judge the copies by eye.

:func:`write_report` writes all three; :func:`dump_report`, :func:`render_markdown` and :func:`draw_contact_sheet` make
each alone.
"""

import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..errors import UserError, first_line
from ..files import write_text
from ..images.read import UnreadableImageError, load_image
from .copies import CANDIDATE_CORRELATION, COPY_SCORE, find_copies
from .findings import KINDS, STRICT_CORRELATION, Audit, count_findings
from .inventory import ProgressCallback, split_title, take_inventory

_TILE = 200


def write_report(output: Path, found: Audit, data_dir: str | Path, *, contact_sheet: bool = True) -> list[Path]:
    """Write audit.json, audit.md and, where there are pairs to show, audit_pairs.png.

    Returns:
        The files written.
    """
    written = [output / "audit.json", output / "audit.md"]
    write_text(written[0], dump_report(found.report))
    # A file name that is no valid UTF-8 reaches the page as surrogates, which no encoder takes.
    write_text(written[1], render_markdown(found.report).encode("utf-8", "backslashreplace").decode())
    sheet = draw_contact_sheet(data_dir, found) if contact_sheet else None
    if sheet is not None:
        written.append(output / "audit_pairs.png")
        beside = written[-1].with_suffix(".png.part")
        try:
            sheet.save(beside, "PNG")
            os.replace(beside, written[-1])
        except OSError as error:
            raise UserError(f"{written[-1]} cannot be written: {first_line(error)}") from error
    return written


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
        f"A pair counts as copies from a score of {report['min_score']} (see `brain_tumor_mri/audit/copies.py`).",
        "",
        *_markdown_table(
            ["split", *report["classes"], "all"],
            [
                [split_title(split), *(counts.get(c, 0) for c in report["classes"]), sum(counts.values())]
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
            f"**{leak['with_copy']:,} of {leak['images']:,} images in {split_title(leak['split'])} "
            f"({leak['share']:.1%}) have a copy in {split_title(leak['copy_in'])}** ({by_class}).",
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


def _markdown_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> list[str]:
    def line(cells: Sequence[object]) -> str:
        shown = (f"{c:,}" if isinstance(c, int) else str(c).replace("|", "\\|") for c in cells)
        return "| " + " | ".join(shown) + " |"

    return [line(header), "|" + "---|" * len(header), *map(line, rows)]


def _printable(text: str) -> str:
    return text.encode("ascii", "replace").decode()


def audit(
    data_dir: str | Path,
    *,
    min_score: float = COPY_SCORE,
    workers: int | None = None,
    progress: ProgressCallback | None = None,
) -> Audit:
    """Find all copies in a folder and count them within and across splits and classes.

    Returns:
        The findings.
    """
    if not CANDIDATE_CORRELATION <= min_score <= 1:
        raise UserError(f"--min_score {min_score}: give a number from {CANDIDATE_CORRELATION} to 1")
    started = time.monotonic()
    inventory = take_inventory(data_dir, workers=workers, progress=progress)

    def compared(done: int, total: int) -> None:
        if progress is not None:
            progress("Comparing images", done, total)

    pairs = find_copies(inventory.thumbnails, min_score=min_score, progress=compared)
    found = count_findings(inventory, pairs, Path(data_dir).resolve().name, min_score)
    found.report["seconds"] = round(time.monotonic() - started, 1)
    return found
