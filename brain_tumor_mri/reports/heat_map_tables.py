"""The table of what ``benchmarks/accuracy/explain_accuracy.py`` recorded: how often heat maps point at the tumour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .tables import markdown_table, model_title, percent

_KEYS = ("hit", "hit_15px", "energy")


def explain_table(records: Sequence[dict[str, Any]]) -> str:
    """Return one Markdown row a record and set of tumours, and below the first of a set its baselines.

    A hit is a map's highest point inside the outline. The baselines are the same for all maps of one set.
    """
    rows, shown = [], set()
    for record in records:
        method = record["config"]["method"]
        for title, figures in record["sets"].items():
            name = f"{model_title(record | {'config': None})}, {method}"
            rows.append([name, *_cells(title, figures, figures["methods"][method])])
        for title, figures in record["sets"].items():
            key = (title, figures["fingerprint"])
            if key not in shown:
                shown.add(key)
                rows += [
                    [f"- {baseline}", *_cells(title, figures, figures["methods"][baseline])]
                    for baseline in figures["methods"]
                    if baseline in ("centred gaussian", "random map")
                ]
    header = ["map", "tumours of", "images", "hit", "hit within 15 px", "energy inside"]
    return markdown_table(header, rows)


def explain_note(record: dict[str, Any]) -> str:
    """Say what was scored, and what randomised weights do to the maps."""
    parts = [
        f"{name} {rank['value']:.2f} ({rank['low']:.2f}-{rank['high']:.2f}) on {title}"
        for title, figures in record["sets"].items()
        for name, rank in figures["rank_correlation"].items()
        if rank
    ]
    return (
        "Maps for the class answered, against radiologists' outlines; 95 % intervals: percentile bootstrap over "
        "groups. Rank correlation with the maps of the same network, randomised (Adebayo et al. 2018): "
        f"{'; '.join(parts)}.\n"
    )


def _cells(title: str, figures: dict[str, Any], scored: dict[str, Any]) -> list[str]:
    return [title, str(figures["n"]), *(percent(scored[key]) for key in _KEYS)]
