"""Artefacts drawn into a slice, and where the head begins in it."""

from __future__ import annotations

import numpy as np
import torch
import torchio

HEAD_LEVEL = 0.08
"""Grey value, as a share of the slice's brightest, above which a pixel is taken for part of the head."""
NOMINAL_SIDE = 256


def as_volume(grey: np.ndarray) -> torch.Tensor:
    """(H, W) uint8 to TorchIO's (1, H, W, 1) float32 in 0..1."""
    return torch.from_numpy(grey.astype(np.float32) / 255)[None, :, :, None]


def motion(grey: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """Two movements while the slice is taken: k-space is put together from three positions, its middle from the first.

    Args:
        grey: (H, W) uint8.
        size: of each movement: degrees, and pixels of a slice of 256 pixels.
        rng: draws directions and times.

    Returns:
        (H, W) float, 0..255 but for overshoot.

    TorchIO fills k-space along the last axis, which must therefore be in the plane: on (1, H, W, 1) that axis has one
    element, and the whole slice is merely moved, with no artefact. And it turns about the origin of the coordinates,
    which for a bare tensor is a corner; so an affine puts it into the middle.
    """
    shift = size * max(grey.shape) / NOMINAL_SIDE
    turns, directions = rng.choice((-1, 1), 2), rng.uniform(0, 2 * np.pi, 2)
    transform = torchio.Motion(
        degrees=np.array([(size * turn, 0, 0) for turn in turns]),
        translation=np.array([(0, shift * np.sin(a), shift * np.cos(a)) for a in directions]),
        times=np.array([0.5, 0.5]) + rng.uniform(0.06, 0.1, 2) * (-1, 1),
        image_interpolation="linear",
    )
    upright = rng.random() < 0.5  # phase is encoded along rows or columns
    plane = np.ascontiguousarray(grey if upright else grey.T)
    affine = np.eye(4)
    affine[1:3, 3] = [(1 - side) / 2 for side in plane.shape]
    slice_ = torchio.ScalarImage(tensor=as_volume(plane).permute(0, 3, 1, 2), affine=affine)
    moved = 255 * transform(slice_).data[0, 0].numpy()
    return moved if upright else moved.T
