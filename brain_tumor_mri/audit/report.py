"""The audit's files: audit.json for programs, audit.md for people, audit_pairs.png to judge the copies by eye.

:func:`write_report` writes all three; :func:`dump_report`, :func:`render_markdown` and :func:`draw_contact_sheet` make
each alone.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image, ImageDraw, ImageFont

from ..errors import UserError, first_line
from ..files import write_text
from ..images.read import UnreadableImageError, load_image
from .copies import CANDIDATE_CORRELATION, COPY_SCORE, find_copies
from .findings import KINDS, STRICT_CORRELATION, Audit, count_findings
from .inventory import ProgressCallback, split_title, take_inventory

TEMPLATE = Path(__file__).with_name("audit_template.md")
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
    page = Environment(trim_blocks=True, undefined=StrictUndefined)
    page.filters |= {"n": "{:,}".format, "cell": lambda text: text.replace("|", "\\|")}
    names = {"kinds": KINDS, "strict_correlation": STRICT_CORRELATION, "split_title": split_title}
    return page.from_string(TEMPLATE.read_text(encoding="utf-8")).render(report, **names).rstrip() + "\n"


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
