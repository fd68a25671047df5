"""Fits the decoder of ``decoder.json``: which cells of a network's stages lie in an outlined tumour."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from ..data.outlines import Outlines, outline_mask
from ..errors import UserError
from ..images.read import load_image
from ..inference.classifier import TumorClassifier
from ..inference.decoder import Decoder
from ..inference.network import CPU_BATCH
from ..inference.run_pytorch import stage_maps
from ..labels import LABEL2ID, LABELS, NO_TUMOR

STRIDES = (8, 16, 32)
"""Pixels a cell of the stages that the decoder reads. On validation tumours of an EfficientNet-Lite0 the three hit more
than 16 and 32 alone, and these more than 8 and 16 (85, 80 and 71 % with one class for every tumour)."""
STRENGTH = 0.01
"""Inverse of the L2 penalty on weights of standardised features; a tenth of it hit as many validation tumours, with
less of the map inside."""
INSIDE = 0.5
"""Share of a cell from which on it is tumour; cells that a tumour only touches fit nothing."""
OTHERS = 50
"""Cells without tumour, drawn at random, of each slice."""


def fit_decoder(
    classifier: TumorClassifier, slices: Iterable[tuple[Path, int, Outlines]], *, seed: int = 0
) -> tuple[Decoder, dict[str, int]]:
    """Fit the weights.

    Args:
        classifier: one model, with its PyTorch weights.
        slices: file, class index and outlines of each; of a slice without tumour no outlines.
        seed: of the draw of cells.

    Returns:
        The decoder, without a record; and how many slices, and how many cells of each class, it was fitted to.
    """
    (member,) = classifier.members
    network = getattr(member.model, "timm_model", member.model)
    named = {row["reduction"]: row["module"] for row in getattr(network, "feature_info", None) or ()}
    if not set(STRIDES) <= set(named):
        raise UserError("this network lists no stages, as timm's ResNets and EfficientNets do: it gets no decoder")
    stages = "+".join(named[stride] for stride in STRIDES)
    rng = np.random.default_rng(seed)
    features: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    pending, count = iter(slices), 0
    while batch := list(islice(pending, CPU_BATCH)):
        count += len(batch)
        cells = _cells(member.torch_network.device, network, stages, classifier, [path for path, _, _ in batch])
        for found, (_, label, outlines) in zip(cells, batch, strict=True):
            share = _shares(outlines, found.shape[:2], STRIDES[0])
            inside, outside = np.argwhere(share >= INSIDE), np.argwhere(share == 0)
            outside = outside[rng.permutation(len(outside))[:OTHERS]]
            chosen = np.concatenate([inside, outside])
            features.append(found[chosen[:, 0], chosen[:, 1]])
            labels.append(np.repeat([label, LABEL2ID[NO_TUMOR]], [len(inside), len(outside)]))
    x, y = np.concatenate(features), np.concatenate(labels)
    cells_of = np.bincount(y, minlength=len(LABELS))
    if not cells_of.all():
        raise UserError(
            f"no outlined {LABELS[int(cells_of.argmin())]} is among the slices; the decoder needs each class"
        )
    mean, deviation = x.mean(0), x.std(0) + 1e-6
    fitted = LogisticRegression(C=STRENGTH, max_iter=200).fit((x - mean) / deviation, y)
    weights = fitted.coef_ / deviation
    decoder = Decoder(member.folder.sha256(), stages, weights, fitted.intercept_ - weights @ mean, {})
    return decoder, {"slices": count, **{name: int(n) for name, n in zip(LABELS, cells_of, strict=True)}}


@torch.inference_mode()
def _cells(
    device: str, network: torch.nn.Module, stages: str, classifier: TumorClassifier, paths: Sequence[Path]
) -> np.ndarray:
    """The channels of all stages at the finest one's cells: float32 (N, h, w, D)."""
    pixels = torch.from_numpy(np.stack([classifier.preprocess(load_image(path)) for path in paths]))
    _, maps = stage_maps(network, stages, pixels.to(device, memory_format=torch.channels_last))
    size = maps[0].shape[2:]
    enlarged = [functional.interpolate(m.float(), size, mode="bilinear", align_corners=False) for m in maps]
    return torch.cat(enlarged, 1).permute(0, 2, 3, 1).cpu().numpy()


def _shares(outlines: Outlines, cells: tuple[int, int], stride: int) -> np.ndarray:
    """What share of each cell (h, w) the outlines hold."""
    height, width = cells
    mask = outline_mask(outlines, (height * stride, width * stride))
    return mask.reshape(height, stride, width, stride).mean((1, 3))
