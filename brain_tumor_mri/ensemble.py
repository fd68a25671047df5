"""Several classifiers that answer as one: ``TumorClassifier.from_pretrained([a, b])`` gives an ``Ensemble``."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from .classifier import TumorClassifier
from .errors import UserError


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

    @property
    def members(self) -> tuple[TumorClassifier, ...]:
        """The classifiers that answer."""
        return self._members

    def preprocess(self, image: Image.Image) -> Tensor:
        """Turn an RGB image into every member's input: float32 (members, 3, H, W)."""
        return torch.stack([member.preprocess(image) for member in self.members])

    def probabilities(self, pixel_values: Tensor) -> Tensor:
        """Mean of the members' class probabilities.

        Args:
            pixel_values: float (N, members, 3, H, W) from ``preprocess``.

        Returns:
            float32 (N, 4) on the CPU, as of ``TumorClassifier.probabilities``.
        """
        answers = [member.probabilities(pixel_values[:, i]) for i, member in enumerate(self.members)]
        return torch.stack(answers).mean(0)
