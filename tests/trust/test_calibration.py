"""What calibration fits, against hand-computed values and simulations; and the command around it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brain_tumor_mri import TumorClassifier
from brain_tumor_mri.commands.main import main
from brain_tumor_mri.evaluation.trust import (
    familiar_figures,
    foreign_figures,
    left_out_figures,
    reliability,
    trust_figures,
    unseen_figures,
)
from brain_tumor_mri.labels import ANY_TUMOR, LABEL2ID, LABELS, NO_TUMOR
from brain_tumor_mri.trust import brain_mri, calibration, in_distribution
from brain_tumor_mri.trust.calibration import Outputs
from brain_tumor_mri.trust.trust_file import Calibration, InDistribution, softmax

NOISE = np.random.default_rng(0).normal(size=(50, 5))


def simulated(n: int, *, overconfidence: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, 1, 4) whose softmax, were they divided by ``overconfidence``, is the truth; and labels drawn by it."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, 4))
    truth = softmax(logits[:, None])
    labels = (rng.random(n)[:, None] > truth.cumsum(axis=1)).sum(axis=1)
    return overconfidence * logits[:, None], labels


def outputs_of(logits: np.ndarray, labels: np.ndarray, features: np.ndarray | None = None, kind: str = "a") -> Outputs:
    n = len(labels)
    features = np.zeros((n, 5)) if features is None else features
    groups, names = [str(i) for i in range(n)], [f"{kind}{i}" for i in range(n)]
    return Outputs(np.repeat(logits, 2, axis=1), features, [None] * n, labels, groups, [kind] * n, names)


def pictures(features: np.ndarray, kinds: list[str], faults: list[str | None] | None = None) -> Outputs:
    """Pictures of unknown type, named by their place."""
    n = len(features)
    names = [str(i) for i in range(n)]
    return Outputs(np.zeros((n, 2, 4)), features, faults or [None] * n, np.full(n, ANY_TUMOR), names, kinds, names)


KNOWN = pictures(NOISE, ["a"] * len(NOISE))


def test_the_temperature_that_made_the_logits_overconfident_is_found():
    logits, labels = simulated(6000, overconfidence=3.0)
    assert calibration.fit_temperature(logits, labels, np.ones(6000)) == pytest.approx(3.0, rel=0.05)


def test_temperature_scaling_lowers_the_calibration_error_and_changes_no_answer():
    fit_logits, fit_labels = simulated(1000, overconfidence=3.0, seed=1)
    trust, _ = calibration.fit_trust(
        "0",
        "layer3",
        validation=outputs_of(fit_logits, fit_labels),
        known=KNOWN,
    )
    logits, labels = simulated(1000, overconfidence=3.0, seed=2)
    figures = trust_figures(trust, outputs_of(logits, labels))
    assert figures["before"]["ece"]["value"] > 0.1 > 0.06 > figures["after"]["ece"]["value"]
    assert figures["after"]["brier"]["value"] < figures["before"]["brier"]["value"]
    right = (logits[:, 0].argmax(1) == labels).mean()
    assert figures["correct"]["all"]["value"] == pytest.approx(right)


def test_what_is_unfamiliar_never_makes_an_answer_surer_than_the_network_is():
    validation = outputs_of(*simulated(1000, overconfidence=0.5, seed=1))  # a network that doubts too much
    sharpened = calibration.fit_calibration(validation, None, np.zeros(1000), None, mirror=False)
    assert sharpened.temperatures == pytest.approx([0.5, 1.0], rel=0.1)
    logits = np.array([[[2.0, 0, 0, 0]], [[2.0, 0, 0, 0]]])
    familiar, unfamiliar = sharpened.probabilities(logits, np.array([0.5, np.nan]))
    assert unfamiliar == pytest.approx(softmax(logits)[1]) and familiar[0] > unfamiliar[0]


def test_the_conformal_threshold_is_the_score_at_the_place_that_the_theorem_names():
    scores = np.array([0.5, 0.1, 0.4, 0.2, 0.3, 0.9, 0.7, 0.6, 0.8])  # n = 9: place ceil(10 * 0.9) = 9, the largest
    assert calibration.conformal_threshold(scores, 0.90, np.ones(9)) == 0.9
    assert calibration.conformal_threshold(scores, 0.80, np.ones(9)) == 0.8
    assert calibration.conformal_threshold(scores, 0.95, np.ones(9)) == 1.0  # place 10: too few to leave any class out
    # 0.9 * 20 is 18 in spite of rounding
    assert calibration.conformal_threshold(np.arange(19) / 100, 0.9, np.ones(19)) == 0.17
    # a slice that weighs as much as nine: the others alone do not reach 80 %
    assert (
        calibration.conformal_threshold(np.array([0.9, *np.arange(1, 10) / 100]), 0.8, np.array([9] + [1] * 9)) == 0.9
    )


def test_sets_cover_each_class_as_often_as_they_promise():
    fit_logits, fit_labels = simulated(4000, seed=4)
    logits, labels = simulated(20_000, seed=5)
    given = fit_logits, fit_labels, np.ones(4000)
    temperature = calibration.fit_temperature(*given)
    limits = calibration.fit_thresholds(*given, temperature)
    fitted = Calibration(np.full(2, temperature), {c: np.stack([limit] * 2) for c, limit in limits.items()})
    probabilities = fitted.probabilities(logits, np.zeros(20_000))
    for coverage in (90, 95):
        left = fitted.prediction_sets(probabilities, np.zeros(20_000), coverage)
        for c in range(4):
            assert left[labels == c, c].mean() == pytest.approx(coverage / 100, abs=0.02)


def test_collections_that_a_model_never_saw_widen_its_sets_and_leave_the_temperature_of_familiar_slices():
    logits, labels = simulated(1000, seed=4)
    validation = outputs_of(logits, labels)
    far, far_labels = simulated(1000, seed=5)
    far[np.arange(1000), :, far_labels] -= 4  # on the other scanner the true class gets less
    narrow, _ = calibration.fit_trust("0", "s", validation=validation, known=KNOWN)
    given = {"unseen": outputs_of(far, far_labels), "validation": validation, "known": KNOWN}
    wide, _ = calibration.fit_trust("0", "s", **given, unseen_unlikeness=np.zeros(1000))
    apart, _ = calibration.fit_trust("0", "s", **given, unseen_unlikeness=np.full(1000, 2.0))
    assert wide.single.temperatures[0] == apart.single.temperatures[0] == narrow.single.temperatures[0]
    assert wide.single.temperatures[1] == narrow.single.temperatures[1] < 1.1 < apart.single.temperatures[1]
    covered = {}
    for name, trust, unlike in (("narrow", narrow, 0), ("wide", wide, 0), ("familiar", apart, 0), ("far", apart, 2)):
        sets = trust.single.prediction_sets(
            trust.single.probabilities(far, np.full(1000, unlike)), np.full(1000, unlike), 95
        )
        covered[name] = sets[np.arange(1000), far_labels].mean()
    assert covered["narrow"] < 0.8 and covered["wide"] > 0.88
    # unfamiliar ones have limits of their own, and leave those of familiar slices small
    assert covered["familiar"] == pytest.approx(covered["narrow"], abs=0.02) and covered["far"] > 0.93


def test_sets_are_measured_on_each_collection_by_a_fit_that_saw_none_of_it():
    validation = outputs_of(*simulated(400, seed=4))
    logits, labels = simulated(800, seed=5)
    logits[np.arange(400), :, labels[:400]] -= 6  # the first collection is far from all that fits the sets
    unseen = replace(outputs_of(logits, labels), kinds=["far"] * 400 + ["near"] * 400)
    measured = unseen_figures(validation, unseen, np.zeros(400), np.zeros(800))
    figures, pooled = measured["collections"], measured["pooled"]
    assert set(figures) == {"far", "near"} and figures["far"]["n"] == 400 and pooled["n"] == 800
    assert pooled["covered"]["value"] == pytest.approx(np.mean([row["covered"]["value"] for row in figures.values()]))
    assert figures["far"]["unfamiliar"]["value"] == 0
    flagged = unseen_figures(validation, unseen, np.zeros(400), np.full(800, 2.0))["collections"]
    assert flagged["far"]["unfamiliar"]["value"] == pytest.approx(1) and flagged["far"]["answered"]["value"] == 0
    assert figures["far"]["covered"]["value"] < 0.7 < 0.93 < figures["near"]["covered"]["value"]
    assert figures["near"]["size"]["value"] > 1.5  # the far one widened its sets


AXES = np.random.default_rng(6).normal(size=(3, 60))


def on_plane(n: int, noise: float, seed: int, shift: float = 0.0) -> np.ndarray:
    """Features (n, 60) near a plane of three directions."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 3)) @ AXES + shift + noise * rng.normal(size=(n, 60))


def test_the_limit_keeps_most_validation_slices_and_far_features_are_unfamiliar():
    known, ours = on_plane(400, 0.1, 1), on_plane(500, 0.1, 2)
    check = in_distribution.fit_in_distribution(known, ["a"] * 400, ours, ["a"] * 500, "layer3")
    assert int((check.unlikeness(ours) > 1).sum()) == 5  # 99 % of 500 are kept
    off_plane = known[:50] + 3 * np.random.default_rng(7).normal(size=(50, 60))
    far_along = 20 * known[:50]
    assert (check.unlikeness(off_plane) > 1).all() and (check.unlikeness(far_along) > 1).mean() > 0.9


def test_collections_weigh_alike_in_the_fit_and_in_the_limit_whatever_their_size():
    known = np.concatenate([on_plane(300, 0.1, 1), on_plane(20, 0.1, 3, shift=5.0)])
    kinds = ["large"] * 300 + ["small"] * 20
    check = in_distribution.fit_in_distribution(known, kinds, known, kinds, "s")
    assert check.mean.mean() == pytest.approx(2.5, abs=0.3)
    assert (check.unlikeness(known[300:]) <= 1).all()  # one slice of the small one weighs as much as 15 of the other


def apart(sizes: list[int], seed: int) -> np.ndarray:
    """Features of collections of these sizes, each on an axis of its own."""
    centres = np.repeat(4 * np.eye(len(sizes)), sizes, axis=0)
    return np.random.default_rng(seed).normal(size=centres.shape) + centres


def test_each_collection_is_told_from_the_others_and_what_is_like_none_is_unfamiliar():
    sizes = [200, 60, 40, 40, 40, 40, 20]
    kinds = np.repeat(list("abcdefg"), sizes).tolist()
    known, held = apart(sizes, 1), apart(sizes, 2)
    check = in_distribution.fit_in_distribution(known, kinds, held, kinds, "s")
    assert check.names == list("abcdef")  # 20 slices say too little of a collection
    unlike = check.unlikeness(held) > 1
    assert 0 < unlike[:200].mean() <= 0.05 and unlike[200:260].mean() <= 0.05 and unlike[-20:].mean() > 0.8


def test_of_few_collections_the_distance_to_all_of_them_tells_what_is_unfamiliar():
    sizes = [200, 60]
    kinds = np.repeat(["a", "b"], sizes).tolist()
    check = in_distribution.fit_in_distribution(apart(sizes, 1), kinds, apart(sizes, 2), kinds, "s")
    assert isinstance(check, InDistribution)
    assert (check.unlikeness(np.array([[40.0, -40.0]])) > 1).all()  # beyond one side of what parts the two


def brain_and_others() -> tuple[np.ndarray, list[str], np.ndarray, list[str]]:
    """Brain MRI of two collections on one side of an axis, two kinds of other pictures on the far side."""
    rng = np.random.default_rng(0)
    brain, other = rng.normal(size=(200, 5)), rng.normal(size=(60, 5)) + np.array([6, 0, 0, 0, 0])
    brain[:100, 1] += 2
    return brain, ["one"] * 100 + ["two"] * 100, other, ["page"] * 30 + ["face"] * 30


def test_other_pictures_are_refused_and_brain_mri_passes_whatever_its_collection():
    brain, kinds, other, other_kinds = brain_and_others()
    check, *_ = brain_mri.fit_brain_mri(brain, kinds, other, other_kinds, ["other"] * 60)
    assert (check.foreign(brain) <= 0.5).mean() >= 0.96 and (check.foreign(other) > 0.5).mean() > 0.95
    alone, scores, _ = brain_mri.fit_brain_mri(brain, ["one"] * 200, other, other_kinds, ["other"] * 60)
    assert (alone.foreign(brain) <= 0.5).mean() == pytest.approx(brain_mri.KEPT, abs=0.01)
    assert np.allclose(scores, alone.foreign(brain), atol=1e-4)  # a single collection cannot be left out


def test_each_group_of_other_pictures_has_a_regression_of_its_own():
    brain, kinds, other, other_kinds = brain_and_others()
    other[30:] = -other[30:]  # on the other side of the brain MRI: no single plane parts both from it
    groups = ["head-ct"] * 30 + ["other"] * 30
    check, *_ = brain_mri.fit_brain_mri(brain, kinds, other, other_kinds, groups)
    assert check.weights.shape == (2, 5) and (check.foreign(other) > 0.5).mean() > 0.95


def test_kinds_left_out_of_the_fit_are_measured_each_by_a_fit_without_it():
    brain, kinds, other, other_kinds = brain_and_others()
    other[30:] = -other[30:]  # faces lie where no other picture does: a fit without them takes them for brain MRI
    scores = brain_mri.fit_brain_mri(brain, kinds, other, other_kinds, ["other"] * 60)[1:]
    parts = {"brain": (pictures(brain, kinds), scores[0]), "foreign": (pictures(other, other_kinds), scores[1])}
    figures = left_out_figures(parts)
    assert figures["foreign"]["face"] == {"n": 30, "refused": 0.0} and set(figures["brain"]) == {"one", "two"}
    blank = pictures(other, other_kinds, ["it is blank"] * 60)
    assert left_out_figures({"foreign": (blank, scores[1])})["foreign"]["face"]["refused"] == 1.0


def test_external_tumours_are_covered_and_right_when_any_tumour_is():
    logits = np.full((4, 1, 4), -9.0)
    glioma, none = LABEL2ID["glioma"], LABEL2ID[NO_TUMOR]
    logits[:2, 0, glioma] = 9
    logits[2:, 0, none] = 9
    fit_logits, fit_labels = simulated(400)
    trust, _ = calibration.fit_trust(
        "0",
        "layer3",
        validation=outputs_of(fit_logits, fit_labels),
        known=KNOWN,
    )
    figures = trust_figures(trust, outputs_of(logits, np.full(4, ANY_TUMOR)))
    assert figures["correct"]["all"]["value"] == 0.5 and figures["coverage"]["95"]["covered"]["value"] == 0.5
    assert "after" not in figures and "per_class" not in figures["coverage"]["95"]


def fitted_checks() -> tuple[calibration.Trust, Outputs]:
    """A trust whose features are those of ``brain_and_others``, and its validation slices."""
    brain, kinds, other, other_kinds = brain_and_others()
    logits, labels = simulated(200)
    validation = outputs_of(logits, labels, brain)
    known, foreign = pictures(brain, kinds), pictures(other, other_kinds)
    trust, _ = calibration.fit_trust("0", "layer3", validation=validation, known=known, foreign=foreign)
    return trust, validation


FAR = np.array([9.0, 0, 0, 0, 0])


def test_foreign_pictures_with_a_fault_count_as_refused_and_those_that_pass_are_named():
    trust, validation = fitted_checks()
    features = np.stack([0 * FAR, FAR, FAR, -FAR / 9])
    kinds = ["blank", "page", "page", "face"]
    figures = foreign_figures(trust, pictures(features, kinds, ["it is blank", None, None, None]), [validation])
    assert figures["refused"] == 0.75 and [row["name"] for row in figures["let_through"]] == ["3"]
    assert figures["refused_by_kind"]["page"] == {"n": 2, "refused": 1.0, "faults": 0}
    assert figures["refused_without_faults"] == pytest.approx(2 / 3) and figures["n_without_faults"] == 3
    assert 0.5 < figures["auroc"] < 1
    figures = foreign_figures(trust, pictures(features, kinds, ["it is blank"] * 4), [validation])
    assert figures["refused"] == 1 and figures["refused_without_faults"] is figures["auroc_without_faults"] is None


def test_of_familiar_slices_those_that_are_refused_are_named_and_those_flagged_are_counted():
    trust, _ = fitted_checks()
    features = np.stack([0 * FAR, 0 * FAR, FAR, 30 * np.array([-1.0, 0, 0, 1, 0])])
    faults, kinds = ["it is tiny (9 x 9 pixels)", None, None, None], ["one", "one", "two", "two"]
    figures = familiar_figures(trust, pictures(features, kinds, faults))
    assert figures["n"] == 4 and figures["refused"] == 0.5 and figures["unfamiliar"] == 0.25
    assert figures["refused_by_kind"]["one"] == {"n": 2, "refused": 0.5, "faults": 1}
    tiny, far = figures["refused_names"]
    assert tiny == {"name": "0", "fault": "it is tiny (9 x 9 pixels)"} and far["name"] == "2" and far["foreign"] > 0.5


def test_reliability_gives_the_mean_confidence_and_accuracy_of_each_bin():
    probabilities = np.array([[0.97, 0.01, 0.01, 0.01], [0.99, 0.01, 0, 0], [0.5, 0.3, 0.1, 0.1]])
    low, high = reliability(probabilities, np.array([0, 1, 0]))
    assert low == {"confidence": 0.5, "accuracy": 1.0, "n": 1}
    assert high == {"confidence": pytest.approx(0.98), "accuracy": 0.5, "n": 2}


@pytest.fixture(scope="module")
def trained(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with the metrics.json that a training under ``official`` would have left."""
    from brain_tumor_mri.inference.model_folder import find_model

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
    assert main([*arguments, "--foreign_test", str(foreign), "--device", "cpu", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["measured"]["test"]["single"]["n"] == 16 and set(told["measured"]["test"]["single"]["decisions"])
    assert told["measured"]["foreign"]["n"] == 3 and told["unreadable"][0].startswith("noise/broken.png: ")
    assert told["fitted_on"]["foreign"] == {"noise": 36} and set(told["measured"]["left_out"]) == {"brain", "foreign"}
    assert (trained / "reliability.png").stat().st_size > 5000
    classifier = TumorClassifier.from_pretrained(trained, device="cpu")
    assert classifier.trust.single.temperatures.tolist() == [
        told["temperature"][who] for who in ("familiar", "unfamiliar")
    ]
    answers = classifier.predict(sorted((phantom_dir / "Testing").glob("*/*.png")))
    share = np.mean([answer.decision == "answer" for answer in answers])
    assert share == pytest.approx(told["measured"]["test"]["single"]["decisions"]["answer"]["value"])


def test_a_report_measures_the_file_that_is_there_and_changes_nothing_in_the_folder(
    trained: Path, phantom_dir: Path, tmp_path: Path, capsys
):
    folder = Path(shutil.copytree(trained, tmp_path / "model"))
    (folder / "trust.json").unlink(missing_ok=True)
    arguments = ["calibrate", "--model", str(folder), "--data_dir", str(phantom_dir), "--device", "cpu"]
    report = tmp_path / "reports" / "report.json"
    reported = [*arguments, "--report", str(report), "--familiar", str(phantom_dir / "Testing")]
    assert main(reported) == 2
    told = capsys.readouterr().err
    assert "no trust.json to measure" in told and told.count("\n") == 1 and not report.exists()

    assert main([*arguments, "--json"]) == 0
    fitted = json.loads(capsys.readouterr().out)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(reported) == 0
    assert "familiar: " in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    record = json.loads(report.read_text())
    assert record["measured"]["test"] == fitted["measured"]["test"] and record["fitted_on"] == fitted["fitted_on"]
    files = len(list((phantom_dir / "Testing").glob("*/*.png")))
    figures = record["measured"]["familiar"]
    assert figures["n"] == files == sum(row["n"] for row in figures["refused_by_kind"].values())
    assert len(figures["refused_names"]) == round(figures["refused"] * files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["config"].update(train_on_validation=True), "trained on its validation part"),
        (lambda r: r["model"].update(weights_sha256="0" * 64), "belongs to other weights"),
        (lambda r: r.pop("config"), "does not say how the model was trained"),
        (lambda r: r["config"].update(external_dir="br35h"), "trained with --external_dir; give it"),
        (lambda r: r["config"].update(collections_dir="further"), "trained with --collections_dir; give it"),
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
    fitted = calibration.fit_calibration(outputs_of(*simulated(400)), None, np.zeros(400), None, mirror=False)
    assert list(fitted.to_dict()["thresholds"]["95"]["unfamiliar"]) == list(LABELS)
    assert Calibration.from_dict(fitted.to_dict()).thresholds[95].tolist() == fitted.thresholds[95].tolist()
