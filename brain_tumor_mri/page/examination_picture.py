"""A volume that was answered, as the page and the report show it: three planes, the patient's right on the left.

``Shown.of(prediction)`` turns voxels and heat map by the affine; axes are only swapped, flipped and thinned out, so
that slice k on the screen is slice k of the input.
"""

from __future__ import annotations

import base64
import gzip
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import nibabel
import numpy as np
from PIL import Image

from ..heat_maps.explain import colour
from ..inference.upright import with_black_around

if TYPE_CHECKING:
    from ..inference.volume import VolumePrediction

MOST_VOXELS = 2**24
"""Shown in a browser; a larger volume is thinned out within its slices, never between them."""
_AIR = 13
"""Of 255; darker noise is left black, as it would be half of what travels."""
PLANES = ("sagittal", "coronal", "axial")
"""By the axis that they are across."""


@dataclass(frozen=True, eq=False)
class Shown:
    """What is drawn of a volume.

    Attributes:
        voxels: uint8 (X, Y, Z), to the patient's right, anterior and superior; grey as the model sees it.
        heat: uint8 (X, Y, Z), what speaks for a tumour; None where there is no map.
        steps: millimetres from voxel to voxel along X, Y and Z.
        axis: 0, 1 or 2, across the slices that were answered.
        flipped: whether the input counts its slices against that axis.
    """

    voxels: np.ndarray
    heat: np.ndarray | None
    steps: tuple[float, float, float]
    axis: int
    flipped: bool

    @classmethod
    def of(cls, prediction: VolumePrediction) -> Shown:
        """Turn a prediction that has its volume."""
        volume = prediction.volume
        turn = nibabel.orientations.io_orientation(volume.affine)
        axis, flipped = int(turn[prediction.slice_axis, 0]), bool(turn[prediction.slice_axis, 1] < 0)
        thin = math.ceil(math.sqrt(max(1.0, volume.array.size / MOST_VOXELS)))
        factors = [1 if k == axis else thin for k in range(3)]
        every = tuple(slice(None, None, factor) for factor in factors)
        array = nibabel.orientations.apply_orientation(volume.array, turn)
        low, high = np.percentile(volume.array[tuple(slice(None, None, thin) for _ in range(3))], (0.5, 99.5))
        shown = with_black_around(array[every], low)
        voxels = np.uint8(255 * np.clip((shown - low) / max(float(high - low), 1e-6), 0, 1))
        voxels[voxels < _AIR] = 0
        heat = None
        if prediction.heat_map is not None and prediction.heat_map.any():
            heat = np.uint8(255 * nibabel.orientations.apply_orientation(prediction.heat_map, turn)[every])
        spacing = {int(turn[k, 0]): volume.spacing[k] for k in range(3)}
        steps = tuple(spacing[k] * factors[k] for k in range(3))
        return cls(np.ascontiguousarray(voxels), heat, steps, axis, flipped)

    def place(self, index: int) -> int:
        """The position along ``axis`` of the input's slice."""
        return self.voxels.shape[self.axis] - 1 - index if self.flipped else index

    def focus(self, index: int) -> tuple[int, int, int]:
        """Where to look first: on a slice, the middle of its heat map, else of the volume."""
        at = [side // 2 for side in self.voxels.shape]
        at[self.axis] = self.place(index)
        if self.heat is not None and (heat := self.heat.take(at[self.axis], self.axis).astype(float)).any():
            across = [k for k in range(3) if k != self.axis]
            for k, (axis, size) in enumerate(zip(across, heat.shape, strict=True)):
                at[axis] = round(float(heat.sum(1 - k) @ np.arange(size) / heat.sum()))
        return tuple(at)

    def picture(self, place: int, axis: int | None = None, opacity: float = 0.6) -> Image.Image:
        """One slice in square pixels under the heat map, RGB, as a radiologist looks at it."""
        axis = self.axis if axis is None else axis
        grey = np.flip(self.voxels.take(place, axis)).T
        rgb = np.repeat(grey[..., None].astype(np.float32), 3, axis=2)
        if self.heat is not None:
            heat = np.flip(self.heat.take(place, axis)).T / 255
            weight = (opacity * heat)[..., None]
            rgb = (1 - weight) * rgb + weight * colour(heat)
        columns, rows = (k for k in range(3) if k != axis)
        pixel = min(self.steps[columns], self.steps[rows])
        size = round(grey.shape[1] * self.steps[columns] / pixel), round(grey.shape[0] * self.steps[rows] / pixel)
        return Image.fromarray(np.uint8(rgb)).resize(size, Image.Resampling.BILINEAR)


def packed(array: np.ndarray) -> str:
    """Voxels as text: differences along the last axis (they pack better), gzip, base64; examination.js unpacks it."""
    return base64.b64encode(gzip.compress(np.diff(array.ravel(), prepend=np.uint8(0)).tobytes(), 6)).decode()


def palette() -> str:
    """The heat map's 256 colours, RGB, in hexadecimal."""
    return colour(np.arange(256) / 255).tobytes().hex()
