"""The tumour outlines that radiologists drew: of Figshare slices, of their copies in the Kaggle set, and of Br35H.

``load_outlines(figshare_dir, br35h_dir)`` gives those of every known image by its published path; ``outline_mask``
turns one into pixels. They guide training (``guidance.py``) and score heat maps (``explain_accuracy.py``).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..errors import UserError
from .tables import SPLITS_FILE

PROVENANCE = SPLITS_FILE.with_name("provenance.csv")
FIGSHARE_SIDE = 512
"""Pixels: side of the Figshare slices, in whose pixels their outlines are."""
FILE_NAME = "borders.jsonl"

Outlines = list[np.ndarray]
"""Of one image: each (P, 2) float, x and y as shares of width and height, 0..1."""


def load_outlines(
    figshare_dir: str | Path, external_dir: str | Path | None = None, provenance: Path = PROVENANCE
) -> dict[str, Outlines]:
    """Return every known outline by the image's published path.

    Args:
        figshare_dir: the Figshare data set, with ``borders.jsonl``.
        external_dir: the Br35H tumours, with ``borders.jsonl``; None leaves them out.
        provenance: which Kaggle file is a copy of which Figshare slice, mirrored or not.

    Returns:
        ``Training/glioma/Tr-gl_0010.jpg`` (Kaggle), ``images/1.jpg`` (Figshare), ``images/y0.jpg`` (Br35H) -> outlines.
    """
    file = Path(figshare_dir, FILE_NAME)
    figshare = read_outlines(file, "image_id")
    found = {f"images/{name}.jpg": [_of_figshare(row)] for name, row in figshare.items()}
    for path, (slice_, mirrored) in read_provenance(provenance).items():
        if slice_ not in figshare:
            raise UserError(f"{file}: has no outline of slice {slice_}; download it again")
        found[path] = [_of_figshare(figshare[slice_], mirrored)]
    return found | (external_outlines(external_dir) if external_dir is not None else {})


def external_outlines(folder: str | Path) -> dict[str, Outlines]:
    """Return the outlines of Br35H's tumours, by ``images/y0.jpg``."""
    rows = read_outlines(Path(folder, FILE_NAME), "file")
    return {
        f"images/{name}": [shares(border, row["width"], row["height"]) for border in row["borders"]]
        for name, row in rows.items()
    }


def read_outlines(file: Path, key: str) -> dict[str, dict[str, Any]]:
    """Return the lines of a borders.jsonl by their ``key``, as text."""
    try:
        return {str(row[key]): row for row in map(json.loads, file.read_text(encoding="utf-8").splitlines())}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: no tumour outlines ({error}); give another folder") from error


def read_provenance(file: Path = PROVENANCE) -> dict[str, tuple[str, bool]]:
    """Return, by path of a traced Kaggle file, the Figshare slice that it copies and whether it is mirrored."""
    with file.open(newline="", encoding="utf-8") as stream:
        rows = csv.DictReader(stream)
        return {row["path"]: (row["figshare_id"], row["mirrored"] == "true") for row in rows if row["figshare_id"]}


def _of_figshare(row: dict[str, Any], mirrored: bool = False) -> np.ndarray:
    return shares(row["border"], FIGSHARE_SIDE, FIGSHARE_SIDE, mirrored)


def shares(border: Sequence[Sequence[float]], width: int, height: int, mirrored: bool = False) -> np.ndarray:
    """Return an outline as shares of the image's width and height, (P, 2) in 0..1.

    Args:
        border: x and y in pixels, the centre of the first pixel being 0.
        width: of the image, in pixels.
        height: of the image, in pixels.
        mirrored: the image in question is the mirror image, left for right, of the one that was outlined.
    """
    points = (np.asarray(border, dtype=np.float64) + 0.5) / (width, height)
    if mirrored:
        points[:, 0] = 1 - points[:, 0]
    return points


def outline_mask(outlines: Outlines, size: tuple[int, int]) -> np.ndarray:
    """Return which pixels of an image of ``size`` (height, width) the outlines hold: (height, width) bool."""
    height, width = size
    canvas = Image.new("1", (width, height))
    for outline in outlines:
        points = outline * (width, height) - 0.5
        ImageDraw.Draw(canvas).polygon([tuple(point) for point in points.tolist()], fill=1, outline=1)
    return np.asarray(canvas)
