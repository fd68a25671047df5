"""Records to Markdown: figures, intervals and notes, as ``metrics.json`` holds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..data.protocols import EXTERNAL, LEAVE_COLLECTION_OUT, NOTES
from ..labels import LABELS, TITLES
from ..trust.decision import NOT_A_BRAIN_MRI

EXTERNAL_TERMS = f"`{EXTERNAL}`: {NOTES[EXTERNAL]}"


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
    """Return ``+1.2 (-0.3 to +2.7)`` of a difference of shares; a dash where there is none."""
    if figure is None:
        return "-"
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*(scale * figure[key] for key in ("value", "low", "high")))


def evaluation_tables(record: dict[str, Any], split: str = "test") -> list[str]:
    """Return every table and note of a record: of a part, of ``external``, and of further collections."""
    texts: list[str] = []
    if record["splits"].get(split):
        texts += [summary_table([record], split), class_table(record, split), interval_note(record, split)]
        if "leaking_share" in record["data"]:  # not in the records of the first version
            texts.append(leak_note(record, split))
    if record.get("external"):
        texts += [external_table([record]), external_note(record)]
    if record.get("collections"):
        texts += [collections_table([record]), collections_note(record)]
    return texts


def summary_table(records: Sequence[dict[str, Any]], split: str = "test") -> str:
    """Return one Markdown row a run: what it is, its protocol, and its main figures with intervals."""
    keys = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
    rows = []
    for record in records:
        figures = record["splits"][split]
        what = [model_title(record), f"{record['protocol']}, {split}", str(figures["n"])]
        rows.append(what + [percent(figures[key]) for key in keys])
    return markdown_table(["model", "protocol", "images", "accuracy", "balanced accuracy", "macro F1", "AUROC"], rows)


def class_table(record: dict[str, Any], split: str = "test") -> str:
    """Return one Markdown row a class: precision, recall, F1 and AUROC with intervals."""
    per_class = record["splits"][split]["per_class"]
    keys = ("precision", "recall", "f1", "auroc")
    rows = [
        [TITLES[name], str(per_class[name]["support"]), *(percent(per_class[name][key]) for key in keys)]
        for name in per_class
    ]
    header = [f"class ({record['protocol']}, {split})", "images", "precision", "recall", "F1", "AUROC"]
    return markdown_table(header, rows)


def interval_note(record: dict[str, Any], split: str = "test") -> str:
    """Return one line: the protocol's caveat and how the intervals were drawn."""
    note = f"`{record['protocol']}`: {record['protocol_note']}. " if record["protocol_note"] else ""
    if interval := record["splits"][split]["interval"]:
        note += (
            f"{100 * interval['confidence']:g} % intervals: {interval['method']} over {interval['over']}s, "
            f"{interval['resamples']} resamples.\n"
        )
    return note


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
    """Return one Markdown row a step of the ablation benchmark: its figures, and changes in points with intervals."""
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
        f"{EXTERNAL_TERMS}; {figures['n_tumour']} tumours, {figures['n_notumor']} notumor. "
        f"95 % intervals: percentile bootstrap over groups, {figures['interval']['resamples']} resamples."
    )
    if chosen := figures.get("validation_threshold"):
        note += (
            f" At the threshold that {chosen['n_validation']} validation slices choose for 95 % specificity: "
            f"{percent(chosen['sensitivity'])} found, {percent(chosen['specificity'])} left alone."
        )
    return note + "\n"


def collections_table(records: Sequence[dict[str, Any]], *, pooled: bool = False) -> str:
    """Return a row for each record's further collections and, unless ``pooled``, one a family and a sequence."""
    keys = ("tumours_found", "type_right", "healthy_called_tumour", "found_at_90_specificity", "auroc", "ece")
    rows = []
    for record in records:
        measured = record["collections"]
        shown = [(f"{model_title(record)}, {record['protocol']}", measured["pooled"])]
        if not pooled:
            shown += [(f"- {name}", figures) for name, figures in measured["by_family"].items()]
            shown += [(f"- sequence {name}", figures) for name, figures in measured["by_sequence"].items()]
        rows += [[name, str(figures["n"]), *(percent(figures[key]) for key in keys)] for name, figures in shown]
    header = ["further collections", "slices", "tumours found", "type right", "healthy called a tumour"]
    return markdown_table([*header, "found at 90 % specificity", "AUROC", "ECE"], rows)


def collections_note(record: dict[str, Any]) -> str:
    """Return what is measured on which slices, and how the intervals were drawn."""
    left_out = record["protocol"].startswith(LEAVE_COLLECTION_OUT)
    terms = NOTES[LEAVE_COLLECTION_OUT] if left_out else "test parts of collections, which may have trained otherwise"
    interval = record["collections"]["interval"]
    return (
        f"Further collections: {terms}. Each collection weighs alike in a row. {100 * interval['confidence']:g} % "
        f"intervals: {interval['method']} over groups (patients, near-copies), {interval['resamples']} resamples.\n"
    )


def stress_table(record: dict[str, Any]) -> str:
    """Return one Markdown row a disturbance: accuracy at each strength, without intervals, and their mean."""
    titles, rows = record["data"]["sample"]["disturbances"], []
    for name, entry in record["stress"]["disturbances"].items():
        values = [level["accuracy"]["value"] for level in entry["levels"]]
        shown = [percent({"value": value}) for value in (*values, sum(values) / len(values))]
        rows.append([titles[name]["title"], *shown])
    corner = f"accuracy by strength ({record['protocol']}, {record['stress']['n']} images)"
    return markdown_table([corner, *(str(level["strength"]) for level in entry["levels"]), "mean"], rows)


def stress_summary(records: Sequence[dict[str, Any]]) -> str:
    """Return one Markdown row a model: clean and mean accuracy, their difference, what decisions are worth."""
    rows = []
    for record in records:
        stress = record["stress"]
        shares = [percent(stress["clean"]["accuracy"]), percent(stress["mean_accuracy"])]
        answered = [percent(stress["answered"][key]) for key in ("share", "accuracy")]
        change = points(stress["difference"], scale=1)
        light = [
            level["decisions"][NOT_A_BRAIN_MRI]
            for disturbance in stress["disturbances"].values()
            for level in disturbance["levels"][:3]
            if level.get("decisions")
        ]
        refused = percent({"value": sum(light) / len(light)}) if light else "-"
        rows.append([model_title(record), record["protocol"], *shares, change, *answered, refused])
    header = ["model", "protocol", "clean", "disturbed, mean", "points", "decided `answer`", "of these right"]
    return markdown_table([*header, "refused, 1 to 3"], rows)


def model_title(record: dict[str, Any]) -> str:
    """Return what stands in a table for the model of a record: its title, or architecture, input size and start."""
    model = record["model"]
    parts = [model["architecture"], f"{model['image_size']} px"]
    if config := record.get("config"):
        parts.append("from random weights" if config.get("from_scratch") else "fine-tuned")
        if config.get("external_dir") and config.get("external_train"):
            parts.append("some Br35H tumours in training")
        if config.get("collections_dir"):
            parts.append("further collections in training")
        if config.get("outlines_dir"):
            parts.append("guided by outlines")
    if model.get("mirror"):
        parts.append("mirrored average")
    return record.get("title") or ", ".join(parts)
