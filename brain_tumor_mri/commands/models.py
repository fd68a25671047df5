"""``brain-tumor-mri models``: the released models by name. From a clone their folders serve, elsewhere the Hub."""

import argparse
import json
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from ..inference.model_folder import find_model
from ..inference.registry import ReleasedModel, folder_of, released
from .info import headline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """List the models."""
    rows = [_row(name, model) for name, model in released().items()]
    if args.json:
        print(json.dumps({"models": rows}, indent=2))
        return 0
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for head in ("name", "what", "where", "size", "accuracy (protocol)"):
        table.add_column(head, overflow="fold")
    for row in rows:
        size = f"{row['size_bytes'] / 1e6:.0f} MB" if row["size_bytes"] else "-"
        hub = f"{row['hub_id']} @ {row['revision'][:8]}" if row["hub_id"] else "not on the Hub yet"
        accuracy = f"{100 * row['accuracy']['value']:.1f} % ({row['protocol']})" if row["accuracy"] else "-"
        table.add_row(row["name"], row["words"], "folder of this clone" if row["folder"] else hub, size, accuracy)
    Console(highlight=False).print(table)
    return 0


def _row(name: str, model: ReleasedModel) -> dict[str, Any]:
    """What the registry says; of a clone what its folder says, as that is what answers there."""
    folder = folder_of(name)
    row = {"name": name, **asdict(model), "folder": str(folder) if folder else None}
    if folder is None:
        return row
    found, figures = find_model(folder), headline(folder / "metrics.json")
    row |= {"size_bytes": found.size_bytes, "weights_sha256": found.sha256(), "protocol": None, "accuracy": None}
    if figures:
        row |= {"protocol": figures["protocol"], "accuracy": figures["splits"].get("test", {}).get("accuracy")}
    return row
