"""Pixel values of any depth as 8 bits, by a fixed rule: ``to_8bit(values)``."""

import numpy as np

_BIT_DEPTHS = (8, 10, 12, 16)


def to_8bit(values: np.ndarray) -> np.ndarray:
    """Bring pixel values of any accepted depth to 0..255 by a fixed rule, never by stretching the contrast.

    Integers. A file of 16-bit pixels does not say how many bits its scanner used: 12-bit slices are common in 16-bit
    files, and read as 16-bit they would be black. So the depth is the smallest of 8, 10, 12 and 16 bits that holds the
    largest value, and values are multiplied by ``255 / (2**bits - 1)`` and rounded. Before that, the two usual ways of
    widening an 8-bit image (``v * 257`` and ``v << 8``) are recognised exactly, because every value is then divisible
    by 257 or 256; a dark 8-bit image so comes back as it was. What is known: an image gets one of four fixed
    brightness scales, so contrast within it is kept. What is guessed: which one. An image much darker than its depth
    allows (a 16-bit one whose largest value is below 4096) is taken for a shallower one and comes out up to 16 times
    brighter; with no depth on record the two cannot be told apart, and a slice that uses 1/16 of its range is rarer.

    Floats. Up to 1 they are 0..1 and are multiplied by 255; from 2 up they are treated as integers.

    Args:
        values: any shape, dtype bool, integer or floating; 0..65535.

    Returns:
        The same shape, uint8, 0..255. uint8 input is returned as it is.

    Raises:
        ValueError: values are negative, above 65535, not finite, or floats with a maximum between 1 and 2 (which
            could be either scale).
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("pixel values are not all finite (NaN or infinity)")
    if low < 0:
        raise ValueError(f"pixel values go below 0 (to {low:g}); shift them to start at 0")
    if high > 65535:
        raise ValueError(f"pixel values go up to {high:g}; at most 65535 (16 bits) is accepted")
    if np.issubdtype(values.dtype, np.floating):
        # A thousandth above 1 is rounding, as resampling leaves it.
        if high <= 1.001:
            return np.rint(np.clip(values, 0, 1) * np.float32(255)).astype(np.uint8)
        if high < 2:
            raise ValueError(f"float pixel values go up to {high:g}, which is neither 0..1 nor 0..255")
        values = np.rint(values)
    values = values.astype(np.uint16, copy=False)
    return _eight_bit_table(values)[values]


def _eight_bit_table(values: np.ndarray) -> np.ndarray:
    """The look-up table, (65536,) uint8, that :func:`to_8bit` applies to these uint16 values."""
    levels = np.arange(65536, dtype=np.uint32)
    high = int(values.max())
    if high > 255:
        for widening in (257, 256):
            if not np.any(values % np.uint16(widening)):
                return np.minimum(levels // widening, 255).astype(np.uint8)
    most = _depth(high)
    return np.minimum((levels * 255 + most // 2) // most, 255).astype(np.uint8)


def _depth(high: float) -> int:
    """The largest value of the depth that holds this one; ``high`` itself where none does."""
    return next((2**bits - 1 for bits in _BIT_DEPTHS if high < 2**bits), int(high))


def top(values: np.ndarray) -> np.generic:
    """What stands for black where 0 is white, of the values' own type."""
    high = values.max()
    return values.dtype.type(1 if values.dtype.kind == "f" and high <= 1.001 else _depth(float(high)))
