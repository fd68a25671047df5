"""Where the model looked: ``TumorClassifier.explain``, and what it is made of.

``classifier.explain("slice.jpg").overlay().save("overlay.png")``. A map shows what speaks for one class in the model's
eyes; it is no outline of a tumour. How often it points at one is measured by
``benchmarks/accuracy/explain_accuracy.py``. The methods are those of ``cam.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from ..images.read import ImageSource, is_single, name_of
from ..inference.classifier import TumorClassifier
from ..inference.prediction import Answers, OnError, Prediction, Reading, pixels_of
from ..labels import NO_TUMOR
from ..machine import cpu_count
from ..trust.decision import ANSWER, UNCERTAIN
from . import DECODER, FUSED_CAM, METHODS
from .cam import forward, mean_maps
from .head import head_mask

COLOURS = (
    "0d0887", "2f0596", "4903a0", "6100a7", "7801a8", "8e0ca4", "a21d9a", "b42e8d", "c43e7f",
    "d24f71", "de6164", "e97257", "f3854b", "f99a3e", "fdaf31", "fdc627", "f8df25", "f0f921",
)  # fmt: skip
"""The colour scale, from 0 to 1: every 15th of matplotlib's ``plasma`` (CC0), which is even to the eye, and told apart
by colour-blind people. Between them colours are mixed, which is off by at most 5 of 255."""
SEEN = 0.05
"""Of a drawn map; what nowhere reaches it is called empty."""
MOSTLY = 0.5
"""Share of the evidence outside the head above which neither map nor answer is to be relied on."""
_READERS = min(4, cpu_count())


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where the model looked in one image, or why that cannot be said.

    Attributes:
        prediction: the answer, as ``predict`` gives it; its ``error`` says why an image has none.
        target: the class that the map speaks for; None when the image could not be read.
        heat_map: float32 (H, W) in [0, 1] at the size of the model's input, the highest value 1; all 0 where nothing
            speaks for ``target``. None when the image could not be read.
        image: the slice as the model saw it, RGB (W, H), normalisation undone; None when it could not be read.
        original_size: (width, height) in pixels of the image as it was given, upright; None when it could not be read.
    """

    prediction: Prediction
    target: str | None = None
    heat_map: np.ndarray | None = None
    image: Image.Image | None = None
    original_size: tuple[int, int] | None = None

    @property
    def error(self) -> str | None:
        """Why there is no map; None when there is one."""
        return self.prediction.error

    @cached_property
    def shown_map(self) -> np.ndarray:
        """The map as it is drawn: float32 (H, W) in [0, 1], inside the head only and on one scale for all classes.

        The scale is the class's probability over that of the most probable class, so what the model hardly believes
        in is hardly seen. "No tumour" has no place: its map is all 0.

        Raises:
            ValueError: there is no map.
        """
        heat = self._require_map()
        if self.target == NO_TUMOR:
            return np.zeros_like(heat)
        probabilities = self.prediction.probabilities
        return heat * self._head * np.float32(probabilities[str(self.target)] / max(probabilities.values()))

    @cached_property
    def outside_head(self) -> float:
        """What share of the evidence lies outside the head, in [0, 1]; 0 of an empty map.

        Raises:
            ValueError: there is no map.
        """
        heat = self._require_map()
        total = float(heat.sum())
        return float(heat[~self._head].sum()) / total if total else 0.0

    @property
    def judged(self) -> Prediction:
        """The prediction; ``uncertain`` instead of ``answer`` where most evidence for its class lies outside the head.

        Raises:
            ValueError: there is no map.
        """
        prediction = self.prediction
        doubtful = self.target == prediction.label != NO_TUMOR and self.outside_head > MOSTLY
        if prediction.decision != ANSWER or not doubtful:
            return prediction
        reason = f"{self.outside_head:.0%} of the evidence for it lies outside the head"
        return replace(prediction, decision=UNCERTAIN, reason=reason)

    @property
    def is_empty(self) -> bool:
        """Whether ``shown_map`` has nothing that an eye would see.

        Raises:
            ValueError: there is no map.
        """
        return bool(self.shown_map.max() < SEEN)

    @cached_property
    def _head(self) -> np.ndarray:
        return head_mask(self.image)

    def overlay(self, opacity: float = 0.6) -> Image.Image:
        """Return ``shown_map`` on the slice as the model saw it: RGB, (W, H) of the model's input.

        Args:
            opacity: of the colour where the map is 1, in [0, 1]; where it is 0 the slice is left as it is.

        Raises:
            ValueError: there is no map, or ``opacity`` is out of range.
        """
        if not 0 <= opacity <= 1:
            raise ValueError(f"opacity must be between 0 and 1, not {opacity}")
        heat = self.shown_map
        weight = opacity * heat[..., None]
        mixed = (1 - weight) * np.asarray(self.image, np.float32) + weight * colour(heat)
        return Image.fromarray(np.rint(mixed).astype(np.uint8))

    def original_heat_map(self) -> np.ndarray:
        """Return the map at the size of the image as it was given: float32 (height, width) in [0, 1].

        This project's models take the whole slice, squashed to their input size, so the way back is a plain resize;
        for a model of other making, whose processor crops, the map would be stretched too far.

        Raises:
            ValueError: there is no map.
        """
        resized = Image.fromarray(self._require_map()).resize(self.original_size, Image.Resampling.BILINEAR)
        return np.clip(np.asarray(resized), 0, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for ``json.dumps``: the prediction's, and ``target``."""
        prediction = self.prediction if self.heat_map is None else self.judged
        return prediction.to_dict() | {"target": self.target}

    def _require_map(self) -> np.ndarray:
        if self.heat_map is None:
            raise ValueError(f"{self.prediction.name} has no heat map: {self.error}")
        return self.heat_map


def explain(
    classifier: TumorClassifier,
    images: ImageSource | Iterable[ImageSource],
    target: str | None = None,
    *,
    method: str | None = None,
    on_error: OnError = "raise",
    batch_size: int | None = None,
) -> Explanation | list[Explanation]:
    """Do the work of ``TumorClassifier.explain``; safe to call from several threads while others predict.

    Where the classifier averages (``mirror``, an ensemble), the map is the mean of the maps of all that is averaged,
    mirrored ones turned back, scaled to a highest value of 1. An ``Explanation`` holds about 0.35 MB at 224 px.
    """
    method = method_of(classifier, method)
    size = classifier.checked_size(on_error, batch_size)
    if target not in (None, *classifier.labels):
        raise ValueError(f"target must be one of {', '.join(classifier.labels)}, not {target!r}")
    if is_single(images):
        return _explain_readings(classifier, [classifier.read(images, name_of(images, 1))], target, method, on_error)[0]
    named = ((source, name_of(source, number)) for number, source in enumerate(images, start=1))
    done: list[Explanation] = []
    with ThreadPoolExecutor(_READERS, thread_name_prefix="read-image") as pool:
        while batch := list(islice(named, size)):
            readings = list(pool.map(lambda item: classifier.read(*item), batch))
            done += _explain_readings(classifier, readings, target, method, on_error)
    return done


def heat_maps(
    classifier: TumorClassifier,
    pixel_values: np.ndarray,
    targets: Sequence[int] | None = None,
    *,
    method: str | None = None,
) -> tuple[np.ndarray, Answers]:
    """Compute the maps of a batch; see ``cam.py`` for the methods.

    The gradient is of the class's logit. It is taken back to the feature map only, so that a map costs little more
    than the forward pass that the answer needs anyway.

    Args:
        classifier: the model.
        pixel_values: what ``classifier.preprocess`` returns, stacked: float32 (N, 3, H, W), or (N, members, 3, H, W)
            for an ensemble; N at least 1.
        targets: (N) class indices; None takes the class answered.
        method: one of ``METHODS``, or ``DECODER``; None takes the decoder where the model has one, else ``fused-cam``.

    Returns:
        Maps, float32 (N, H, W) in [0, 1], each with a highest value of 1 or all 0; and ``classifier.answers``.

    Raises:
        UserError: the model has no such feature map.
    """
    views, answers = forward(classifier, pixel_values, method_of(classifier, method))
    classes = answers.probabilities.argmax(1).tolist() if targets is None else list(targets)
    return mean_maps(views, classes, tuple(pixel_values.shape[-2:])), answers


def explain_classes(classifier: TumorClassifier, image: ImageSource, *, method: str | None = None) -> list[Explanation]:
    """Show what speaks for each class in one image: ``explain`` for every target, by one forward pass for all.

    Args:
        classifier: the model.
        image: as for ``explain``, one.
        method: one of ``METHODS``, or ``DECODER``; None takes the decoder where the model has one, else ``fused-cam``.

    Returns:
        One ``Explanation`` a class, in the model's order; each has the same ``prediction``.

    Raises:
        UnreadableImageError: the image cannot be read.
        UserError: the model has no such feature map (a plain vision transformer).
        ValueError: ``method`` is not allowed.
    """
    method = method_of(classifier, method)
    reading = classifier.read(image, name_of(image, 1))
    pixel_values = pixels_of([reading], "raise")
    views, answers = forward(classifier, pixel_values, method)
    (prediction,) = classifier.answer_readings([reading], answers=answers)
    (seen,) = _as_seen(classifier, pixel_values)
    size = tuple(pixel_values.shape[-2:])
    return [
        Explanation(prediction, target, mean_maps(views, [c], size)[0], seen, reading.size)
        for c, target in enumerate(classifier.labels)
    ]


def colour(heat: np.ndarray) -> np.ndarray:
    """Return the colours, uint8 (..., 3), of a map in [0, 1]."""
    stops = np.array([list(bytes.fromhex(colour)) for colour in COLOURS])
    levels = np.linspace(0, len(stops) - 1, 256)
    table = np.stack([np.interp(levels, np.arange(len(stops)), channel) for channel in stops.T], axis=1)
    return np.rint(table).astype(np.uint8)[np.rint(255 * heat).astype(np.uint8)]


def method_of(classifier: TumorClassifier, method: str | None) -> str:
    """The method asked for; by default the decoder, where every member has one."""
    if method not in (None, DECODER, *METHODS):
        raise ValueError(f"method must be one of {', '.join((DECODER, *METHODS))}, not {method!r}")
    if method in METHODS:
        return method
    has_decoder = all(member.decoder for member in classifier.members)
    if method == DECODER and not has_decoder:
        raise UserError("this model has no decoder.json of its weights; `brain-tumor-mri decoder` writes one")
    return DECODER if has_decoder else FUSED_CAM


def _explain_readings(
    classifier: TumorClassifier, readings: Sequence[Reading], target: str | None, method: str, on_error: OnError
) -> list[Explanation]:
    pixels, answers = pixels_of(readings, on_error), None
    found = iter(())
    if pixels is not None:
        classes = None if target is None else [classifier.labels.index(target)] * len(pixels)
        maps, answers = heat_maps(classifier, pixels, classes, method=method)
        found = zip(maps, _as_seen(classifier, pixels), strict=True)
    predictions = classifier.answer_readings(readings, answers=answers)
    return [
        Explanation(prediction)
        if reading.error
        else Explanation(prediction, target or prediction.label, *next(found), reading.size)
        for reading, prediction in zip(readings, predictions, strict=True)
    ]


def _as_seen(classifier: TumorClassifier, pixel_values: np.ndarray) -> list[Image.Image]:
    """Undo the normalisation, which the processor shows on black and on white; of an ensemble, its largest input's."""
    by_member = zip(classifier.members, classifier.inputs(pixel_values), strict=True)
    member, pixel_values = max(by_member, key=lambda pair: pair[1].shape[-1])
    black, white = (member.preprocess(Image.new("RGB", (8, 8), level))[:, :1, :1] for level in ("black", "white"))
    pixels = np.clip(255 * (pixel_values - black) / (white - black), 0, 255).round().astype(np.uint8)
    return [Image.fromarray(slice_) for slice_ in pixels.transpose(0, 2, 3, 1)]
