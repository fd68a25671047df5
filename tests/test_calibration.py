"""What calibration fits, against hand-computed values and simulations; and the command around it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from brain_tumor_mri import TumorClassifier, calibration
from brain_tumor_mri.calibration import Outputs
from brain_tumor_mri.cli import main
from brain_tumor_mri.labels import ANY_TUMOR, LABEL2ID, LABELS, NO_TUMOR
from brain_tumor_mri.trust import Calibration

NOISE = np.random.default_rng(0).normal(size=(50, 5))


def simulated(n: int, *, overconfidence: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, 1, 4) whose softmax, were they divided by ``overconfidence``, is the truth; and labels drawn by it."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, 4))
    truth = Calibration(1.0, {}).probabilities(logits[:, None])
    labels = (rng.random(n)[:, None] > truth.cumsum(axis=1)).sum(axis=1)
    return overconfidence * logits[:, None], labels


def outputs_of(logits: np.ndarray, labels: np.ndarray, features: np.ndarray | None = None, **more: object) -> Outputs:
    n = len(labels)
    features = np.zeros((n, 5)) if features is None else features
    return Outputs(np.repeat(logits, 2, axis=1), features, [None] * n, labels, [str(i) for i in range(n)], **more)


def test_the_temperature_that_made_the_logits_overconfident_is_found():
    logits, labels = simulated(6000, overconfidence=3.0)
    assert calibration.fit_calibration(logits, labels).temperature == pytest.approx(3.0, rel=0.05)


def test_temperature_scaling_lowers_the_calibration_error_and_changes_no_answer():
    fit_logits, fit_labels = simulated(1000, overconfidence=3.0, seed=1)
    trust = calibration.fit_trust(
        "0",
        "layer3",
        validation=outputs_of(fit_logits, fit_labels),
        known=NOISE,
    )
    logits, labels = simulated(1000, overconfidence=3.0, seed=2)
    figures = calibration.trust_figures(trust, outputs_of(logits, labels))
    assert figures["before"]["ece"]["value"] > 0.1 > 0.06 > figures["after"]["ece"]["value"]
    assert figures["after"]["brier"]["value"] < figures["before"]["brier"]["value"]
    right = (logits[:, 0].argmax(1) == labels).mean()
    assert figures["correct"]["all"]["value"] == pytest.approx(right)


def test_the_conformal_threshold_is_the_score_at_the_place_that_the_theorem_names():
    scores = np.array([0.5, 0.1, 0.4, 0.2, 0.3, 0.9, 0.7, 0.6, 0.8])  # n = 9: place ceil(10 * 0.9) = 9, the largest
    assert calibration.conformal_threshold(scores, 0.90) == 0.9
    assert calibration.conformal_threshold(scores, 0.80) == 0.8
    assert calibration.conformal_threshold(scores, 0.95) == 1.0  # place 10: too few slices to leave any class out
    assert calibration.conformal_threshold(np.arange(19) / 100, 0.9) == 0.17  # 0.9 * 20 is 18 in spite of rounding


def test_sets_cover_each_class_as_often_as_they_promise():
    fit_logits, fit_labels = simulated(4000, seed=4)
    logits, labels = simulated(20_000, seed=5)
    fitted = calibration.fit_calibration(fit_logits, fit_labels)
    probabilities = fitted.probabilities(logits)
    for coverage in (90, 95):
        left = fitted.prediction_sets(probabilities, coverage)
        for c in range(4):
            assert left[labels == c, c].mean() == pytest.approx(coverage / 100, abs=0.02)


def test_ninety_nine_percent_of_each_collection_are_let_through_and_far_features_are_not():
    rng = np.random.default_rng(6)
    axes = rng.normal(size=(3, 60))
    sizes = ((400, 0.1), (500, 0.1), (200, 0.2))
    known, ours, others = (rng.normal(size=(n, 3)) @ axes + noise * rng.normal(size=(n, 60)) for n, noise in sizes)
    check = calibration.fit_in_distribution(known, [ours, others], "layer3")
    for features in (ours, others):
        assert (check.unlikeness(features) <= 1).mean() >= 0.99
    assert (check.unlikeness(others) > 1).sum() == 1  # the wider collection sets the threshold, at its 199th of 200
    off_plane = known[:50] + 3 * rng.normal(size=(50, 60))
    far_along = 20 * known[:50]
    assert (check.unlikeness(off_plane) > 1).all() and (check.unlikeness(far_along) > 1).mean() > 0.9


def test_external_tumours_are_covered_and_right_when_any_tumour_is():
    logits = np.full((4, 1, 4), -9.0)
    glioma, none = LABEL2ID["glioma"], LABEL2ID[NO_TUMOR]
    logits[:2, 0, glioma] = 9
    logits[2:, 0, none] = 9
    fit_logits, fit_labels = simulated(400)
    trust = calibration.fit_trust(
        "0",
        "layer3",
        validation=outputs_of(fit_logits, fit_labels),
        known=NOISE,
    )
    figures = calibration.trust_figures(trust, outputs_of(logits, np.full(4, ANY_TUMOR)))
    assert figures["correct"]["all"]["value"] == 0.5 and figures["coverage"]["95"]["covered"]["value"] == 0.5
    assert "after" not in figures and "per_class" not in figures["coverage"]["95"]


def test_foreign_pictures_with_a_fault_count_as_refused_and_those_that_pass_are_named():
    rng = np.random.default_rng(0)
    known = rng.normal(size=(300, 5))
    fit_logits, fit_labels = simulated(300)
    trust = calibration.fit_trust("0", "layer3", validation=outputs_of(fit_logits, fit_labels, known), known=known)
    features = np.concatenate([np.zeros((1, 5)), np.full((2, 5), 50.0), np.zeros((1, 5))])
    faults, kinds = ["it is blank", None, None, None], ["blank", "page", "page", "face"]
    foreign = Outputs(np.zeros((4, 2, 4)), features, faults, np.full(4, -1), list("abcd"), list("abcd"))
    figures = calibration.foreign_figures(trust, foreign, [outputs_of(fit_logits, fit_labels, known)], kinds)
    assert figures["refused"] == 0.75 and [row["name"] for row in figures["let_through"]] == ["d"]
    assert figures["refused_by_kind"]["page"] == {"n": 2, "refused": 1.0}
    assert 0.5 < figures["auroc"] < 1


def test_reliability_gives_the_mean_confidence_and_accuracy_of_each_bin():
    probabilities = np.array([[0.97, 0.01, 0.01, 0.01], [0.99, 0.01, 0, 0], [0.5, 0.3, 0.1, 0.1]])
    low, high = calibration.reliability(probabilities, np.array([0, 1, 0]))
    assert low == {"confidence": 0.5, "accuracy": 1.0, "n": 1}
    assert high == {"confidence": pytest.approx(0.98), "accuracy": 0.5, "n": 2}


@pytest.fixture(scope="module")
def trained(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with the metrics.json that a training under ``official`` would have left."""
    from brain_tumor_mri.weights import find_model

    folder = Path(shutil.copytree(tiny_model_dir, tmp_path_factory.mktemp("trained") / "model"))
    config = {"protocol": "official", "fold": 1, "validation_fraction": 0.3, "random_validation": True}
    config |= {"train_on_validation": False, "seed": 42, "external_dir": None, "external_train": True}
    record = {"config": config, "model": {"weights_sha256": find_model(folder).sha256()}}
    (folder / "metrics.json").write_text(json.dumps(record))
    return folder


def test_the_command_writes_a_file_that_the_classifier_uses(trained: Path, phantom_dir: Path, tmp_path: Path, capsys):
    from PIL import Image

    foreign = tmp_path / "foreign"
    (foreign / "noise").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (3, 80, 80), dtype=np.uint8)
    for i, pixels in enumerate(noise):
        Image.fromarray(pixels).save(foreign / "noise" / f"{i}.png")
    (foreign / "noise" / "broken.png").write_bytes(b"no picture")
    arguments = ["calibrate", "--model", str(trained), "--data_dir", str(phantom_dir), "--foreign", str(foreign)]
    assert main([*arguments, "--device", "cpu", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["measured"]["test"]["single"]["n"] == 16 and set(told["measured"]["test"]["single"]["decisions"])
    assert told["measured"]["foreign"]["n"] == 3 and len(told["measured"]["foreign"]["unreadable"]) == 1
    assert (trained / "reliability.png").stat().st_size > 5000
    classifier = TumorClassifier.from_pretrained(trained, device="cpu")
    assert classifier.trust.single.temperature == told["temperature"]
    answers = classifier.predict(sorted((phantom_dir / "Testing").glob("*/*.png")))
    share = np.mean([answer.decision == "answer" for answer in answers])
    assert share == pytest.approx(told["measured"]["test"]["single"]["decisions"]["answer"]["value"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["config"].update(train_on_validation=True), "trained on its validation part"),
        (lambda r: r["model"].update(weights_sha256="0" * 64), "belongs to other weights"),
        (lambda r: r.pop("config"), "does not say how the model was trained"),
        (lambda r: r["config"].update(external_dir="br35h"), "give --external_dir"),
    ],
)
def test_a_model_that_cannot_be_calibrated_is_told_in_one_line(
    trained: Path, phantom_dir: Path, tmp_path: Path, capsys, change, message: str
):
    folder = Path(shutil.copytree(trained, tmp_path / "model"))
    record = json.loads((folder / "metrics.json").read_text())
    change(record)
    (folder / "metrics.json").write_text(json.dumps(record))
    assert main(["calibrate", "--model", str(folder), "--data_dir", str(phantom_dir), "--device", "cpu"]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


def test_labels_keep_their_order_in_the_file():
    fitted = calibration.fit_calibration(*simulated(400))
    assert list(fitted.to_dict()["thresholds"]["95"]) == list(LABELS)
    assert Calibration.from_dict(fitted.to_dict()).thresholds[95].tolist() == fitted.thresholds[95].tolist()
