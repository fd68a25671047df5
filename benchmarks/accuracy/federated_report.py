"""The tables of what ``benchmarks/accuracy/federated_table.py`` recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from brain_tumor_mri.reports.tables import markdown_table, percent


def summary_rows(record: dict[str, Any]) -> list[list[str]]:
    """Return the table's rows: hospitals alone, federations, pooled; those cases that are measured."""
    alone = [case for case in record["cases"] if case.endswith(" alone")]
    rest = [case for case in record["cases"] if case not in (*alone, "pooled")]
    rows = []
    for case in [name for name in (*alone, *rest, "pooled") if name in record["cases"]]:
        told = record["cases"][case]
        figures, privacy = told["left_out"], told["privacy"]
        rows.append([
            case, percent(told["test"]["accuracy"]), percent(figures["auroc"]), percent(figures["tumours_found"]),
            percent(figures["healthy_called_tumour"]), f"{told['bytes_sent'] / 1e6:.0f}",
            f"{privacy['epsilon']:.3g}" if privacy else "-",
        ])  # fmt: skip
    return rows


def federated_table(records: Sequence[dict[str, Any]]) -> str:
    """Return a table a record: a row for each hospital alone, each federation, and pooled."""
    header = ["trained", "patient-disjoint accuracy", "left out: AUROC", "tumours found", "healthy called a tumour"]
    texts = []
    for record in records:
        settings, told = record["settings"], next(iter(record["cases"].values()))
        texts.append(
            f"{len(record['hospitals'])} hospitals ({record['partition']}: {', '.join(record['hospitals'])}), "
            f"{settings['rounds']} rounds in which each draws {settings['slices_per_round']:.0%} of its slices, "
            f"{settings['image_size']} px. "
            f"{told['test']['n']} test slices; left out: {told['left_out']['n']} slices of "
            f"{', '.join(told['by_family'])}, each collection weighing alike.\n\n"
            + markdown_table([*header, "MB sent", "epsilon"], record["summary"])
        )
    return "\n".join(texts)
