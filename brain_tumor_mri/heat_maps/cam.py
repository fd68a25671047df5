"""Class activation maps of a batch: ``look`` runs the networks forward, ``mean_maps`` explains any class from there.

One forward pass serves every class, as the way back goes to the feature maps only. The maps are those of the package
grad-cam, by one of these methods:

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
from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from ..inference.classifier import TumorClassifier
    from ..inference.prediction import Answers

GRAD_CAM, LAYER_CAM, FUSED_CAM = "grad-cam", "layer-cam", "fused-cam"
METHODS = {GRAD_CAM: (GRAD_CAM,), LAYER_CAM: (LAYER_CAM,), FUSED_CAM: (GRAD_CAM, LAYER_CAM)}
"""Method -> the package's methods whose maps it multiplies."""
DEFAULT_METHOD = FUSED_CAM
FINE_STRIDE = 16
"""Pixels a cell of the feature map that ``layer-cam`` takes."""
_CLASSES = {GRAD_CAM: "GradCAM", LAYER_CAM: "LayerCAM"}
"""The package's method -> its class there."""


@dataclass(frozen=True)
class View:
    """A batch as one network saw it, mirrored or not.

    Attributes:
        paths: method of the package -> the feature map (N, C, h, w) that it takes, and the logits (N, 4) of a graph
            that starts there.
        logits: (N, 4).
        features: (N, D) of ``TumorClassifier.take_features``; None without a ``trust.json``.
        mirrored: whether the batch was mirrored.
    """

    paths: Mapping[str, tuple[Tensor, Tensor]]
    logits: Tensor
    features: np.ndarray | None
    mirrored: bool


def look(classifier: TumorClassifier, pixel_values: Tensor, method: str) -> tuple[list[list[View]], Answers]:
    """Run a batch forward.

    Args:
        classifier: the model.
        pixel_values: as for ``explain.heat_maps``.
        method: one of ``METHODS``.

    Returns:
        Of each member of an ensemble its views, one or two; and ``classifier.answers``.

    Raises:
        UserError: the model has no feature map that the method could take.
    """
    import torch

    by_member = classifier.inputs(pixel_values)
    # a caller's inference mode would forbid the gradients
    with torch.inference_mode(False), torch.enable_grad():
        views = [_views(member, x, method) for member, x in zip(classifier.members, by_member, strict=True)]
        of_members = [
            member.judge(torch.stack([view.logits for view in ours], dim=1), ours[0].features)
            for member, ours in zip(classifier.members, views, strict=True)
        ]
        return views, classifier.combine(of_members)


def mean_maps(views: Sequence[Sequence[View]], classes: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Explain a class of each image; may be called again with others.

    Args:
        views: of ``look``.
        classes: (N) class indices.
        size: height and width of the network's input.

    Returns:
        The mean of the maps of all views, float32 (N, H, W) in [0, 1], each with a highest value of 1 or all 0.
    """
    import numpy as np
    import torch

    with torch.inference_mode(False), torch.enable_grad():
        maps = [np.mean([_view_maps(view, classes, size) for view in ours], axis=0) for ours in views]
    mean = np.mean(maps, axis=0, dtype=np.float32)
    highest = mean.max((1, 2), keepdims=True)
    return np.divide(mean, highest, out=np.zeros_like(mean), where=highest > 0)


def _views(member: TumorClassifier, pixel_values: Tensor, method: str) -> list[View]:
    """Run one member over a batch, and over its mirror image where it averages both."""
    import torch

    network = _twin(getattr(member.model, "timm_model", member.model))
    pixel_values = pixel_values.to(member.device, memory_format=torch.channels_last)
    return [
        View(
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


def _run(network: nn.Module, pixel_values: Tensor, method: str) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
    """Return the ``paths`` of the method, and the logits.

    Each path has a graph of its own, which starts at the map: the package needs the gradient there, and no further.
    """
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


def _view_maps(view: View, classes: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Return the product of the package's maps of one view, turned back if mirrored: float32 (N, H, W) in [0, 1].

    Each has a highest value of 1, or is all 0.
    """
    import numpy as np

    product = np.prod([_package_maps(view, name, classes, size) for name in view.paths], axis=0)
    highest = product.max((1, 2), keepdims=True)
    product = np.divide(product, highest, out=np.zeros_like(product), where=highest > 0)
    return np.ascontiguousarray(product[..., ::-1]) if view.mirrored else product


def _package_maps(view: View, name: str, classes: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Return the package's maps by one of its methods: float32 (N, H, W) in [0, 1].

    The forward pass is done already, as the class to explain may depend on the answers of other views: the network
    that the package is given hands out what is there.
    """
    import pytorch_grad_cam
    import torch
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    class Finished(torch.nn.Module):
        def __init__(self, feature_map: Tensor, logits: Tensor) -> None:
            super().__init__()
            self.layer = torch.nn.Identity()
            self.device = torch.nn.Parameter(torch.empty(0, device=logits.device))  # the package asks a weight
            self.graph = (feature_map, logits)

        def forward(self, _: Tensor) -> Tensor:
            self.layer(self.graph[0])
            return self.graph[1]

    network = Finished(*view.paths[name])
    of_input_size = torch.empty((len(view.logits), 0, *size), device=view.logits.device)  # only its shape is read
    cam = getattr(pytorch_grad_cam, _CLASSES[name])(network, [network.layer])
    try:
        return cam(of_input_size, [ClassifierOutputTarget(index) for index in classes])
    finally:  # not by ``with``, which would print and swallow an IndexError
        store = cam.activations_and_grads
        store.release()
        # its hook stays on the feature map and knows the store: what this holds of the graph would never be freed
        store.model, store.activations, store.gradients = None, [], []
