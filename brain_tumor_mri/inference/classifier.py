"""The model as users call it: ``TumorClassifier.from_pretrained("model").predict("slice.jpg")`` -> ``Prediction``.

Everything that answers (page, command line, exports' checks) goes through here, so there is one preprocessing (the
model's own, from its config.json), one way to treat a file that cannot be read, and one use of ``trust.json``.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..errors import UserError
from ..images.read import SEQUENCE, ImageSource, UnreadableImageError, damage, is_single, load_image, name_of
from ..labels import LABELS
from ..machine import cpu_count
from ..trust.decision import ANSWER, COVERAGES, DEFAULT_COVERAGE, UNCERTAIN, UNFAMILIAR, decide, picture_fault
from ..trust.trust_file import Trust
from .load import check_device, pytorch
from .member import Member
from .model_folder import DEFAULT_MODEL, ModelFolder
from .network import Network
from .prediction import Answers, OnError, Prediction, Reading, pixels_of, unmeasured

if TYPE_CHECKING:
    import torch

    from ..heat_maps.explain import Explanation

_READERS = min(4, cpu_count())


class TumorClassifier:
    """A model of this project, or an ensemble of several, ready to answer.

    Of an ensemble, probabilities are the mean of the members'; see ``Answers.combined``.

    Attributes:
        members: the networks that answer, each with its own preprocessing and ``trust.json``; one, or more.
        labels: class names in output order.
        image_size: (height, width) in pixels of the input; of an ensemble the largest.
        device: what the network runs on, such as ``cpu`` or ``cuda:0``.
        batch_size: images per forward pass unless a call says otherwise.
        mirror: whether each answer is the mean of the slice's and of its mirror image's, at twice the cost.
        coverage: percent, of the prediction sets that decide; one of ``decision.COVERAGES``.
    """

    def __init__(
        self,
        model: torch.nn.Module | Network | Sequence[Member],
        processor: Any = None,
        *,
        device: str | torch.device | None = None,
        batch_size: int = 32,
        mirror: bool = False,
        coverage: int = DEFAULT_COVERAGE,
        trust: Trust | None = None,
    ) -> None:
        """Wrap what is loaded already; ``from_pretrained`` is the usual way in.

        Args:
            model: a module that takes pixel_values (N, 3, H, W) and returns an object with ``logits`` (N, 4); or a
                ``Network``; or members, which bring their own processor, device, mirror and trust.
            processor: what ``AutoImageProcessor.from_pretrained`` gave for the same model.
            device: None chooses cuda, then mps, then cpu; a ``Network`` has its own.
            batch_size: images per forward pass, at least 1.
            mirror: average each answer with that for the mirror image.
            coverage: percent of slices whose prediction set is to hold the true class; one of ``decision.COVERAGES``.
            trust: what was fitted to these weights.

        Raises:
            UserError: there are no members; ``device`` does not exist here; ``trust`` belongs to another network.
            ValueError: ``batch_size`` is below 1; ``coverage`` is not one of ``COVERAGES``.
        """
        if coverage not in COVERAGES:
            raise ValueError(f"coverage must be one of {', '.join(map(str, COVERAGES))}, not {coverage!r}")
        if hasattr(model, "state_dict"):  # a PyTorch module; without torch installed there is none
            stage = trust.in_distribution.stage if trust else None
            model = pytorch().TorchNetwork(model, pytorch().choose_device(device), stage)
        if not isinstance(model, Sequence):
            model = [Member(model, processor, mirror=mirror, trust=trust)]
        if not model:
            raise UserError("no model is named; give one folder or Hub id, or several")
        self.members: tuple[Member, ...] = tuple(model)
        self.labels: tuple[str, ...] = self.members[0].labels
        if any(member.labels != self.labels for member in self.members):
            raise UserError("these models have different classes; an ensemble needs the same in all")
        heights, widths = zip(*(member.image_size for member in self.members), strict=True)
        self.image_size: tuple[int, int] = (max(heights), max(widths))
        self.device = self.members[0].network.device
        self.mirror = self.members[0].mirror
        self.batch_size = _checked_batch_size(batch_size)
        self.coverage = coverage

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | Sequence[str | Path] = DEFAULT_MODEL,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        batch_size: int = 32,
        mirror: bool = False,
        coverage: int = DEFAULT_COVERAGE,
        use_trust: bool = True,
        backend: str | None = None,
    ) -> TumorClassifier:
        """Load a folder or Hub id: safetensors through the standard transformers classes, or an export; no remote code.

        Args:
            model: a folder in the Hub's layout, or a Hub id ``owner/name``; a list of them makes an ensemble, whose
                answer is the mean of its members' calibrated probabilities.
            revision: branch, tag or commit on the Hub.
            device: ``"cpu"``, ``"cuda:0"``, ...; None chooses cuda, then mps, then cpu.
            batch_size: images per forward pass, at least 1.
            mirror: average each answer with that for the mirror image.
            coverage: percent of slices whose prediction set is to hold the true class; one of ``decision.COVERAGES``.
            use_trust: False leaves the folder's ``trust.json`` out: plain softmax, no decisions.
            backend: one of ``model_folder.BACKENDS``; None takes the first whose file the folder has.

        Raises:
            UserError: the model is not found, is damaged, lacks weights, or has other classes; its ``trust.json`` is
                damaged or belongs to other weights; no such device; what runs the backend is not installed.
            ValueError: ``batch_size``, ``coverage`` or ``backend`` is not allowed.
        """
        device = None if device is None else str(device)
        check_device(device, backend)  # a wrong flag is told before a download
        names = [model] if isinstance(model, str | os.PathLike) else model
        members = [
            Member.load(name, revision=revision, device=device, mirror=mirror, use_trust=use_trust, backend=backend)
            for name in names
        ]
        return cls(members, batch_size=batch_size, coverage=coverage)

    @property
    def network(self) -> Network:
        """What gives logits and features of a batch: PyTorch, or an export's runtime; UserError of an ensemble."""
        return self._only_member("network").network

    @property
    def model(self) -> torch.nn.Module:
        """The transformers model, in eval mode, fp32; UserError of an ensemble, and where there is an export only."""
        return self._only_member("model").model

    @property
    def processor(self) -> Any:
        """The model's own image processor; UserError of an ensemble."""
        return self._only_member("processor").processor

    @property
    def trust(self) -> Trust | None:
        """The content of ``trust.json``; None for a model without one, and for an ensemble: its members have theirs."""
        return self.members[0].trust if len(self.members) == 1 else None

    @property
    def folder(self) -> ModelFolder | None:
        """Where the weights came from; None when built from objects, and for an ensemble."""
        return self.members[0].folder if len(self.members) == 1 else None

    def _only_member(self, wanted: str) -> Member:
        if len(self.members) > 1:
            last = len(self.members) - 1
            raise UserError(f"an ensemble has a {wanted} for each member: ask .members[0] to .members[{last}]")
        return self.members[0]

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """Turn an RGB image into the model's input with the model's own processor.

        Args:
            image: an upright RGB image, as ``images.read.load_image`` returns it.

        Returns:
            float32 (3, H, W), normalised. Of an ensemble (members, 3, H, W), at its ``image_size``: what is
            below and right of a smaller input is 0, and ``inputs`` drops it.
        """
        if len(self.members) == 1:
            return self.members[0].preprocess(image)
        height, width = self.image_size
        own = (member.preprocess(image) for member in self.members)
        return np.stack([np.pad(x, ((0, 0), (0, height - x.shape[-2]), (0, width - x.shape[-1]))) for x in own])

    def inputs(self, pixel_values: np.ndarray) -> list[np.ndarray]:
        """Return each member's own input (N, 3, H, W) of a batch of what ``preprocess`` gives."""
        if len(self.members) == 1:
            return [pixel_values]
        sizes = (member.image_size for member in self.members)
        return [pixel_values[:, i, :, :h, :w] for i, (h, w) in enumerate(sizes)]

    def probabilities(self, pixel_values: np.ndarray) -> np.ndarray:
        """Class probabilities of a batch as of ``answers``: float64 (N, C) in the order of ``labels``."""
        return self.answers(pixel_values).probabilities

    def answers(self, pixel_values: np.ndarray) -> Answers:
        """Answer a batch: probabilities and, with a ``trust.json``, prediction sets, unlikeness and foreignness.

        Args:
            pixel_values: stacked results of ``preprocess``, float32; at least one.
        """
        inputs = self.inputs(pixel_values)
        return Answers.combined([member.answers(x) for member, x in zip(self.members, inputs, strict=True)])

    def describe(self) -> dict[str, Any]:
        """Say which model answers, and how.

        Returns:
            ``source``, ``architecture``, ``backend`` and ``sha256`` of the weights (of an export: of its file), an
            ensemble's joined by ``+``; ``mirror``, ``coverage``; ``trust``, the fingerprint of ``trust.json``, None
            when a member has none.

        Raises:
            ValueError: the classifier was built from objects, not loaded.
        """
        folders = [member.folder for member in self.members]
        if None in folders:
            raise ValueError("a classifier that was not loaded from a folder has no source")
        fingerprints = [member.trust.fingerprint() if member.trust else "" for member in self.members]
        return {
            "source": " + ".join(folder.source for folder in folders),
            "architecture": " + ".join(folder.architecture for folder in folders),
            "backend": " + ".join(folder.backend for folder in folders),
            "sha256": " + ".join(folder.run_sha256() for folder in folders),
            "mirror": self.mirror,
            "coverage": self.coverage,
            "trust": " + ".join(fingerprints) if all(fingerprints) else None,
        }

    def predict(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        on_error: OnError = "raise",
        batch_size: int | None = None,
    ) -> Prediction | list[Prediction]:
        """Classify one image or many.

        Args:
            images: a path, the bytes of a file, a PIL image or an array gives one ``Prediction``; an iterable of
                these, or an array (N, H, W, C), gives a list in the same order.
            on_error: ``"raise"``, or ``"record"`` to get a ``Prediction`` with ``error`` for a bad image and go on.
            batch_size: images per forward pass; None takes the classifier's.

        Raises:
            UnreadableImageError: an image cannot be read and ``on_error`` is ``"raise"``.
            ValueError: ``on_error`` or ``batch_size`` is not allowed.
        """
        if not is_single(images):
            return list(self.predict_stream(images, on_error=on_error, batch_size=batch_size))
        self.checked_size(on_error, batch_size)
        # in this thread: another would first have to start PyTorch's own threads, which takes longer than reading
        return self.answer_readings([self.read(images, name_of(images, 1))], on_error)[0]

    def predict_stream(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        on_error: OnError = "raise",
        batch_size: int | None = None,
    ) -> Iterator[Prediction]:
        """Classify images one after the other as they come, in bounded memory.

        Files are read and preprocessed by threads while the model works on the batch before; never more than two
        batches are in memory, however long ``images`` is.

        Args:
            images: as for ``predict``; may be an endless generator.
            on_error: as for ``predict``.
            batch_size: as for ``predict``.

        Returns:
            One ``Prediction`` an image, in order.

        Raises:
            UnreadableImageError: as for ``predict``, when the image's turn comes.
            ValueError: ``on_error`` or ``batch_size`` is not allowed (at once).
        """
        size = self.checked_size(on_error, batch_size)
        return self._stream(iter([images] if is_single(images) else images), on_error, size)

    def explain(
        self,
        images: ImageSource | Iterable[ImageSource],
        target: str | None = None,
        *,
        method: str | None = None,
        on_error: OnError = "raise",
        batch_size: int | None = None,
    ) -> Explanation | list[Explanation]:
        """Show where the model looks in one image or many: a heat map of what speaks for a class.

        Args:
            images: as for ``predict``: one image gives one ``Explanation``, an iterable a list in the same order.
            target: the class whose evidence is shown; None takes, for each image, the class answered.
            method: one of ``heat_maps.cam.METHODS``; None takes ``fused-cam``.
            on_error: as for ``predict``.
            batch_size: as for ``predict``.

        Raises:
            UnreadableImageError: as for ``predict``.
            UserError: the model has no feature map (a plain vision transformer), or is an export.
            ValueError: ``target``, ``method``, ``on_error`` or ``batch_size`` is not allowed.
        """
        from ..heat_maps.explain import explain  # stands above this module: heat maps are made of classifiers

        return explain(self, images, target, method=method, on_error=on_error, batch_size=batch_size)

    def checked_size(self, on_error: OnError, batch_size: int | None) -> int:
        """Return the batch size that a call asks for; ValueError where it, or ``on_error``, is not allowed."""
        if on_error not in ("raise", "record"):
            raise ValueError(f"on_error must be 'raise' or 'record', not {on_error!r}")
        return self.batch_size if batch_size is None else _checked_batch_size(batch_size)

    def _stream(self, sources: Iterator[ImageSource], on_error: OnError, size: int) -> Iterator[Prediction]:
        numbered = enumerate(sources, start=1)
        waiting: deque[Future[Reading]] = deque()
        pool = ThreadPoolExecutor(max_workers=_READERS, thread_name_prefix="read-image")
        try:
            while True:
                for number, source in itertools.islice(numbered, 2 * size - len(waiting)):
                    waiting.append(pool.submit(self.read, source, name_of(source, number)))
                if not waiting:
                    return
                batch = [waiting.popleft() for _ in range(min(size, len(waiting)))]
                yield from self.answer_readings([future.result() for future in batch], on_error)
        finally:
            # runs too when the caller stops early or presses Ctrl-C: nothing more is read
            pool.shutdown(wait=True, cancel_futures=True)

    def read(self, source: ImageSource, name: str) -> Reading:
        """Read and preprocess an image; one that cannot be read is a ``Reading`` with its error."""
        try:
            return self.reading(load_image(source, name=name), name)
        except UnreadableImageError as error:
            return Reading(name, error=error)
        except Exception as error:  # such as MemoryError: whatever nobody thought of ends this image, not the batch
            return Reading(name, error=UnreadableImageError(name, damage(error)))

    def reading(self, image: Image.Image, name: str) -> Reading:
        """Preprocess an image that ``load_image`` gave."""
        sequence = image.info.get(SEQUENCE, "unknown")
        return Reading(name, self.preprocess(image), image.size, picture_fault(image), sequence=sequence)

    def answer_readings(
        self, readings: Sequence[Reading], on_error: OnError = "record", answers: Answers | None = None
    ) -> list[Prediction]:
        """Answer images that were read: one ``Prediction`` each, in order.

        Args:
            readings: of ``read``.
            on_error: as for ``predict``.
            answers: to those that could be read, in order; None asks the model, in one batch.

        Raises:
            UnreadableImageError: of the first that could not be read, where ``on_error`` is ``"raise"``.
        """
        pixels = pixels_of(readings, on_error)
        if answers is None and pixels is not None:
            answers = self.answers(pixels)
        rows = itertools.count()
        return [
            Prediction(reading.name, None, None, error=reading.error.reason)
            if reading.error
            else self._prediction(reading, answers, next(rows))
            for reading in readings
        ]

    def _prediction(self, reading: Reading, answers: Answers, row: int) -> Prediction:
        """One image's answer with its decision."""
        probabilities = dict(zip(self.labels, answers.probabilities[row].tolist(), strict=True))
        label = max(probabilities, key=probabilities.__getitem__)
        plain = Prediction(reading.name, label, probabilities[label], probabilities)
        if answers.unlikeness is None:
            return plain
        sets = {coverage: tuple(itertools.compress(self.labels, kept[row])) for coverage, kept in answers.sets.items()}
        unlikeness, foreign = float(answers.unlikeness[row]), float(answers.foreign[row])
        decision, reason = decide(sets[self.coverage], unlikeness, foreign, reading.fault)
        if decision in (ANSWER, UNCERTAIN) and self.labels == LABELS and (why := unmeasured(reading.sequence)):
            decision, reason = UNFAMILIAR, why
        return replace(
            plain,
            decision=decision,
            reason=reason,
            prediction_set=sets[self.coverage],
            prediction_sets=sets,
            unlikeness=unlikeness,
            foreign=foreign,
        )


def _checked_batch_size(batch_size: int) -> int:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    return batch_size
