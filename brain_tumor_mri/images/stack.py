"""Which slices of a DICOM series make the volume, in what order, and where: ``stack_of(series)`` -> ``Stack``."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from .frames import Frame
from .series import Series, UnreadableVolumeError

MAX_GAP = 0.2
"""Largest share of slices that may be missing within a DICOM series."""
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Stack:
    """Slices in order, not decoded yet.

    Attributes:
        frames: along the slices' normal; None where one is missing.
        shape: (rows, columns) of each.
        affine: as of ``Volume``, for (column, row, slice).
        notes: what was odd and how it was taken, a line each.
        doubt: as of ``Volume``.
    """

    frames: tuple[Frame | None, ...]
    shape: tuple[int, int]
    affine: np.ndarray
    notes: tuple[str, ...]
    doubt: str | None


def stack_of(series: Series) -> Stack:
    """Sort the slices, and leave out what is no part of the volume.

    Raises:
        UnreadableVolumeError: they make no volume.
    """
    notes = list(series.warnings)
    frames, normal = _one_orientation(series, notes)
    frames, positions = _placed(series, frames, normal, notes)
    order, positions = _filled(series, positions, frames, normal, notes)
    affine = np.eye(4)
    orientation = frames[0].orientation or (1, 0, 0, 0, 1, 0)
    affine[:3, 0] = np.array(orientation[:3]) * frames[0].spacing[1]
    affine[:3, 1] = np.array(orientation[3:]) * frames[0].spacing[0]
    affine[:3, 2] = (positions[-1] - positions[0]) / (len(positions) - 1)
    affine[:3, 3] = positions[0]
    step = affine[:3, 2] / np.linalg.norm(affine[:3, 2])
    tilt = np.degrees(np.arccos(np.clip(step @ normal, -1, 1)))
    if tilt > 2:
        notes.append(
            f"slices are shifted against each other by {tilt:.0f} degrees (tilted gantry); each stays a true plane"
        )
    unplaced = any(f.orientation is None for f in frames) or any("in the order of" in note for note in notes)
    doubt = "the headers do not say where the slices lie" if unplaced else None
    return Stack(tuple(order), frames[0].shape, LPS_TO_RAS @ affine, tuple(notes), doubt)


def _one_orientation(series: Series, notes: list[str]) -> tuple[list[Frame], np.ndarray]:
    """The frames of the main orientation and matrix, and their normal in LPS."""
    groups: dict[tuple, list[Frame]] = defaultdict(list)
    for frame in series.frames:
        groups[(frame.shape, *(round(c, 1) for c in frame.orientation or ()))].append(frame)
    main = max(groups.values(), key=len)
    others = len(series.frames) - len(main)
    if len(main) < 2:
        if len(series.frames) > 1:
            raise UnreadableVolumeError(series.name, f"a localiser: {len(series.frames)} slices in all directions")
        raise UnreadableVolumeError(series.name, "one slice, not a volume; give it as a picture")
    if others:
        if others > 0.2 * len(series.frames) or len(main) < 5:
            text = f"mixed: {len(series.frames)} slices of {len(groups)} orientations or sizes, as of a localiser"
            raise UnreadableVolumeError(series.name, text)
        notes.append(f"{others} slices of another orientation or size were left out")
    if main[0].orientation is None:
        notes.append("no orientation in the headers; taken as axial")
        return main, np.array([0.0, 0.0, 1.0])
    rows, columns = np.array(main[0].orientation[:3]), np.array(main[0].orientation[3:])
    normal = np.cross(rows, columns)
    if abs(np.linalg.norm(normal) - 1) > 0.05:
        raise UnreadableVolumeError(series.name, "the headers' orientation is no pair of right angles")
    return main, normal / np.linalg.norm(normal)


def _placed(
    series: Series, frames: list[Frame], normal: np.ndarray, notes: list[str]
) -> tuple[list[Frame], list[np.ndarray]]:
    """One frame a position, sorted along the normal, and the positions in LPS."""
    by_place: dict[float, list[Frame]] = defaultdict(list)
    for frame in sorted(frames, key=lambda f: (f.instance, f.number or 0, f.file)):
        by_place[round(float(normal @ frame.position), 2) if frame.position else 0.0].append(frame)
    # of a series over time, too, a place is shared by many; but there are places enough for a volume
    shared = len(by_place) < 4 or len({frame.location for frame in frames}) == len(frames)
    if shared and len(by_place) < max(2, 0.2 * len(frames)) and len({f.part for f in frames}) < len(frames) / 4:
        return _without_positions(frames, normal, notes)
    if len(by_place) < 2:
        raise UnreadableVolumeError(series.name, "all slices lie at one place; a series over time is no volume")
    most = Counter(len(group) for group in by_place.values()).most_common(1)[0][0]
    if most > 1:
        notes.append(f"4D: {most} slices at each position, the first volume was taken")
    elif any(len(group) > 1 for group in by_place.values()):
        double = sum(len(group) > 1 for group in by_place.values())
        notes.append(f"{double} positions hold two slices or more; the first of each was taken")
    kept = [min(by_place[place], key=_volume_order) for place in sorted(by_place)]
    return kept, [np.array(frame.position) for frame in kept]


def _volume_order(frame: Frame) -> tuple:
    return tuple((value is not None, value or 0.0) for value in frame.part), frame.instance


def _without_positions(
    frames: list[Frame], normal: np.ndarray, notes: list[str]
) -> tuple[list[Frame], list[np.ndarray]]:
    """Slices that share one position: told apart by Slice Location, else by their number."""
    origin = np.array(frames[0].position or (0.0, 0.0, 0.0))
    locations = [frame.location for frame in frames]
    if None not in locations and len(set(locations)) == len(frames):
        notes.append("all slices have one position (ImagePositionPatient); sorted by SliceLocation")
        pairs = sorted(zip(locations, frames, strict=True), key=lambda pair: pair[0])
        own = float(normal @ origin)
        start = own if pairs[0][0] - 1 <= own <= pairs[-1][0] + 1 else pairs[0][0]
        return [f for _, f in pairs], [origin + normal * (location - start) for location, _ in pairs]
    notes.append("the slices have no positions of their own; taken in the order of their numbers")
    kept = list({frame.instance: frame for frame in reversed(frames)}.values())
    kept = sorted(kept if len(kept) > 1 else frames, key=lambda f: (f.instance, f.file))
    step = frames[0].thickness or 1.0
    return kept, [origin + normal * step * k for k in range(len(kept))]


def _filled(
    series: Series, positions: list[np.ndarray], frames: list[Frame], normal: np.ndarray, notes: list[str]
) -> tuple[list[Frame | None], list[np.ndarray]]:
    """Put None where slices are missing, so that the grid is even."""
    gaps = np.diff([float(normal @ position) for position in positions])
    step = float(np.median(gaps))
    counts = np.maximum(1, np.rint(gaps / step)).astype(int)
    missing = int((counts - 1).sum())
    if np.abs(gaps / counts - step).max() > 0.1 * step:
        notes.append(f"distances between slices differ ({gaps.min():.1f} to {gaps.max():.1f} mm); taken as even")
        if gaps.max() > 3 * step:
            raise UnreadableVolumeError(series.name, f"a gap of {gaps.max():.0f} mm between slices {step:.1f} mm apart")
        return list(frames), positions
    if missing > MAX_GAP * len(frames):
        raise UnreadableVolumeError(series.name, f"{missing} of {missing + len(frames)} slices are missing")
    if not missing:
        return list(frames), positions
    order: list[Frame | None] = []
    even: list[np.ndarray] = []
    for k, frame in enumerate(frames):
        order.append(frame)
        even.append(positions[k])
        for empty in range(1, counts[k] if k < len(counts) else 1):
            order.append(None)
            even.append(positions[k] + (positions[k + 1] - positions[k]) * empty / counts[k])
    where = [k for k, frame in enumerate(order) if frame is None]
    notes.append(f"{missing} of {len(order)} slices are missing (from slice {where[0]} to {where[-1]}); left empty")
    return order, even
