"""Finds images that are copies of one another: recompressed, resized, mirrored, turned, brighter, darker, sharpened.

``find_copies(np.stack([thumbnail(image) for image in images]))`` gives every pair of copies with what was done to it.
Exact for its criterion (no hashing that may miss), in memory linear in the number of images.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import PIL.Image
from scipy.fft import dctn
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

THUMBNAIL_SIZE = 64
"""Side of the thumbnails that pairs are verified on, in pixels."""

DESCRIPTOR_SIZE = 32
"""Side of the thumbnails that pairs are searched on, in pixels; half of ``THUMBNAIL_SIZE``."""

CANDIDATE_CORRELATION = 0.96
"""Pairs whose 32x32 thumbnails correlate less than this, in all eight orientations, are not looked at further.

Low enough for a gamma of 0.5 or a brightness doubled into saturation; see ``benchmarks/accuracy/audit_accuracy.py``.
"""

COPY_SCORE = 0.99
"""Score from which two images count as copies.

Between two kinds of pairs as measured: of the 3,064 Figshare slices the two most alike neighbours reach 0.9874, while
copies of 200 slices stay at 0.994 or above (JPEG quality 30, 64 px, brightness x2, gamma 0.5). See
``results/audit-accuracy``.
"""

ORIENTATIONS: tuple[str, ...] = (
    "as is",
    "mirrored",
    "upside down",
    "turned 180",
    "transposed",
    "turned 90 clockwise",
    "turned 90 counterclockwise",
    "anti-transposed",
)
"""What is done to the second image of a pair to lie like the first; the index is the code in ``CopyPairs.orientation``.

Bit 4 transposes, then bit 2 flips the rows (upside down), then bit 1 flips the columns (mirrored).
"""

_INVARIANTS = 768
_SEARCH_BLOCK = 2048
_CORRELATE_BLOCK = 8192
_VERIFY_BLOCK = 256

# Flipping rows negates the DCT coefficients of odd row frequency, flipping columns those of odd column frequency: one
# row a (rows flipped, columns flipped), one column a class of coefficients (row frequency odd, column frequency odd).
_FLIP_SIGNS = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype=np.float32)


@dataclass(frozen=True)
class CopyPairs:
    """Pairs of copies, one element a pair in every array, ``first < second``, each pair once.

    Attributes:
        first: int32 (P,), index of one image.
        second: int32 (P,), index of the other.
        orientation: uint8 (P,), index into ``ORIENTATIONS``: what brings the second to lie like the first.
        score: float32 (P,), in [0, 1]: correlation on 64x64 thumbnails, of the best cubic map of grey values where the
            plain correlation does not decide.
        correlation: float32 (P, 8), in [-1, 1]: correlation on 32x32 thumbnails in each orientation.
    """

    first: np.ndarray
    second: np.ndarray
    orientation: np.ndarray
    score: np.ndarray
    correlation: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    def select(self, mask: np.ndarray) -> "CopyPairs":
        """The pairs where ``mask``, bool (P,), is true."""
        return CopyPairs(
            self.first[mask], self.second[mask], self.orientation[mask], self.score[mask], self.correlation[mask]
        )


def thumbnail(image: PIL.Image.Image, size: int = THUMBNAIL_SIZE) -> np.ndarray:
    """Grey thumbnail with its contrast stretched, so that 8 bits are enough for dark images too.

    Args:
        image: any size and mode that Pillow turns into grey.
        size: side in pixels; the aspect ratio is not kept.

    Returns:
        uint8 (size, size), minimum 0 and maximum 255; all 0 for an image of one grey value.
    """
    # BILINEAR with Pillow's anti-aliasing commutes with mirroring; BOX does not where the factor is no whole number.
    grey = np.asarray(image.convert("L").convert("F").resize((size, size), PIL.Image.Resampling.BILINEAR))
    low, high = float(grey.min()), float(grey.max())
    if high - low < 1e-3:
        return np.zeros((size, size), np.uint8)
    return np.rint((grey - low) * (255.0 / (high - low))).astype(np.uint8)


def orient(images: np.ndarray, orientation: int) -> np.ndarray:
    """Transpose, flip rows, flip columns as bits 4, 2 and 1 of ``orientation`` say; see ``ORIENTATIONS``.

    Returns:
        A view of the same shape.
    """
    if orientation & 4:
        images = np.swapaxes(images, -1, -2)
    if orientation & 2:
        images = images[..., ::-1, :]
    if orientation & 1:
        images = images[..., ::-1]
    return images


def normalise(images: np.ndarray) -> np.ndarray:
    """Zero mean and unit length, so that a dot product is the normalised cross-correlation.

    Args:
        images: (N, ...), any numeric dtype.

    Returns:
        float32 (N, D); rows of zeros for images of one grey value.
    """
    flat = images.reshape(len(images), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.divide(flat, length, out=np.zeros_like(flat), where=length > 1e-6)


def spectra(thumbnails: np.ndarray) -> np.ndarray:
    """Orthonormal 2-D DCT-II coefficients of the normalised 32x32 thumbnails, sorted by parity.

    Args:
        thumbnails: uint8 (N, 64, 64).

    Returns:
        float32 (N, 4, 16, 16): classes of (row, column) frequency even-even, even-odd, odd-even, odd-odd; the dot
        product of two images' coefficients is the correlation of their 32x32 thumbnails.
    """
    size, out = DESCRIPTOR_SIZE, np.empty((len(thumbnails), 4, 16, 16), np.float32)
    for start in range(0, len(thumbnails), _SEARCH_BLOCK):
        block = thumbnails[start : start + _SEARCH_BLOCK]
        pooled = block.reshape(len(block), size, 2, size, 2).mean(axis=(2, 4), dtype=np.float32)
        coefficients = dctn(normalise(pooled).reshape(-1, size, size), axes=(1, 2), norm="ortho")
        for parity in range(4):
            out[start : start + len(block), parity] = coefficients[:, parity // 2 :: 2, parity % 2 :: 2]
    return out


def invariants(coefficients: np.ndarray) -> np.ndarray:
    """Features that the eight orientations leave unchanged and that never move two images further apart.

    A turn or flip permutes and negates DCT coefficients within pairs (X_uv, X_vu). Absolute values, sums, and lengths
    of such pairs are therefore the same in all orientations, and each is 1-Lipschitz. So for unit-length images x and y
    and any orientation g, ``|f(x) - f(y)| <= |x - g y| = sqrt(2 - 2 corr(x, g y))``: a search by radius misses no pair.
    (Of 24.6 million pairs of Kaggle images it lets 34,479 through; 25,534 of them correlate above 0.97.)

    Args:
        coefficients: float32 (N, 4, 16, 16) of :func:`spectra`.

    Returns:
        float32 (N, 768).
    """
    half = DESCRIPTOR_SIZE // 2
    even, even_odd, odd_even, odd = (coefficients[:, parity] for parity in range(4))
    u, v = np.triu_indices(half, 1)
    diagonal = np.arange(half)
    root = np.float32(np.sqrt(0.5))
    return np.concatenate(
        [
            even[:, diagonal, diagonal],
            np.abs(odd[:, diagonal, diagonal]),
            (even[:, u, v] + even[:, v, u]) * root,
            np.abs(even[:, u, v] - even[:, v, u]) * root,
            np.abs(odd[:, u, v] + odd[:, v, u]) * root,
            np.abs(odd[:, u, v] - odd[:, v, u]) * root,
            np.hypot(even_odd, np.swapaxes(odd_even, 1, 2)).reshape(len(coefficients), half * half),
        ],
        axis=1,
    )


def candidate_pairs(features: np.ndarray, radius: float) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Pairs of rows closer than ``radius``, block by block, so that only a block's answer is in memory.

    Args:
        features: float32 (N, D).
        radius: Euclidean distance, inclusive.

    Yields:
        The number of rows done, and the indices int64 (P,) of the block's pairs, the first always below the second.
    """
    # |x - y|^2 = |x|^2 + |y|^2 - 2 xy, one block of the upper triangle at a time. scikit-learn's brute-force neighbours
    # do the same in float64 for both triangles and take three times as long; its trees, 50 times.
    squares = np.einsum("nd,nd->n", features, features)
    limit = np.float32(radius**2)
    for top in range(0, len(features), _SEARCH_BLOCK):
        rows = features[top : top + _SEARCH_BLOCK]
        first, second = [], []
        for left in range(top, len(features), _SEARCH_BLOCK):
            distances = rows @ features[left : left + _SEARCH_BLOCK].T
            distances *= -2
            distances += squares[top : top + _SEARCH_BLOCK, None]
            distances += squares[left : left + _SEARCH_BLOCK]
            i, j = np.divmod(np.flatnonzero(distances <= limit), distances.shape[1])
            ahead = left + j > top + i
            first.append(top + i[ahead])
            second.append(left + j[ahead])
        yield top + len(rows), np.concatenate(first), np.concatenate(second)


def correlations(coefficients: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Correlation of 32x32 thumbnails in all eight orientations at the price of two dot products.

    Args:
        coefficients: float32 (N, 4, 16, 16) of :func:`spectra`.
        first: int (P,).
        second: int (P,).

    Returns:
        float32 (P, 8), in [-1, 1], in the order of ``ORIENTATIONS``.
    """
    x, y = coefficients[first], coefficients[second]
    straight = np.einsum("pcuv,pcuv->pc", x, y)
    # Transposing the image transposes each class and swaps even-odd with odd-even.
    crossed = np.einsum("pcuv,pcvu->pc", x, y[:, [0, 2, 1, 3]])
    return np.concatenate([straight @ _FLIP_SIGNS.T, crossed @ _FLIP_SIGNS.T], axis=1)


def copy_scores(x: np.ndarray, y: np.ndarray, enough: float = COPY_SCORE) -> np.ndarray:
    """How far one image of a pair explains the other, whatever was done to brightness, contrast and gamma.

    The plain correlation where it reaches ``enough``; else the multiple correlation R of the least-squares cubic map
    from the grey values of one to those of the other, in the direction that fits better (R = |projection| / |target|).

    Args:
        x: uint8 (P, S, S).
        y: uint8 (P, S, S), already turned to lie like x.
        enough: the score that decides, in [0, 1].

    Returns:
        float32 (P,), in [0, 1].
    """
    unit_x, unit_y = normalise(x), normalise(y)
    scores = np.clip(np.einsum("pd,pd->p", unit_x, unit_y), 0, 1)
    open_cases = np.flatnonzero(scores < enough)
    for start in range(0, len(open_cases), _VERIFY_BLOCK):
        rows = open_cases[start : start + _VERIFY_BLOCK]
        forward = _cubic_fit(x[rows], unit_y[rows])
        backward = _cubic_fit(y[rows], unit_x[rows])
        scores[rows] = np.maximum(scores[rows], np.minimum(np.maximum(forward, backward), 1))
    return scores


def find_copies(
    thumbnails: np.ndarray,
    *,
    min_score: float = COPY_SCORE,
    min_correlation: float = CANDIDATE_CORRELATION,
    progress: Callable[[int, int], None] | None = None,
) -> CopyPairs:
    """All pairs of copies among images.

    Three steps: radius search on features that do not depend on orientation (:func:`invariants`, misses nothing);
    correlation of the 32x32 thumbnails in eight orientations; score of the 64x64 thumbnails in the best of them.

    Args:
        thumbnails: uint8 (N, 64, 64) of :func:`thumbnail`. Collapse identical ones first: k of them make k(k-1)/2
            pairs. Images of one grey value are nobody's copy.
        min_score: pairs below are not copies; 0.97..0.999 make sense.
        min_correlation: candidates below this correlation in every orientation are dropped; at most ``min_score``.
        progress: called with (images done, images in all).

    Returns:
        The pairs, sorted by first and second. Memory: 12 kB an image and 50 bytes a pair.
    """
    coefficients = spectra(thumbnails)
    textured = np.flatnonzero(np.einsum("npuv,npuv->n", coefficients, coefficients) > 0.5)
    features = np.empty((len(textured), _INVARIANTS), np.float32)
    for start in range(0, len(textured), _SEARCH_BLOCK):
        rows = textured[start : start + _SEARCH_BLOCK]
        features[start : start + len(rows)] = invariants(coefficients[rows])
    parts: list[CopyPairs] = []
    radius = float(np.sqrt(2 - 2 * min_correlation)) + 1e-5
    for done, first, second in candidate_pairs(features, radius) if len(textured) > 1 else ():
        for start in range(0, len(first), _CORRELATE_BLOCK):
            i = textured[first[start : start + _CORRELATE_BLOCK]]
            j = textured[second[start : start + _CORRELATE_BLOCK]]
            parts.append(_verify(thumbnails, coefficients, i, j, min_correlation, min_score))
        if progress is not None:
            progress(done, len(textured))
    if not parts:
        parts = [_verify(thumbnails, coefficients, *np.zeros((2, 0), np.int64), min_correlation, min_score)]
    pairs = CopyPairs(
        *(np.concatenate([getattr(p, name) for p in parts]) for name in CopyPairs.__dataclass_fields__)  # type: ignore[arg-type]
    )
    return pairs.select(np.lexsort((pairs.second, pairs.first)))


def connected_groups(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Group number of each image, where pairs (and pairs of pairs) put images into one group.

    Args:
        count: number of images N.
        first: int (P,), index of one image of each pair.
        second: int (P,), index of the other.

    Returns:
        int64 (N,), numbered from 0 by first appearance.
    """
    graph = coo_matrix((np.ones(len(first), bool), (first, second)), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    _, appearance, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(appearance))[inverse]


def _verify(
    thumbnails: np.ndarray,
    coefficients: np.ndarray,
    i: np.ndarray,
    j: np.ndarray,
    min_correlation: float,
    min_score: float,
) -> CopyPairs:
    correlation = correlations(coefficients, i, j)
    # Of orientations that are as good (a symmetric image), the first in the list is the plainest explanation.
    best = np.argmax(correlation >= correlation.max(axis=1, keepdims=True) - 1e-4, axis=1).astype(np.uint8)
    keep = correlation.max(axis=1) >= min_correlation
    i, j, best, correlation = i[keep], j[keep], best[keep], correlation[keep]
    score = np.empty(len(i), np.float32)
    for start in range(0, len(i), _VERIFY_BLOCK):
        part = slice(start, start + _VERIFY_BLOCK)
        turned = np.stack([orient(thumbnails[k], int(o)) for k, o in zip(j[part], best[part], strict=True)])
        score[part] = copy_scores(thumbnails[i[part]], turned, min_score)
    found = CopyPairs(i.astype(np.int32), j.astype(np.int32), best, score, correlation)
    return found.select(score >= min_score)


def _cubic_fit(source: np.ndarray, unit_target: np.ndarray) -> np.ndarray:
    """R of the least-squares cubic in the grey values of ``source`` to ``unit_target`` (P, D), as float64 (P,)."""
    # Normal equations on grey values brought to [-1, 1]; sums over pixels are sums over the histogram of 256 values.
    count, levels = len(source), 256
    bins = (source.reshape(count, -1) + levels * np.arange(count)[:, None]).ravel()
    pixels = np.bincount(bins, minlength=count * levels).reshape(count, levels).astype(np.float64)
    target = np.bincount(bins, weights=unit_target.ravel(), minlength=count * levels).reshape(count, levels)
    powers = (np.arange(levels) / 127.5 - 1.0)[:, None] ** np.arange(4)
    gram = np.einsum("pv,vk,vl->pkl", pixels, powers, powers, optimize=True)
    projection = target @ powers
    # the pseudo-inverse copes with images of fewer than four greys
    explained = np.einsum("pk,pkl,pl->p", projection, np.linalg.pinv(gram, rcond=1e-10, hermitian=True), projection)
    return np.sqrt(np.clip(explained, 0, 1))
