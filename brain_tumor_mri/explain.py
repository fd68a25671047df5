"""Where the model looked: Grad-CAM heat maps, in Python and as ``brain-tumor-mri explain FILE...``.

``explain(classifier, ["slice.jpg"])[0].overlay().save("overlay.png")``. A map shows what speaks for one class in the
model's eyes; it is no outline of a tumour. How often it points at one is measured by
``benchmarks/explain_accuracy.py``. The maps are those of the package grad-cam, by one of two methods:

- ``grad-cam`` (Selvaraju et al. 2017, arXiv:1610.02391): ReLU(sum over channels of mean gradient x activation) of the
  last feature map before pooling, what timm's ``forward_features`` returns (ResNet: after ``layer4``; EfficientNet:
  after ``conv_head`` and its batch norm). Its cells are 32 pixels wide, wider than many tumours.
- ``layer-cam`` (Jiang et al. 2021, 10.1109/TIP.2021.3089943): ReLU(sum over channels of ReLU(gradient) x activation),
  which holds for earlier maps too, here the one with cells of 16 pixels (ResNet: after ``layer3``).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from .errors import UserError
from .labels import LABEL2ID, LABELS

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor, nn

    from .classifier import TumorClassifier
    from .imaging import ImageSource
    from .prediction import Answers, Prediction

GRAD_CAM, LAYER_CAM = "grad-cam", "layer-cam"
METHODS = {GRAD_CAM: "GradCAM", LAYER_CAM: "LayerCAM"}
"""Method -> its class in the package."""
DEFAULT_METHOD = GRAD_CAM
FINE_STRIDE = 16
"""Pixels a cell of the feature map that ``layer-cam`` takes."""
COLOURS = "plasma"
"""matplotlib's name of the colour scale: even to the eye, and told apart by colour-blind people."""
_READERS = min(4, os.cpu_count() or 1)


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
    from .classifier import is_single, name_of

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
    """Compute the maps of a batch; see the module's head for the methods.

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
    import numpy as np
    import torch

    by_member = pixel_values.unbind(1) if pixel_values.ndim == 5 else (pixel_values,)
    height, width = pixel_values.shape[-2:]
    # a caller's inference mode would forbid the gradients
    with torch.inference_mode(False), torch.enable_grad():
        views = [_views(member, x, method) for member, x in zip(classifier.members, by_member, strict=True)]
        of_members = [
            member.judge(torch.stack([view.logits for view in ours], dim=1), ours[0].features)
            for member, ours in zip(classifier.members, views, strict=True)
        ]
        answers = classifier.combine(of_members)
        classes = answers.probabilities.argmax(1).tolist() if targets is None else list(targets)
        maps = [np.mean([_view_maps(v, classes, (height, width), method) for v in ours], axis=0) for ours in views]
    mean = np.mean(maps, axis=0, dtype=np.float32)
    highest = mean.max((1, 2), keepdims=True)
    return np.divide(mean, highest, out=np.zeros_like(mean), where=highest > 0), answers


def colour(heat: np.ndarray) -> np.ndarray:
    """Return the colours, uint8 (..., 3), of a map in [0, 1]."""
    import matplotlib
    import numpy as np

    # a table of 256: matplotlib's own call makes four float64 a pixel, 3 GB for the largest image that is read
    table = np.rint(255 * matplotlib.colormaps[COLOURS](np.arange(256))[:, :3]).astype(np.uint8)
    return table[np.rint(255 * heat).astype(np.uint8)]


@dataclass(frozen=True)
class _View:
    """A batch as one network saw it, mirrored or not.

    Attributes:
        feature_map: (N, C, h, w), the start of the graph that leads to ``logits``.
        logits: (N, 4).
        features: (N, D) of ``TumorClassifier.take_features``; None without a ``trust.json``.
        mirrored: whether the batch was mirrored.
    """

    feature_map: Tensor
    logits: Tensor
    features: np.ndarray | None
    mirrored: bool


def _views(member: TumorClassifier, pixel_values: Tensor, method: str) -> list[_View]:
    """Run one member over a batch, and over its mirror image where it averages both."""
    import torch

    network = _twin(getattr(member.model, "timm_model", member.model))
    pixel_values = pixel_values.to(member.device, memory_format=torch.channels_last)
    return [
        _View(
            *_run(network, pixel_values.flip(-1) if mirrored else pixel_values, method),
            features=member.take_features(),
            mirrored=mirrored,
        )
        for mirrored in ((False, True) if member.mirror else (False,))
    ]


def _twin(network: nn.Module) -> nn.Module:
    """Return a network that shares every weight, but has hooks of its own and no gradients for the weights.

    So nothing here can disturb threads that predict with the network, or leave anything behind on it.
    """
    from torch import nn

    shared: dict[int, Any] = {id(buffer): buffer for buffer in network.buffers()}
    shared |= {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in network.parameters()}
    return copy.deepcopy(network, shared).eval()


def _run(network: nn.Module, pixel_values: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Return the method's feature map and the logits, which can be differentiated by it and by nothing before it."""
    kept: list[Tensor] = []

    def keep(feature_map: Tensor) -> Tensor:
        kept.append(feature_map.detach().requires_grad_())
        return kept[-1].clone()  # an in-place activation after it must not write into the map that is kept

    if method == GRAD_CAM:
        logits = network.forward_head(keep(network.forward_features(pixel_values)))
    else:
        layers = [row["module"] for row in getattr(network, "feature_info", ()) if row["reduction"] == FINE_STRIDE]
        if not layers:
            raise UserError(f"this model has no feature map at 1/{FINE_STRIDE} of its input; use {GRAD_CAM} instead")
        network.get_submodule(layers[-1]).register_forward_hook(lambda layer, inputs, output: keep(output))
        logits = network.forward_head(network.forward_features(pixel_values))
    if kept[-1].ndim != 4 or str(getattr(network, "output_fmt", "NCHW")) != "NCHW":
        raise UserError("this model has no convolutional feature map, so it cannot be explained")
    return kept[-1], logits


def _view_maps(view: _View, classes: Sequence[int], size: tuple[int, int], method: str) -> np.ndarray:
    """Return the package's maps of one view, turned back if mirrored: float32 (N, H, W) in [0, 1].

    The forward pass is done already, as the class to explain may depend on the answers of other views: the network
    that the package is given hands out what is there.
    """
    import numpy as np
    import pytorch_grad_cam
    import torch
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    class Finished(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Identity()
            self.device = torch.nn.Parameter(torch.empty(0, device=view.logits.device))  # the package asks a weight

        def forward(self, _: Tensor) -> Tensor:
            self.layer(view.feature_map)
            return view.logits

    network = Finished()
    of_input_size = torch.empty((len(view.logits), 0, *size), device=view.logits.device)  # only its shape is read
    cam = getattr(pytorch_grad_cam, METHODS[method])(network, [network.layer])
    try:
        maps = cam(of_input_size, [ClassifierOutputTarget(index) for index in classes])
    finally:
        cam.activations_and_grads.release()  # not by ``with``, which would print and swallow an IndexError
    return np.ascontiguousarray(maps[..., ::-1]) if view.mirrored else maps


def _explain_batch(
    classifier: TumorClassifier,
    batch: Sequence[tuple[str, ImageSource]],
    target: str | None,
    method: str,
    on_error: str,
    pool: ThreadPoolExecutor,
) -> list[Explanation]:
    import torch

    from .imaging import UnreadableImageError, load_image
    from .prediction import Prediction
    from .trust import picture_fault

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
    """Undo the normalisation, which the processor shows on black and on white; of an ensemble, the first member's."""
    import numpy as np
    from PIL import Image

    first = classifier.members[0]
    if pixel_values.ndim == 5:
        pixel_values = pixel_values[:, 0]
    black, white = (first.preprocess(Image.new("RGB", (8, 8), level))[:, :1, :1] for level in ("black", "white"))
    pixels = (255 * (pixel_values - black) / (white - black)).clamp(0, 255).round().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(slice_) for slice_ in pixels.astype(np.uint8)]
