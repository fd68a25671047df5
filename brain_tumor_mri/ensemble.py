"""Several classifiers that answer as one: ``TumorClassifier.from_pretrained([a, b])`` gives an ``Ensemble``."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from .classifier import TumorClassifier
from .errors import UserError
from .prediction import Answers


class Ensemble(TumorClassifier):
    """Several classifiers that answer as one, with the mean of their probabilities; each keeps its own preprocessing.

    Args:
        members: two or more, on one device. Their input sizes may differ: ``image_size`` is the largest.

    Raises:
        UserError: there are no members.
    """

    def __init__(self, members: Sequence[TumorClassifier]) -> None:
        if not members:
            raise UserError("no model is named; give one folder or Hub id, or several")
        first = members[0]
        self._members = tuple(members)
        self.device, self.batch_size, self.mirror = first.device, first.batch_size, first.mirror
        self.labels, self.folder = first.labels, None
        self.image_size = max(m.image_size[0] for m in members), max(m.image_size[1] for m in members)
        self.coverage, self.trust = first.coverage, None

    @property
    def members(self) -> tuple[TumorClassifier, ...]:
        """The classifiers that answer."""
        return self._members

    def preprocess(self, image: Image.Image) -> Tensor:
        """Turn an RGB image into every member's input: float32 (members, 3, H, W).

        Height and width are ``image_size``; what is below and right of a smaller input is 0, and ``inputs`` drops it.
        """
        height, width = self.image_size
        own = (member.preprocess(image) for member in self.members)
        return torch.stack([functional.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2])) for x in own])

    def inputs(self, pixel_values: Tensor) -> list[Tensor]:
        """Return each member's own input (N, 3, H, W) of a batch (N, members, 3, H, W) from ``preprocess``."""
        sizes = (member.image_size for member in self.members)
        return [x[..., :height, :width] for x, (height, width) in zip(pixel_values.unbind(1), sizes, strict=True)]

    def answers(self, pixel_values: Tensor) -> Answers:
        """Answer a batch with all members; see ``combine``.

        Args:
            pixel_values: float (N, members, 3, H, W) from ``preprocess``.
        """
        return self.combine([m.answers(x) for m, x in zip(self.members, self.inputs(pixel_values), strict=True)])

    def combine(self, of_members: Sequence[Answers]) -> Answers:
        """Return one answer of those of the members.

        Probabilities are the members' mean. A class is left when any member leaves it, so that a set covers at least
        what each member's covers; a picture is as unlike as the member says that finds it most unlike. Without a
        ``trust.json`` in every member there are neither sets nor unlikeness.
        """
        probabilities = np.mean([answers.probabilities for answers in of_members], axis=0)
        if any(answers.unlikeness is None for answers in of_members):
            return Answers(probabilities)
        sets = {c: np.any([answers.sets[c] for answers in of_members], axis=0) for c in of_members[0].sets}
        for left in sets.values():
            left[np.arange(len(left)), probabilities.argmax(1)] = True
        return Answers(probabilities, sets, np.max([answers.unlikeness for answers in of_members], axis=0))
