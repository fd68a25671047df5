"""``brain-tumor-mri explain``: heat maps of files, folders or patterns, written as pictures and arrays.

Each image gets ``NAME-CLASS-heatmap.png``, ``-overlay.png`` and ``-map.npy``; a file that cannot be read is a row with
its error. The maps are explain.py's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import UserError
from ..heat_maps import DECODER, METHODS
from ..heat_maps.explain import Explanation, colour
from ..images.find import find_images
from ..labels import LABELS, NO_TUMOR, RESEARCH_NOTICE, TITLES
from .model_flags import add_model_arguments, load_classifier
from .predict import SHOWN_ERRORS, SHOWN_ROWS, printable
from .progress import DelayedProgress

KINDS = {"heatmap": "-heatmap.png", "overlay": "-overlay.png", "map": "-map.npy"}
"""What the command writes for an image -> how the file's name ends."""
_NAME_BYTES = 200  # of 255 that a file name may have; the rest is for the class and the ending


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.add_argument("paths", nargs="+", metavar="FILE", help="image file, folder (with all below it) or pattern")
    parser.add_argument(
        "--class",
        dest="target",
        help=f"the class whose evidence is shown, such as {', '.join(LABELS)} (default: the one answered)",
    )
    parser.add_argument(
        "--method",
        choices=(DECODER, *METHODS),
        help="default: decoder where the model has one, else fused-cam, the product of the two others",
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("explanations"),
        metavar="DIR",
        help="for each image: NAME-CLASS-heatmap.png at its own size, -overlay.png on the slice as the model sees it, "
        'inside the head and as strong as the class is probable, -map.npy with the plain numbers; "no tumour" has no '
        "map unless --class asks (default: %(default)s)",
    )
    add_model_arguments(parser, batch_size=16)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, and nothing else there")


def run(args: argparse.Namespace) -> int:
    """Explain the images and write the maps.

    Returns:
        0 when at least one image was explained, else 2.

    Raises:
        UserError: no images, no model, or nowhere to write to.
        KeyboardInterrupt: Ctrl-C; what is written stays, and its text says where.
    """
    started = time.monotonic()
    files = [file for file in find_images(args.paths) if not _is_output(file, args.output_dir)]
    if not files:
        raise UserError(f"there is nothing to explain but what this command wrote to {args.output_dir}")
    try:
        args.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {args.output_dir} cannot be made: {error.strerror}") from error
    if not os.access(args.output_dir, os.W_OK):
        raise UserError(f"--output_dir {args.output_dir} cannot be written to: no permission")

    classifier = load_classifier(args)  # seconds, so after everything that can be wrong without it
    if args.target not in (None, *classifier.labels):
        raise UserError(f"--class {args.target}: this model has {', '.join(classifier.labels)}")
    names = output_names(files)
    rows: list[dict[str, Any]] = []
    interrupted = False
    with DelayedProgress(len(files), started) as progress:
        try:
            for first in range(0, len(files), args.batch_size):
                batch = files[first : first + args.batch_size]
                for explanation in classifier.explain(batch, args.target, method=args.method, on_error="record"):
                    # where "no tumour" is the answer, a map would point at nothing
                    shown = explanation.target != NO_TUMOR or args.target
                    written = write_explanation(explanation, args.output_dir, names[len(rows)]) if shown else {}
                    rows.append(
                        explanation.to_dict()
                        | {"files": {k: os.fspath(v) for k, v in written.items()}}
                        | _evidence(explanation)
                    )
                    progress.advance()
        except KeyboardInterrupt:
            interrupted = True
    explained = sum(row["error"] is None for row in rows)
    if args.json:
        head = {"model": classifier.describe(), "labels": list(classifier.labels), "notice": RESEARCH_NOTICE}
        summary = {"images": len(files), "explained": explained, "errors": len(rows) - explained}
        said = {"method": args.method, "explanations": rows, "summary": summary | {"complete": not interrupted}}
        print(json.dumps(head | said, indent=2))
    else:
        _print_table(rows, args.output_dir)
    if interrupted:
        raise KeyboardInterrupt(f"stopped after {len(rows):,} of {len(files):,} images; {args.output_dir} has theirs")
    if not explained:
        print("brain-tumor-mri: no image could be read", file=sys.stderr)
        return 2
    return 0


def _evidence(explanation: Explanation) -> dict[str, Any]:
    """What a person must know of a map before looking at it."""
    if explanation.heat_map is None:
        return {"empty": None, "outside_head": None}
    return {"empty": explanation.is_empty, "outside_head": round(explanation.outside_head, 4)}


def write_explanation(explanation: Explanation, folder: Path, name: str) -> dict[str, Path]:
    """Write heat map, overlay and raw map of one image, each beside and renamed.

    Args:
        explanation: one without a map gets no files.
        folder: exists already.
        name: what the files' names start with.

    Returns:
        The files by kind, the keys of ``KINDS``.
    """
    if explanation.heat_map is None:
        return {}
    files = {kind: folder / f"{name}-{explanation.target}{ending}" for kind, ending in KINDS.items()}
    streams = {kind: BytesIO() for kind in KINDS}
    Image.fromarray(colour(explanation.original_heat_map())).save(streams["heatmap"], "PNG")
    explanation.overlay().save(streams["overlay"], "PNG")
    np.save(streams["map"], explanation.heat_map, allow_pickle=False)
    for kind, file in files.items():
        part = file.with_name(f".{file.name}.part")
        try:
            part.write_bytes(streams[kind].getvalue())
            part.replace(file)
        except OSError as error:
            raise UserError(f"{file} cannot be written: {error.strerror}") from error
    return files


def output_names(files: Sequence[Path]) -> list[str]:
    """Return a name for each file's outputs: its own without the suffix, and with ``-2``, ``-3``, ... where taken.

    Names that differ in upper and lower case only count as the same, as they do on some file systems.
    """
    names: list[str] = []
    taken: set[str] = set()
    for file in files:
        stem = file.stem
        while len(os.fsencode(stem)) > _NAME_BYTES:
            stem = stem[:-1]
        name, number = stem, 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _overlay_words(row: dict[str, Any]) -> str:
    if not row["files"]:
        return "none: no tumour has no place"
    name = printable(Path(row["files"]["overlay"]).name)
    if row["empty"]:
        return f"{name} (empty: hardly any evidence)"
    return f"{name} ({row['outside_head']:.0%} outside the head)" if row["outside_head"] > 0.5 else name


def _is_output(file: Path, folder: Path) -> bool:
    """Whether a file is a picture that an earlier run wrote: a folder explained again holds those too."""
    return file.name.endswith(tuple(KINDS.values())) and file.resolve().parent == folder.resolve()


def _print_table(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Print a row an image, as many as ``predict`` shows, what could not be read, and where the files are."""
    console = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("file", overflow="fold")
    table.add_column("class")
    table.add_column("confidence", justify="right", no_wrap=True)
    table.add_column("map for")
    table.add_column("overlay", overflow="fold")
    for row in rows[:SHOWN_ROWS]:
        name = Text(printable(row["name"]))
        if row["error"] is None:
            overlay = Text(_overlay_words(row))
            table.add_row(name, TITLES[row["label"]], f"{row['confidence']:.1%}", TITLES[row["target"]], overlay)
        else:
            table.add_row(name, Text("Not readable", "red"))
    console.print(table)
    if len(rows) > SHOWN_ROWS:
        console.print(Text(f"... and {len(rows) - SHOWN_ROWS:,} more: see {printable(str(folder))} or --json"))
    errors = [row for row in rows if row["error"] is not None]
    for row in errors[:SHOWN_ERRORS]:
        console.print(Text(f"{printable(row['name'])}: {row['error']}", "red"))
    if len(errors) > SHOWN_ERRORS:
        console.print(Text(f"... and {len(errors) - SHOWN_ERRORS:,} more that could not be read", "red"))
    explained = len(rows) - len(errors)
    console.print()
    console.print(
        Text(f"{explained:,} image{'' if explained == 1 else 's'} explained; written to {printable(str(folder))}")
    )
    console.print(Text("A map shows what speaks for a class in the model's eyes; it is no outline of a tumour."))
    console.print(Text(RESEARCH_NOTICE))
