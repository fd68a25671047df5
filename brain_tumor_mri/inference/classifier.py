"""The model as users call it: ``TumorClassifier.from_pretrained("model").predict("slice.jpg")`` -> ``Prediction``.

Everything that answers (app, command line, exports' checks) goes through here, so there is one preprocessing (the
model's own, from its config.json), one way to treat a file that cannot be read, and one use of ``trust.json``.
"""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..errors import UserError
from ..images.read import ImageSource, UnreadableImageError, is_single, load_image, name_of
from ..labels import LABELS
from ..trust.decision import COVERAGES, DEFAULT_COVERAGE, decide, picture_fault
from ..trust.trust_file import Calibration, Trust, load_trust
from .load import choose_device, load_network, load_processor, require_features
from .model_folder import DEFAULT_MODEL, find_model
from .network import Network
from .prediction import Answers, Prediction
from .run_pytorch import TorchNetwork

OnError = Literal["raise", "record"]
_READERS = min(4, os.cpu_count() or 1)
# ResNet50 on a batch of 32 at 224 px holds about 0.4 GB of activations; halving the batch on a CPU saves half of that
# and costs no speed. GPUs need the whole batch to be busy.
_CPU_FORWARD = 16
_SOFTMAX = Calibration(1.0, {})


class TumorClassifier:
    """A model of this project, ready to answer.

    Attributes:
        network: what gives logits and features of a batch: PyTorch, or an export's runtime.
        processor: the model's own image processor; the only preprocessing there is.
        labels: class names in output order.
        image_size: (height, width) in pixels of the model's input.
        device: where the model's input goes.
        batch_size: images per forward pass unless a call says otherwise.
        mirror: whether each answer is the mean of the slice's and of its mirror image's, at twice the cost.
        coverage: percent, of the prediction sets that decide; one of ``decisions.COVERAGES``.
        trust: the content of ``trust.json``; None for a model without one, whose answers then carry no decision.
        members: this classifier alone, or those of an :class:`~brain_tumor_mri.inference.classifier.Ensemble`.
        folder: the ``ModelFolder`` that the weights came from; None when built from objects.
    """

    def __init__(
        self,
        model: torch.nn.Module | Network,
        processor: Any,
        *,
        device: str | torch.device | None = None,
        batch_size: int = 32,
        mirror: bool = False,
        coverage: int = DEFAULT_COVERAGE,
        trust: Trust | None = None,
    ) -> None:
        """Wrap a model and an image processor that are loaded already; ``from_pretrained`` is the usual way in.

        Args:
            model: takes pixel_values (N, 3, H, W), returns an object with ``logits`` (N, 4); or a ``Network``.
            processor: what ``AutoImageProcessor.from_pretrained`` gave for the same model.
            device: None chooses cuda, then mps, then cpu; a ``Network`` has its own.
            batch_size: images per forward pass, at least 1.
            mirror: average each answer with that for the mirror image.
            coverage: percent of slices whose prediction set is to hold the true class; one of ``decisions.COVERAGES``.
            trust: what was fitted to these weights.

        Raises:
            UserError: ``device`` does not exist here; ``trust`` belongs to another network.
            ValueError: ``batch_size`` is below 1; ``coverage`` is not one of ``COVERAGES``.
        """
        if coverage not in COVERAGES:
            raise ValueError(f"coverage must be one of {', '.join(map(str, COVERAGES))}, not {coverage!r}")
        self.batch_size = _checked_batch_size(batch_size)
        if isinstance(model, torch.nn.Module):
            stage = trust.in_distribution.stage if trust else None
            model = TorchNetwork(model, choose_device(device), stage)
        self.network: Network = model
        self.device = self.network.device
        self.processor = processor
        self.labels: tuple[str, ...] = LABELS
        self.mirror = mirror
        self.coverage = coverage
        self.trust = trust
        self.folder = None
        height, width = self.preprocess(Image.new("RGB", (8, 8))).shape[1:]
        self.image_size: tuple[int, int] = (int(height), int(width))

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
    ) -> "TumorClassifier":
        """Load a folder or Hub id: safetensors through the standard transformers classes, or an export; no remote code.

        Args:
            model: a folder in the Hub's layout, or a Hub id ``owner/name``; a list of them makes an ensemble, whose
                answer is the mean of its members' calibrated probabilities.
            revision: branch, tag or commit on the Hub.
            device: ``"cpu"``, ``"cuda:0"``, ...; None chooses cuda, then mps, then cpu.
            batch_size: images per forward pass, at least 1.
            mirror: average each answer with that for the mirror image.
            coverage: percent of slices whose prediction set is to hold the true class; one of ``decisions.COVERAGES``.
            use_trust: False leaves the folder's ``trust.json`` out: plain softmax, no decisions.
            backend: one of ``weights.BACKENDS``; None takes the first whose file the folder has.

        Raises:
            UserError: the model is not found, is damaged, lacks weights, or has other classes; its ``trust.json`` is
                damaged or belongs to other weights; no such device; what runs the backend is not installed.
            ValueError: ``batch_size``, ``coverage`` or ``backend`` is not allowed.
        """
        choose_device(device)  # a wrong flag is told before a download
        if not isinstance(model, str | os.PathLike):
            options = {"revision": revision, "device": device, "batch_size": batch_size, "mirror": mirror}
            options |= {"coverage": coverage, "use_trust": use_trust, "backend": backend}
            members = [cls.from_pretrained(member, **options) for member in model]
            return members[0] if len(members) == 1 else Ensemble(members)
        folder = find_model(model, revision, backend)
        folder.require_project_labels()
        trust = load_trust(folder.path, folder.sha256) if use_trust else None
        stage = trust.in_distribution.stage if trust else None
        if stage:
            require_features(folder, stage)
        network = load_network(folder, device, stage)
        options = {"batch_size": batch_size, "mirror": mirror, "coverage": coverage, "trust": trust}
        classifier = cls(network, load_processor(folder), device=device, **options)
        classifier.folder = folder
        return classifier

    def preprocess(self, image: Image.Image) -> Tensor:
        """Turn an RGB image into the model's input with the model's own processor.

        Args:
            image: an upright RGB image, as ``imaging.load_image`` returns it.

        Returns:
            float32 (3, H, W), normalised, on the CPU.
        """
        return self.processor(image, return_tensors="pt")["pixel_values"][0]

    def probabilities(self, pixel_values: Tensor) -> Tensor:
        """Class probabilities of a batch.

        Args:
            pixel_values: float (N, 3, H, W) from ``preprocess``, on any device; N at least 1.

        Returns:
            float32 (N, 4) on the CPU; rows sum to 1, columns in the order of ``labels``.
        """
        return torch.from_numpy(self.answers(pixel_values).probabilities).float()

    @torch.inference_mode()
    def answers(self, pixel_values: Tensor) -> Answers:
        """Answer a batch: probabilities and, with a ``trust.json``, prediction sets and unlikeness.

        Args:
            pixel_values: float (N, 3, H, W) from ``preprocess``, on any device; N at least 1.
        """
        pixel_values = pixel_values.to(self.device)
        parts = pixel_values.split(_CPU_FORWARD if self.device.type == "cpu" else len(pixel_values))
        return Answers.joined([self._answer_part(part) for part in parts])

    def _answer_part(self, pixel_values: Tensor) -> Answers:
        logits, features = self.network(pixel_values)
        views = [logits]
        if self.mirror:
            views.append(self.network(pixel_values.flip(-1))[0])
        return self.judge(torch.stack(views, dim=1), features)

    @property
    def model(self) -> torch.nn.Module:
        """The transformers model, in eval mode, fp32, on ``device``.

        Raises:
            UserError: an export answers, which has none.
        """
        return self.network.module

    def take_features(self) -> np.ndarray | None:
        """What the in-distribution check reads, of this thread's latest pass of ``model``: (N, D); None without trust.

        Raises:
            UserError: an export answers.
        """
        return self.network.take_features()

    def judge(self, logits: Tensor, features: np.ndarray | None) -> Answers:
        """Turn what the network gave into answers.

        Args:
            logits: (N, views, 4), one view, or two where the classifier mirrors.
            features: (N, D) of ``take_features`` after the pass over the slices as they are.
        """
        values = logits.detach().float().cpu().numpy()
        if self.trust is None:
            return Answers(_SOFTMAX.probabilities(values))
        calibration = self.trust.calibration(self.mirror)
        probabilities = calibration.probabilities(values)
        sets = {coverage: calibration.prediction_sets(probabilities, coverage) for coverage in COVERAGES}
        checks = self.trust.in_distribution.unlikeness(features), self.trust.brain_mri.foreign(features)
        return Answers(probabilities, sets, *checks)

    def inputs(self, pixel_values: Tensor) -> list[Tensor]:
        """Return the input of each of the ``members``, of a batch from ``preprocess``: the batch."""
        return [pixel_values]

    def combine(self, of_members: Sequence[Answers]) -> Answers:
        """Return one answer of those of the ``members``: the only one."""
        return of_members[0]

    @property
    def members(self) -> tuple["TumorClassifier", ...]:
        """The classifiers that answer: this one."""
        return (self,)

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
        self._checked_size(on_error, batch_size)
        name = name_of(images, 1)
        # in this thread: another would first have to start PyTorch's own threads, which takes longer than reading
        return self._answer([(name, partial(self._read, images, name))], on_error)[0]

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
        size = self._checked_size(on_error, batch_size)
        return self._stream(iter([images] if is_single(images) else images), on_error, size)

    def _checked_size(self, on_error: OnError, batch_size: int | None) -> int:
        if on_error not in ("raise", "record"):
            raise ValueError(f"on_error must be 'raise' or 'record', not {on_error!r}")
        return self.batch_size if batch_size is None else _checked_batch_size(batch_size)

    def _stream(self, sources: Iterator[ImageSource], on_error: OnError, size: int) -> Iterator[Prediction]:
        numbered = enumerate(sources, start=1)
        waiting: deque[tuple[str, Callable[[], _Reading]]] = deque()
        pool = ThreadPoolExecutor(max_workers=_READERS, thread_name_prefix="read-image")
        try:
            while True:
                for number, source in itertools.islice(numbered, 2 * size - len(waiting)):
                    name = name_of(source, number)
                    waiting.append((name, pool.submit(self._read, source, name).result))
                if not waiting:
                    return
                batch = [waiting.popleft() for _ in range(min(size, len(waiting)))]
                yield from self._answer(batch, on_error)
        finally:
            # runs too when the caller stops early or presses Ctrl-C: nothing more is read
            pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, source: ImageSource, name: str) -> "_Reading":
        image = load_image(source, name=name)
        return self.preprocess(image), picture_fault(image)

    def _answer(self, batch: "list[tuple[str, Callable[[], _Reading]]]", on_error: OnError) -> list[Prediction]:
        readings: list[_Reading] = []
        errors: dict[int, str] = {}
        for place, (_, read) in enumerate(batch):
            try:
                readings.append(read())
            except UnreadableImageError as error:
                if on_error == "raise":
                    raise
                errors[place] = error.reason
        answers = self.answers(torch.stack([pixels for pixels, _ in readings])) if readings else None
        rows = iter(range(len(readings)))
        predictions = []
        for place, (name, _) in enumerate(batch):
            if place in errors:
                predictions.append(Prediction(name, None, None, {}, errors[place]))
            else:
                row = next(rows)
                predictions.append(self.prediction(name, answers, row, readings[row][1]))
        return predictions

    def prediction(self, name: str, answers: Answers, row: int, fault: str | None) -> Prediction:
        """Return one image's answer with its decision.

        Args:
            name: of the image.
            answers: of its batch.
            row: its place there.
            fault: of ``trust.picture_fault``.
        """
        probabilities = dict(zip(self.labels, answers.probabilities[row].tolist(), strict=True))
        label = max(probabilities, key=probabilities.__getitem__)
        plain = Prediction(name, label, probabilities[label], probabilities)
        if answers.unlikeness is None:
            return plain
        sets = {coverage: tuple(itertools.compress(self.labels, left[row])) for coverage, left in answers.sets.items()}
        left = sets[self.coverage]
        unlikeness, foreign = float(answers.unlikeness[row]), float(answers.foreign[row])
        decision, reason = decide(left, unlikeness, foreign, fault)
        return replace(
            plain,
            decision=decision,
            reason=reason,
            prediction_set=left,
            prediction_sets=sets,
            unlikeness=unlikeness,
            foreign=foreign,
        )


_Reading = tuple[Tensor, str | None]
"""What the reading threads hand over: the model's input, and ``picture_fault``."""


def _checked_batch_size(batch_size: int) -> int:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    return batch_size


class Ensemble(TumorClassifier):
    """Several classifiers that answer as one, with the mean of their probabilities; each keeps its own preprocessing.

    Args:
        members: two or more, on one device. Their input sizes may differ: ``image_size`` is the largest.

    Raises:
        UserError: there are no members.
    """

    def __init__(self, members: Sequence[TumorClassifier]) -> None:
        if not members:
            raise UserError("no model is named; give one folder or Hub id, or several")
        first = members[0]
        self._members = tuple(members)
        self.device, self.batch_size, self.mirror = first.device, first.batch_size, first.mirror
        self.labels, self.folder = first.labels, None
        self.image_size = max(m.image_size[0] for m in members), max(m.image_size[1] for m in members)
        self.coverage, self.trust = first.coverage, None

    @property
    def members(self) -> tuple[TumorClassifier, ...]:
        """The classifiers that answer."""
        return self._members

    def preprocess(self, image: Image.Image) -> Tensor:
        """Turn an RGB image into every member's input: float32 (members, 3, H, W).

        Height and width are ``image_size``; what is below and right of a smaller input is 0, and ``inputs`` drops it.
        """
        height, width = self.image_size
        own = (member.preprocess(image) for member in self.members)
        return torch.stack([functional.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2])) for x in own])

    def inputs(self, pixel_values: Tensor) -> list[Tensor]:
        """Return each member's own input (N, 3, H, W) of a batch (N, members, 3, H, W) from ``preprocess``."""
        sizes = (member.image_size for member in self.members)
        return [x[..., :height, :width] for x, (height, width) in zip(pixel_values.unbind(1), sizes, strict=True)]

    def answers(self, pixel_values: Tensor) -> Answers:
        """Answer a batch with all members; see ``combine``.

        Args:
            pixel_values: float (N, members, 3, H, W) from ``preprocess``.
        """
        return self.combine([m.answers(x) for m, x in zip(self.members, self.inputs(pixel_values), strict=True)])

    def combine(self, of_members: Sequence[Answers]) -> Answers:
        """Return one answer of those of the members.

        Probabilities are the members' mean. A class is left when any member leaves it, so that a set covers at least
        what each member's covers; a picture is as unlike as the member says that finds it most unlike. Without a
        ``trust.json`` in every member there are neither sets nor unlikeness.
        """
        probabilities = np.mean([answers.probabilities for answers in of_members], axis=0)
        if any(answers.unlikeness is None for answers in of_members):
            return Answers(probabilities)
        sets = {c: np.any([answers.sets[c] for answers in of_members], axis=0) for c in of_members[0].sets}
        for left in sets.values():
            left[np.arange(len(left)), probabilities.argmax(1)] = True
        worst = (np.max([getattr(a, name) for a in of_members], axis=0) for name in ("unlikeness", "foreign"))
        return Answers(probabilities, sets, *worst)
