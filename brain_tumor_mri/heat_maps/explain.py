"""Where the model looked: class activation maps, in Python and as ``brain-tumor-mri explain FILE...``.

``explain(classifier, ["slice.jpg"])[0].overlay().save("overlay.png")``. A map shows what speaks for one class in the
model's eyes; it is no outline of a tumour. How often it points at one is measured by
``benchmarks/explain_accuracy.py``. The methods are those of ``activation_maps``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from ..labels import LABEL2ID, LABELS
from ..machine import cpu_count
from .cam import DEFAULT_METHOD, METHODS, look, mean_maps

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor

    from ..images.read import ImageSource
    from ..inference.classifier import TumorClassifier
    from ..inference.prediction import Answers, Prediction

COLOURS = "plasma"
"""matplotlib's name of the colour scale: even to the eye, and told apart by colour-blind people."""
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

    def overlay(self, opacity: float = 0.6) -> Image.Image:
        """Return the heat map on the slice as the model saw it: RGB, (W, H) of the model's input.

        Args:
            opacity: of the colour where the map is 1, in [0, 1]; where it is 0 the slice is left as it is.

        Raises:
            ValueError: there is no map, or ``opacity`` is out of range.
        """
        import numpy as np
        from PIL import Image

        if not 0 <= opacity <= 1:
            raise ValueError(f"opacity must be between 0 and 1, not {opacity}")
        heat = self._require_map()
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
        import numpy as np
        from PIL import Image

        resized = Image.fromarray(self._require_map()).resize(self.original_size, Image.Resampling.BILINEAR)
        return np.clip(np.asarray(resized), 0, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for ``json.dumps``: the prediction's, and ``target``."""
        return self.prediction.to_dict() | {"target": self.target}

    def _require_map(self) -> np.ndarray:
        if self.heat_map is None:
            raise ValueError(f"{self.prediction.name} has no heat map: {self.error}")
        return self.heat_map


def explain(
    classifier: TumorClassifier,
    images: ImageSource | Iterable[ImageSource],
    target: str | None = None,
    *,
    method: str = DEFAULT_METHOD,
    on_error: Literal["raise", "record"] = "raise",
    batch_size: int | None = None,
) -> list[Explanation]:
    """Show where the model looks in each image; safe to call from several threads while others predict.

    Args:
        classifier: the model. Where it averages (``mirror``, an ensemble), the map is the mean of the maps of all that
            is averaged, mirrored ones turned back, scaled to a highest value of 1.
        images: as for ``TumorClassifier.predict``; one image gives a list of one.
        target: the class whose evidence is shown; None takes, for each image, the class answered.
        method: one of ``METHODS``.
        on_error: ``"raise"``, or ``"record"`` to get an ``Explanation`` with ``error`` for a bad image and go on.
        batch_size: images per forward pass; None takes the classifier's.

    Returns:
        One ``Explanation`` an image, in order; each holds about 0.35 MB at 224 px.

    Raises:
        UnreadableImageError: an image cannot be read and ``on_error`` is ``"raise"``.
        UserError: the model has no such feature map (a plain vision transformer).
        ValueError: ``target``, ``method``, ``on_error`` or ``batch_size`` is not allowed.
    """
    from ..images.read import is_single, name_of

    if target is not None and target not in LABELS:
        raise ValueError(f"target must be one of {', '.join(LABELS)}, not {target!r}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    if on_error not in ("raise", "record"):
        raise ValueError(f"on_error must be 'raise' or 'record', not {on_error!r}")
    size = classifier.batch_size if batch_size is None else batch_size
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, not {size}")
    sources = iter([images] if is_single(images) else images)
    named = ((name_of(source, number), source) for number, source in enumerate(sources, start=1))
    done: list[Explanation] = []
    with ThreadPoolExecutor(_READERS, thread_name_prefix="read-image") as pool:
        while batch := list(islice(named, size)):
            done += _explain_batch(classifier, batch, target, method, on_error, pool)
    return done


def heat_maps(
    classifier: TumorClassifier,
    pixel_values: Tensor,
    targets: Sequence[int] | None = None,
    *,
    method: str = DEFAULT_METHOD,
) -> tuple[np.ndarray, Answers]:
    """Compute the maps of a batch; see ``activation_maps`` for the methods.

    The gradient is of the class's logit. It is taken back to the feature map only, so that a map costs little more
    than the forward pass that the answer needs anyway.

    Args:
        classifier: the model.
        pixel_values: what ``classifier.preprocess`` returns, stacked: float (N, 3, H, W), or (N, members, 3, H, W) for
            an ensemble; N at least 1, on any device.
        targets: (N) class indices; None takes the class answered.
        method: one of ``METHODS``.

    Returns:
        Maps, float32 (N, H, W) in [0, 1], each with a highest value of 1 or all 0; and ``classifier.answers``.

    Raises:
        UserError: the model has no such feature map.
    """
    views, answers = look(classifier, pixel_values, method)
    classes = answers.probabilities.argmax(1).tolist() if targets is None else list(targets)
    return mean_maps(views, classes, tuple(pixel_values.shape[-2:])), answers


def explain_classes(
    classifier: TumorClassifier, image: ImageSource, *, method: str = DEFAULT_METHOD
) -> list[Explanation]:
    """Show what speaks for each class in one image: ``explain`` for every target, by one forward pass for all.

    Args:
        classifier: as for ``explain``.
        image: as for ``explain``, one.
        method: one of ``METHODS``.

    Returns:
        One ``Explanation`` a class, in the order of ``LABELS``; each has the same ``prediction``.

    Raises:
        UnreadableImageError: the image cannot be read.
        UserError: the model has no such feature map (a plain vision transformer).
        ValueError: ``method`` is not allowed.
    """
    from ..images.read import load_image, name_of
    from ..trust.decision import picture_fault

    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    name = name_of(image, 1)
    loaded = load_image(image, name=name)
    pixel_values = classifier.preprocess(loaded)[None]
    views, answers = look(classifier, pixel_values, method)
    prediction = classifier.prediction(name, answers, 0, picture_fault(loaded))
    (seen,) = _as_seen(classifier, pixel_values)
    maps = (mean_maps(views, [LABEL2ID[target]], tuple(pixel_values.shape[-2:]))[0] for target in LABELS)
    return [Explanation(prediction, target, heat, seen, loaded.size) for target, heat in zip(LABELS, maps, strict=True)]


def colour(heat: np.ndarray) -> np.ndarray:
    """Return the colours, uint8 (..., 3), of a map in [0, 1]."""
    import matplotlib
    import numpy as np

    # a table of 256: matplotlib's own call makes four float64 a pixel, 3 GB for the largest image that is read
    table = np.rint(255 * matplotlib.colormaps[COLOURS](np.arange(256))[:, :3]).astype(np.uint8)
    return table[np.rint(255 * heat).astype(np.uint8)]


def _explain_batch(
    classifier: TumorClassifier,
    batch: Sequence[tuple[str, ImageSource]],
    target: str | None,
    method: str,
    on_error: str,
    pool: ThreadPoolExecutor,
) -> list[Explanation]:
    import torch

    from ..images.read import UnreadableImageError, load_image
    from ..inference.prediction import Prediction
    from ..trust.decision import picture_fault

    def read(item: tuple[str, ImageSource]) -> tuple[Tensor, tuple[int, int], str | None] | UnreadableImageError:
        name, source = item
        try:
            image = load_image(source, name=name)
        except UnreadableImageError as error:
            return error
        return classifier.preprocess(image), image.size, picture_fault(image)

    readings = list(pool.map(read, batch))
    errors = [reading for reading in readings if isinstance(reading, UnreadableImageError)]
    if errors and on_error == "raise":
        raise errors[0]
    good = [reading for reading in readings if not isinstance(reading, UnreadableImageError)]
    found: Iterator[tuple[int, np.ndarray, Image.Image]] = iter(())
    if good:
        pixels = torch.stack([pixel_values for pixel_values, *_ in good])
        classes = None if target is None else [LABEL2ID[target]] * len(good)
        maps, answers = heat_maps(classifier, pixels, classes, method=method)
        found = zip(range(len(good)), maps, _as_seen(classifier, pixels), strict=True)
    explanations = []
    for (name, _), reading in zip(batch, readings, strict=True):
        if isinstance(reading, UnreadableImageError):
            explanations.append(Explanation(Prediction(name, None, None, {}, reading.reason)))
            continue
        row, heat, seen = next(found)
        _, size, fault = reading
        prediction = classifier.prediction(name, answers, row, fault)
        explanations.append(Explanation(prediction, target or prediction.label, heat, seen, size))
    return explanations


def _as_seen(classifier: TumorClassifier, pixel_values: Tensor) -> list[Image.Image]:
    """Undo the normalisation, which the processor shows on black and on white; of an ensemble, its largest input's."""
    import numpy as np
    from PIL import Image

    by_member = zip(classifier.members, classifier.inputs(pixel_values), strict=True)
    member, pixel_values = max(by_member, key=lambda pair: pair[1].shape[-1])
    black, white = (member.preprocess(Image.new("RGB", (8, 8), level))[:, :1, :1] for level in ("black", "white"))
    pixels = (255 * (pixel_values - black) / (white - black)).clamp(0, 255).round().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(slice_) for slice_ in pixels.astype(np.uint8)]
