"""``brain-tumor-mri info``: what is installed and which model is there, read from JSON and headers, without torch.

``--json`` gives programs the same: versions, classes, preprocessing, the weights' SHA-256 and their recorded figures.
"""

import argparse
import json
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import __version__
from ..errors import UserError
from ..files import read_json
from ..inference.model_folder import DEFAULT_MODEL, ModelFolder, find_model
from ..labels import LABELS, class_named

HEADLINE = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
"""Figures of metrics.json that ``info`` repeats, where they are recorded."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.add_argument("--model", help=f"model folder or Hub id (default: {DEFAULT_MODEL}, where there is one)")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Print what is here."""
    try:
        described, problem = describe_model(find_model(args.model or DEFAULT_MODEL, args.revision, None)), None
    except UserError as error:
        if args.model:
            raise
        described, problem = None, str(error)
    classes = [class_named(name) for name in (described["labels"] if described else LABELS)]
    facts = {
        "name": "brain-tumor-mri",
        "version": __version__,
        "python": platform.python_version(),
        "labels": [{"name": c.name, "title": c.title, "description": c.description} for c in classes],
        "model": described,
        "problem": problem,
        "dependencies": dependencies(),
    }
    if args.json:
        print(json.dumps(facts, indent=2))
    else:
        _print_table(facts)
    return 0


def describe_model(folder: ModelFolder) -> dict[str, Any]:
    """The facts of one model folder, JSON-ready."""
    cfg = folder.pretrained_cfg
    return {
        "source": folder.source,
        "architecture": folder.architecture,
        "labels": list(folder.labels),
        "parameters": folder.parameters,
        "stored_as": folder.stored_as,
        "backend": folder.backend,
        "runs_as": folder.config.get("dtype") or folder.config.get("torch_dtype"),
        "size_bytes": folder.size_bytes,
        "sha256": folder.sha256(),
        "exported_sha256": folder.run_sha256() if folder.export else None,
        "preprocessing": {
            key: cfg.get(key) for key in ("input_size", "crop_mode", "crop_pct", "interpolation", "mean", "std")
        },
        "metrics": headline(folder.path / "metrics.json"),
    }


def headline(file: Path) -> dict[str, Any] | None:
    """The main figures of a metrics.json; None where there is no such file.

    Returns:
        ``{"protocol": ..., "splits": {name: {"n": ..., "accuracy": {"value": ..., "low": ..., "high": ...}, ...}}}``;
        what a file does not hold is left out.
    """
    if not file.is_file():
        return None
    try:
        record = read_json(file)
        splits = record.get("splits") or {}
        parts = {
            name: {key: figures[key] for key in ("n", *HEADLINE) if key in figures} for name, figures in splits.items()
        }
        return {"protocol": record.get("protocol"), "splits": parts}
    except (UserError, AttributeError, TypeError) as error:
        raise UserError(f"{file} is not a metrics file; evaluate the model again to write it") from error


def dependencies() -> dict[str, str | None]:
    """Installed version of every direct dependency, by name; None for one that is missing; of extras what is there."""
    try:
        wanted = metadata.requires("brain-tumor-mri") or []
    except metadata.PackageNotFoundError:  # run from a checkout that was never installed, as a Space does
        listed = Path(__file__).parents[2] / "requirements.txt"
        wanted = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    found = {match[0]: "extra ==" in line for line in wanted if (match := re.match(r"[A-Za-z0-9][\w.-]*", line))}
    found.pop("brain-tumor-mri", None)  # extras name each other by it
    versions = {name: _version(name) for name in sorted(found)}
    return {name: version for name, version in versions.items() if version or not found[name]}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _print_table(facts: dict[str, Any]) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("version", Text(f"{facts['version']} on Python {facts['python']}"))
    table.add_row("classes", Text(", ".join(label["name"] for label in facts["labels"])))
    if model := facts["model"]:
        _add_model_rows(table, model)
    else:
        table.add_row("model", Text(facts["problem"]))
    installed = ", ".join(f"{name} {version or 'MISSING'}" for name, version in facts["dependencies"].items())
    table.add_row("installed", Text(installed))
    Console().print(table)


def _add_model_rows(table: Table, model: dict[str, Any]) -> None:
    how = model["preprocessing"]
    stored = "/".join(model["stored_as"])
    millions = model["parameters"] / 1e6
    table.add_row("model", Text(f"{model['source']}: {model['architecture']}, {millions:.1f} M weights"))
    table.add_row("weights", Text(f"{model['size_bytes'] / 1e6:.1f} MB as {stored}, run as {model['runs_as']}"))
    table.add_row("sha256", Text(model["sha256"]))
    if model["exported_sha256"]:
        table.add_row("exported as", Text(f"{model['backend']}, sha256 {model['exported_sha256']}"))
    size = " x ".join(str(side) for side in (how["input_size"] or [])[1:])
    table.add_row("input", Text(f"{size} pixels, {how['crop_mode']}, {how['interpolation']}"))
    for split, figures in ((model["metrics"] or {}).get("splits") or {}).items():
        shown = [f"{key.replace('_', ' ')} {_figure(figures[key])}" for key in HEADLINE if key in figures]
        table.add_row(
            f"{split} figures",
            Text(f"{', '.join(shown)} on {figures.get('n', '?')} images ({model['metrics']['protocol']})"),
        )


def _figure(figure: Any) -> str:
    """``0.963 (0.952-0.973)`` for a figure with its interval; a bare number as it is."""
    if isinstance(figure, dict) and {"value", "low", "high"} <= figure.keys():
        return f"{figure['value']:.3f} ({figure['low']:.3f}-{figure['high']:.3f})"
    value = figure.get("value") if isinstance(figure, dict) else figure
    return f"{value:.3f}" if isinstance(value, int | float) else str(value)
