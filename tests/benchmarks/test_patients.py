"""Patients from slices: rules, and that what is chosen is chosen on validation patients."""

import numpy as np
import pytest

from benchmarks.accuracy.patients import CHOSEN, RULES, Patients, compare, left_out_figures
from brain_tumor_mri.labels import LABELS, NO_TUMOR

NONE = LABELS.index(NO_TUMOR)
SURE, CLEAR = np.array([0.7, 0.2, 0.0, 0.1]), np.array([0.05, 0.05, 0.85, 0.05])


def test_each_rule_gives_probabilities_and_one_slice_is_itself():
    assert NONE == 2
    for rule in RULES.values():
        assert rule(np.array([SURE, CLEAR, CLEAR, CLEAR])).sum() == pytest.approx(1)
        np.testing.assert_allclose(rule(SURE[None]), SURE, atol=1e-5)


def test_one_suspicious_slice_among_many_counts_as_each_rule_says():
    rows = np.array([SURE] + 9 * [CLEAR])
    assert 1 - RULES["mean"](rows)[NONE] == pytest.approx(0.1 + 0.9 * 0.15)
    assert 1 - RULES["most suspicious slice"](rows)[NONE] == pytest.approx(1)
    assert 1 - RULES["most suspicious 3"](rows)[NONE] == pytest.approx(1.3 / 3)


def test_a_patient_with_a_tumour_on_one_slice_has_one_and_is_counted_once():
    labels = np.array([0, NONE, NONE, NONE])
    patients = Patients(np.array([SURE, CLEAR, CLEAR, CLEAR]), labels, ["a", "a", "b", "b"])
    assert patients.labels.tolist() == [0, NONE] and len(patients.combined(RULES["mean"])) == 2
    found = compare(validation=patients, test=patients)
    assert found["slices"]["accuracy"]["n"] == 4
    assert all(figures["accuracy"]["n"] == 2 for figures in found["patients"].values())
    assert found["chosen_on_validation"] in RULES


def test_the_limit_is_of_the_worst_collection_and_what_is_learned_is_fitted_to_others():
    rng = np.random.default_rng(0)

    def people(concentration: float) -> Patients:
        labels = np.arange(40) % 4
        rows = np.concatenate([rng.dirichlet(0.4 + concentration * np.eye(4)[label], 3) for label in labels])
        return Patients(rows, np.repeat(labels, 3), [f"p{k:02d}" for k in np.repeat(np.arange(40), 3)])

    found = left_out_figures({"figshare": people(20), "tcga-lgg": people(0.2), "ageing-2mm": people(20)})
    assert found["limits"]["95"] <= found["limits"]["90"] < 0.2  # of the second
    sure = {name: row["told"] / row["n"] for name, row in found["one_class_left"].items()}
    assert sure["figshare"] > sure["tcga-lgg"]
    assert found["difference_to_mean"]["mean"]["value"] == 0 and CHOSEN in found["nll"] and "learned" in found["nll"]
    assert found["collections"]["figshare"]["learned"]["n"] == 40
