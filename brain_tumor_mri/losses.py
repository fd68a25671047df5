"""What a network is trained to minimise: cross-entropy weighted by class, partial labels, a teacher's answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from .labels import ANY_TUMOR, LABEL2ID, NO_TUMOR, NUM_LABELS

ALLOWED_CLASSES = torch.cat([torch.eye(NUM_LABELS), 1 - torch.eye(NUM_LABELS)[[LABEL2ID[NO_TUMOR]]]]).bool()
"""Which classes a label leaves open, (5, 4): row y for class y, the last (``ANY_TUMOR`` is -1) for any tumour."""


def weighted_cross_entropy_sum(
    logits: torch.Tensor, labels: torch.Tensor, label_weights: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Return the sum over a batch of w_y times the cross-entropy, before division by the sum of the w_y.

    For the label ``ANY_TUMOR`` the cross-entropy is that of the set of tumour classes,
    -log(p_glioma + p_meningioma + p_pituitary): a partial label (Cour et al. 2011; Feng et al. 2020).

    Args:
        logits: (N, 4), any float type; computed in float32.
        labels: (N,) int64, class indices or ``ANY_TUMOR``.
        label_weights: (5,) float32 of :func:`with_any_tumor_weight`.
        label_smoothing: as in ``torch.nn.CrossEntropyLoss``, whose 'mean' is this sum divided by the sum of the w_y.
    """
    log_p = logits.float().log_softmax(-1)
    allowed = ALLOWED_CLASSES.to(labels.device)[labels]
    loss = -log_p.masked_fill(~allowed, -torch.inf).logsumexp(-1) * label_weights[labels]
    uniform = -(log_p * label_weights[:NUM_LABELS]).mean(-1)
    return ((1 - label_smoothing) * loss + label_smoothing * uniform).sum()


def with_any_tumor_weight(class_weights: Sequence[float] | None) -> torch.Tensor:
    """Return the weight of each label, (5,) float32: the classes' and, last, the mean of the tumour classes'."""
    weights = torch.tensor(class_weights or [1.0] * NUM_LABELS, dtype=torch.float32)
    return torch.cat([weights, weights[ALLOWED_CLASSES[ANY_TUMOR]].mean()[None]])


class Teacher(torch.nn.Module):
    """A trained classifier whose answers a student learns from (Hinton et al. 2015), on the student's own input.

    Args:
        model: ``pixel_values`` (N, 3, H, W) to ``logits`` (N, 4), of this project; it is frozen.
        student_config: the student's; pixel values are brought from its normalisation to the teacher's.
        temperature: softens both distributions.
    """

    def __init__(self, model: torch.nn.Module, student_config: Any, temperature: float = 2.0) -> None:
        super().__init__()
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
