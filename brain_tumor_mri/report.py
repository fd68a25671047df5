"""A run's record: metrics.json, and the tables and plots drawn from it.

Every figure people read comes from such a file. ``python -m brain_tumor_mri.report README.md`` renders the results
tables of a Markdown file anew, between its ``<!-- results: FILE ... -->`` and ``<!-- /results -->`` marks;
``protocols``, ``external``, ``ablation``, ``trust``, ``check``, ``stress``, ``explain``, ``speed`` and ``latency`` in
place of ``results`` give theirs.
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from .errors import UserError
from .labels import LABELS, TITLES
from .plots import plot_confusion_matrix, plot_training_curves
from .protocols import EXTERNAL, NOTES, ProtocolArguments

SCHEMA = 1
_EXTERNAL_TERMS = f"`{EXTERNAL}`: {NOTES[EXTERNAL]}"
PACKAGES = (
    "torch", "torchvision", "timm", "transformers", "datasets", "evaluate", "accelerate", "huggingface-hub", "pillow",
)  # fmt: skip


def run_record(
    *,
    protocol: ProtocolArguments,
    model: dict[str, Any],
    data: dict[str, Any],
    splits: dict[str, dict[str, Any]],
    config: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    external: dict[str, Any] | None = None,
    title: str | None = None,
) -> dict[str, Any]:
    """Assemble a metrics.json.

    Args:
        protocol: the evaluation protocol.
        model: ``name``, ``architecture``, ``image_size``, ``weights_sha256``, ...
        data: ``name``, ``fingerprint``, ``counts``, ``skipped``.
        splits: :func:`~brain_tumor_mri.metrics.classification_figures` of each evaluated part.
        config: every setting that decides the result (:func:`~brain_tumor_mri.training.run_settings`).
        training: what happened: epochs, seconds, best epoch.
        external: :func:`~brain_tumor_mri.external.external_figures`, where external tumours were measured.
        title: what stands in tables for the model; by default its architecture and input size.
    """
    return {
        "schema": SCHEMA,
        "title": title,
        "protocol": protocol.title,
        "protocol_note": NOTES[protocol.protocol],
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "model": model,
        "data": data,
        "splits": splits,
        "external": external,
        "seed": (config or {}).get("seed"),
        "config": config,
        "training": training,
        "versions": versions(),
        "hardware": hardware(),
    }


def versions() -> dict[str, str]:
    """Return the installed version of Python, of this package and of those that decide a result."""
    found = {"python": platform.python_version()}
    for name in ("brain-tumor-mri", *PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Return what the run ran on: processor, cores, and GPUs if torch is loaded and sees any."""
    processor = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file() and (name := re.search(r"model name\s*: (.*)", info.read_text())):
        processor = name[1]
    torch = sys.modules.get("torch")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch else []
    return {"processor": processor, "cores": os.cpu_count(), "gpus": gpus}


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file beside and rename it, so that readers and crashes never meet half of it."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def write_json(path: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """Write a record as readable JSON; NaN is refused, as no parser but Python's takes it."""
    write_text(path, json.dumps(record, indent=2, allow_nan=False) + "\n")


def write_epoch_table(folder: Path, rows: Sequence[dict[str, float]]) -> None:
    """Write training_log.csv and training_log.md: one row an epoch."""
    if not rows:
        return
    names = list(rows[0])
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in rows)
    write_text(folder / "training_log.csv", buffer.getvalue())
    header = [name.replace("_", " ") for name in names]
    cells = [[f"{v:.4g}" if "rate" in k else f"{v:.4f}" if "_" in k else f"{v:g}" for k, v in r.items()] for r in rows]
    write_text(folder / "training_log.md", markdown_table(header, cells))


def write_run(folder: Path, record: dict[str, Any], epochs: Sequence[dict[str, float]]) -> None:
    """Write a finished run: metrics.json, training_log.csv and .md, training_curves.png, confusion_matrix.png."""
    title = f"{record['model']['architecture']}, {record['protocol']}"
    write_epoch_table(folder, epochs)
    if epochs:
        plot_training_curves(epochs, folder / "training_curves.png", title)
    test = record["splits"]["test"]
    accuracy = percent(test["accuracy"])
    plot_confusion_matrix(
        test, folder / "confusion_matrix.png", f"{title}, test\naccuracy {accuracy}, {test['n']} images"
    )
    # Last, because its presence says that the run is finished.
    write_json(folder / "metrics.json", record)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, the columns after the first aligned right."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" + "---:|" * (len(header) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def percent(figure: dict[str, float] | None, decimals: int = 1) -> str:
    """Return ``96.6 % (95.5-97.5)`` of a figure in 0..1; a dash where it has no meaning."""
    if figure is None:
        return "-"
    keys = ("value", "low", "high") if "low" in figure else ("value",)
    value, *interval = (f"{100 * figure[key]:.{decimals}f}" for key in keys)
    return f"{value} %" + (f" ({'-'.join(interval)})" if interval else "")


def points(figure: dict[str, float] | None, scale: float = 100) -> str:
    """Return ``+1.2 (-0.3 to +2.7)`` of a difference of shares; a dash where there is none.

    Args:
        figure: ``value``, ``low`` and ``high``.
        scale: 100 for a figure in -1..1, 1 for one that is in points already.
    """
    if figure is None:
        return "-"
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*(scale * figure[key] for key in ("value", "low", "high")))


def summary_table(records: Sequence[dict[str, Any]], split: str = "test") -> str:
    """Return one Markdown row a run: what it is, its protocol, and its main figures with intervals."""
    rows = []
    for record in records:
        figures = record["splits"][split]
        keys = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
        rows.append(
            [
                model_title(record),
                f"{record['protocol']}, {split}",
                str(figures["n"]),
                *(percent(figures[k]) for k in keys),
            ]
        )
    return markdown_table(["model", "protocol", "images", "accuracy", "balanced accuracy", "macro F1", "AUROC"], rows)


def class_table(record: dict[str, Any], split: str = "test") -> str:
    """Return one Markdown row a class: precision, recall, F1 and AUROC with intervals."""
    per_class = record["splits"][split]["per_class"]
    keys = ("precision", "recall", "f1", "auroc")
    rows = [
        [TITLES[name], str(per_class[name]["support"]), *(percent(per_class[name][key]) for key in keys)]
        for name in LABELS
    ]
    return markdown_table(
        [f"class ({record['protocol']}, {split})", "images", "precision", "recall", "F1", "AUROC"], rows
    )


def interval_note(record: dict[str, Any], split: str = "test") -> str:
    """Return one line: the protocol's caveat and how the intervals were drawn."""
    interval = record["splits"][split]["interval"]
    drawn = (
        f"{100 * interval['confidence']:g} % intervals: {interval['method']} over {interval['over']}s"
        if interval
        else ""
    )
    note = f"`{record['protocol']}`: {record['protocol_note']}. " if record["protocol_note"] else ""
    return f"{note}{drawn}, {interval['resamples']} resamples.\n" if interval else note


def leak_note(record: dict[str, Any], split: str = "test") -> str:
    """Return lines on how far the part is known to leak, and on files that the versioned splits do not match."""
    data = record["data"]
    lines = []
    if split in data["leaking_share"]:
        share = data["leaking_share"][split]
        lines.append(f"{100 * share:.1f} % of these images have a copy or a slice of the same patient in training.")
    for key, what in (
        ("not_in_splits", "files are not in the versioned splits"),
        ("missing_from_folder", "are missing"),
    ):
        if names := data[key]:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"{len(names)} {what}: {', '.join(names[:3])}{more}.")
    return "\n\n".join(lines) + "\n"


def protocol_table(records: Sequence[dict[str, Any]]) -> str:
    """Return one Markdown row a run: protocol, accuracy, macro F1, recall of each class, all of the test part.

    A record with ``literature`` gives a row for each of its published figures: ``model``, ``protocol``, ``accuracy``
    (``value`` and, where it is published, ``low`` and ``high``).
    """
    rows = []
    for record in records:
        for published in record.get("literature", ()):
            dashes = ["-"] * (1 + len(LABELS))
            name = f"{published['model']} (published)"
            rows.append([name, published["protocol"], "-", percent(published["accuracy"], 2), *dashes])
        if "splits" in record:
            test = record["splits"]["test"]
            recalls = [percent(test["per_class"][label]["recall"]) for label in LABELS]
            figures = [percent(test["accuracy"]), percent(test["macro_f1"]), *recalls]
            rows.append([model_title(record), record["protocol"], str(test["n"]), *figures])
    header = ["model", "protocol", "test images", "accuracy", "macro F1"]
    return markdown_table(header + [f"recall {TITLES[label].lower()}" for label in LABELS], rows)


def external_table(records: Sequence[dict[str, Any]]) -> str:
    """Return one Markdown row a run: tumours of another collection found, held-out healthy slices left alone."""
    rows = []
    for record in records:
        figures = record["external"]
        keys = ("sensitivity", "specificity", "sensitivity_at_95_specificity", "auroc")
        rows.append([model_title(record), external_title(record), *(percent(figures[k]) for k in keys)])
    shares = ["tumours found", "`notumor` left alone", "found at 95 % specificity", "AUROC"]
    return markdown_table(["model", "protocol", *shares], rows)


def ablation_table(record: dict[str, Any]) -> str:
    """Return one Markdown row a step of benchmarks/ablation.py: its figures, and changes in points with intervals."""
    rows = []
    for step in record["steps"]:
        test, found = step["test"], step["external"]
        change = step["change"] or dict.fromkeys(("accuracy", "answers", "sensitivity"))
        rows.append(
            [
                step["title"],
                percent(test["accuracy"]),
                points(change["accuracy"]),
                percent(change["answers"]),
                percent(found["sensitivity"]),
                points(change["sensitivity"]),
                *(percent(found[key]) for key in ("specificity", "sensitivity_at_95_specificity", "auroc")),
            ]
        )
    header = [f"step ({record['protocol']})", "accuracy, four classes", "change", "slices answered otherwise"]
    header += ["Br35H tumours found", "change", "`notumor` left alone", "found at 95 % specificity", "AUROC"]
    return markdown_table(header, rows)


def external_title(record: dict[str, Any]) -> str:
    """Return the external protocol's name, with the protocol whose ``notumor`` slices it takes."""
    protocol = record["protocol"]
    return protocol if protocol.startswith(EXTERNAL) else f"{EXTERNAL}, notumor of {protocol}"


def external_note(record: dict[str, Any]) -> str:
    """Return two sentences or three: what is measured on what, how the intervals were drawn, a chosen threshold."""
    figures = record["external"]
    note = (
        f"{_EXTERNAL_TERMS}; {figures['n_tumour']} tumours, {figures['n_notumor']} notumor. "
        f"95 % intervals: percentile bootstrap over groups, {figures['interval']['resamples']} resamples."
    )
    if chosen := figures.get("validation_threshold"):
        note += (
            f" At the threshold that {chosen['n_validation']} validation slices choose for 95 % specificity: "
            f"{percent(chosen['sensitivity'])} found, {percent(chosen['specificity'])} left alone."
        )
    return note + "\n"


def model_title(record: dict[str, Any]) -> str:
    """Return what stands in a table for the model of a record: its title, or architecture, input size and start."""
    model = record["model"]
    parts = [model["architecture"], f"{model['image_size']} px"]
    if config := record.get("config"):
        parts.append("from random weights" if config.get("from_scratch") else "fine-tuned")
        if config.get("external_dir") and config.get("external_train"):
            parts.append("some Br35H tumours in training")
        if config.get("outlines_dir"):
            parts.append("guided by outlines")
    if model.get("mirror"):
        parts.append("mirrored average")
    return record.get("title") or ", ".join(parts)


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
        from .trust_report import trust_tables  # which takes its tables from here

        return "\n".join(trust_tables(record) for record in records)

    def stresses(records: Sequence[dict[str, Any]]) -> str:
        from .stress import stress_summary, stress_table

        return stress_summary(records) + "".join("\n" + stress_table(record) for record in records[:1])

    def explanations(records: Sequence[dict[str, Any]]) -> str:
        from .explain_report import explain_note, explain_table

        return f"{explain_table(records)}\n{explain_note(records[0])}"

    def checks(records: Sequence[dict[str, Any]]) -> str:
        from .trust_report import check_tables

        return "\n".join(check_tables(record) for record in records)

    def ablations(records: Sequence[dict[str, Any]]) -> str:
        return "\n".join(ablation_table(record) for record in records)

    def latencies(records: Sequence[dict[str, Any]]) -> str:
        from .latency_report import latency_text

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
