"""Tumours of a collection that the Kaggle set has none of: the ``external`` protocol, and training on half of them.

Br35H gives the Kaggle set three quarters of its published ``notumor`` images and, of its tumours, next to none: only a
model that sees tumours, rather than collections, finds these. Their type is unknown: every label is ``ANY_TUMOR``.
``load_external(folder)`` gives the parts of ``splits/br35h.csv``; ``evaluation/metrics.py`` measures on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import datasets

from ..errors import UserError
from ..labels import ANY_TUMOR
from ..settings import setting
from .protocols import PARTS
from .slices import image_dataset
from .tables import BR35H_FILE, external_rows


@dataclass
class ExternalArguments:
    """Tumours of unknown type from another collection, added to the training part."""

    external_dir: str | None = setting(
        None, "The Br35H tumours (images/): some train as 'some tumour', half only measure."
    )
    external_train: bool = setting(True, "Train on the training part of --external_dir; else only measure on it.")
    external_repeats: int = setting(3, "How often an epoch draws each of them.")

    def __post_init__(self) -> None:
        if self.external_repeats < 1:
            raise UserError(f"--external_repeats {self.external_repeats}: give 1 or more")


def load_external(folder: str | Path) -> datasets.DatasetDict:
    """Load the external tumours.

    Args:
        folder: holds ``images/``, with the file names as published.

    Returns:
        ``train``, ``validation`` and ``test``; columns ``image``, ``label`` (int64, all ``ANY_TUMOR``), ``path`` and
        ``group`` (near-copies, never in two parts). Files that the versioned split does not list are left out.
    """
    root = Path(folder)
    rows = external_rows()
    found = {path: row for path, row in rows.items() if (root / path).is_file()}
    if not found:
        raise UserError(
            f"{root}: holds none of the tumours of {BR35H_FILE.name}; give --external_dir the folder above images/"
        )
    parts = {}
    for part in PARTS:
        ours = [path for path, row in found.items() if row.part == part]
        groups = [found[path].group for path in ours]
        parts[part] = image_dataset(root, ours, label=[ANY_TUMOR] * len(ours), group=groups)
    return datasets.DatasetDict(parts)
