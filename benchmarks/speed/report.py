"""Tables and plot of what ``benchmarks/speed/latency.py`` recorded: how long answers take, by what runs the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brain_tumor_mri.inference.model_folder import TORCH
from brain_tumor_mri.reports.tables import markdown_table, percent

BATCHES = (1, 32)
WHATS = ("pixels", "files")
"""Measured from: the model's input in memory (decoding and preprocessing not included), or files."""
EAGER = TORCH
TOLERANCE = 1e-4
"""Largest difference of a probability from eager PyTorch's that a float32 backend may have (``parity.py``)."""
_BACKENDS = {
    "torch": "PyTorch, eager",
    "onnx": "ONNX",
    "onnx-int8": "ONNX int8",
    "litert": "LiteRT",
    "litert-int8": "LiteRT int8",
}
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito's: told apart by colour-blind readers too
_MARKERS = "osD^vPX*"


def latency_text(records: Sequence[Mapping[str, Any]]) -> str:
    """Return all that README shows of the records, as Markdown."""
    return "\n".join(
        part for record in records for part in (speed_table(record), cost_table(record), latency_note(record))
    )


def shown(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the contestants that can still be run: the first records have faster ways of PyTorch, since dropped."""
    return [entry for entry in record["contestants"] if not entry["backend"].startswith(f"{EAGER}-")]


def speed_table(record: Mapping[str, Any]) -> str:
    """Return one row a contestant: milliseconds a slice, and times as fast as the two baselines."""
    rows = []
    for entry in shown(record):
        times = entry["times_as_fast_as"]
        eager = next((of["pixels"] for name, of in times.items() if name != record["peer"]), None)
        peer = times.get(record["peer"], {}).get("files")
        milliseconds = [f"{entry['ms'][what][str(n)]['value']:.1f}" for n in BATCHES for what in WHATS]
        rows.append([*_who(record, entry), *milliseconds, _times(eager), _times(peer)])
    one, many = BATCHES
    return markdown_table(
        [
            "model",
            "run by",
            "one slice, ms",
            "with reading",
            f"of {many}, ms a slice",
            "with reading",
            f"times as fast as eager, {one} and {many}",
            f"as {record['peer']}, with reading",
        ],
        rows,
    )


def cost_table(record: Mapping[str, Any]) -> str:
    """Return one row a contestant: share of the machine's peak, memory, start, distance from eager, accuracy."""
    rows = []
    for entry in shown(record):
        against = entry.get("against_eager")
        apart = f"{against['max_difference']:.1g}" if against else "-"
        same = [against and against[key] for key in ("same_label", "same_decision")]
        rows.append(
            [
                *_who(record, entry),
                f"{entry['flops'] / 1e9:.2f}",
                _pair([percent({"value": v}, 0) for v in entry.get("share_of_peak", {}).values()]),
                _pair([f"{v:,.0f}" for v in entry["peak_memory_mb"].values()]),
                f"{entry['start_seconds']['value']:.1f}",
                apart,
                *("-" if share is None else percent({"value": share}) for share in same),
                percent(entry.get("accuracy")) + _mark(entry),
            ]
        )
    sizes = " and ".join(map(str, BATCHES))
    header = [
        "model",
        "run by",
        "GFLOP a slice",
        f"share of peak, {sizes}",
        f"peak memory, MB, {sizes}",
        "first answer, s",
        "largest difference",
        "same class",
        "same decision",
        "accuracy",
    ]
    return markdown_table(header, rows)


def latency_note(record: Mapping[str, Any]) -> str:
    """Say how it was measured, against which peaks, what else was tried, and which backend keeps the tolerance."""
    setting, machine = record["setting"], record["hardware"]
    busy = max(entry["busy_while_waiting"] for entry in record["contestants"])
    compared = max(e["against_eager"]["images"] for e in record["contestants"] if "against_eager" in e)
    peaks = [
        f"{peak['gflops']['value']:.0f} GFLOP/s in {precision} (`{peak['by']}`)"
        for precision, peak in record["peaks"].items()
    ]
    side = next(iter(record["peaks"].values()))["side"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores; medians over {setting['rounds']} rounds in which all take "
        "turns, each in a process of its own (a waiting one took at most "
        f"{percent({'value': busy})} of a core); ratios are medians of each round's. `{record['peer']}` answers files "
        "one by one. Memory is the most that a fresh process held; the first answer is timed from its start.",
        f"Peak: a product of two matrices of side {side}, {', '.join(peaks)}; 2 FLOP a multiply-add. Differences, of "
        f"a probability, and same answers: from eager PyTorch, on {compared} slices.",
    ]
    for model, entry in _fastest_within_tolerance(record).items():
        times = next(of["pixels"] for name, of in entry["times_as_fast_as"].items() if name != record["peer"])
        lines.append(
            f"Of what stays within {TOLERANCE:g} of eager PyTorch's probabilities, one slice is answered soonest by "
            f"{_run_by(entry)} for {model} ({times[str(BATCHES[0])]['value']:.2f} times as fast as eager)."
        )
    failed = {name: why for name, why in record["failed"].items() if f":{EAGER}-" not in name}
    if failed:
        lines.append(f"Could not be run: {'; '.join(f'`{name}` ({why})' for name, why in failed.items())}.")
    protocols = {e["accuracy"]["protocol"] for e in record["contestants"] if "accuracy" in e}
    if protocols:
        lines.append(f"Accuracy: `{protocols.pop()}`, test part, 95 % bootstrap intervals.")
    for entry in filter(_mark, record["contestants"]):
        lines.append(f"\\* {_model(record, entry)}: {entry['accuracy']['training_data_note']}.")
    return "\n".join(lines) + "\n"


def plot_latency(record: Mapping[str, Any], path: Path) -> None:
    """Draw accuracy against milliseconds a slice, files read included, one panel a batch size."""
    from matplotlib.figure import Figure  # tables need no matplotlib
    from matplotlib.ticker import LogLocator, NullFormatter

    entries = [entry for entry in shown(record) if "accuracy" in entry]
    models = list(dict.fromkeys(_model(record, entry) for entry in entries))
    ways = list(dict.fromkeys(_run_by(entry) for entry in entries))
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    panels = figure.subplots(1, len(BATCHES), sharex=True, sharey=True)
    for axes, batch in zip(panels, BATCHES, strict=True):
        for entry in entries:
            accuracy, ms = entry["accuracy"], entry["ms"]["files"][str(batch)]["value"]
            value, low, high = (100 * accuracy[key] for key in ("value", "low", "high"))
            model, way = _model(record, entry), _run_by(entry)
            axes.errorbar(
                ms,
                value,
                yerr=[[value - low], [high - value]],
                fmt=_MARKERS[ways.index(way) % len(_MARKERS)],
                color=_COLOURS[models.index(model) % len(_COLOURS)],
                markersize=9,
                markeredgecolor="black",
                elinewidth=1,
                capsize=3,
                label=f"{model}: {way}{_mark(entry)}",
            )
        axes.set_xscale("log")
        axes.set(xlabel="ms a slice, reading included", title=f"batch {batch}")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3, which="both")
    protocol = entries[0]["accuracy"]["protocol"]
    panels[0].set_ylabel(f"accuracy, %\n({protocol}, test; 95 % intervals)")
    title = "* may have been trained on these images" if any(map(_mark, entries)) else None
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, title=title, loc="outside lower center", ncols=3, fontsize=9)
    figure.savefig(path, dpi=150)


def _fastest_within_tolerance(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    fastest: dict[str, Mapping[str, Any]] = {}
    for entry in shown(record):
        if "against_eager" in entry and entry["against_eager"]["max_difference"] <= TOLERANCE:
            best = fastest.setdefault(_model(record, entry), entry)
            if _one_slice(entry) < _one_slice(best):
                fastest[_model(record, entry)] = entry
    return fastest


def _one_slice(entry: Mapping[str, Any]) -> float:
    return entry["ms"]["pixels"][str(BATCHES[0])]["value"]


def _mark(entry: Mapping[str, Any]) -> str:
    """A star where the test images may have been in the model's training."""
    return " *" if entry.get("accuracy", {}).get("training_data_note") else ""


def _who(record: Mapping[str, Any], entry: Mapping[str, Any]) -> list[str]:
    return [_model(record, entry), _run_by(entry)]


def _model(record: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """The architecture, with the folder's name where two models share one."""
    if entry["name"] == record["peer"]:
        return f"{record['peer']}, {entry['architecture']}"
    alike = {e["model"] for e in record["contestants"] if e["architecture"] == entry["architecture"]}
    return entry["architecture"] + (f" ({entry['model']})" if len(alike) > 1 else "")


def _run_by(entry: Mapping[str, Any]) -> str:
    return _BACKENDS.get(entry["backend"], entry["backend"])


def _times(by_batch: Mapping[str, Mapping[str, float]] | None) -> str:
    return _pair([f"{figure['value']:.2f}" for figure in by_batch.values()]) if by_batch else "-"


def _pair(values: Sequence[str]) -> str:
    return " / ".join(values) or "-"
