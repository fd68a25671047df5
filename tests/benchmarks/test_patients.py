"""Patients from slices: rules, and that what is chosen is chosen on validation patients."""

import numpy as np
import pytest

from benchmarks.accuracy.patients import RULES, Patients, compare
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
    assert 1 - RULES["most suspicious 3 (fixed)"](rows)[NONE] == pytest.approx(1.3 / 3)


def test_a_patient_with_a_tumour_on_one_slice_has_one_and_is_counted_once():
    labels = np.array([0, NONE, NONE, NONE])
    patients = Patients(np.array([SURE, CLEAR, CLEAR, CLEAR]), labels, ["a", "a", "b", "b"])
    assert patients.labels.tolist() == [0, NONE] and len(patients.combined(RULES["mean"])) == 2
    found = compare(validation=patients, test=patients)
    assert found["slices"]["accuracy"]["n"] == 4
    assert all(figures["accuracy"]["n"] == 2 for figures in found["patients"].values())
    assert found["chosen_on_validation"] in RULES
