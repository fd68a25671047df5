"""Whether an export answers as the PyTorch model does.

``compare`` measures it; ``require_same`` and ``require_close`` refuse what is too far off. Compared is what users get,
``Prediction`` by ``Prediction``, and the features behind the decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from ..images.read import ImageSource, load_image, name_of
from ..inference.classifier import TumorClassifier
from ..inference.prediction import Prediction, pixels_of
from ..inference.run_pytorch import StageFeatures

MAX_DIFFERENCE = 1e-4
"""Of a probability, between a float32 export and PyTorch."""
MAX_FEATURE_DIFFERENCE = 1e-3
"""Of a feature, between a float32 export and PyTorch, as a share of the largest."""
MAX_MAP_DIFFERENCE = 1e-3
"""Of a heat map, between a float32 export and PyTorch; what stretches a faint map to its full range stretches this."""
MAX_HALF_DIFFERENCE = 2e-2
"""Of a probability, between a float16 export and PyTorch."""
_BATCH = 7  # no power of two, so that a file with a fixed batch is noticed


@dataclass(frozen=True)
class Parity:
    """How far two classifiers are apart on the same slices.

    Attributes:
        images: how many slices.
        max_difference: largest difference of a probability, in [0, 1].
        mean_difference: mean of the differences of all probabilities.
        same_label: share of slices with the same class.
        same_decision: share of slices with the same decision; None without a trust.json.
        feature_difference: largest difference of a feature, as a share of the largest feature; None without features.
        map_difference: largest difference of a heat map of the class answered, in [0, 1]; None of an export without.
    """

    images: int
    max_difference: float
    mean_difference: float
    same_label: float
    same_decision: float | None
    feature_difference: float | None
    map_difference: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as in export.json."""
        return asdict(self)

    def __str__(self) -> str:
        decisions = "" if self.same_decision is None else f", the same decision for {self.same_decision:.1%}"
        maps = "" if self.map_difference is None else f"; heat maps by at most {self.map_difference:.2g}"
        return (
            f"the same class for {self.same_label:.1%} of {self.images} images{decisions}; probabilities differ by at "
            f"most {self.max_difference:.2g}, by {self.mean_difference:.2g} on average{maps}"
        )


def compare(
    reference: TumorClassifier, exported: TumorClassifier, images: Sequence[ImageSource], stage: str | None
) -> Parity:
    """Ask both.

    Args:
        reference: runs PyTorch.
        exported: runs the export.
        images: at least one; the first also shows whether both see the same pixels.
        stage: whose means the export gives as features; None for no features.
    """
    if not np.array_equal(*(side.preprocess(load_image(images[0])) for side in (reference, exported))):
        raise UserError("the export does not preprocess images as the model does; this is a bug of the export")
    hook = StageFeatures(getattr(reference.model, "timm_model", reference.model), stage) if stage else None
    pairs: list[tuple[Prediction, Prediction]] = []
    features: list[tuple[np.ndarray, np.ndarray]] = []
    try:
        for first in range(0, len(images), _BATCH):
            readings = [reference.read(source, name_of(source, 1)) for source in images[first : first + _BATCH]]
            pixels = pixels_of(readings, "raise")
            answers = (side.answer_readings(readings) for side in (reference, exported))
            pairs += zip(*answers, strict=True)
            if hook:
                with torch.inference_mode():
                    reference.model(pixel_values=torch.from_numpy(pixels).to(reference.device))
                    features.append((hook.take(), exported.network(pixels)[1]))
    finally:
        if hook:
            hook.remove()
    ours, theirs = (np.array([list(said.probabilities.values()) for said in side]) for side in zip(*pairs, strict=True))
    differences = np.abs(ours - theirs)
    return Parity(
        images=len(pairs),
        max_difference=float(differences.max()),
        mean_difference=float(differences.mean()),
        same_label=float(np.mean([a.label == b.label for a, b in pairs])),
        same_decision=float(np.mean([a.decision == b.decision for a, b in pairs])) if reference.trust else None,
        feature_difference=_feature_difference(features) if features else None,
        map_difference=_map_difference(reference, exported, images) if getattr(exported.network, "maps", ()) else None,
    )


def _map_difference(reference: TumorClassifier, exported: TumorClassifier, images: Sequence[ImageSource]) -> float:
    largest = 0.0
    for first in range(0, len(images), _BATCH):
        maps = (side.explain(list(images[first : first + _BATCH])) for side in (reference, exported))
        for ours, theirs in zip(*maps, strict=True):
            if ours.target == theirs.target:
                largest = max(largest, float(np.abs(ours.heat_map - theirs.heat_map).max()))
    return largest


def _feature_difference(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    ours, theirs = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
    return float(np.abs(ours - theirs).max() / max(np.abs(ours).max(), 1e-12))


def require_same(parity: Parity) -> None:
    """Refuse a float32 export that does not answer as PyTorch does."""
    features_agree = parity.feature_difference is None or parity.feature_difference <= MAX_FEATURE_DIFFERENCE
    same = parity.same_label == 1 and parity.same_decision in (None, 1)
    same = same and (parity.map_difference or 0) <= MAX_MAP_DIFFERENCE
    # "not <=": a NaN agrees with nothing
    if not parity.max_difference <= MAX_DIFFERENCE or not features_agree or not same:
        features = "" if features_agree else f", features by {parity.feature_difference:.2g} of the largest"
        raise UserError(f"the file does not answer as PyTorch does, so it was not kept: {parity}{features}")


def require_close(parity: Parity, agreement: float, difference: float = 1.0) -> None:
    """Refuse an int8 or float16 export that answers differently too often, or too differently."""
    shares = [share for share in (parity.same_label, parity.same_decision) if share is not None]
    if not min(shares) >= agreement:
        raise UserError(
            f"the file answers differently too often, so it was not kept: {parity}; at least {agreement:.0%} is "
            "asked for; for int8, try more --calibration_slices"
        )
    if not parity.max_difference <= difference:  # "not <=": a NaN agrees with nothing
        raise UserError(f"the file's probabilities differ by more than {difference:.2g}, so it was not kept: {parity}")
