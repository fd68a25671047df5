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
    RandomResampling,
    RandomStripping,
    RandomTone,
    head_box,
)

STRONG = AugmentationArguments(
    translation=0.1, scaling=0.2, gamma=0.5, framing=1.0, artefacts=1.0, jpeg=1.0, vertical_flip=0.5,
    quarter_turns=0.5, stripping=1.0, tone=1.0, resampling=1.0,
)  # fmt: skip  # every change at once
STILL = {"rotation": 0, "horizontal_flip": 0, "brightness": 0, "contrast": 0}


@pytest.fixture
def head() -> Image.Image:
    """A bright ellipse with a darker inside, off centre on black, RGB."""
    y, x = np.mgrid[:120, :100]
    radius = ((x - 40) / 25) ** 2 + ((y - 70) / 35) ** 2
    grey = np.where(radius < 0.8, 120 + 40 * np.sin(x / 3), np.where(radius < 1, 230, 0)).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


@pytest.mark.parametrize(
    "change",
    [
        RandomFraming(),
        RandomGamma(0.5),
        RandomArtefact(),
        RandomJpeg(),
        RandomStripping(),
        RandomTone(),
        RandomResampling(),
    ],
    ids=lambda change: type(change).__name__,
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_size_and_mode_stay_and_the_seed_alone_decides(change, mode, head):
    image = head.convert(mode)

    def values(seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        result = change(image)
        assert (result.size, result.mode) == (image.size, mode)
        return np.asarray(result)

    assert np.array_equal(values(1), values(1))
    assert any(not np.array_equal(values(1), values(seed)) for seed in (2, 3))


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


def drawn(change, image: Image.Image, seed: int) -> np.ndarray:
    torch.manual_seed(seed)
    return np.asarray(change(image)).astype(int)


def test_stripping_blackens_a_rim_of_the_head_and_nothing_in_its_middle(head):
    before = np.asarray(head).astype(int)
    y, x = np.mgrid[:120, :100]
    radius = np.sqrt(((x - 40) / 25) ** 2 + ((y - 70) / 35) ** 2)
    depths = []
    for seed in range(8):
        after = drawn(RandomStripping(), head, seed)
        assert np.array_equal(after[radius < 0.6], before[radius < 0.6])
        edge = (radius > 0.97) & (radius < 1)
        assert after[edge].mean() < 0.3 * before[edge].mean()
        assert (after <= before).all()
        depths.append((after == 0).mean())
    assert max(depths) - min(depths) > 0.02


def test_stripping_leaves_a_picture_without_a_background_as_it_is():
    full = Image.fromarray(np.random.default_rng(0).integers(90, 255, (50, 60), dtype=np.uint8))
    assert np.array_equal(drawn(RandomStripping(), full, 0), np.asarray(full))


def test_tone_maps_each_grey_value_to_one_and_black_stays_black_while_tissues_can_change_order(head):
    before, swapped = np.asarray(head)[..., 0], 0
    for seed in range(12):
        after = drawn(RandomTone(), head, seed)[..., 0]
        assert (after[before == 0] == 0).all()
        levels = [set(after[before == value]) for value in np.unique(before)]
        assert all(len(level) == 1 for level in levels)
        swapped += (np.diff([level.pop() for level in levels]) < 0).any()
    assert swapped > 0


def test_resampling_takes_the_finest_detail_and_leaves_the_rest(head):
    stripes = Image.fromarray(np.where(np.indices((400, 400))[1] % 2, 255, 0).astype(np.uint8))
    assert drawn(RandomResampling(), stripes, 0).std() < 0.3 * np.asarray(stripes).std()
    assert np.abs(drawn(RandomResampling(), head, 0) - np.asarray(head)).mean() < 12


def test_quarter_turns_and_the_vertical_flip_do_just_that(head):
    square = head.crop((0, 0, 100, 100))
    plain = np.asarray(square)
    turns = AugmentationArguments(**STILL, quarter_turns=1).build()
    seen = {
        next(k for k in (1, 2, 3) if np.array_equal(drawn(turns, square, s), np.rot90(plain, k))) for s in range(20)
    }
    assert seen == {1, 2, 3}
    flip = AugmentationArguments(**STILL, vertical_flip=1).build()
    assert np.array_equal(drawn(flip, square, 0), plain[::-1])
    never = AugmentationArguments(**STILL).build()
    assert np.array_equal(drawn(never, square, 0), plain)


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
