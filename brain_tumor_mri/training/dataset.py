"""From PIL slices to ``pixel_values``: one preprocessing, read from the model's own config, and training augmentation.

``eval_transform(config)`` is what the classifier, the exports and plain ``pipeline`` apply;
``TrainTransform(config, ...)`` is the same steps with the augmentation put between resizing and normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import timm.data
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..data.outlines import Outlines, outline_mask
from ..images.read import load_image
from ..labels import LABEL2ID, NO_TUMOR
from .augmentation import AugmentationArguments
from .losses import UNKNOWN

if TYPE_CHECKING:
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


class TrainTransform:
    """The preprocessing with the augmentation applied after resizing and before normalisation.

    Args:
        config: as in :func:`eval_transform`.
        augmentation: what is varied, and how much.

    It draws from torch's global generator.
    """

    def __init__(self, config: PretrainedConfig, augmentation: AugmentationArguments) -> None:
        steps: list[Any] = list(eval_transform(config).transforms)
        to_tensor = next(i for i, step in enumerate(steps) if type(step).__name__ in ("ToTensor", "MaybeToTensor"))
        self.resize = v2.Compose(steps[:to_tensor])
        self.geometry = v2.Compose(augmentation.geometry())
        self.light = v2.Compose([*augmentation.light(), *steps[to_tensor:]])

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Return an RGB PIL image as float32 (3, H, W)."""
        return self.light(self.geometry(self.resize(image)))

    def with_mask(self, image: Image.Image, outlines: Outlines | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the image as from a call, and which of its pixels the outlines hold after the same changes.

        Args:
            image: RGB; the resizing takes the whole of it (``crop_mode: squash``).
            outlines: of the tumours in it, none or more; None where they are not known.

        Returns:
            float32 (3, H, W), and uint8 (1, H, W): 1 inside, 0 outside, ``guidance.UNKNOWN`` where not known.
        """
        resized = self.resize(image)
        mask = outline_mask(outlines or [], (resized.height, resized.width)).astype(np.uint8)
        moved, mask = self.geometry(resized, tv_tensors.Mask(mask[None]))
        plain = torch.full_like(mask, UNKNOWN) if outlines is None else mask
        return self.light(moved), plain.as_subclass(torch.Tensor)


class SliceDataset(Dataset):
    """A ``datasets`` split as model inputs, each item reproducible from (seed, epoch, index) alone.

    So a slice is augmented the same way whatever the number of workers or processes, and a resumed run sees what an
    uninterrupted one sees. Images are read from disk when asked for, never kept.

    Args:
        split: a ``datasets.Dataset`` with columns ``image`` and ``label``, and with outlines ``path``.
        transform: PIL image (RGB) to tensor (3, H, W); with outlines a ``TrainTransform``.
        seed: of the augmentation.
        outlines: of ``outlines.load_outlines``; None gives items without masks.
        shares: (N,) how likely each slice is to be drawn, summing to 1.
        length: slices that an epoch draws by ``shares``, with replacement; None gives each slice once, in order.

    Items are ``{"pixel_values": float32 (3, H, W), "labels": int}``, with outlines also ``"masks"``, uint8 (1, H, W) of
    ``TrainTransform.with_mask``. Raises ``UnreadableImageError`` for a bad file.
    """

    def __init__(
        self,
        split: datasets.Dataset,
        transform: Transform,
        seed: int = 0,
        outlines: Mapping[str, Outlines] | None = None,
        shares: np.ndarray | None = None,
        length: int | None = None,
    ) -> None:
        self.shares = shares
        self.length = length

        self.outlines = outlines
        self.paths: Sequence[str] = split["path"][:] if outlines is not None else ()

        self.split = split.select_columns(["image", "label"]).cast_column("image", datasets.Image(decode=False))
        self.labels: Sequence[int] = split["label"][:]
        self.transform = transform
        self.seed = seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that stay see a new epoch, too
        self.draw: tuple[int, np.ndarray] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose which epoch's random draws the items use; call it before the epoch's first item is asked for."""
        self.epoch.fill_(epoch)

    def _drawn(self, epoch: int) -> np.ndarray:
        """Return which slices an epoch draws, (length,), made once an epoch and process."""
        if self.draw is None or self.draw[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self.draw = epoch, rng.choice(len(self.split), self.length, p=self.shares)
        return self.draw[1]

    def __len__(self) -> int:
        return len(self.split) if self.length is None else self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch = int(self.epoch)
        draw = np.random.SeedSequence([self.seed, epoch, index]).generate_state(1)[0]
        if self.length is not None:
            index = int(self._drawn(epoch)[index])
        row = self.split[index]
        image = load_image(row["image"]["bytes"] or row["image"]["path"], name=row["image"]["path"])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(draw))
            if self.outlines is None:
                return {"pixel_values": self.transform(image), "labels": row["label"]}
            # a slice without a tumour has an outline: none
            healthy = row["label"] == LABEL2ID[NO_TUMOR]
            known = [] if healthy else self.outlines.get(self.paths[index])
            pixel_values, mask = self.transform.with_mask(image, known)
            return {"pixel_values": pixel_values, "labels": row["label"], "masks": mask}
