"""Scores of a heat map against an outline, and the maps that know nothing of a slice or of what was learned."""

import copy
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage, stats
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from brain_tumor_mri.inference.classifier import TumorClassifier
from brain_tumor_mri.inference.member import Member
from brain_tumor_mri.inference.run_pytorch import TorchNetwork

TOLERANCE = 15  # pixels of the model's input: the pointing game's (Zhang et al. 2018), there of photographs
GAUSSIAN_SIGMA = 0.25  # of the side
GRID = 32  # pixels a cell of the random map: the usual stride of a network's last feature map
RANK_STRIDE = 4  # pixels: rank correlation is taken on every fourth row and column of the smooth maps


def highest_point(heat: np.ndarray) -> tuple[int, int]:
    """Return row and column of the maximum; of a plateau, which interpolation leaves, the pixel nearest its centre."""
    points = np.argwhere(heat >= heat.max() - 1e-6)
    row, column = points[((points - points.mean(0)) ** 2).sum(1).argmin()]
    return int(row), int(column)


def score(heat: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Score one map (H, W), all 0 being a miss, against a tumour's mask (H, W).

    ``hit``: the maximum lies inside, 0 or 1; ``hit_15px``: or at most ``TOLERANCE`` pixels away; ``energy``: the share
    of the map's sum that lies inside.
    """
    if not heat.any():
        return {"hit": 0.0, "hit_15px": 0.0, "energy": 0.0}
    point = highest_point(heat)
    distance = ndimage.distance_transform_edt(~mask)[point] if mask.any() else np.inf
    energy = float(heat[mask].sum(dtype=np.float64) / heat.sum(dtype=np.float64))
    return {"hit": float(distance == 0), "hit_15px": float(distance <= TOLERANCE), "energy": energy}


def centred_gaussian(size: tuple[int, int]) -> np.ndarray:
    """Return a Gaussian at the image's centre, highest value 1, sigma ``GAUSSIAN_SIGMA`` of the sides."""
    rows, columns = (((np.arange(n) + 0.5) / n - 0.5) / GAUSSIAN_SIGMA for n in size)
    return np.exp(-(rows[:, None] ** 2 + columns**2) / 2)


def random_map(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return uniform noise in cells of ``GRID`` pixels, interpolated as heat maps are."""
    height, width = size
    cells = rng.random((max(height // GRID, 1), max(width // GRID, 1)), dtype=np.float32)
    return np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BILINEAR)).clip(0, 1)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return Spearman's correlation of two maps (H, W), in -1..1; NaN where one of them is constant."""
    one, other = (heat[::RANK_STRIDE, ::RANK_STRIDE].ravel() for heat in (first, second))
    return float(stats.spearmanr(one, other).statistic) if np.ptp(one) and np.ptp(other) else float("nan")


def randomised(classifier: TumorClassifier, what: str, calibration: np.ndarray, seed: int) -> TumorClassifier:
    """Return a copy of the classifier with weights drawn anew, as PyTorch initialises such layers."""
    members, inputs = [], classifier.inputs(calibration)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for i, member in enumerate(classifier.members):
            model = copy.deepcopy(member.model).cpu()
            network = getattr(model, "timm_model", model)
            layers = network.modules() if what == "all" else network.get_classifier().modules()
            for layer in layers:
                if hasattr(layer, "reset_parameters"):
                    layer.reset_parameters()
            if what == "all":
                _settle_statistics(network, torch.from_numpy(inputs[i]))
            drawn = TorchNetwork(model, torch.device(member.torch_network.device), None)
            members.append(Member(drawn, member.processor, mirror=member.mirror))
            members[-1].decoder = member.decoder  # of the weights as they were
    return TumorClassifier(members, batch_size=classifier.batch_size)


@torch.no_grad()
def _settle_statistics(network: nn.Module, pixel_values: Tensor) -> None:
    norms = [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = None  # a plain average: one pass settles the statistics
    network.train()(pixel_values)
    network.eval()
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
