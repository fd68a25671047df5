"""``brain-tumor-mri stress``: how much of a model's accuracy is left when its images get worse.

A fixed sample of a test part is measured as it is and under every disturbance of disturbances.py. Each answer goes to
``OUTPUT.HASH.part`` at once, and the same command goes on from there. ``benchmarks/stress_peers.py`` sends the same
pixels to a published peer: whatever answers images can be measured by :func:`stress_record`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import fields
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .loading import add_model_arguments, load_classifier
from .protocols import ProtocolArguments
from .weights import DEFAULT_MODEL

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from .classifier import Prediction
    from .disturbances import Sample

Answerer = Callable[["Iterator[Image]"], "Iterator[Prediction]"]
"""Gives one answer an image, in order; one with ``error`` where there is none."""

RESAMPLES = 2000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    add_model_arguments(parser)
    add_stress_arguments(parser)


def add_stress_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that do not depend on what is measured: data, protocol, sample, output."""
    parser.add_argument("--data_dir", default="data/brain-tumor-mri-dataset", help="holds Training/ and Testing/")
    for setting in fields(ProtocolArguments):
        kind = {"action": "store_true"} if setting.type == "bool" else {"type": type(setting.default)}
        parser.add_argument(f"--{setting.name}", default=setting.default, help=setting.metadata["help"], **kind)
    parser.add_argument("--seed", type=int, default=42, help="of the validation draw, as in training")
    parser.add_argument(
        "--sample",
        type=int,
        default=500,
        metavar="N",
        help="slices of the test part, the same for every model (default: %(default)s)",
    )
    parser.add_argument("--title", help="what stands in tables for the model (default: architecture and input size)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures to this metrics.json")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw accuracy by strength")
    parser.add_argument("--json", action="store_true", help="print the record as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Measure and print a table, or JSON.

    Raises:
        UserError: the model or the data cannot be used, or there is nowhere to write to.
        KeyboardInterrupt: Ctrl-C; its text says what is kept.
    """
    from .evaluation import describe_model

    if args.batch_size < 1:
        raise UserError(f"--batch_size must be at least 1, not {args.batch_size}")
    check_targets(args)
    args.model = args.model or [DEFAULT_MODEL]
    classifier = load_classifier(args)

    def answer(images: Iterator[Image]) -> Iterator[Prediction]:
        return classifier.predict_stream(images, on_error="record")

    described = classifier.describe()
    identity = {key: value for key, value in described.items() if key != "source"}
    # what decisions depend on, besides the weights
    model = describe_model(args.model, classifier) | {key: described[key] for key in ("coverage", "trust")}
    show(args, stress_record(args, model, identity, answer))
    return 0


def stress_record(
    args: argparse.Namespace,
    model: dict[str, Any],
    identity: dict[str, Any],
    answer: Answerer,
    *,
    note: str | None = None,
) -> dict[str, Any]:
    """Measure whatever answers; with ``args.output``, take an interrupted run up again and write the record.

    Args:
        args: as of :func:`add_stress_arguments`.
        model: what the record says of the model.
        identity: what decides its answers; those of another identity are never mixed in.
        answer: the model.
        note: a caveat on the model's training data.

    Returns:
        A metrics.json: :func:`~brain_tumor_mri.report.run_record` without splits, with ``stress`` (see
        :func:`stress_figures`), ``unreadable`` (drawn slices that cannot be read: ``path``, ``reason``) and
        ``unanswered`` (the same of images without an answer, with ``disturbance`` and ``strength``).

    Raises:
        UserError: the data cannot be used, the output cannot be written, or no undisturbed image is answered.
        KeyboardInterrupt: Ctrl-C; its text says what is kept.
    """
    from .disturbances import load_sample
    from .report import run_record, write_json

    started = time.monotonic()
    protocol = ProtocolArguments(**{setting.name: getattr(args, setting.name) for setting in fields(ProtocolArguments)})
    sample = load_sample(Path(args.data_dir), protocol, args.sample, seed=args.seed)
    data = {
        "name": Path(args.data_dir).resolve().name,
        "sample": sample.describe(),
        "leaking_share": {} if note else {"test": sample.leaking_share},
    }
    key = hashlib.sha256(json.dumps([identity, data["sample"]], sort_keys=True).encode()).hexdigest()
    part = args.output.with_name(f"{args.output.name}.{key[:8]}.part") if args.output else None
    with Journal(part) as journal:
        measure(sample, answer, journal, started)
    record = run_record(protocol=protocol, model=model, data=data, splits={}, title=args.title)
    if note:
        record["protocol_note"] += f"; {note}"
        record["training_data_note"] = note
    record["stress"] = stress_figures(journal.rows, sample)
    record["unreadable"] = sample.unreadable
    record["unanswered"] = [
        {"path": row["path"], "disturbance": row["name"], "strength": row["strength"], "reason": row["error"]}
        for row in journal.rows
        if row["error"] is not None
    ]
    if part:
        write_json(args.output, record)
        part.unlink()
    return record


class Journal(AbstractContextManager["Journal"]):
    """Answers, each written to a file as soon as it is there.

    Attributes:
        rows: the answers in order, those that an interrupted run left first.
        part: the file; None keeps them in memory only.
    """

    def __init__(self, part: Path | None) -> None:
        self.part = part
        try:
            content = part.read_bytes() if part and part.is_file() else b""
            content = content[: content.rfind(b"\n") + 1]  # the line that a kill cut off has no end yet
            self.rows: list[dict[str, Any]] = [json.loads(line) for line in content.splitlines()]
            self.stream = part.open("ab") if part else io.BytesIO()
            self.stream.truncate(len(content))
        except (OSError, ValueError) as error:
            raise UserError(f"{part} cannot be taken up again ({error}); delete it to start anew") from error

    def add(self, row: dict[str, Any]) -> None:
        """Keep one answer."""
        self.rows.append(row)
        self.stream.write(json.dumps(row).encode() + b"\n")
        self.stream.flush()

    def __exit__(self, *_: object) -> None:
        self.stream.close()


def measure(sample: Sample, answer: Answerer, journal: Journal, started: float) -> None:
    """Ask about every image under every condition that the journal has no answer for yet.

    Raises:
        KeyboardInterrupt: Ctrl-C; its text says what is kept.
    """
    from .disturbances import conditions, disturbed_images
    from .labels import LABELS
    from .predicting import DelayedProgress

    jobs = [(name, strength, i) for name, strength in conditions() for i in range(len(sample.slices))]
    todo = jobs[len(journal.rows) :]
    pixels: deque[str] = deque()  # of the images asked about, in order

    def images() -> Iterator[Image]:
        with closing(disturbed_images(sample, todo)) as made:
            for image, digest in made:
                pixels.append(digest)
                yield image

    try:
        with DelayedProgress(len(jobs), started) as progress:
            progress.count = len(journal.rows)
            for (name, strength, i), prediction in zip(todo, answer(images()), strict=True):
                row = {"name": name, "strength": strength, "path": sample.slices[i].relative}
                row |= {"pixels": pixels.popleft(), "error": prediction.error}
                row["p"] = None if prediction.error else [prediction.probabilities[label] for label in LABELS]
                row["decision"] = prediction.decision
                journal.add(row)
                progress.advance()
    except KeyboardInterrupt:
        kept = f"; the same command goes on from there ({journal.part} keeps what is done)" if journal.part else ""
        raise KeyboardInterrupt(f"stopped after {len(journal.rows):,} of {len(jobs):,} images{kept}") from None


def stress_figures(rows: Sequence[dict[str, Any]], sample: Sample) -> dict[str, Any]:
    """Turn answers into figures.

    Args:
        rows: of :func:`measure`, complete.
        sample: what they are about.

    Returns:
        ``clean`` and, by disturbance, five ``levels`` of figures: ``strength``, ``level``, ``n`` (images answered),
        ``accuracy``, ``ece`` (15 bins), ``decisions`` (share of each among the answers; None where the model decides
        nothing) and ``accuracy_answered`` (of those decided ``answer``). ``mean_accuracy`` is over all disturbances and
        strengths, each counting the same; ``difference`` is that minus the clean one in points (-100..100), its
        interval drawn over the same groups on both sides. ``answered`` pools ``share`` and ``accuracy`` of ``answer``
        over all disturbed images. ``pixels_sha256`` is of all images: equal where two models saw the same.

    Raises:
        UserError: no image of a condition is answered.
    """
    import numpy as np

    from .decisions import ANSWER, DECISIONS
    from .disturbances import CLEAN, DISTURBANCES, conditions
    from .labels import LABEL2ID
    from .metrics import bootstrap_weights, classification_figures

    n = len(sample.slices)
    labels = np.array([LABEL2ID[s.label] for s in sample.slices])
    weights = np.vstack([np.ones((1, n)), bootstrap_weights(n, [s.group for s in sample.slices], RESAMPLES, 0)])
    accuracies: list[np.ndarray] = []
    counts = np.zeros((3, len(weights)))  # of all disturbed images: decided, of these answered, of these right
    levels: list[dict[str, Any]] = []
    for place, (name, strength) in enumerate(conditions()):
        mine = rows[place * n : (place + 1) * n]
        asked = np.array([row["p"] is not None for row in mine])
        if not asked.any():
            raise UserError(f"{name} {strength}: none of {n} images is answered: {mine[0]['error']}")
        probabilities = np.array([row["p"] or [0.0] * len(LABEL2ID) for row in mine])
        right = asked & (probabilities.argmax(1) == labels)
        answered = np.array([row["decision"] == ANSWER for row in mine])
        decisions = Counter(row["decision"] for row in mine if row["decision"] is not None)
        accuracies.append(_ratio(weights @ right, weights @ asked))
        if name != CLEAN:
            decided = np.array([row["decision"] is not None for row in mine])
            counts += [weights @ decided, weights @ answered, weights @ (answered & right)]
        levels.append(
            {
                "strength": strength,
                "level": None if name == CLEAN else DISTURBANCES[name].levels[strength - 1],
                "n": int(asked.sum()),
                "accuracy": _figure(accuracies[-1]),
                "ece": classification_figures(probabilities[asked], labels[asked], n_resamples=0)["ece"]["value"],
                "decisions": {d: decisions[d] / decisions.total() for d in DECISIONS} if decisions else None,
                "accuracy_answered": _figure(_ratio(weights @ (answered & right), weights @ answered)),
            }
        )
    mean = np.mean(accuracies[1:], axis=0)
    by_name = {d: [x for x, (name, _) in zip(levels, conditions(), strict=True) if name == d] for d in DISTURBANCES}
    return {
        "n": n,
        "interval": {"method": "percentile bootstrap", "confidence": 0.95, "resamples": RESAMPLES, "over": "group"},
        "clean": levels[0],
        "disturbances": {d: {"levels": entries} for d, entries in by_name.items()},
        "mean_accuracy": _figure(mean),
        "difference": _figure(100 * (mean - accuracies[0])),
        "answered": {
            "share": _figure(_ratio(counts[1], counts[0])),
            "accuracy": _figure(_ratio(counts[2], counts[1])),
        },
        "pixels_sha256": hashlib.sha256("".join(row["pixels"] for row in rows).encode()).hexdigest(),
    }


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide sums of the sample and its resamples; NaN where one has none of the whole."""
    import numpy as np

    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _figure(samples: np.ndarray) -> dict[str, float] | None:
    """The sample's own value, which comes first, and its 95 % interval over the resamples; None where it is NaN."""
    import numpy as np

    if np.isnan(samples[0]):
        return None
    low, high = np.nanpercentile(samples[1:], (2.5, 97.5))
    return {"value": float(samples[0]), "low": float(low), "high": float(high)}


def stress_table(record: dict[str, Any]) -> str:
    """Return one Markdown row a disturbance: accuracy at each strength, without intervals, and their mean."""
    from .disturbances import DISTURBANCES, STRENGTHS
    from .report import markdown_table, percent

    rows = []
    for name, entry in record["stress"]["disturbances"].items():
        values = [level["accuracy"]["value"] for level in entry["levels"]]
        rows.append([DISTURBANCES[name].title, *(percent({"value": v}) for v in (*values, sum(values) / len(values)))])
    corner = f"accuracy by strength ({record['protocol']}, {record['stress']['n']} images)"
    return markdown_table([corner, *map(str, STRENGTHS), "mean"], rows)


def stress_summary(records: Sequence[dict[str, Any]]) -> str:
    """Return one Markdown row a model: clean and mean accuracy, their difference, and what ``answer`` is worth."""
    from .report import markdown_table, model_title, percent, points

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


def show(args: argparse.Namespace, record: dict[str, Any], beside: Sequence[dict[str, Any]] = ()) -> None:
    """Draw the plot that is asked for, and print tables, or JSON; ``beside`` are records to compare with."""
    from rich.console import Console
    from rich.markdown import Markdown

    if args.plot:
        plot_stress([record, *beside], args.plot)
    if args.json:
        json.dump(record, sys.stdout, indent=2)
        print()
        return
    for text in (stress_table(record), stress_summary([record, *beside])):
        Console().print(Markdown(text))
    for file in record["unreadable"]:
        print(f"not readable: {file['path']}: {file['reason']}", file=sys.stderr)
    if missing := record["unanswered"]:
        first = "{path} ({disturbance} {strength}): {reason}".format(**missing[0])
        print(f"{len(missing)} images without an answer, such as {first}", file=sys.stderr)


def plot_stress(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw accuracy by strength into a PNG: a panel a disturbance, undisturbed dashed, share of ``answer`` dotted."""
    from matplotlib.figure import Figure

    from .disturbances import DISTURBANCES, STRENGTHS
    from .report import model_title

    figure = Figure(figsize=(12, 8.5), layout="constrained")
    figure.suptitle(f"{records[0]['stress']['n']} disturbed slices, {records[0]['protocol']}, test")
    panels = figure.subplots(3, 4, sharey=True).flat
    for axes, (name, disturbance) in zip(panels, DISTURBANCES.items(), strict=False):
        for number, record in enumerate(records):
            colour, stress = f"C{number}", record["stress"]
            levels = stress["disturbances"][name]["levels"]
            low, value, high = ([100 * x["accuracy"][key] for x in levels] for key in ("low", "value", "high"))
            axes.plot(STRENGTHS, value, f"{colour}o-", markersize=3, label=fill(f"{model_title(record)}: accuracy", 34))
            axes.fill_between(STRENGTHS, low, high, color=colour, alpha=0.15, linewidth=0)
            clean = 100 * stress["clean"]["accuracy"]["value"]
            axes.axhline(clean, color=colour, linestyle="--", linewidth=1, label=f"undisturbed, {clean:.1f} %")
            if all(x["decisions"] for x in levels):
                shares = [100 * x["decisions"]["answer"] for x in levels]
                axes.plot(STRENGTHS, shares, f"{colour}:", label="share decided `answer`")
        ticks = [f"{strength}\n{level:g}" for strength, level in zip(STRENGTHS, disturbance.levels, strict=True)]
        axes.set_xticks(STRENGTHS, ticks, fontsize=8)
        axes.set(title=disturbance.title, ylim=(0, 102))
        axes.grid(alpha=0.3)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.axes[-1].axis("off")
    legend = figure.axes[-1].legend(handles, names, loc="center", fontsize=8, title="%, over strength and parameter")
    legend.set_in_layout(False)  # else a long name pushes the panels together
    figure.savefig(path, dpi=120)


def check_targets(args: argparse.Namespace) -> None:
    """Find out before minutes of work whether the files can be written.

    Raises:
        UserError: they cannot.
    """
    for flag, path in (("--output", args.output), ("--plot", args.plot)):
        if path and (path.is_dir() or not os.access(path.parent, os.W_OK)):
            raise UserError(f"{flag} {path} cannot be written; give a file in a folder that exists")
    if args.plot and args.plot.suffix.lower() != ".png":
        raise UserError(f"--plot {args.plot}: give a name that ends in .png")
