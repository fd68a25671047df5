"""How much of a model's accuracy is left when its images get worse: the engine of ``brain-tumor-mri stress``.

A fixed sample of a test part is measured as it is and under every disturbance of disturbances.py. Each answer goes to
``OUTPUT.HASH.part`` at once, and the same command goes on from there. ``benchmarks/accuracy/stress_peers.py`` sends
the same pixels to a published peer: whatever answers images can be measured by :func:`stress_record`.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL.Image import Image

from ..data.protocols import ProtocolArguments
from ..errors import UserError, first_line
from ..files import write_json
from ..labels import LABEL2ID, LABELS
from ..trust.decision import ANSWER, DECISIONS
from .disturbances import CLEAN, DISTURBANCES, Sample, conditions, disturbed_images, load_sample
from .metrics import bootstrap, classification_figures, describe_interval, figure, weighted_share
from .record import run_record

if TYPE_CHECKING:
    from ..inference.prediction import Prediction

Answerer = Callable[[Iterator[Image]], "Iterator[Prediction]"]
"""Gives one answer an image, in order; one with ``error`` where there is none."""
RESAMPLES = 2000
Progress = Callable[[int, float], AbstractContextManager[Any]]
"""Gives a bar with ``count`` and ``advance()``, of a number of images and when the work started."""


def stress_record(
    data_dir: str | Path,
    protocol: ProtocolArguments,
    model: dict[str, Any],
    identity: dict[str, Any],
    answer: Answerer,
    *,
    sample_size: int = 500,
    seed: int = 42,
    title: str | None = None,
    output: Path | None = None,
    note: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure whatever answers; with ``output``, take an interrupted run up again and write the record.

    Args:
        data_dir: the data folder.
        protocol: whose test part is drawn from.
        model: what the record says of the model.
        identity: what decides its answers; those of another identity are never mixed in.
        answer: the model.
        sample_size: slices of the test part.
        seed: of the validation draw, as in training.
        title: what stands in tables for the model.
        output: the record's file.
        note: a caveat on the model's training data.
        progress: gives the bar for a number of images and a start; None shows none.

    Returns:
        A metrics.json: :func:`~brain_tumor_mri.evaluation.record.run_record` without splits, with ``stress`` (see
        :func:`stress_figures`), ``unreadable`` (drawn slices that cannot be read: ``path``, ``reason``) and
        ``unanswered`` (the same of images without an answer, with ``disturbance`` and ``strength``).
    """
    started = time.monotonic()
    sample = load_sample(Path(data_dir), protocol, sample_size, seed=seed)
    data = {
        "name": Path(data_dir).resolve().name,
        "sample": sample.describe(),
        "leaking_share": {} if note else {"test": sample.leaking_share},
    }
    key = hashlib.sha256(json.dumps([identity, data["sample"]], sort_keys=True).encode()).hexdigest()
    part = output.with_name(f"{output.name}.{key[:8]}.part") if output else None
    with Journal(part) as journal:
        measure(sample, answer, journal, started, progress)
    record = run_record(protocol=protocol, model=model, data=data, splits={}, title=title)
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
        write_json(output, record)
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
            raise UserError(
                f"{part} cannot be taken up again ({first_line(error)}); delete it to start anew"
            ) from error

    def add(self, row: dict[str, Any]) -> None:
        """Keep one answer."""
        self.rows.append(row)
        self.stream.write(json.dumps(row).encode() + b"\n")
        self.stream.flush()

    def __exit__(self, *_: object) -> None:
        self.stream.close()


def measure(
    sample: Sample, answer: Answerer, journal: Journal, started: float, progress: Progress | None = None
) -> None:
    """Ask about every image under every condition that the journal has no answer for yet."""
    jobs = [(name, strength, i) for name, strength in conditions() for i in range(len(sample.slices))]
    todo = jobs[len(journal.rows) :]
    pixels: deque[str] = deque()  # of the images asked about, in order

    def images() -> Iterator[Image]:
        with closing(disturbed_images(sample, todo)) as made:
            for image, digest in made:
                pixels.append(digest)
                yield image

    try:
        with progress(len(jobs), started) if progress else nullcontext() as bar:
            if bar:
                bar.count = len(journal.rows)
            for (name, strength, i), prediction in zip(todo, answer(images()), strict=True):
                row = {"name": name, "strength": strength, "path": sample.slices[i].relative}
                row |= {"pixels": pixels.popleft(), "error": prediction.error}
                row["p"] = None if prediction.error else [prediction.probabilities[label] for label in LABELS]
                row["decision"] = prediction.decision
                journal.add(row)
                if bar:
                    bar.advance()
    except KeyboardInterrupt:
        kept = f"; the same command goes on from there ({journal.part} keeps what is done)" if journal.part else ""
        raise KeyboardInterrupt(f"stopped after {len(journal.rows):,} of {len(jobs):,} images{kept}") from None


def stress_figures(rows: Sequence[dict[str, Any]], sample: Sample) -> dict[str, Any]:
    """Turn answers into figures.

    Returns:
        ``clean`` and, by disturbance, five ``levels`` of figures: ``strength``, ``level``, ``n`` (images answered),
        ``accuracy``, ``ece`` (15 bins), ``decisions`` (share of each among the answers; None where the model decides
        nothing) and ``accuracy_answered`` (of those decided ``answer``). ``mean_accuracy`` is over all disturbances and
        strengths, each counting the same; ``difference`` is that minus the clean one in points (-100..100), its
        interval drawn over the same groups on both sides. ``answered`` pools ``share`` and ``accuracy`` of ``answer``
        over all disturbed images. ``pixels_sha256`` is of all images: equal where two models saw the same.
    """
    n = len(sample.slices)
    labels = np.array([LABEL2ID[s.label] for s in sample.slices])
    weights = bootstrap(n, [s.group for s in sample.slices], RESAMPLES)
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
        accuracies.append(weighted_share(right[asked], weights[:, asked]))
        if name != CLEAN:
            decided = np.array([row["decision"] is not None for row in mine])
            counts += [weights @ decided, weights @ answered, weights @ (answered & right)]
        levels.append(
            {
                "strength": strength,
                "level": None if name == CLEAN else DISTURBANCES[name].levels[strength - 1],
                "n": int(asked.sum()),
                "accuracy": figure(accuracies[-1]),
                "ece": classification_figures(probabilities[asked], labels[asked], n_resamples=0)["ece"]["value"],
                "decisions": {d: decisions[d] / decisions.total() for d in DECISIONS} if decisions else None,
                "accuracy_answered": figure(weighted_share(right[answered], weights[:, answered])),
            }
        )
    mean = np.mean(accuracies[1:], axis=0)
    by_name = {d: [x for x, (name, _) in zip(levels, conditions(), strict=True) if name == d] for d in DISTURBANCES}
    return {
        "n": n,
        "interval": describe_interval(RESAMPLES),
        "clean": levels[0],
        "disturbances": {d: {"levels": entries} for d, entries in by_name.items()},
        "mean_accuracy": figure(mean),
        "difference": figure(100 * (mean - accuracies[0])),
        "answered": {
            "share": figure(_ratio(counts[1], counts[0])),
            "accuracy": figure(_ratio(counts[2], counts[1])),
        },
        "pixels_sha256": hashlib.sha256("".join(row["pixels"] for row in rows).encode()).hexdigest(),
    }


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide sums of the sample and its resamples; NaN where one has none of the whole."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
