"""Tables of a stress record: what each disturbance at each strength costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


def stress_table(record: dict[str, Any]) -> str:
    """Return one Markdown row a disturbance: accuracy at each strength, without intervals, and their mean."""
    from ..evaluation.disturbances import DISTURBANCES, STRENGTHS
    from .tables import markdown_table, percent

    rows = []
    for name, entry in record["stress"]["disturbances"].items():
        values = [level["accuracy"]["value"] for level in entry["levels"]]
        rows.append([DISTURBANCES[name].title, *(percent({"value": v}) for v in (*values, sum(values) / len(values)))])
    corner = f"accuracy by strength ({record['protocol']}, {record['stress']['n']} images)"
    return markdown_table([corner, *map(str, STRENGTHS), "mean"], rows)


def stress_summary(records: Sequence[dict[str, Any]]) -> str:
    """Return one Markdown row a model: clean and mean accuracy, their difference, and what ``answer`` is worth."""
    from .tables import markdown_table, model_title, percent, points

    rows = []
    for record in records:
        stress = record["stress"]
        shares = [percent(stress["clean"]["accuracy"]), percent(stress["mean_accuracy"])]
        answered = [percent(stress["answered"][key]) for key in ("share", "accuracy")]
        rows.append(
            [model_title(record), record["protocol"], *shares, points(stress["difference"], scale=1), *answered]
        )
    header = ["model", "protocol", "clean", "disturbed, mean", "points", "decided `answer`", "of these right"]
    return markdown_table(header, rows)
