"""A network whose answer also holds the cells of its heat maps, for all classes, in one graph without autograd.

What ``heat_maps/gradients.py`` asks autograd for is traced once: the way back from each class's logit to the feature
maps is plain convolutions, products and masks, which any runtime of exports can run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..inference.decoder import Decoder
from ..inference.network import CELLS, FEATURES, FINE_STRIDE, LOGITS
from ..inference.run_pytorch import decoded

aten = torch.ops.aten
_UNTRACEABLE = (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError, IndexError, KeyError)
"""What networks that are no convolutional ones of timm end in."""


def with_maps(
    network: nn.Module, stage: str | None, size: tuple[int, int], decoder: Decoder | None = None
) -> tuple[torch.fx.GraphModule, list[str]] | None:
    """Trace a network.

    Args:
        network: a timm network in eval mode, on the CPU; its weights are shared.
        stage: of ``outputs.feature_stage``; None for no features.
        size: (height, width) of the input in pixels.
        decoder: of the model's ``decoder.json``; None for none.

    Returns:
        What turns pixel_values (N, 3, H, W) into a tuple of tensors, and their names: logits (N, 4), features (N, D)
        and the values of ``CELLS``, each (N, 4, h, w). None for a network that has no such maps.
    """
    fine = [row["module"] for row in getattr(network, "feature_info", ()) if row["reduction"] == FINE_STRIDE]
    names = [LOGITS, *([FEATURES] if stage else []), CELLS["grad-cam"], *([CELLS["layer-cam"]] if fine else [])]
    names += [CELLS["decoder"]] if decoder else []

    def answer(pixel_values: Tensor) -> tuple[Tensor, ...]:
        means: list[Tensor] = []
        finer: list[Tensor] = []
        seen: list[Tensor] = []

        def look(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            seen.append(output)

        def keep(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            finer.append(output.detach().requires_grad_())
            return finer[-1].clone()

        def mean(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            means.append(output.mean((2, 3)))

        hooks = [(name, mean) for name in (stage.split("+") if stage else ())] + [(name, keep) for name in fine[-1:]]
        hooks = [(name, look) for name in (decoder.stages.split("+") if decoder else ())] + hooks
        with torch.enable_grad(), _hooked(network, hooks):
            last = network.forward_features(pixel_values)
            if not last.requires_grad:
                last = last.detach().requires_grad_()
            logits = network.forward_head(last)
            maps = [last, *finer]
            ways = [torch.autograd.grad(logit.sum(), maps, retain_graph=True) for logit in logits.unbind(1)]
        coarse = [(way[0].mean((2, 3), keepdim=True) * last).sum(1).relu() for way in ways]
        found = [logits, *([torch.cat(means, 1)] if stage else []), torch.stack(coarse, 1)]
        if finer:
            found.append(torch.stack([(way[1].relu() * finer[0]).sum(1).relu() for way in ways], 1))
        if decoder:
            found.append(decoded([stage_map.detach() for stage_map in seen], decoder))
        return tuple(tensor.detach() for tensor in found)

    table = {op: rule for op, rule in core_aten_decompositions().items() if "backward" in str(op)} | _rules()
    pixels = torch.zeros(2, 3, *size)  # two: a batch of one would be taken for a constant
    try:
        traced = make_fx(answer, table, tracing_mode="symbolic", _allow_non_fake_inputs=True)(pixels)
        if any(str(node.target).startswith("aten.") and "_backward" in str(node.target) for node in traced.graph.nodes):
            return None  # gradients of an operator that no runtime has
        if any(tensor.ndim != 4 for tensor in traced(pixels)[names.index(CELLS["grad-cam"]) :]):
            return None  # tokens, without height and width
    except _UNTRACEABLE:
        return None
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced, names


def _rules() -> dict[Any, Callable[..., Any]]:
    """How gradients are written that runtimes have no operator for; weights have none, as they are fixed."""
    turned: dict[int, tuple[Tensor, Tensor]] = {}  # a weight -> itself, so that its id stays, and turned: once for all

    def convolution(grad: Tensor, x: Tensor, weight: Tensor, bias: Any, stride, padding, dilation, *rest: Any) -> Any:
        _, _, groups, _ = rest
        kernel = weight.shape[2:]
        if tuple(stride) == (1, 1):
            # the transposed convolution as a plain one, for which runtimes have their best kernels
            if id(weight) not in turned:
                turned[id(weight)] = weight, _turned(weight, groups)
            back = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
            return aten.convolution(
                grad, turned[id(weight)][1], None, stride, back, dilation, False, [0, 0], groups
            ), None, None  # fmt: skip
        lost = [
            x.shape[i + 2] - ((grad.shape[i + 2] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (kernel[i] - 1) + 1)
            for i in (0, 1)
        ]
        return aten.convolution(grad, weight, None, stride, padding, dilation, True, lost, groups), None, None

    def norm(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, training, momentum, eps) -> Any:
        return aten._native_batch_norm_legit_no_training(x, weight, bias, mean, var, momentum, eps)

    def norm_back(grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, var: Tensor, *rest: Any) -> Any:
        _, _, _, eps, _ = rest
        return grad * (weight * torch.rsqrt(var + eps)).view(1, -1, 1, 1), None, None

    def relu_back(grad: Tensor, x: Tensor, threshold: float) -> Tensor:
        return grad * (x > threshold).to(grad.dtype)

    def clip_back(grad: Tensor, x: Tensor, low: float, high: float) -> Tensor:
        return grad * ((x > low) & (x < high)).to(grad.dtype)

    def pool_back(grad: Tensor, x: Tensor, kernel, stride, padding, *rest: Any) -> Tensor:
        same = grad.new_full((x.shape[1], 1, *kernel), 1 / (kernel[0] * kernel[1]))
        lost = [x.shape[i + 2] - ((grad.shape[i + 2] - 1) * stride[i] - 2 * padding[i] + kernel[i]) for i in (0, 1)]
        return aten.convolution(grad, same, None, stride, padding, [1, 1], True, lost, x.shape[1])

    return {
        aten.avg_pool2d_backward.default: pool_back,
        aten.convolution_backward.default: convolution,
        aten.native_batch_norm.default: norm,
        aten.native_batch_norm_backward.default: norm_back,
        aten.threshold_backward.default: relu_back,
        aten.hardtanh_backward.default: clip_back,
    }


def _turned(weight: Tensor, groups: int) -> Tensor:
    """The kernels by which a plain convolution does what the transposed one does: (groups * inside, outside, h, w)."""
    outside, inside, *kernel = weight.shape[0] // groups, *weight.shape[1:]
    if groups == 1:
        weight = weight.transpose(0, 1)
    elif (outside, inside) != (1, 1):
        weight = weight.view(groups, outside, inside, *kernel).transpose(1, 2).reshape(-1, outside, *kernel)
    return weight if kernel == [1, 1] else weight.flip((2, 3))


def fold_norms(network: nn.Module, size: tuple[int, int]) -> None:
    """Put each batch norm that follows a convolution into its weights, in place, which are to feed nothing else.

    Runtimes do so by themselves, but then hold the weights twice: for the answer, and as they were for the maps.
    """
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # id of what a convolution gave -> both, so that the id stays
    pairs: dict[str, nn.Conv2d] = {}

    def after(name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(module, nn.Conv2d):
                made[id(output)] = module, output
            elif id(inputs[0]) in made:
                pairs[name] = made[id(inputs[0])][0]

        return look

    kinds = (nn.Conv2d, nn.BatchNorm2d)
    hooks = [(name, after(name)) for name, module in network.named_modules() if isinstance(module, kinds)]
    with torch.no_grad(), _hooked(network, hooks):
        network(torch.zeros(1, 3, *size))
    for name, convolution in pairs.items():
        norm = network.get_submodule(name)
        statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        convolution.weight, convolution.bias = fuse_conv_bn_weights(convolution.weight, convolution.bias, *statistics)
        # timm's norms hold the activation that follows them
        rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
        network.set_submodule(name, nn.Sequential(*rest))


@contextmanager
def _hooked(network: nn.Module, hooks: list[tuple[str, Callable[..., Any]]]) -> Iterator[None]:
    handles = [network.get_submodule(name).register_forward_hook(hook) for name, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
