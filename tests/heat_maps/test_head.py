"""The head's mask is SciPy's, and the colours are matplotlib's, though neither is needed for them."""

import matplotlib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from brain_tumor_mri.heat_maps.explain import colour
from brain_tumor_mri.heat_maps.head import head_mask
from brain_tumor_mri.labels import LABELS
from data_scripts.draw_phantoms import make_phantom


def by_scipy(image: Image.Image) -> np.ndarray:
    grey = np.asarray(image.convert("L"), np.float32)
    bright = np.pad(grey > 0.08 * np.percentile(grey, 99), 2)
    parts, _ = ndimage.label(ndimage.binary_closing(bright, iterations=2))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return ndimage.binary_fill_holes((parts == sizes.argmax()) & (parts > 0))[2:-2, 2:-2]


@pytest.mark.parametrize("seed", range(6))
def test_the_mask_is_what_scipy_says_of_blobs_with_holes_at_every_edge(seed: int) -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random((61, 48)), 1 + seed / 4)
    image = Image.fromarray(np.where(noise > np.median(noise), 255, 0).astype(np.uint8))
    assert np.array_equal(head_mask(image), by_scipy(image))


@pytest.mark.parametrize("label", LABELS)
def test_the_mask_is_what_scipy_says_of_a_slice(label: str) -> None:
    image = make_phantom(label, np.random.default_rng(0), size=160)
    mask = head_mask(image)
    assert np.array_equal(mask, by_scipy(image)) and 0.1 < mask.mean() < 0.9


def test_a_black_picture_has_no_head_and_a_white_one_is_all_head() -> None:
    assert not head_mask(Image.new("L", (20, 30), 0)).any()
    assert head_mask(Image.new("L", (20, 30), 255)).all()


def test_the_colours_are_those_of_plasma() -> None:
    heat = np.linspace(0, 1, 256, dtype=np.float32)
    theirs = 255 * matplotlib.colormaps["plasma"](heat)[:, :3]
    assert np.abs(colour(heat) - theirs).max() <= 6
