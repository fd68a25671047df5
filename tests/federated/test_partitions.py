"""Who holds which slice: no patient in two hospitals, and each way of dividing does what its name says."""

import numpy as np
import pytest

from brain_tumor_mri.errors import UserError
from brain_tumor_mri.federated.partitions import partition


@pytest.fixture
def slices() -> dict[str, list]:
    """300 slices of 60 patients of four classes, in three collections whose patients have the same names."""
    patients = np.arange(300) // 5
    return {
        "sources": [f"collection-{p % 3}" for p in patients],
        "labels": (patients % 4).tolist(),
        "groups": [f"patient-{p // 3}" for p in patients],
    }


@pytest.mark.parametrize("method", ["patient", "dirichlet"])
def test_every_slice_is_in_one_hospital_and_no_patient_in_two(slices, method) -> None:
    rows = partition(method, **slices, clients=4, seed=1)
    assert sorted(np.concatenate(list(rows.values()))) == list(range(300))
    patients = [{(slices["sources"][i], slices["groups"][i]) for i in held} for held in rows.values()]
    assert sum(map(len, patients)) == len(set().union(*patients)) == 60
    assert all(len(held) for held in rows.values())


def test_patients_at_random_give_hospitals_of_one_size(slices) -> None:
    assert {len(held) for held in partition("patient", **slices, clients=4, seed=1).values()} == {75}


def test_a_small_alpha_skews_the_classes(slices) -> None:
    def most_common(alpha: float) -> float:
        shares = []
        for seed in range(5):
            for held in partition("dirichlet", **slices, clients=3, alpha=alpha, seed=seed).values():
                counts = np.bincount(np.array(slices["labels"])[held])
                shares.append(counts.max() / counts.sum())
        return float(np.mean(shares))

    assert most_common(0.1) > 0.6 > 0.4 > most_common(1000)


def test_the_seed_decides(slices) -> None:
    first, again, other = (partition("patient", **slices, clients=3, seed=seed)["hospital-1"] for seed in (0, 0, 1))
    assert first.tolist() == again.tolist() != other.tolist()


def test_a_collection_is_a_hospital_and_pooled_is_one_with_everything(slices) -> None:
    rows = partition("collection", **slices)
    assert list(rows) == ["collection-0", "collection-1", "collection-2"]
    assert {slices["sources"][i] for i in rows["collection-1"]} == {"collection-1"}
    assert len(partition("pooled", **slices)["pooled"]) == 300


def test_more_hospitals_than_patients_is_said(slices) -> None:
    with pytest.raises(UserError, match="60 patients"):
        partition("patient", **slices, clients=61)
