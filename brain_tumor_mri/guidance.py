"""Guidance by outlines: in training, evidence for a tumour that lies outside the radiologist's outline costs.

The evidence map of class c is ReLU(sum_k w_ck f_k), with f the last feature map and w the last layer's weights: for a
network that ends in average pooling and one linear layer this is its Grad-CAM (Selvaraju et al. 2017). The cost is the
share of that map outside the outline, one minus the energy-based pointing game's score (Rao et al. 2023, Studying How
to Efficiently and Effectively Guide Models with Explanations). Nothing is added to the network.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from .errors import UserError
from .labels import ANY_TUMOR, LABEL2ID, NO_TUMOR

UNKNOWN = 255
"""Value of every pixel of a mask whose slice has no known outline."""


@dataclass
class GuidanceArguments:
    """Whether outlines guide the training, and how much."""

    outlines_dir: str | None = field(
        default=None,
        metadata={"help": "The Figshare data set, with borders.jsonl: evidence outside a tumour's outline costs."},
    )
    guidance: float = field(
        default=0.5, metadata={"help": "Cost of a slice whose evidence lies all outside, added to its cross-entropy."}
    )

    def __post_init__(self) -> None:
        if self.guidance < 0:
            raise UserError(f"--guidance {self.guidance}: give 0 or more")


class EvidenceGuide:
    """Catches a network's last feature map, and tells how much of the evidence in it is misplaced.

    Args:
        model: timm's network, or transformers' wrapper of one; it ends in ``global_pool`` and one linear layer.

    Raises:
        UserError: it does not.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        network = getattr(model, "timm_model", model)
        pool, head = getattr(network, "global_pool", None), network.get_classifier()
        if not isinstance(pool, torch.nn.Module) or not isinstance(head, torch.nn.Linear):
            raise UserError("--outlines_dir: this network does not end in pooling and one linear layer; leave it out")
        self.head = head
        self.features: torch.Tensor | None = None
        pool.register_forward_pre_hook(self._keep)

    def _keep(self, module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        self.features = inputs[0] if module.training else None

    def misplaced_sum(
        self, logits: torch.Tensor, labels: torch.Tensor, masks: torch.Tensor, label_weights: torch.Tensor
    ) -> torch.Tensor:
        """Return the sum over a batch of w_y times the share of the evidence outside the outline.

        Slices without a tumour or a known outline cost nothing. For ``ANY_TUMOR`` the evidence is that for the most
        probable tumour class.

        Args:
            logits: (N, 4) of the latest forward pass, in training.
            labels: (N,) class indices or ``ANY_TUMOR``.
            masks: (N, 1, H, W) uint8: 1 inside the tumour, 0 outside, ``UNKNOWN`` throughout where not known.
            label_weights: (5,), as the loss's.
        """
        if self.features is None:
            raise RuntimeError("the network has not run in training mode since the guide was made")
        tumours_only = logits.detach().index_fill(1, torch.tensor(LABEL2ID[NO_TUMOR], device=logits.device), -torch.inf)
        classes = torch.where(labels == ANY_TUMOR, tumours_only.argmax(1), labels)
        weights = self.head.weight[classes].float()
        evidence = torch.einsum("nchw,nc->nhw", self.features.float(), weights).relu()
        # a cell counts as inside when it holds any of the tumour
        inside = F.adaptive_max_pool2d((masks == 1).float(), evidence.shape[-2:])[:, 0]
        total = evidence.sum((1, 2))
        outside = 1 - (evidence * inside).sum((1, 2)) / total.clamp(min=1e-6)
        counts = (classes != LABEL2ID[NO_TUMOR]) & (masks == 1).flatten(1).any(1) & (total > 1e-6)
        return (outside * label_weights[labels] * counts).sum()
