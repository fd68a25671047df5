"""The model as users call it: ``TumorClassifier.from_pretrained("model").predict("slice.jpg")`` -> ``Prediction``.

Everything that answers (app, command line, exports' checks) goes through here, so there is one preprocessing (the
model's own, from its config.json) and one way to treat a file that cannot be read.
"""

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging as transformers_logging

from .errors import UserError
from .imaging import ImageSource, UnreadableImageError, load_image
from .labels import LABELS, TITLES
from .weights import DEFAULT_MODEL, find_model

OnError = Literal["raise", "record"]

_READERS = min(4, os.cpu_count() or 1)
# ResNet50 on a batch of 32 at 224 px holds about 0.4 GB of activations; halving the batch on a CPU saves half of that
# and costs no speed. GPUs need the whole batch to be busy.
_CPU_FORWARD = 16


@dataclass(frozen=True)
class Prediction:
    """The answer for one image, or why there is none.

    Attributes:
        name: the path as it was given, or ``image-0001`` (its place in the call) for an image from memory.
        label: the class name, one of ``labels.LABELS``; None when the image could not be read.
        confidence: the probability of ``label``, in [0, 1]; None when the image could not be read.
        probabilities: class name -> probability in [0, 1], in the order of ``labels.LABELS``, summing to 1; empty
            when the image could not be read.
        error: why the image could not be read, without its name; None when there is an answer.
    """

    name: str
    label: str | None
    confidence: float | None
    probabilities: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    @property
    def title(self) -> str:
        """The class as shown to people, such as ``Pituitary tumour``; ``Not readable`` when there is no answer."""
        return TITLES[self.label] if self.label else "Not readable"

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for ``json.dumps``; the keys are the attributes' names."""
        return {
            "name": self.name,
            "label": self.label,
            "confidence": self.confidence,
            "probabilities": dict(self.probabilities),
            "error": self.error,
        }


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
    ) -> None:
        """Wrap a model and an image processor that are loaded already; ``from_pretrained`` is the usual way in.

        Args:
            model: takes pixel_values (N, 3, H, W), returns an object with ``logits`` (N, 4).
            processor: what ``AutoImageProcessor.from_pretrained`` gave for the same model.
            device: None chooses cuda, then mps, then cpu.
            batch_size: images per forward pass, at least 1.
            mirror: average each answer with that for the mirror image.

        Raises:
            UserError: ``device`` does not exist here.
            ValueError: ``batch_size`` is below 1.
        """
        self.device = choose_device(device)
        self.batch_size = _checked_batch_size(batch_size)
        # convolutions of oneDNN and cuDNN run faster on channels-last weights; the answers are equal within 1e-5
        self.model = model.float().eval().to(self.device, memory_format=torch.channels_last)
        self.processor = processor
        self.labels: tuple[str, ...] = LABELS
        self.mirror = mirror
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
    ) -> "TumorClassifier":
        """Load a folder or Hub id through the standard transformers classes; safetensors only, no remote code.

        Args:
            model: a folder in the Hub's layout, or a Hub id ``owner/name``; a list of them makes an ensemble, whose
                answer is the mean of its members' probabilities.
            revision: branch, tag or commit on the Hub.
            device: ``"cpu"``, ``"cuda:0"``, ...; None chooses cuda, then mps, then cpu.
            batch_size: images per forward pass, at least 1.
            mirror: average each answer with that for the mirror image.

        Raises:
            UserError: the model is not found, is damaged, lacks weights, or has other classes; no such device.
        """
        device = choose_device(device)  # a wrong flag is told before a download
        if not isinstance(model, str | os.PathLike):
            from .ensemble import Ensemble  # which is a classifier, so its module imports this one

            options = {"revision": revision, "device": device, "batch_size": batch_size, "mirror": mirror}
            members = [cls.from_pretrained(member, **options) for member in model]
            return members[0] if len(members) == 1 else Ensemble(members)
        folder = find_model(model, revision)
        folder.require_project_labels()
        _ = folder.tensors  # reads the headers: a cut-off file is told by its name, not by a loader's traceback
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
        classifier = cls(loaded, processor, device=device, batch_size=batch_size, mirror=mirror)
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

    @torch.inference_mode()
    def probabilities(self, pixel_values: Tensor) -> Tensor:
        """Class probabilities of a batch.

        Args:
            pixel_values: float (N, 3, H, W) from ``preprocess``, on any device; N at least 1.

        Returns:
            float32 (N, 4) on the CPU; rows sum to 1, columns in the order of ``labels``.
        """
        pixel_values = pixel_values.to(self.device, memory_format=torch.channels_last)
        parts = pixel_values.split(_CPU_FORWARD if self.device.type == "cpu" else len(pixel_values))
        return torch.cat([self._answer_part(part).cpu() for part in parts])

    def _answer_part(self, pixel_values: Tensor) -> Tensor:
        views = (pixel_values, pixel_values.flip(-1)) if self.mirror else (pixel_values,)
        answers = [self.model(pixel_values=view).logits.float().softmax(dim=-1) for view in views]
        return torch.stack(answers).mean(0)

    @property
    def members(self) -> tuple["TumorClassifier", ...]:
        """The classifiers that answer: this one."""
        return (self,)

    def describe(self) -> dict[str, Any]:
        """Return ``source``, ``architecture`` and ``sha256`` of the weights, an ensemble's joined by ``+``; ``mirror``.

        Raises:
            ValueError: the classifier was built from objects, not loaded.
        """
        folders = [member.folder for member in self.members]
        if None in folders:
            raise ValueError("a classifier that was not loaded from a folder has no source")
        return {
            "source": " + ".join(folder.source for folder in folders),
            "architecture": " + ".join(folder.architecture for folder in folders),
            "sha256": " + ".join(folder.sha256() for folder in folders),
            "mirror": self.mirror,
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
        waiting: deque[tuple[str, Future[Tensor]]] = deque()
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

    def _read(self, source: ImageSource, name: str) -> Tensor:
        return self.preprocess(load_image(source, name=name))

    def _answer(self, batch: list[tuple[str, Future[Tensor]]], on_error: OnError) -> list[Prediction]:
        pixels: list[Tensor] = []
        errors: dict[int, str] = {}
        for place, (_, future) in enumerate(batch):
            try:
                pixels.append(future.result())
            except UnreadableImageError as error:
                if on_error == "raise":
                    raise
                errors[place] = error.reason
        rows = iter(self.probabilities(torch.stack(pixels)).tolist() if pixels else [])
        return [
            Prediction(name, None, None, {}, errors[place]) if place in errors else self._prediction(name, next(rows))
            for place, (name, _) in enumerate(batch)
        ]

    def _prediction(self, name: str, row: list[float]) -> Prediction:
        probabilities = dict(zip(self.labels, row, strict=True))
        label = max(probabilities, key=probabilities.__getitem__)
        return Prediction(name, label, probabilities[label], probabilities)


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
