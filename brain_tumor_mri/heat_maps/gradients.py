"""The maps' cells by PyTorch, for weights that come without a graph which gives them.

One forward pass serves every class, as the way back goes to the feature maps only.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError
from ..inference.member import Member
from ..inference.network import FINE_STRIDE
from ..inference.run_pytorch import decoded, stage_maps
from . import DECODER, GRAD_CAM, LAYER_CAM, METHODS
from .cam import GraphView, View, no_finer_map


@dataclass(frozen=True, eq=False)
class TorchView:
    """A :class:`cam.View`.

    Attributes:
        paths: ``grad-cam`` or ``layer-cam`` -> the feature map (N, C, h, w) that it takes, and the logits (N, 4) of a
            graph that starts there.
    """

    paths: Mapping[str, tuple[Tensor, Tensor]]
    logits: np.ndarray
    features: np.ndarray | None
    mirrored: bool

    def cells(self, classes: Sequence[int]) -> list[np.ndarray]:
        """See :class:`cam.View`; the gradient is of the class's logit."""
        with torch.inference_mode(False), torch.enable_grad():
            return [_cells(name, *path, classes) for name, path in self.paths.items()]


def views(member: Member, pixel_values: np.ndarray, method: str) -> list[View]:
    """Run one member over a batch, and over its mirror image where it averages both."""
    network = _twin(getattr(member.model, "timm_model", member.model))
    pixels = torch.from_numpy(np.ascontiguousarray(pixel_values))
    pixels = pixels.to(member.torch_network.device, memory_format=torch.channels_last)
    found: list[View] = []
    if method == DECODER:
        return [
            _decoded(member, network, pixels, mirrored) for mirrored in ((False, True) if member.mirror else (False,))
        ]
    # a caller's inference mode would forbid the gradients
    with torch.inference_mode(False), torch.enable_grad():
        for mirrored in (False, True) if member.mirror else (False,):
            paths, logits = _run(network, pixels.flip(-1) if mirrored else pixels, method)
            features = member.torch_network.take_features()
            found.append(TorchView(paths, logits.detach().float().cpu().numpy(), features, mirrored))
    return found


@torch.inference_mode()
def _decoded(member: Member, network: nn.Module, pixels: Tensor, mirrored: bool) -> GraphView:
    logits, maps = stage_maps(network, member.decoder.stages, pixels.flip(-1) if mirrored else pixels)
    cells = decoded(maps, member.decoder).float().cpu().numpy()
    return GraphView([cells], logits.float().cpu().numpy(), member.torch_network.take_features(), mirrored)


def _cells(name: str, feature_map: Tensor, logits: Tensor, classes: Sequence[int]) -> np.ndarray:
    scores = logits[range(len(logits)), list(classes)]
    (gradient,) = torch.autograd.grad(scores.sum(), feature_map, retain_graph=True)  # other classes come
    weights = gradient.mean((2, 3), keepdim=True) if name == GRAD_CAM else gradient.clamp_min(0)
    return (weights * feature_map.detach()).sum(1).clamp_min(0).float().cpu().numpy()


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
            raise no_finer_map()
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
