"""Where the head is in a slice, so that a heat map is drawn on it alone: ``head_mask(slice)``."""

import numpy as np
from PIL import Image
from scipy import ndimage

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
    parts, count = ndimage.label(ndimage.binary_closing(np.pad(bright, _MARGIN), iterations=_MARGIN))
    if not count:
        return np.zeros(grey.shape, bool)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    head = ndimage.binary_fill_holes(parts == sizes.argmax())
    return head[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
