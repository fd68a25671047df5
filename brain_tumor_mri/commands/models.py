"""``brain-tumor-mri models``: the released models by name. From a clone their folders serve."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..inference.model_folder import find_model
from .info import headline


@dataclass(frozen=True)
class ReleasedModel:
    """A released model.

    Attributes:
        hub_id: ``owner/name@revision`` on the Hub; "" while it is not published.
        words: what it is, one line.
    """

    hub_id: str
    words: str


MODELS = {
    "model-lite": ReleasedModel("", "EfficientNet-Lite0, the better one and the faster"),
    "model": ReleasedModel("", "ResNet50"),
}
"""Name -> model. A publication enters its Hub id here."""


def located(name: str) -> str:
    """Return the folder of a clone that has this model, or the name as it is (a path, a Hub id).

    Args:
        name: a key of ``MODELS``, a folder or a Hub id.
    """
    beside = Path(__file__).resolve().parents[2] / name
    return str(beside) if name in MODELS and not Path(name).is_dir() and beside.is_dir() else name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """List the models."""
    rows = [_row(name, model) for name, model in MODELS.items()]
    if args.json:
        print(json.dumps({"models": rows}, indent=2))
        return 0
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for head in ("name", "what", "where", "size", "accuracy (protocol)"):
        table.add_column(head, overflow="fold")
    for row in rows:
        size = f"{row['size_bytes'] / 1e6:.0f} MB" if row["size_bytes"] else "-"
        where = row["hub_id"] or ("folder of this clone" if row["folder"] else "not on the Hub yet")
        table.add_row(row["name"], row["words"], where, size, row["accuracy"] or "-")
    Console(highlight=False).print(table)
    return 0


def _row(name: str, model: ReleasedModel) -> dict[str, Any]:
    folder = Path(located(name))
    row: dict[str, Any] = {"name": name, "words": model.words, "hub_id": model.hub_id or None}
    if not (folder / "config.json").is_file():
        return row | {"folder": None, "size_bytes": None, "accuracy": None}
    figures = headline(folder / "metrics.json")
    test = figures and figures["splits"].get("test", {}).get("accuracy")
    return row | {
        "folder": str(folder),
        "size_bytes": find_model(str(folder)).size_bytes,
        "accuracy": f"{100 * test['value']:.1f} % ({figures['protocol']})" if figures and test else None,
    }
