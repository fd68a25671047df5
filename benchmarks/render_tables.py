"""Renders the tables of a Markdown file from recorded runs: ``python benchmarks/render_tables.py README.md``.

A table stands between ``<!-- KIND: FILE ... -->`` and ``<!-- /KIND -->``, with a KIND of ``RENDERERS``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.accuracy.federated_report import federated_table
from benchmarks.speed.report import latency_text
from brain_tumor_mri.errors import UserError, first_line
from brain_tumor_mri.files import read_json, write_text
from brain_tumor_mri.reports.heat_map_tables import explain_note, explain_table
from brain_tumor_mri.reports.tables import (
    EXTERNAL_TERMS,
    ablation_table,
    class_table,
    collections_note,
    collections_table,
    external_note,
    external_table,
    interval_note,
    markdown_table,
    percent,
    protocol_table,
    stress_summary,
    stress_table,
    summary_table,
)
from brain_tumor_mri.reports.trust_tables import check_tables, trust_tables

Records = Sequence[dict[str, Any]]


def summary_rows(*header: str) -> Callable[[Records], str]:
    """Return what renders the rows that scripts of ``benchmarks`` put into their records as ``summary``."""

    def render(records: Records) -> str:
        return markdown_table(list(header), [list(row) for record in records for row in record["summary"]])

    return render


speed_table = summary_rows("what", "against", "measured")


def _results(records: Records) -> str:
    return "\n".join([summary_table(records), *(class_table(r) + "\n" + interval_note(r) for r in records)])


def _external(records: Records) -> str:
    note = external_note(records[0]) if len(records) == 1 else f"{EXTERNAL_TERMS}. Intervals over groups.\n"
    return f"{external_table(records)}\n{note}"


def _each(render: Callable[[dict[str, Any]], str]) -> Callable[[Records], str]:
    return lambda records: "\n".join(map(render, records))


def zoo_table(records: Records) -> str:
    """Return a row a model, of the latency record and then each model's metrics, trust and explain records."""
    rows, speeds = [], {(c["architecture"], c["backend"]): c for c in records[0]["contestants"]}
    for metrics, trust, explain in zip(*(records[place::3] for place in (1, 2, 3)), strict=True):
        model, test = metrics["model"], trust["measured"]["test"]["single"]
        speed = speeds.get((model["architecture"], "onnx"))
        rows.append([
            f"`{explain['title']}`", model["architecture"], f"{model['parameters'] / 1e6:.1f} M",
            percent(metrics["splits"]["test"]["accuracy"]), percent(metrics["external"]["auroc"]),
            percent(test["decisions"]["answer"]), percent(test["correct"]["answer"]),
            percent(next(iter(explain["sets"].values()))["methods"]["decoder"]["hit"]),
            f"{speed['ms']['files']['1']['value']:.0f} ms" if speed else "-",
        ])  # fmt: skip
    header = ["model", "network", "parameters", "accuracy", "AUROC of Br35H tumours", "said `answer`"]
    return markdown_table([*header, "right of these", "heat map hits", "a file, ONNX on two cores"], rows)


RENDERERS: dict[str, Callable[[Records], str]] = {
    "results": _results,
    "trust": _each(trust_tables),
    "check": _each(check_tables),
    "stress": lambda records: f"{stress_summary(records)}\n{stress_table(records[0])}",
    "explain": lambda records: f"{explain_table(records)}\n{explain_note(records[0])}",
    "speed": speed_table,
    "hostile": summary_rows("what", "tried", "came of it"),
    "latency": latency_text,
    "protocols": protocol_table,
    "external": _external,
    "collections": lambda records: f"{collections_table(records)}\n{collections_note(records[0])}",
    "left-out": lambda records: collections_table(records, pooled=True),
    "ablation": _each(ablation_table),
    "federated": federated_table,
    "zoo": zoo_table,
}


def render_results(text: str, base: Path) -> str:
    """Return Markdown ``text`` with every block rendered from the JSON files that its mark names."""

    def block(match: re.Match[str]) -> str:
        kind, names = match[1], match[2]
        records = [read_json(base / name) for name in names.split()]
        return f"<!-- {kind}: {names} -->\n{RENDERERS[kind](records)}<!-- /{kind} -->"

    return re.sub(rf"<!-- ({'|'.join(RENDERERS)}): ([^\n]*) -->\n.*?<!-- /\1 -->", block, text, flags=re.DOTALL)


def main(argv: Sequence[str]) -> int:
    """Render the results blocks of the Markdown files named on the command line."""
    for name in argv:
        path = Path(name)
        try:
            write_text(path, render_results(path.read_text(encoding="utf-8"), path.parent))
        except (OSError, UnicodeError, KeyError, UserError) as error:
            print(f"{name}: {first_line(error)}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
