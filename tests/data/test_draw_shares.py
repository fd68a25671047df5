"""How often an epoch draws the slices of each collection and label."""

from collections import Counter

import datasets
import numpy as np
import pytest

from brain_tumor_mri.data.collections import CollectionArguments, draw_shares
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.training.dataset import SliceDataset

LABELS = [0] * 60 + [1] * 30 + [0] * 9 + [0]
STRATA = [None] * 90 + ["a glioma"] * 9 + ["b glioma"]
SPLIT = datasets.Dataset.from_dict(
    {"image": [{"path": "x.png", "bytes": None}] * 100, "label": LABELS, "stratum": STRATA}
)


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_a_stratum_is_drawn_in_proportion_to_its_size_to_the_power_of_balance(balance):
    shares = draw_shares(SPLIT, balance)
    assert shares.sum() == pytest.approx(1)
    sizes = np.array([60, 30, 9, 1])  # the main collection's labels are strata of their own
    drawn = [part.sum() for part in np.split(shares, [60, 90, 99])]
    assert drawn == pytest.approx(sizes**balance / (sizes**balance).sum())
    assert len(set(shares[:60].round(12))) == 1


def test_without_further_collections_each_label_is_a_stratum():
    plain = SPLIT.remove_columns("stratum")
    shares = draw_shares(plain, 0.0)
    assert [shares[np.array(LABELS) == label].sum() for label in (0, 1)] == pytest.approx([0.5, 0.5])


def test_an_epoch_draws_by_the_shares_and_another_epoch_draws_anew():
    dataset = SliceDataset(SPLIT, transform=None, seed=3, shares=draw_shares(SPLIT, 0.0), length=4000)
    first, second = dataset._drawn(0), dataset._drawn(1)
    assert len(dataset) == 4000 and not np.array_equal(first, second)
    assert np.array_equal(dataset._drawn(0), first)
    counts = Counter(STRATA[i] or LABELS[i] for i in first)
    assert len(counts) == 4 and all(abs(n - 1000) < 120 for n in counts.values())


@pytest.mark.parametrize("flags", [{"balance": 0.5}, {"balance": -1}, {"epoch_slices": 0}])
def test_settings_that_draw_nothing_are_told(flags):
    with pytest.raises(UserError, match=f"--{next(iter(flags))}"):
        CollectionArguments(**flags)
