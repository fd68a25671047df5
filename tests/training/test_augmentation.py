"""Training augmentation: what each change does to a slice, and that a seed decides it."""

import numpy as np
import pytest
import torch
from PIL import Image

from brain_tumor_mri.errors import UserError
from brain_tumor_mri.training.augmentation import (
    AugmentationArguments,
    RandomArtefact,
    RandomFraming,
    RandomGamma,
    RandomJpeg,
    head_box,
)

STRONG = AugmentationArguments(
    translation=0.1, scaling=0.2, gamma=0.5, framing=1.0, artefacts=1.0, jpeg=1.0
)  # every change at once


@pytest.fixture
def head() -> Image.Image:
    """A bright ellipse with a darker inside, off centre on black, RGB."""
    y, x = np.mgrid[:120, :100]
    radius = ((x - 40) / 25) ** 2 + ((y - 70) / 35) ** 2
    grey = np.where(radius < 0.8, 120 + 40 * np.sin(x / 3), np.where(radius < 1, 230, 0)).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


@pytest.mark.parametrize("change", [RandomFraming(), RandomGamma(0.5), RandomArtefact(), RandomJpeg()])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_size_and_mode_stay_and_the_seed_alone_decides(change, mode, head):
    image = head.convert(mode)

    def drawn(seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        result = change(image)
        assert (result.size, result.mode) == (image.size, mode)
        return np.asarray(result)

    assert np.array_equal(drawn(1), drawn(1))
    assert any(not np.array_equal(drawn(1), drawn(seed)) for seed in (2, 3))


def test_the_head_is_found_whatever_lies_in_the_dark(head):
    pixels = np.array(head)
    pixels[3, 97] = 255  # a burnt-in speck
    left, top, right, bottom = head_box(Image.fromarray(pixels))
    assert (left, right) == pytest.approx((16, 65), abs=2)
    assert (top, bottom) == pytest.approx((36, 105), abs=2)


def test_framing_makes_tightly_and_loosely_framed_heads_alike(head):
    """The share of the frame that the head fills, which tells the collections apart, no longer does."""
    tight = head.crop((15, 35, 66, 106)).resize((100, 120))

    def shares(image: Image.Image) -> list[float]:
        found = []
        for seed in range(30):
            torch.manual_seed(seed)
            left, top, right, bottom = head_box(RandomFraming()(image))
            found.append((right - left) * (bottom - top) / (100 * 120))
        return found

    assert np.mean(shares(head)) == pytest.approx(np.mean(shares(tight)), abs=0.03)
    assert min(shares(head)) > 0.45


@pytest.mark.parametrize("level", [0, 255])
def test_a_slice_without_a_head_passes(level):
    blank = Image.new("RGB", (64, 64), (level,) * 3)
    torch.manual_seed(0)
    assert STRONG.build()(blank).size == (64, 64)


def test_defaults_draw_nothing_new(head):
    """Recipes of before these changes were added train on the same pixels as they did."""
    assert len(AugmentationArguments().build().transforms) == 3


@pytest.mark.parametrize("setting", [{"jpeg": 1.5}, {"framing": -0.1}, {"gamma": -1}, {"rotation": -3}])
def test_impossible_settings_are_told(setting):
    with pytest.raises(UserError, match=f"--{next(iter(setting))}"):
        AugmentationArguments(**setting)


def test_the_artefacts_include_motion_that_ripples_and_does_not_merely_shift(head):
    """The best shift of the slice leaves much that is not it, as only a mixed k-space does."""
    from brain_tumor_mri.images.artefacts import motion

    grey = np.asarray(head.convert("L"))
    moved = motion(grey, 5.0, np.random.default_rng(0))
    shifts = [np.roll(grey, (dy, dx), (0, 1)) for dy in range(-4, 5) for dx in range(-4, 5)]
    assert min(np.abs(moved - shifted).mean() for shifted in shifts) > 1
    outside = grey == 0
    assert np.abs(moved[outside]).mean() > 0.5
