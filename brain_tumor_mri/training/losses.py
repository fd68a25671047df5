"""What a network is trained to minimise: cross-entropy weighted by class, partial labels, a teacher's answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ..errors import UserError
from ..labels import ANY_TUMOR, LABEL2ID, NO_TUMOR, NUM_LABELS
from ..settings import setting


def allowed_classes(classes: int) -> torch.Tensor:
    """Return which classes a label leaves open, (C + 1, C) bool: row y for class y, the last for ``ANY_TUMOR``, -1.

    That label is for this project's four classes alone; with others no slice has it.
    """
    any_tumor = torch.arange(classes) != LABEL2ID[NO_TUMOR]
    return torch.cat([torch.eye(classes).bool(), any_tumor[None]])


ALLOWED_CLASSES = allowed_classes(NUM_LABELS)


def weighted_cross_entropy_sum(
    logits: torch.Tensor, labels: torch.Tensor, label_weights: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Return the sum over a batch of w_y times the cross-entropy, before division by the sum of the w_y.

    For the label ``ANY_TUMOR`` the cross-entropy is that of the set of tumour classes,
    -log(p_glioma + p_meningioma + p_pituitary): a partial label (Cour et al. 2011; Feng et al. 2020).

    Args:
        logits: (N, C), any float type; computed in float32.
        labels: (N,) int64, class indices or ``ANY_TUMOR``.
        label_weights: (C + 1,) float32 of :func:`with_any_tumor_weight`.
        label_smoothing: as in ``torch.nn.CrossEntropyLoss``, whose 'mean' is this sum divided by the sum of the w_y.
    """
    log_p = logits.float().log_softmax(-1)
    allowed = allowed_classes(logits.shape[-1]).to(labels.device)[labels]
    loss = -log_p.masked_fill(~allowed, -torch.inf).logsumexp(-1) * label_weights[labels]
    uniform = -(log_p * label_weights[:-1]).mean(-1)
    return ((1 - label_smoothing) * loss + label_smoothing * uniform).sum()


def with_any_tumor_weight(class_weights: Sequence[float] | None, classes: int = NUM_LABELS) -> torch.Tensor:
    """Return the weight of each label, (C + 1,) float32: the classes' and, last, the mean of the tumour classes'."""
    weights = torch.tensor(class_weights or [1.0] * classes, dtype=torch.float32)
    return torch.cat([weights, weights[allowed_classes(len(weights))[ANY_TUMOR]].mean()[None]])


class Teacher(torch.nn.Module):
    """A trained classifier whose answers a student learns from (Hinton et al. 2015), on the student's own input.

    Args:
        model: ``pixel_values`` (N, 3, H, W) to ``logits`` (N, 4), of this project; it is frozen.
        student_config: the student's; pixel values are brought from its normalisation to the teacher's.
        temperature: softens both distributions.
    """

    def __init__(self, model: torch.nn.Module, student_config: Any, temperature: float = 2.0) -> None:
        super().__init__()
        if model.config.id2label != student_config.id2label:
            raise UserError("--teacher: it answers with other classes than this training's; leave it out")
        self.model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.temperature = temperature
        own, theirs = model.config.pretrained_cfg, student_config.pretrained_cfg
        mean, std, student_mean, student_std = (
            torch.tensor(values)[:, None, None] for values in (own["mean"], own["std"], theirs["mean"], theirs["std"])
        )
        self.register_buffer("scale", student_std / std)
        self.register_buffer("shift", (student_mean - mean) / std)

    def divergence_sum(self, logits: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the sum over a batch of T^2 KL(teacher || student).

        Args:
            logits: the student's, (N, 4).
            pixel_values: the student's input, (N, 3, H, W).
        """
        with torch.no_grad():
            answers = self.model(pixel_values=pixel_values * self.scale + self.shift).logits.float()
        soft, target = ((x / self.temperature).log_softmax(-1) for x in (logits.float(), answers))
        return F.kl_div(soft, target, reduction="sum", log_target=True) * self.temperature**2


UNKNOWN = 255
"""Value of every pixel of a mask whose slice has no known outline."""


@dataclass
class GuidanceArguments:
    """Whether outlines guide the training, and how much."""

    outlines_dir: str | None = setting(
        None, "The Figshare data set, with borders.jsonl: evidence outside a tumour's outline costs."
    )
    guidance: float = setting(0.5, "Cost of a slice whose evidence lies all outside, added to its cross-entropy.")

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
