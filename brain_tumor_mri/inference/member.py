"""One network with its own preprocessing and ``trust.json``; ``TumorClassifier`` holds one of them, or several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..trust.decision import COVERAGES
from ..trust.trust_file import Calibration, Trust, load_trust
from .load import load_network, load_processor, require_features
from .model_folder import ModelFolder, find_model
from .network import Network
from .prediction import Answers

_SOFTMAX = Calibration(1.0, {})


class Member:
    """A network that answers.

    Attributes:
        network: gives logits and features of a batch: PyTorch, or the runtime of an export.
        processor: the model's own image processor.
        mirror: whether each answer is the mean of the slice's and of its mirror image's.
        trust: the content of ``trust.json``; None for a model without one.
        folder: where the weights came from; None when built from objects.
        image_size: (height, width) in pixels of the network's input.
    """

    def __init__(
        self,
        network: Network,
        processor: Any,
        *,
        mirror: bool = False,
        trust: Trust | None = None,
        folder: ModelFolder | None = None,
    ) -> None:
        self.network, self.processor, self.mirror, self.trust, self.folder = network, processor, mirror, trust, folder
        height, width = self.preprocess(Image.new("RGB", (8, 8))).shape[1:]
        self.image_size: tuple[int, int] = (int(height), int(width))

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        revision: str | None,
        device: str | torch.device | None,
        mirror: bool,
        use_trust: bool,
        backend: str | None,
    ) -> Member:
        """Load a model folder or Hub id; see ``TumorClassifier.from_pretrained``."""
        folder = find_model(model, revision, backend, project_labels=True)
        trust = load_trust(folder.path, folder.sha256) if use_trust else None
        stage = trust.in_distribution.stage if trust else None
        if stage:
            require_features(folder, stage)
        network = load_network(folder, device, stage)
        return cls(network, load_processor(folder), mirror=mirror, trust=trust, folder=folder)

    @property
    def model(self) -> torch.nn.Module:
        """The transformers model, in eval mode, fp32; an export has none, which is a ``UserError``."""
        return self.network.module

    def preprocess(self, image: Image.Image) -> Tensor:
        """Return the network's input of an RGB image: float32 (3, H, W) on the CPU."""
        return self.processor(image, return_tensors="pt")["pixel_values"][0]

    def answers(self, pixel_values: Tensor) -> Answers:
        """Answer a batch (N, 3, H, W), in passes as large as suit the network."""
        pixel_values = pixel_values.to(self.network.device)
        parts = pixel_values.split(self.network.largest_batch or len(pixel_values))
        return Answers.joined([self._answer_part(part) for part in parts])

    def _answer_part(self, pixel_values: Tensor) -> Answers:
        logits, features = self.network(pixel_values)
        views = [logits]
        if self.mirror:
            views.append(self.network(pixel_values.flip(-1))[0])
        return self.answers_from(torch.stack(views, dim=1), features)

    def answers_from(self, logits: Tensor, features: np.ndarray | None) -> Answers:
        """Turn what the network gave into answers.

        Args:
            logits: (N, views, 4), one view, or two where the answer is averaged with the mirror image's.
            features: (N, D) of the slices as they are; not used without a ``trust.json``.
        """
        values = logits.detach().float().cpu().numpy()
        if self.trust is None:
            return Answers(_SOFTMAX.probabilities(values))
        calibration = self.trust.calibration(self.mirror)
        probabilities = calibration.probabilities(values)
        sets = {coverage: calibration.prediction_sets(probabilities, coverage) for coverage in COVERAGES}
        return Answers(
            probabilities, sets, self.trust.in_distribution.unlikeness(features), self.trust.foreign(features)
        )
