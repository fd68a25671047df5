"""One network with its own preprocessing and ``trust.json``; ``TumorClassifier`` holds one of them, or several."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..errors import UserError, first_line
from ..labels import LABELS
from ..trust.decision import COVERAGES
from ..trust.trust_file import Trust, load_trust, softmax
from .decoder import Decoder, load_decoder
from .load import load_network, pytorch, require_features
from .model_folder import TORCH, ModelFolder, find_model
from .network import Network
from .prediction import Answers
from .preprocessing import Preprocess, Squash, of_processor

if TYPE_CHECKING:
    import torch


class Member:
    """A network that answers.

    Attributes:
        network: gives logits and features of a batch: PyTorch, or the runtime of an export.
        mirror: whether each answer is the mean of the slice's and of its mirror image's.
        trust: the content of ``trust.json``; None for a model without one.
        folder: where the weights came from; None when built from objects.
        labels: the classes, in output order.
        image_size: (height, width) in pixels of the network's input.
    """

    def __init__(
        self,
        network: Network,
        processor: Any = None,
        *,
        mirror: bool = False,
        trust: Trust | None = None,
        folder: ModelFolder | None = None,
    ) -> None:
        self.network, self.mirror, self.trust, self.folder = network, mirror, trust, folder
        self.labels: tuple[str, ...] = folder.labels if folder else LABELS
        self._processor = processor
        try:
            own = Squash.of_config(folder.config) if folder and processor is None else None
            self._preprocess: Preprocess = own or of_processor(self.processor)
            height, width = self.preprocess(Image.new("RGB", (8, 8))).shape[1:]
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            told = f"{folder.source if folder else 'this model'}: its preprocessing cannot be run ({first_line(error)})"
            raise UserError(f"{told}; download or train it again") from error
        self.image_size: tuple[int, int] = (height, width)

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        revision: str | None,
        device: str | None,
        mirror: bool,
        use_trust: bool,
        backend: str | None,
    ) -> Member:
        """Load a model folder or Hub id; see ``TumorClassifier.from_pretrained``."""
        folder = find_model(model, revision, backend, project_labels=True)
        if folder.export is None:
            _ = folder.tensors  # weights that are cut off are told as such, not as other ones than trust.json's
        trust = load_trust(folder.path, folder.sha256, folder.labels) if use_trust else None
        stage = trust.in_distribution.stage if trust else None
        if stage:
            require_features(folder, stage)
        return cls(load_network(folder, device, stage), mirror=mirror, trust=trust, folder=folder)

    @cached_property
    def processor(self) -> Any:
        """The model's own image processor, of transformers."""
        return self._processor or pytorch().load_processor(self.folder)

    @cached_property
    def torch_network(self) -> Network:
        """What runs the PyTorch weights; they are loaded only now where another backend answers."""
        if self.folder is None or self.folder.export is None:
            return self.network
        folder = find_model(self.folder.path, backend=TORCH)
        return load_network(folder, None, self.trust.in_distribution.stage if self.trust else None)

    @cached_property
    def decoder(self) -> Decoder | None:
        """The content of ``decoder.json``; None for a model without one."""
        return load_decoder(self.folder) if self.folder else None

    @property
    def model(self) -> torch.nn.Module:
        """The transformers model, in eval mode, fp32; a folder with an export only has none, which is a UserError."""
        return self.torch_network.module

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """Return the network's input of an RGB image: float32 (3, H, W)."""
        return self._preprocess(image)

    def answers(self, pixel_values: np.ndarray) -> Answers:
        """Answer a batch (N, 3, H, W), in passes as large as suit the network."""
        size = self.network.largest_batch or len(pixel_values)
        parts = (pixel_values[i : i + size] for i in range(0, len(pixel_values), size))
        return Answers.joined([self._answer_part(np.ascontiguousarray(part)) for part in parts])

    def _answer_part(self, pixel_values: np.ndarray) -> Answers:
        logits, features = self.network(pixel_values)
        views = [logits]
        if self.mirror:
            views.append(self.network(np.ascontiguousarray(pixel_values[..., ::-1]))[0])
        return self.answers_from(np.stack(views, axis=1), features)

    def answers_from(self, logits: np.ndarray, features: np.ndarray | None) -> Answers:
        """Turn what the network gave into answers.

        Args:
            logits: (N, views, C), one view, or two where the answer is averaged with the mirror image's.
            features: (N, D) of the slices as they are; not used without a ``trust.json``.
        """
        if not (np.isfinite(logits).all() and (features is None or np.isfinite(features).all())):
            name = self.folder.source if self.folder else "this model"
            raise UserError(f"{name} does not answer with finite numbers: its weights are damaged; download it again")
        if self.trust is None:
            return Answers(softmax(logits))
        calibration = self.trust.calibration(self.mirror)
        unlike = self.trust.in_distribution.unlikeness(features)
        probabilities = calibration.probabilities(logits, unlike)
        sets = {coverage: calibration.prediction_sets(probabilities, unlike, coverage) for coverage in COVERAGES}
        return Answers(probabilities, sets, unlike, self.trust.foreign(features))
