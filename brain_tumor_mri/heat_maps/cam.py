"""Class activation maps of a batch: ``forward`` runs the networks, ``mean_maps`` explains any class from there.

An ONNX export gives the maps of all classes as outputs of its graph (``export/with_maps.py``); for PyTorch weights
``gradients.py`` works them out. What follows is the same NumPy for both. The methods:

- ``grad-cam`` (Selvaraju et al. 2017, arXiv:1610.02391): ReLU(sum over channels of mean gradient x activation) of the
  last feature map before pooling, what timm's ``forward_features`` returns (ResNet: after ``layer4``; EfficientNet:
  after ``conv_head`` and its batch norm). Its cells are 32 pixels wide, wider than many tumours.
- ``layer-cam`` (Jiang et al. 2021, 10.1109/TIP.2021.3089943): ReLU(sum over channels of ReLU(gradient) x activation),
  which holds for earlier maps too, here the one with cells of 16 pixels (ResNet: after ``layer3``).
- ``fused-cam``: the product of the two, place by place: what the first finds, as finely as the second can say where.
  Chosen in one unrecorded trial on validation tumours with radiologists' outlines (EfficientNet-Lite0,
  ``patient-disjoint`` fold 1); what it is worth on test tumours is in the models' ``explain.json``. A network that
  lists no finer map gets ``grad-cam``'s.
- ``decoder``: no activation map, but where the network's own features look like outlined tumour of that class
  (``inference/decoder.py``), in cells of 8 pixels; the default of a model that has a ``decoder.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

import numpy as np

from ..errors import UserError
from ..inference.classifier import TumorClassifier
from ..inference.load import pytorch
from ..inference.member import Member
from ..inference.network import CELLS, FINE_STRIDE
from ..inference.prediction import Answers
from . import DECODER, GRAD_CAM, METHODS

_TINY = 1e-7


class View(Protocol):
    """A batch as one network saw it, mirrored or not.

    Attributes:
        logits: (N, 4).
        features: (N, D) that ``trust.json`` reads; None without one.
        mirrored: whether the batch was mirrored.
    """

    logits: np.ndarray
    features: np.ndarray | None
    mirrored: bool

    def cells(self, classes: Sequence[int]) -> list[np.ndarray]:
        """Return the maps that the method multiplies, each (N, h, w), 0 or more, of one class an image."""


@dataclass(frozen=True, eq=False)
class GraphView:
    """What an exported graph gave: ``maps`` has the cells (N, 4, h, w) of all classes."""

    maps: Sequence[np.ndarray]
    logits: np.ndarray
    features: np.ndarray | None
    mirrored: bool

    def cells(self, classes: Sequence[int]) -> list[np.ndarray]:
        """See :class:`View`."""
        return [cells[np.arange(len(cells)), list(classes)] for cells in self.maps]


def forward(classifier: TumorClassifier, pixel_values: np.ndarray, method: str) -> tuple[list[list[View]], Answers]:
    """Run a batch forward.

    Args:
        classifier: the model.
        pixel_values: as for ``explain.heat_maps``.
        method: one of ``METHODS``, or ``DECODER``.

    Returns:
        Of each member its views, one or two; and ``classifier.answers``.
    """
    inputs = classifier.inputs(pixel_values)
    views = [_views(member, x, method) for member, x in zip(classifier.members, inputs, strict=True)]
    of_members = [
        member.answers_from(np.stack([view.logits for view in ours], 1), ours[0].features)
        for member, ours in zip(classifier.members, views, strict=True)
    ]
    return views, Answers.combined(of_members)


def mean_maps(views: Sequence[Sequence[View]], classes: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Explain a class of each image; may be called again with others.

    Args:
        views: of ``forward``.
        classes: (N) class indices.
        size: height and width of the network's input.

    Returns:
        The mean of the maps of all views, float32 (N, H, W) in [0, 1], each with a highest value of 1 or all 0.
    """
    of_members = [np.mean([_view_maps(view, classes, size) for view in ours], axis=0) for ours in views]
    return _up_to_one(np.mean(of_members, axis=0))


def _views(member: Member, pixel_values: np.ndarray, method: str) -> list[View]:
    """Run one member over a batch, and over its mirror image where it averages both."""
    of_graph = getattr(member.network, "maps", ())
    if (DECODER if method == DECODER else GRAD_CAM) not in of_graph:
        pytorch()  # says what is missing where it is not installed
        return import_module(f"{__package__}.gradients").views(member, pixel_values, method)
    wanted = [name for name in METHODS.get(method, (method,)) if name in of_graph]
    if not wanted:
        raise no_finer_map()
    views: list[View] = []
    for mirrored in (False, True) if member.mirror else (False,):
        pixels = np.ascontiguousarray(pixel_values[..., ::-1] if mirrored else pixel_values)
        logits, features, maps = member.network.explain(pixels)
        views.append(GraphView([maps[CELLS[name]] for name in wanted], logits, features, mirrored))
    return views


def no_finer_map() -> UserError:
    """``layer-cam`` was asked of a network that lists no map of ``FINE_STRIDE``."""
    return UserError(f"this model has no feature map at 1/{FINE_STRIDE} of its input; use {GRAD_CAM} instead")


def _view_maps(view: View, classes: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Return the product of one view's maps, turned back if mirrored: float32 (N, H, W), 0..1."""
    product = np.ones((), np.float32)
    for cells in view.cells(classes):
        product = product * _from_0_to_1(_resized(_from_0_to_1(cells.astype(np.float32, copy=False)), size))
    return _up_to_one(product[..., ::-1] if view.mirrored else product)


def _resized(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Interpolate maps (N, h, w) bilinearly, pixels as areas (PyTorch's ``align_corners=False``)."""
    rows, columns = (_interpolation(old, new) for old, new in zip(maps.shape[1:], size, strict=True))
    return rows @ maps @ columns.T


def _interpolation(old: int, new: int) -> np.ndarray:
    """The weights (new, old) of linear interpolation."""
    place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.clip(1 - np.abs(place[:, None] - np.arange(old)), 0, None).astype(np.float32)


def _from_0_to_1(maps: np.ndarray) -> np.ndarray:
    """Stretch each map (N, h, w) to 0..1, as the package grad-cam does; a map of one value becomes 0."""
    maps = maps - maps.min((1, 2), keepdims=True)
    return maps / (maps.max((1, 2), keepdims=True) + np.float32(_TINY))


def _up_to_one(maps: np.ndarray) -> np.ndarray:
    """Scale each map (N, H, W) to a highest value of 1; one that is all 0 stays."""
    highest = maps.max((1, 2), keepdims=True)
    return maps / np.where(highest > 0, highest, np.float32(1))
