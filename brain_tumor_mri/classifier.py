"""The model as users call it: ``TumorClassifier.from_pretrained("model").predict("slice.jpg")`` -> ``Prediction``.

Everything that answers (app, command line, exports' checks) goes through here, so there is one preprocessing (the
model's own, from its config.json), one way to treat a file that cannot be read, and one use of ``trust.json``.
"""

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging as transformers_logging

from .decisions import COVERAGES, DEFAULT_COVERAGE, decide
from .errors import UserError
from .features import StageFeatures
from .imaging import ImageSource, UnreadableImageError, load_image
from .labels import LABELS
from .prediction import Answers, Prediction
from .trust import Calibration, Trust, load_trust, picture_fault
from .weights import DEFAULT_MODEL, find_model

OnError = Literal["raise", "record"]

_READERS = min(4, os.cpu_count() or 1)
# ResNet50 on a batch of 32 at 224 px holds about 0.4 GB of activations; halving the batch on a CPU saves half of that
# and costs no speed. GPUs need the whole batch to be busy.
_CPU_FORWARD = 16
_SOFTMAX = Calibration(1.0, {})


class TumorClassifier:
    """A model of this project, ready to answer.

    Attributes:
        model: the transformers model, in eval mode, fp32, on ``device``.
        processor: the model's own image processor; the only preprocessing there is.
        labels: class names in output order.
        image_size: (height, width) in pixels of the model's input.
        device: where the model runs.
        batch_size: images per forward pass unless a call says otherwise.
        mirror: whether each answer is the mean of the slice's and of its mirror image's, at twice the cost.
        coverage: percent, of the prediction sets that decide; one of ``decisions.COVERAGES``.
        trust: the content of ``trust.json``; None for a model without one, whose answers then carry no decision.
        members: this classifier alone, or those of an :class:`~brain_tumor_mri.ensemble.Ensemble`.
        folder: the ``ModelFolder`` that the weights came from; None when built from objects.
    """

    def __init__(
        self,
        model: torch.nn.Module,
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
            model: takes pixel_values (N, 3, H, W), returns an object with ``logits`` (N, 4).
            processor: what ``AutoImageProcessor.from_pretrained`` gave for the same model.
            device: None chooses cuda, then mps, then cpu.
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
        self.device = choose_device(device)
        self.batch_size = _checked_batch_size(batch_size)
        # convolutions of oneDNN and cuDNN run faster on channels-last weights; the answers are equal within 1e-5
        self.model = model.float().eval().to(self.device, memory_format=torch.channels_last)
        self.processor = processor
        self.labels: tuple[str, ...] = LABELS
        self.mirror = mirror
        self.coverage = coverage
        self.trust = trust
        self._features: StageFeatures | None = None
        if trust is not None:
            self._features = StageFeatures(getattr(self.model, "timm_model", self.model), trust.in_distribution.stage)
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
    ) -> "TumorClassifier":
        """Load a folder or Hub id through the standard transformers classes; safetensors only, no remote code.

        Args:
            model: a folder in the Hub's layout, or a Hub id ``owner/name``; a list of them makes an ensemble, whose
                answer is the mean of its members' calibrated probabilities.
            revision: branch, tag or commit on the Hub.
            device: ``"cpu"``, ``"cuda:0"``, ...; None chooses cuda, then mps, then cpu.
            batch_size: images per forward pass, at least 1.
            mirror: average each answer with that for the mirror image.
            coverage: percent of slices whose prediction set is to hold the true class; one of ``decisions.COVERAGES``.
            use_trust: False leaves the folder's ``trust.json`` out: plain softmax, no decisions.

        Raises:
            UserError: the model is not found, is damaged, lacks weights, or has other classes; its ``trust.json`` is
                damaged or belongs to other weights; no such device.
            ValueError: ``batch_size`` or ``coverage`` is not allowed.
        """
        device = choose_device(device)  # a wrong flag is told before a download
        if not isinstance(model, str | os.PathLike):
            from .ensemble import Ensemble  # which is a classifier, so its module imports this one

            options = {"revision": revision, "device": device, "batch_size": batch_size, "mirror": mirror}
            options |= {"coverage": coverage, "use_trust": use_trust}
            members = [cls.from_pretrained(member, **options) for member in model]
            return members[0] if len(members) == 1 else Ensemble(members)
        folder = find_model(model, revision)
        folder.require_project_labels()
        _ = folder.tensors  # reads the headers: a cut-off file is told by its name, not by a loader's traceback
        trust = load_trust(folder) if use_trust else None
        try:
            with _quiet_transformers():
                loaded, report = AutoModelForImageClassification.from_pretrained(
                    folder.path,
                    use_safetensors=True,
                    dtype=torch.float32,
                    local_files_only=True,
                    output_loading_info=True,
                )
                processor = AutoImageProcessor.from_pretrained(folder.path, local_files_only=True)
        except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"{folder.source} cannot be loaded ({reason}); download or train it again") from error
        # transformers fills a missing layer with random numbers and only logs it: the answers would be noise
        lacking = [*report["missing_keys"], *report["mismatched_keys"]]
        if lacking:
            raise UserError(f"{folder.source} lacks {len(lacking)} of the model's weights, such as {lacking[0]}")
        options = {"batch_size": batch_size, "mirror": mirror, "coverage": coverage, "trust": trust}
        classifier = cls(loaded, processor, device=device, **options)
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
        pixel_values = pixel_values.to(self.device, memory_format=torch.channels_last)
        parts = pixel_values.split(_CPU_FORWARD if self.device.type == "cpu" else len(pixel_values))
        return Answers.joined([self._answer_part(part) for part in parts])

    def _answer_part(self, pixel_values: Tensor) -> Answers:
        logits = [self.model(pixel_values=pixel_values).logits]
        features = self.take_features()
        if self.mirror:
            logits.append(self.model(pixel_values=pixel_values.flip(-1)).logits)
        return self.judge(torch.stack(logits, dim=1), features)

    def take_features(self) -> np.ndarray | None:
        """What the in-distribution check reads, of this thread's latest forward pass: (N, D); None without trust."""
        return self._features.take() if self._features else None

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
        return Answers(probabilities, sets, self.trust.in_distribution.unlikeness(features))

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
            ``source``, ``architecture`` and ``sha256`` of the weights, an ensemble's joined by ``+``; ``mirror``,
            ``coverage``; ``trust``, the fingerprint of ``trust.json``, None when a member has none.

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
            "sha256": " + ".join(folder.sha256() for folder in folders),
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
        answers = list(self.predict_stream(images, on_error=on_error, batch_size=batch_size))
        return answers[0] if is_single(images) else answers

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
        if on_error not in ("raise", "record"):
            raise ValueError(f"on_error must be 'raise' or 'record', not {on_error!r}")
        size = self.batch_size if batch_size is None else _checked_batch_size(batch_size)
        return self._stream(iter([images] if is_single(images) else images), on_error, size)

    def _stream(self, sources: Iterator[ImageSource], on_error: OnError, size: int) -> Iterator[Prediction]:
        numbered = enumerate(sources, start=1)
        waiting: deque[tuple[str, Future[_Reading]]] = deque()
        pool = ThreadPoolExecutor(max_workers=_READERS, thread_name_prefix="read-image")
        try:
            while True:
                for number, source in itertools.islice(numbered, 2 * size - len(waiting)):
                    name = name_of(source, number)
                    waiting.append((name, pool.submit(self._read, source, name)))
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

    def _answer(self, batch: "list[tuple[str, Future[_Reading]]]", on_error: OnError) -> list[Prediction]:
        readings: list[_Reading] = []
        errors: dict[int, str] = {}
        for place, (_, future) in enumerate(batch):
            try:
                readings.append(future.result())
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
        left, unlikeness = sets[self.coverage], float(answers.unlikeness[row])
        decision, reason = decide(left, unlikeness, fault)
        return replace(
            plain,
            decision=decision,
            reason=reason,
            prediction_set=left,
            prediction_sets=sets,
            unlikeness=unlikeness,
        )


_Reading = tuple[Tensor, str | None]
"""What the reading threads hand over: the model's input, and ``picture_fault``."""


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for, or the best one here: cuda, then mps, then cpu.

    Raises:
        UserError: the name means nothing, or there is no such device here.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device {device} is not available here; leave it out to have one chosen") from error
    return chosen


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Load without transformers' progress bar and notes, which mean nothing to the person who asked for an answer."""
    level, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()


def is_single(images: object) -> bool:
    """Whether this is one image; strings, bytes and open files are iterable too, but never a list of images."""
    if isinstance(images, np.ndarray):
        return images.ndim != 4
    return isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image) or hasattr(
        images, "read"
    )


def name_of(source: object, number: int) -> str:
    """Return an image's name: its path, or ``image-0001`` by its place in the call."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else f"image-{number:04d}"


def _checked_batch_size(batch_size: int) -> int:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    return batch_size
