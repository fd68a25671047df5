"""A volume as upright slices of a head, and the way back to the input's voxels: ``Upright(volume)``."""

from __future__ import annotations

import nibabel
import numpy as np
from PIL import Image
from scipy.ndimage import affine_transform

from ..images.series import UnreadableVolumeError
from ..images.volume import Volume

HEAD_LEVEL = 25
"""Of 255, the volume's 99.5th percentile, above which a voxel is head."""
OBLIQUE_DEGREES = 15.0
"""A volume of nearly cubic voxels whose axes lie further from the patient's is turned upright by resampling. Thick
slices are answered in their own plane, as they are read: resampling would blur them."""
SHORT_SIDE = 8
"""Voxels; a volume with a shorter side in the slice's plane shows no head."""
_ORIENTATIONS = {"axial": "SPL", "coronal": "PIL", "sagittal": "LIP"}
"""Plane -> where slices, rows and columns run to, so that slices stand upright, the patient's left on the right."""
_DIRECTIONS = {"S": (0, 0, 1), "I": (0, 0, -1), "P": (0, -1, 0), "L": (-1, 0, 0)}
"""In RAS."""


def with_black_around(values: np.ndarray, low: float) -> np.ndarray:
    """Return values where some are negative with the one that most of the border has at ``low``, else as they are.

    Of a volume that was brought to mean 0 what lies around the head is 0, brighter than much of the brain.
    """
    if low >= 0:
        return values
    border = np.concatenate([values.take(end, axis).ravel() for axis in range(3) for end in (0, -1)])
    return np.where(values == np.median(border), np.float32(low), values)


class Upright:
    """A volume turned by its affine so that slices stand upright, cropped to the head, and the way back.

    Axes are only swapped and flipped, so what is found lies exactly where the input has it. Of a volume of nearly cubic
    voxels that lies oblique, each slice is resampled in the upright plane through the centre of the input's slice.

    Attributes:
        plane: ``axial``, ``coronal`` or ``sagittal``: across the largest voxel spacing; axial where all are alike.
        array: uint8 (slices, rows, columns), grey values.
        resampled: whether it was turned by resampling.
    """

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        ours = nibabel.orientations.io_orientation(volume.affine)
        if np.isnan(ours).any():
            raise UnreadableVolumeError(volume.name, "its geometry is broken: an axis has no direction")
        by_world = [volume.spacing[int(np.flatnonzero(ours[:, 0] == axis)[0])] for axis in range(3)]
        cubic = max(by_world) <= 1.5 * min(by_world)
        self.plane = ("sagittal", "coronal", "axial")[2 if cubic else int(np.argmax(by_world))]
        wanted = nibabel.orientations.axcodes2ornt(_ORIENTATIONS[self.plane])
        self._turn = nibabel.orientations.ornt_transform(ours, wanted)
        self._turn_back = nibabel.orientations.ornt_transform(wanted, ours)
        self.slice_axis = int(np.flatnonzero(self._turn[:, 0] == 0)[0])
        self._steps = [volume.spacing[int(np.flatnonzero(self._turn[:, 0] == axis)[0])] for axis in range(3)]
        cosines = np.abs(volume.affine[:3, :3] / volume.spacing).max(0)
        self.resampled = bool(cubic and np.degrees(np.arccos(cosines.min())) > OBLIQUE_DEGREES)
        values = volume.array if np.isfinite(volume.array.sum()) else np.nan_to_num(volume.array)
        low, high = np.percentile(values, (0.5, 99.5))
        values = with_black_around(values, low)
        if not high > low:
            raise UnreadableVolumeError(volume.name, "it is blank")
        turned = (
            self._resample(values) if self.resampled else nibabel.orientations.apply_orientation(values, self._turn)
        )
        # slice by slice: a copy of all of it as float would cost as much memory as the volume
        self.array = np.stack([np.uint8(255 * np.clip((each - low) / (high - low), 0, 1)) for each in turned])
        head = self.array > HEAD_LEVEL
        rows, columns = (np.flatnonzero(head.any((0, axis))) for axis in (2, 1))
        if min(len(rows), len(columns)) < SHORT_SIDE:
            raise UnreadableVolumeError(volume.name, "it shows no head")
        self._crop = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        self._areas = head.sum((1, 2))

    def _resample(self, values: np.ndarray) -> np.ndarray:
        """Upright slices (S, rows, columns) through the centres of the input's slices; ``_to_input`` leads back."""
        affine, shape = self.volume.affine, values.shape
        directions = np.array([_DIRECTIONS[code] for code in _ORIENTATIONS[self.plane]])
        ends = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)
        corners = directions @ (affine[:3, :3] @ ends + affine[:3, 3:])
        pixel = min(self.volume.spacing)
        first = (np.array(shape) - 1) / 2
        first[self.slice_axis] = 0 if self._turn[self.slice_axis, 1] > 0 else shape[self.slice_axis] - 1
        origin = corners.min(1)
        origin[0] = (directions @ (affine @ [*first, 1])[:3])[0]
        self._steps = [abs(float(directions[0] @ affine[:3, self.slice_axis])), pixel, pixel]
        upright = np.eye(4)
        upright[:3, :3] = directions.T * self._steps
        upright[:3, 3] = directions.T @ origin
        size = np.ceil(np.ptp(corners, axis=1)[1:] / pixel).astype(int) + 1
        self._to_input = np.linalg.inv(affine) @ upright
        return affine_transform(
            values,
            self._to_input[:3, :3],
            self._to_input[:3, 3],
            (shape[self.slice_axis], *size),
            order=1,
            cval=float(values.min()),
        )

    def head_slices(self) -> list[int]:
        """Slices of which a good part is head."""
        return np.flatnonzero(self._areas > 0.2 * self._areas.max()).tolist()

    def picture(self, k: int) -> Image.Image:
        """Slice k, cropped to the head and padded to a square of square pixels, as the slice model was trained."""
        cropped = Image.fromarray(self.array[k][self._crop])
        size = self._size_in_pixels()
        square = Image.new("L", (max(size), max(size)))
        square.paste(cropped.resize(size, Image.Resampling.BILINEAR), self._offset(size))
        return square.convert("RGB")

    def uncropped(self, heat: np.ndarray) -> np.ndarray:
        """Put a map (h, w) of a ``picture`` of any size back into the slice's rows and columns; 0 outside."""
        size = self._size_in_pixels()
        (left, top), side = self._offset(size), max(size)
        whole = Image.fromarray(heat.astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR)
        rows, columns = self._crop
        shape = columns.stop - columns.start, rows.stop - rows.start
        part = whole.crop((left, top, left + size[0], top + size[1])).resize(shape, Image.Resampling.BILINEAR)
        slice_ = np.zeros(self.array.shape[1:], np.float32)
        slice_[self._crop] = np.asarray(part)
        return slice_

    def back(self, array: np.ndarray) -> np.ndarray:
        """Turn an array like ``self.array`` back to the input's axes, a view of it, or its grid; a mask stays one."""
        if self.resampled:
            back = np.linalg.inv(self._to_input)
            order = 1 if np.issubdtype(array.dtype, np.floating) else 0
            return affine_transform(array, back[:3, :3], back[:3, 3], self.volume.array.shape, order=order)
        return nibabel.orientations.apply_orientation(array, self._turn_back)

    def input_index(self, k: int) -> int:
        """The index of slice k along ``slice_axis`` of the input."""
        return k if self._turn[self.slice_axis, 1] > 0 else len(self.array) - 1 - k

    def position(self, k: int) -> float:
        """Millimetres of the slice's centre along the plane's axis, to the right, anterior or superior."""
        index = (np.array(self.volume.array.shape) - 1) / 2
        index[self.slice_axis] = self.input_index(k)
        world = self.volume.affine @ np.append(index, 1)
        return float(world[("sagittal", "coronal", "axial").index(self.plane)])

    def side(self, k: int, heat: np.ndarray) -> str | None:
        """On which side of the head (the patient's) the weight of slice k's map lies: ``left``, ``right``, ``middle``.

        None where the map is empty or the geometry is in doubt.
        """
        if self.volume.doubt or not heat.any():
            return None
        if self.plane == "sagittal":  # from right to left
            head = self.head_slices()
            share = (k - head[0]) / max(head[-1] - head[0], 1)
        else:
            columns = self._crop[1]
            centre = heat.sum(0) @ np.arange(heat.shape[1]) / heat.sum()
            share = (centre - columns.start) / (columns.stop - columns.start)
        return "middle" if abs(share - 0.5) < 0.05 else "left" if share > 0.5 else "right"

    @property
    def step(self) -> float:
        """Millimetres from slice to slice."""
        return self._steps[0]

    def _size_in_pixels(self) -> tuple[int, int]:
        """Width and height of the cropped slice in square pixels."""
        rows, columns = self._crop
        pixel = min(self._steps[1:])
        sides = (columns.stop - columns.start) * self._steps[2], (rows.stop - rows.start) * self._steps[1]
        return round(sides[0] / pixel), round(sides[1] / pixel)

    @staticmethod
    def _offset(size: tuple[int, int]) -> tuple[int, int]:
        return (max(size) - size[0]) // 2, (max(size) - size[1]) // 2
