"""From PIL slices to ``pixel_values``: one preprocessing, read from the model's own config, and training augmentation.

``eval_transform(config)`` is what the classifier, the exports and plain ``pipeline`` apply;
``train_transform(config, ...)`` is the same steps with the augmentation put between resizing and normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import timm.data
import torch
from torch.utils.data import Dataset
from torchvision.transforms import v2

from .augmentation import AugmentationArguments
from .imaging import load_image

if TYPE_CHECKING:
    import datasets
    from PIL import Image
    from transformers import PretrainedConfig

Transform = Callable[["Image.Image"], torch.Tensor]


def eval_transform(config: PretrainedConfig) -> Transform:
    """Return the model's own preprocessing.

    Args:
        config: a ``TimmWrapperConfig`` whose ``pretrained_cfg`` declares size, resize mode, mean and std.

    Returns:
        A function of an RGB PIL image to a float32 tensor (3, H, W): the very transform that transformers'
        ``TimmWrapperImageProcessor`` builds from the same fields.
    """
    data_config = timm.data.resolve_data_config(config.pretrained_cfg, model=None, verbose=False)
    return timm.data.create_transform(**data_config, is_training=False)


def train_transform(config: PretrainedConfig, augmentation: AugmentationArguments) -> Transform:
    """Return :func:`eval_transform` with the augmentation applied after resizing and before normalising.

    Args:
        config: as in :func:`eval_transform`.
        augmentation: what is varied, and how much.

    Returns:
        A function of an RGB PIL image to a float32 tensor (3, H, W); it draws from torch's global generator.
    """
    steps: list[Any] = list(eval_transform(config).transforms)
    to_tensor = next(i for i, step in enumerate(steps) if type(step).__name__ in ("ToTensor", "MaybeToTensor"))
    return v2.Compose([*steps[:to_tensor], augmentation.build(), *steps[to_tensor:]])


class SliceDataset(Dataset):
    """A ``datasets`` split as model inputs, each item reproducible from (seed, epoch, index) alone.

    So a slice is augmented the same way whatever the number of workers or processes, and a resumed run sees what an
    uninterrupted one sees. Images are read from disk when asked for, never kept.

    Args:
        split: a ``datasets.Dataset`` with columns ``image`` and ``label``.
        transform: PIL image (RGB) to tensor (3, H, W).
        seed: of the augmentation.

    Items are ``{"pixel_values": float32 (3, H, W), "labels": int}``. Raises ``UnreadableImageError`` for a bad file.
    """

    def __init__(self, split: datasets.Dataset, transform: Transform, seed: int = 0) -> None:
        import datasets

        self.split = split.select_columns(["image", "label"]).cast_column("image", datasets.Image(decode=False))
        self.labels: Sequence[int] = split["label"][:]
        self.transform = transform
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose which epoch's random draws the items use; call it before the epoch's workers start."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.split[index]
        image = load_image(row["image"]["bytes"] or row["image"]["path"], name=row["image"]["path"])
        draw = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1)[0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(draw))
            return {"pixel_values": self.transform(image), "labels": row["label"]}
