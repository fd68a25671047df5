"""A model's preprocessing without torch: what ``config.json`` says, pixel for pixel what its image processor does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

Preprocess = Callable[[Image.Image], np.ndarray]
"""Turns an RGB image into the network's input: float32 (3, H, W)."""


@dataclass(frozen=True)
class Squash:
    """Resizes straight to the input's size, scales to 0..1 and normalises.

    Attributes:
        size: (width, height) in pixels.
        resample: how Pillow interpolates.
        mean: float32 (3, 1, 1), subtracted; ``deviation``: divided by.
    """

    size: tuple[int, int]
    resample: Image.Resampling
    mean: np.ndarray
    deviation: np.ndarray

    def __call__(self, image: Image.Image) -> np.ndarray:
        """See ``Preprocess``."""
        pixels = np.asarray(image.resize(self.size, self.resample), dtype=np.uint8).transpose(2, 0, 1)
        return (np.ascontiguousarray(pixels, dtype=np.float32) / np.float32(255) - self.mean) / self.deviation

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Squash | None:
        """Read ``pretrained_cfg`` of a timm model that is resized without cropping; None for any other model."""
        cfg = config.get("pretrained_cfg") or {}
        if config.get("model_type") != "timm_wrapper" or (cfg.get("crop_mode"), cfg.get("crop_pct")) != ("squash", 1.0):
            return None
        resample = getattr(Image.Resampling, str(cfg.get("interpolation")).upper(), None)
        if resample is None:
            return None
        channels, height, width = cfg["input_size"]
        mean, deviation = (np.asarray(cfg[key], np.float32).reshape(channels, 1, 1) for key in ("mean", "std"))
        return cls((width, height), resample, mean, deviation)


def of_processor(processor: Any) -> Preprocess:
    """The same of an image processor of transformers."""
    return lambda image: processor(image, return_tensors="pt")["pixel_values"][0].numpy()
