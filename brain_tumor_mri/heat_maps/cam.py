"""Class activation maps of a batch: ``forward`` runs the networks, ``mean_maps`` explains any class from there.

One forward pass serves every class, as the way back goes to the feature maps only. The methods:

- ``grad-cam`` (Selvaraju et al. 2017, arXiv:1610.02391): ReLU(sum over channels of mean gradient x activation) of the
  last feature map before pooling, what timm's ``forward_features`` returns (ResNet: after ``layer4``; EfficientNet:
  after ``conv_head`` and its batch norm). Its cells are 32 pixels wide, wider than many tumours.
- ``layer-cam`` (Jiang et al. 2021, 10.1109/TIP.2021.3089943): ReLU(sum over channels of ReLU(gradient) x activation),
  which holds for earlier maps too, here the one with cells of 16 pixels (ResNet: after ``layer3``).
- ``fused-cam``: the product of the two, place by place: what the first finds, as finely as the second can say where.
  Chosen in one unrecorded trial on validation tumours with radiologists' outlines (EfficientNet-Lite0,
  ``patient-disjoint`` fold 1); what it is worth on test tumours is in the models' ``explain.json``. A network that
  lists no finer map gets ``grad-cam``'s.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import UserError
from ..inference.classifier import TumorClassifier
from ..inference.member import Member
from ..inference.prediction import Answers
from . import GRAD_CAM, LAYER_CAM, METHODS

FINE_STRIDE = 16
"""Pixels a cell of the feature map that ``layer-cam`` takes."""


@dataclass(frozen=True)
class View:
    """A batch as one network saw it, mirrored or not.

    Attributes:
        paths: ``grad-cam`` or ``layer-cam`` -> the feature map (N, C, h, w) that it takes, and the logits (N, 4) of a
            graph that starts there.
        logits: (N, 4).
        features: (N, D) that ``trust.json`` reads; None without one.
        mirrored: whether the batch was mirrored.
    """

    paths: Mapping[str, tuple[Tensor, Tensor]]
    logits: Tensor
    features: np.ndarray | None
    mirrored: bool


def forward(classifier: TumorClassifier, pixel_values: np.ndarray, method: str) -> tuple[list[list[View]], Answers]:
    """Run a batch forward.

    Args:
        classifier: the model.
        pixel_values: as for ``explain.heat_maps``.
        method: one of ``METHODS``.

    Returns:
        Of each member its views, one or two; and ``classifier.answers``.

    Raises:
        UserError: the model has no feature map that the method could take.
    """
    inputs = classifier.inputs(pixel_values)
    # a caller's inference mode would forbid the gradients
    with torch.inference_mode(False), torch.enable_grad():
        views = [_views(member, x, method) for member, x in zip(classifier.members, inputs, strict=True)]
        of_members = [
            member.answers_from(torch.stack([v.logits for v in ours], 1).detach().cpu().numpy(), ours[0].features)
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
    with torch.inference_mode(False), torch.enable_grad():
        of_members = [torch.stack([_view_maps(view, classes, size) for view in ours]).mean(0) for ours in views]
        return _up_to_one(torch.stack(of_members).mean(0)).numpy()


def _views(member: Member, pixel_values: np.ndarray, method: str) -> list[View]:
    """Run one member over a batch, and over its mirror image where it averages both."""
    network = _twin(getattr(member.model, "timm_model", member.model))
    pixels = torch.from_numpy(np.ascontiguousarray(pixel_values))
    pixels = pixels.to(member.torch_network.device, memory_format=torch.channels_last)
    return [
        View(
            *_run(network, pixels.flip(-1) if mirrored else pixels, method),
            features=member.torch_network.take_features(),
            mirrored=mirrored,
        )
        for mirrored in ((False, True) if member.mirror else (False,))
    ]


def _twin(network: nn.Module) -> nn.Module:
    """Return a network that shares every weight, but has hooks of its own and no gradients for the weights.

    So nothing here can disturb threads that predict with the network, or leave anything behind on it.
    """
    shared: dict[int, Any] = {id(buffer): buffer for buffer in network.buffers()}
    shared |= {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in network.parameters()}
    return copy.deepcopy(network, shared).eval()


def _run(network: nn.Module, pixel_values: Tensor, method: str) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
    """Return the ``paths`` of the method, each with a graph of its own that starts at its map; and the logits."""
    finer: list[Tensor] = []
    if LAYER_CAM in METHODS[method]:
        layers = [row["module"] for row in getattr(network, "feature_info", ()) if row["reduction"] == FINE_STRIDE]
        if layers:

            def keep(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
                finer.append(output.detach().requires_grad_())
                return finer[-1].clone()  # an in-place activation after it must not write into the map that is kept

            hook = network.get_submodule(layers[-1]).register_forward_hook(keep)
        elif method == LAYER_CAM:
            raise UserError(f"this model has no feature map at 1/{FINE_STRIDE} of its input; use {GRAD_CAM} instead")
    last = network.forward_features(pixel_values)
    paths: dict[str, tuple[Tensor, Tensor]] = {}
    if GRAD_CAM in METHODS[method]:
        leaf = last.detach().requires_grad_()
        paths[GRAD_CAM] = (leaf, network.forward_head(leaf.clone()))
    if finer:
        hook.remove()  # the mirrored batch comes next
        paths[LAYER_CAM] = (finer[0], network.forward_head(last))
    if str(getattr(network, "output_fmt", "NCHW")) != "NCHW" or any(m.ndim != 4 for m, _ in paths.values()):
        raise UserError("this model has no convolutional feature map, so it cannot be explained")
    return paths, next(iter(paths.values()))[1]


def _view_maps(view: View, classes: Sequence[int], size: tuple[int, int]) -> Tensor:
    """Return the product of one view's maps, turned back if mirrored: float32 (N, H, W) on the CPU, 0..1."""
    product = torch.ones(())
    for name, (feature_map, logits) in view.paths.items():
        scores = logits[range(len(logits)), list(classes)]
        (gradient,) = torch.autograd.grad(scores.sum(), feature_map, retain_graph=True)  # other classes come
        weights = gradient.mean((2, 3), keepdim=True) if name == GRAD_CAM else gradient.clamp_min(0)
        cells = (weights * feature_map.detach()).sum(1, keepdim=True).clamp_min(0)
        pixels = functional.interpolate(_from_0_to_1(cells), size, mode="bilinear", align_corners=False)
        product = product * _from_0_to_1(pixels)[:, 0].float().cpu()
    return _up_to_one(product.flip(-1) if view.mirrored else product)


def _from_0_to_1(maps: Tensor) -> Tensor:
    """Stretch each map (N, 1, h, w) to 0..1, as the package grad-cam does; a map of one value becomes 0."""
    maps = maps - maps.amin((2, 3), keepdim=True)
    return maps / (maps.amax((2, 3), keepdim=True) + 1e-7)


def _up_to_one(maps: Tensor) -> Tensor:
    """Scale each map (N, H, W) to a highest value of 1; one that is all 0 stays."""
    highest = maps.amax((1, 2), keepdim=True)
    return maps / torch.where(highest > 0, highest, 1)
