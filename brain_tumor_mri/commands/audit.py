"""``brain-tumor-mri audit``: identical files, near-copies, copies across splits and copies with different labels."""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..audit.copies import CANDIDATE_CORRELATION, COPY_SCORE
from ..audit.inventory import split_title
from ..audit.report import audit, summarise, write_report
from ..errors import UserError
from .progress import ProgressBar


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
    """Audit a folder, write the files, print the summary; 1 with ``--fail_on_leak`` when copies cross splits."""
    output = Path(args.output_dir)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {output}: {error.strerror}; choose a folder that can be written") from error
    with ProgressBar() as progress:
        found = audit(args.data_dir, min_score=args.min_score, workers=args.workers, progress=progress)
    written = write_report(output, found, args.data_dir, contact_sheet=not args.no_contact_sheet)
    if args.json:
        print(json.dumps(summarise(found.report) | {"files": [str(path) for path in written]}))
    else:
        _print_summary(found.report, written)
    leaks = any(leak["with_copy"] for leak in found.report["across_splits"])
    return 1 if args.fail_on_leak and leaks else 0


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
            f"[red]of {leak['images']:,} images in {escape(split_title(leak['split']))} ({leak['share']:.1%}) "
            f"have a copy in {escape(split_title(leak['copy_in']))}[/red]",
        )
    if len(report["splits"]) > 1 and not report["across_splits"]:
        table.add_row("0", "[green]copies across splits[/green]")
    console.print(table)
    console.print(
        f"Written in {report['seconds']:.0f} s: {', '.join(map(str, written))}", markup=False, highlight=False
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("give a whole number from 1")
    return value
