"""Where the head is in a slice, so that a heat map is drawn on it alone: ``head_mask(slice)``.

With NumPy alone: SciPy, whose ``ndimage`` gives the same mask, would be a third of what answers need installed.
"""

import numpy as np
from PIL import Image

_LEVEL = 0.08  # of the brightest tissue; air and its noise lie below
_MARGIN = 2  # pixels that smooth the outline


def head_mask(image: Image.Image) -> np.ndarray:
    """Return where the head is: bool (H, W), the largest bright part with its holes filled.

    A slice that has no dark surroundings is all head.

    Args:
        image: the slice, RGB or grey, of any size.
    """
    grey = np.asarray(image.convert("L"), np.float32)
    bright = grey > _LEVEL * np.percentile(grey, 99)
    closed = np.pad(bright, 2 * _MARGIN)  # wide enough that the edge wears nothing away
    for _ in range(_MARGIN):
        closed = _grown(closed)
    for _ in range(_MARGIN):
        closed = ~_grown(~closed)
    parts = _parts(closed)
    sizes = np.bincount(parts[closed])
    if not sizes.size:
        return np.zeros(grey.shape, bool)
    head = parts == sizes.argmax()
    outside = _parts(~head)  # the margin joins all of it that is no hole
    return (outside != outside[0, 0])[2 * _MARGIN : -2 * _MARGIN, 2 * _MARGIN : -2 * _MARGIN]


def _grown(mask: np.ndarray) -> np.ndarray:
    """A mask with the four neighbours of each pixel."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def _parts(mask: np.ndarray) -> np.ndarray:
    """Number the parts of a mask (four neighbours): int (H, W), a part's number its first pixel's place; -1 elsewhere.

    Each run of pixels, along rows and along columns by turns, takes its least number, until none changes.
    """
    labels = np.where(mask, np.arange(mask.size).reshape(mask.shape), -1)
    while True:
        before = labels
        for _ in range(2):
            labels = _least_of_runs(labels).T
        if np.array_equal(labels, before):
            return labels


def _least_of_runs(labels: np.ndarray) -> np.ndarray:
    inside = np.pad(labels >= 0, ((0, 0), (1, 0)))
    starts = np.flatnonzero((inside[:, 1:] != inside[:, :-1]) | (np.arange(labels.shape[1]) == 0))
    flat = np.ascontiguousarray(labels).ravel()
    return np.repeat(np.minimum.reduceat(flat, starts), np.diff(starts, append=flat.size)).reshape(labels.shape)
