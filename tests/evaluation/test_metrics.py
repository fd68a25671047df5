"""Figures equal scikit-learn's, intervals cover what they claim, groups widen them."""

import evaluate
import numpy as np
import pytest
from sklearn import metrics as sk

from brain_tumor_mri.evaluation.metrics import (
    TumorClassificationMetric,
    bootstrap_weights,
    classification_figures,
    measured,
)
from brain_tumor_mri.labels import LABELS


def simulated(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    logits = rng.normal(size=(n, 4)) + 1.5 * np.eye(4)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    # Coarse scores make ties, which the AUROC has to count half.
    return np.round(probabilities, 2) / np.round(probabilities, 2).sum(1, keepdims=True), labels


def test_every_figure_equals_scikit_learns():
    probabilities, labels = simulated()
    predicted = probabilities.argmax(1)
    figures = classification_figures(probabilities, labels, n_resamples=0)
    assert figures["n"] == 400
    assert figures["accuracy"]["value"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert figures["balanced_accuracy"]["value"] == pytest.approx(sk.balanced_accuracy_score(labels, predicted))
    assert figures["macro_f1"]["value"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    assert figures["auroc"]["value"] == pytest.approx(sk.roc_auc_score(labels, probabilities, multi_class="ovr"))
    assert figures["confusion_matrix"] == sk.confusion_matrix(labels, predicted).tolist()
    assert figures["brier"]["value"] == pytest.approx(((probabilities - np.eye(4)[labels]) ** 2).sum(1).mean())
    precision, recall, f1, support = sk.precision_recall_fscore_support(labels, predicted)
    for c, name in enumerate(LABELS):
        entry = figures["per_class"][name]
        assert entry["precision"]["value"] == pytest.approx(precision[c])
        assert entry["recall"]["value"] == pytest.approx(recall[c])
        assert entry["f1"]["value"] == pytest.approx(f1[c])
        assert entry["support"] == support[c]
        assert entry["auroc"]["value"] == pytest.approx(sk.roc_auc_score(labels == c, probabilities[:, c]))


def test_calibration_error_of_a_known_case():
    # Ten answers at confidence 0.95, seven of them right: the one bin that is used is off by 0.25.
    probabilities = np.full((10, 4), 0.05 / 3)
    probabilities[:, 0] = 0.95
    labels = np.array([0] * 7 + [1] * 3)
    figures = classification_figures(probabilities, labels, n_resamples=0)
    assert figures["ece"]["value"] == pytest.approx(0.25)
    assert figures["log_loss"]["value"] == pytest.approx(-(7 * np.log(0.95) + 3 * np.log(0.05 / 3)) / 10)


def test_the_interval_holds_the_true_accuracy_about_95_times_in_100():
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        labels = rng.integers(0, 4, 150)
        right = rng.random(150) < 0.8
        predicted = np.where(right, labels, (labels + 1) % 4)
        accuracy = classification_figures(np.eye(4)[predicted], labels, n_resamples=400, seed=seed)["accuracy"]
        held += accuracy["low"] <= 0.8 <= accuracy["high"]
    assert 0.90 <= held / 200 <= 0.99


def test_resampling_groups_widens_the_interval_when_a_patients_slices_agree():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(40), 10)
    labels = np.repeat(rng.integers(0, 4, 40), 10)
    predicted = np.where(np.repeat(rng.random(40) < 0.8, 10), labels, (labels + 1) % 4)

    def width(groups: np.ndarray | None) -> float:
        figures = classification_figures(np.eye(4)[predicted], labels, groups=groups)
        assert figures["interval"]["over"] == ("image" if groups is None else "group")
        return figures["accuracy"]["high"] - figures["accuracy"]["low"]

    assert width(patients) > 2 * width(None)


def test_bootstrap_weights_draw_whole_groups():
    weights = bootstrap_weights(6, ["a", "a", "b", "b", "b", "c"], 50, seed=0)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 2] == weights[:, 4]).all()
    assert (weights[:, [0, 2, 5]].sum(1) == 3).all()


def test_figures_are_reproducible_and_a_seed_changes_only_the_intervals():
    probabilities, labels = simulated()
    first, again, other = (classification_figures(probabilities, labels, seed=s) for s in (0, 0, 1))
    assert first == again
    assert first["accuracy"]["value"] == other["accuracy"]["value"]
    assert first["accuracy"] != other["accuracy"]


def test_a_class_without_images_has_no_recall_and_does_not_spoil_the_means():
    probabilities, labels = simulated()
    kept = labels != 2
    figures = classification_figures(probabilities[kept], labels[kept], n_resamples=50)
    assert figures["per_class"]["notumor"]["recall"] is None
    assert figures["per_class"]["notumor"]["auroc"] is None
    recalls = [figures["per_class"][name]["recall"]["value"] for name in ("glioma", "meningioma", "pituitary")]
    assert figures["balanced_accuracy"]["value"] == pytest.approx(np.mean(recalls))


def test_a_class_never_predicted_has_precision_0():
    figures = classification_figures(np.eye(4)[[0, 0, 0, 0]], np.arange(4), n_resamples=0)
    assert figures["per_class"]["pituitary"]["precision"]["value"] == 0
    assert figures["per_class"]["glioma"]["precision"]["value"] == 0.25


def test_it_is_an_evaluate_metric_that_works_offline():
    probabilities, labels = simulated(50)
    computed = TumorClassificationMetric().compute(predictions=probabilities, references=labels, n_resamples=20)
    assert computed == classification_figures(probabilities, labels, n_resamples=20)


@pytest.mark.parametrize("shape", [(5, 3), (4, 4), (0, 4)])
def test_shapes_that_do_not_match_are_refused(shape):
    with pytest.raises(ValueError, match="do not match"):
        classification_figures(np.zeros(shape), np.zeros(min(5, shape[0] and 5), dtype=int))


def test_figures_need_no_home_folder(monkeypatch) -> None:
    """evaluate keeps a cache there; some accounts and containers have none."""
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", "/dev/null/metrics")
    monkeypatch.setattr(evaluate.module.config, "HF_METRICS_CACHE", "/dev/null/metrics")
    probabilities = np.eye(4)[[0, 1, 2, 3]]
    assert measured(probabilities, np.arange(4), n_resamples=0)["accuracy"]["value"] == 1
    with pytest.raises(OSError, match="/dev/null"):
        TumorClassificationMetric()
