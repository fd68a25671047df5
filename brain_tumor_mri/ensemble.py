"""Several classifiers that answer as one: ``TumorClassifier.from_pretrained([a, b])`` gives an ``Ensemble``."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .classifier import TumorClassifier
from .errors import UserError
from .prediction import Answers


class Ensemble(TumorClassifier):
    """Several classifiers that answer as one, with the mean of their probabilities; each keeps its own preprocessing.

    Args:
        members: two or more, of one input size, on one device.

    Raises:
        UserError: there are no members, or their input sizes differ.
    """

    def __init__(self, members: Sequence[TumorClassifier]) -> None:
        if not members:
            raise UserError("no model is named; give one folder or Hub id, or several")
        if len({member.image_size for member in members}) > 1:
            sizes = ", ".join(str(member.image_size[0]) for member in members)
            raise UserError(f"these models take images of different sizes ({sizes} px); an ensemble needs one size")
        first = members[0]
        self._members = tuple(members)
        self.device, self.batch_size, self.mirror = first.device, first.batch_size, first.mirror
        self.labels, self.image_size, self.folder = first.labels, first.image_size, None
        self.coverage, self.trust = first.coverage, None

    @property
    def members(self) -> tuple[TumorClassifier, ...]:
        """The classifiers that answer."""
        return self._members

    def preprocess(self, image: Image.Image) -> Tensor:
        """Turn an RGB image into every member's input: float32 (members, 3, H, W)."""
        return torch.stack([member.preprocess(image) for member in self.members])

    def answers(self, pixel_values: Tensor) -> Answers:
        """Answer a batch with all members; see ``combine``.

        Args:
            pixel_values: float (N, members, 3, H, W) from ``preprocess``.
        """
        return self.combine([member.answers(pixel_values[:, i]) for i, member in enumerate(self.members)])

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
