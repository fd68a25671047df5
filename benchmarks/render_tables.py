"""Renders the tables of a Markdown file from recorded runs: ``python benchmarks/render_tables.py README.md``.

They stand between ``<!-- results: FILE ... -->`` and ``<!-- /results -->`` marks; ``protocols``, ``external``,
``ablation``, ``trust``, ``check``, ``stress``, ``explain``, ``speed`` and ``latency`` in place of ``results`` give
theirs.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from brain_tumor_mri.errors import UserError
from brain_tumor_mri.files import write_text
from brain_tumor_mri.reports.tables import (
    _EXTERNAL_TERMS,
    ablation_table,
    class_table,
    external_note,
    external_table,
    interval_note,
    markdown_table,
    protocol_table,
    summary_table,
)


def speed_table(records: Sequence[dict[str, Any]]) -> str:
    """Return the summary rows that the scripts under ``benchmarks/`` put into their records as ``summary``."""
    rows = [list(row) for record in records for row in record["summary"]]
    return markdown_table(["what", "against", "measured"], rows)


def render_results(text: str, base: Path) -> str:
    """Return Markdown ``text`` with every block rendered from the JSON files that its mark names."""

    def results(records: Sequence[dict[str, Any]]) -> str:
        return "\n".join([summary_table(records), *(class_table(r) + "\n" + interval_note(r) for r in records)])

    def externals(records: Sequence[dict[str, Any]]) -> str:
        note = external_note(records[0]) if len(records) == 1 else f"{_EXTERNAL_TERMS}. Intervals over groups.\n"
        return f"{external_table(records)}\n{note}"

    def trusts(records: Sequence[dict[str, Any]]) -> str:
        from brain_tumor_mri.reports.trust_tables import trust_tables  # which takes its tables from here

        return "\n".join(trust_tables(record) for record in records)

    def stresses(records: Sequence[dict[str, Any]]) -> str:
        from brain_tumor_mri.reports.stress_tables import stress_summary, stress_table

        return stress_summary(records) + "".join("\n" + stress_table(record) for record in records[:1])

    def explanations(records: Sequence[dict[str, Any]]) -> str:
        from brain_tumor_mri.reports.heat_map_tables import explain_note, explain_table

        return f"{explain_table(records)}\n{explain_note(records[0])}"

    def checks(records: Sequence[dict[str, Any]]) -> str:
        from brain_tumor_mri.reports.trust_tables import check_tables

        return "\n".join(check_tables(record) for record in records)

    def ablations(records: Sequence[dict[str, Any]]) -> str:
        return "\n".join(ablation_table(record) for record in records)

    def latencies(records: Sequence[dict[str, Any]]) -> str:
        from benchmarks.speed.report import latency_text

        return latency_text(records)

    for kind, render in (
        ("results", results),
        ("trust", trusts),
        ("check", checks),
        ("stress", stresses),
        ("explain", explanations),
        ("speed", speed_table),
        ("latency", latencies),
        ("protocols", protocol_table),
        ("external", externals),
        ("ablation", ablations),
    ):

        def block(match: re.Match[str], kind: str = kind, render: Callable[..., str] = render) -> str:
            records = [json.loads((base / name).read_text()) for name in match[1].split()]
            return f"<!-- {kind}: {match[1]} -->\n{render(records)}<!-- /{kind} -->"

        text = re.sub(rf"<!-- {kind}: (.*?) -->\n.*?<!-- /{kind} -->", block, text, flags=re.DOTALL)
    return text


def main(argv: Sequence[str]) -> int:
    """Render the results blocks of the Markdown files named on the command line."""
    try:
        for name in argv:
            path = Path(name)
            write_text(path, render_results(path.read_text(encoding="utf-8"), path.parent))
    except (OSError, KeyError, json.JSONDecodeError) as error:
        print(UserError(f"{name}: {error}"), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
