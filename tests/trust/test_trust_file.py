"""What trust.json does to answers: probabilities, sets, refusals, decisions; and what is told when it is no use."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brain_tumor_mri import TumorClassifier, UserError
from brain_tumor_mri.heat_maps.cam import METHODS
from brain_tumor_mri.inference.model_folder import find_model
from brain_tumor_mri.inference.prediction import Answers
from brain_tumor_mri.labels import LABELS
from brain_tumor_mri.trust.decision import ANSWER, NOT_A_BRAIN_MRI, UNCERTAIN, UNFAMILIAR, decide, picture_fault
from brain_tumor_mri.trust.trust_file import (
    BrainMriCheck,
    Calibration,
    InDistribution,
    KnownCollections,
    Trust,
    load_trust,
)

FRACTAL = Image.effect_mandelbrot((64, 64), (-2, -1, 1, 1), 20).convert("RGB")
FEATURES = 192  # channels of the last stage but one of test_resnet


def trust_for(
    folder: Path, *, temperature: float = 2.0, left: float = 0.6, threshold: float = 1e9, bias: float = -9.0
) -> Trust:
    calibration = Calibration(np.full(2, temperature), {90: np.full((2, 4), left / 2), 95: np.full((2, 4), left)})
    check = InDistribution("layer3", np.zeros(FEATURES), np.eye(2, FEATURES), np.ones(2), 1.0, threshold)
    brain_mri = BrainMriCheck(np.zeros((2, FEATURES)), np.array([bias, -9.0]))
    mirrored = replace(calibration, temperatures=np.full(2, 3.0))
    return Trust(find_model(folder).sha256(), calibration, mirrored, check, brain_mri, {})


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


@pytest.fixture(scope="module")
def slices(phantom_dir: Path) -> list[Path]:
    return sorted(phantom_dir.glob("*/*/*.png"))[::4]


def write(folder: Path, trust: Trust) -> Path:
    file = folder / "trust.json"
    file.write_text(json.dumps(trust.to_dict()), encoding="utf-8")
    return file


def test_probabilities_are_the_softmax_of_logits_over_temperature(folder: Path, slices: list[Path]):
    plain = TumorClassifier.from_pretrained(folder, device="cpu").predict(slices)
    write(folder, trust_for(folder, temperature=2.0))
    calibrated = TumorClassifier.from_pretrained(folder, device="cpu").predict(slices)
    for before, after in zip(plain, calibrated, strict=True):
        # softmax(z / 2) is the normalised square root of softmax(z)
        root = np.sqrt(list(before.probabilities.values()))
        np.testing.assert_allclose(list(after.probabilities.values()), root / root.sum(), atol=1e-5)
        assert after.label == before.label
        assert before.decision is None and before.prediction_set == ()


def test_mirrored_answers_use_the_calibration_that_was_fitted_to_them(folder: Path, slices: list[Path]):
    trust = trust_for(folder)
    write(folder, trust)
    mirrored = TumorClassifier.from_pretrained(folder, device="cpu", mirror=True)
    write(folder, replace(trust, mirrored=trust.single))
    other = TumorClassifier.from_pretrained(folder, device="cpu", mirror=True)
    assert mirrored.predict(slices[0]).confidence < other.predict(slices[0]).confidence  # 3 flattens more than 2


def test_a_class_is_left_when_one_minus_its_probability_is_at_most_its_threshold():
    calibration = Calibration(1.0, {95: np.array([[0.5, 0.8, 0.95, 0.2], [1, 1, 1, 1]])})
    probabilities = np.array([[0.6, 0.25, 0.1, 0.05], [0.05, 0.05, 0.1, 0.8], [0.45, 0.15, 0.04, 0.36]])
    left = calibration.prediction_sets(probabilities, np.array([0.1, 1.0, 0.1]), 95)
    assert left.tolist() == [
        [True, True, True, False],
        [False, False, True, True],
        [True, False, False, False],  # no class reaches its threshold; the most probable one is left all the same
    ]
    unfamiliar = np.array([1.1, np.nan, 0.9])  # the first two have limits of their own
    assert calibration.prediction_sets(probabilities, unfamiliar, 95).sum(1).tolist() == [4, 4, 1]


def test_a_slice_is_familiar_when_one_collection_takes_it_for_its_own(folder: Path, slices: list[Path]):
    check = KnownCollections("layer3", ["a", "b"], np.array([[1.0, 0], [0, 1.0]]), np.array([-2.0, -3.0]))
    odds = check.unlikeness(np.array([[0.0, 0], [3, 0], [0, 4], [2, 2]]))
    np.testing.assert_allclose(odds, np.exp([2.0, -1.0, -1.0, 0.0]))
    for bias, unlikeness in ((-1.0, np.e), (60.0, np.exp(-7.0))):  # far beyond, it stays readable
        check = KnownCollections("layer3", ["a"], np.zeros((1, FEATURES)), np.array([bias]))
        write(folder, replace(trust_for(folder), in_distribution=check))
        answer = TumorClassifier.from_pretrained(folder, device="cpu").predict(slices[0])
        assert answer.unlikeness == pytest.approx(unlikeness)
        assert (answer.decision == UNFAMILIAR) == (unlikeness > 1)


def test_the_decision_follows_from_set_likeness_and_picture():
    assert decide(("glioma",), 0.4, 0.1, None) == (ANSWER, None)
    assert decide(("glioma", "pituitary"), 1.0, 0.5, None) == (UNCERTAIN, None)
    assert decide(("glioma",), 1.01, 0.1, None)[0] == UNFAMILIAR
    assert decide(("glioma",), 1.01, 0.51, None)[0] == NOT_A_BRAIN_MRI
    assert decide(("glioma",), float("nan"), 0.1, None)[0] == UNFAMILIAR
    assert decide(("glioma",), 0.4, float("nan"), None)[0] == NOT_A_BRAIN_MRI
    assert decide(("glioma",), 0.1, 0.1, "it is blank") == (NOT_A_BRAIN_MRI, "it is blank")


@pytest.mark.parametrize(
    ("trust", "decision", "reason"),
    [({"threshold": 1e-6}, UNFAMILIAR, "unlike"), ({"bias": 9.0}, NOT_A_BRAIN_MRI, "not look like")],
)
def test_a_flagged_or_refused_picture_keeps_its_probabilities(
    folder: Path, slices: list[Path], trust, decision, reason
):
    write(folder, trust_for(folder, **trust))
    answer = TumorClassifier.from_pretrained(folder, device="cpu").predict(slices[0])
    assert answer.decision == decision and reason in answer.reason
    assert sum(answer.probabilities.values()) == pytest.approx(1) and answer.label in LABELS


def test_one_regression_that_calls_a_picture_foreign_is_enough():
    check = BrainMriCheck(np.array([[1.0, 0], [0, 1.0]]), np.array([-2.0, -3.0]))
    foreign = check.foreign(np.array([[0.0, 0], [3, 0], [0, 4], [1, 2]])) > 0.5
    assert foreign.tolist() == [False, True, True, False]


def test_without_pictures_that_are_no_brain_mri_nothing_is_foreign(folder: Path, slices: list[Path]):
    write(folder, replace(trust_for(folder), brain_mri=None))
    answer = TumorClassifier.from_pretrained(folder, device="cpu").predict(slices[0])
    assert answer.foreign == 0 and answer.decision != NOT_A_BRAIN_MRI


def test_coverage_chooses_the_set_that_decides(folder: Path, slices: list[Path]):
    write(folder, trust_for(folder, temperature=8.0, left=0.8))
    wide = TumorClassifier.from_pretrained(folder, device="cpu").predict(slices[0])
    narrow = TumorClassifier.from_pretrained(folder, device="cpu", coverage=90).predict(slices[0])
    assert wide.decision == UNCERTAIN and len(wide.prediction_set) > 1
    assert narrow.decision == ANSWER and narrow.prediction_set == (narrow.label,)
    assert wide.prediction_sets == narrow.prediction_sets == {90: narrow.prediction_set, 95: wide.prediction_set}
    with pytest.raises(ValueError, match="coverage must be one of 90, 95"):
        TumorClassifier.from_pretrained(folder, device="cpu", coverage=80)


@pytest.mark.parametrize(
    ("picture", "fault"),
    [
        (Image.new("RGB", (20, 300), "grey"), "tiny"),
        (Image.new("RGB", (200, 200), (3, 3, 3)), "blank"),
        (FRACTAL.point([*range(256), *[0] * 512]), "colour"),
        (FRACTAL, None),
    ],
)  # fmt: skip
def test_tiny_blank_and_coloured_pictures_have_a_fault(picture: Image.Image, fault: str | None):
    found = picture_fault(picture)
    assert fault in found if fault else found is None


def test_slices_of_both_collections_have_no_fault(real_data_dir: Path):
    from brain_tumor_mri.images.read import load_image

    files = sorted(real_data_dir.glob("*/*/*.jpg"))[::170]
    files += sorted((real_data_dir.parent / "br35h-tumour" / "images").glob("*.jpg"))[::25]
    assert len(files) > 50
    assert [picture_fault(load_image(file)) for file in files] == [None] * len(files)


def test_unlikeness_is_the_squared_mahalanobis_distance_over_the_threshold():
    check = InDistribution("layer3", np.array([1.0, 0, 0]), np.array([[1.0, 0, 0]]), np.array([4.0]), 0.5, 10.0)
    covariance = np.diag([4.0, 0.5, 0.5])
    features = np.array([[3.0, 1.0, -2.0], [1.0, 0.0, 0.0]])
    offsets = features - check.mean
    expected = [row @ np.linalg.inv(covariance) @ row / 10 for row in offsets]
    np.testing.assert_allclose(check.unlikeness(features), expected)


def test_the_file_gives_back_what_was_written(folder: Path):
    trust = replace(trust_for(folder), record={"protocol": "patient-disjoint fold 1"})
    write(folder, trust)
    found = find_model(folder)
    read = load_trust(found.path, found.sha256)
    assert read.to_dict() == trust.to_dict() and read.fingerprint() == trust.fingerprint()
    assert read.fingerprint() == replace(trust, record={}).fingerprint()  # the record decides no answer
    assert read.fingerprint() != trust_for(folder, temperature=2.1).fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c | {"weights_sha256": "0" * 64}, "belongs to other weights"),
        (lambda c: c | {"schema": 9}, "is damaged"),
        (lambda c: {k: v for k, v in c.items() if k != "calibration"}, "is damaged"),
        (lambda c: c | {"in_distribution": c["in_distribution"] | {"mean": [1, 2]}}, "is damaged"),
        (lambda c: c | {"calibration": c["calibration"] | {"single": {"temperature": -1}}}, "is damaged"),
        (lambda c: [c], "no JSON object"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_trusted_is_refused_in_one_line(folder: Path, change, message: str):
    file = write(folder, trust_for(folder))
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(UserError, match=message) as told:
        TumorClassifier.from_pretrained(folder, device="cpu")
    assert "\n" not in str(told.value) and "trust.json" in str(told.value) and "calibrate" in str(told.value)


def test_a_stage_that_the_network_lacks_is_told(folder: Path):
    trust = trust_for(folder)
    write(folder, replace(trust, in_distribution=replace(trust.in_distribution, stage="layer9")))
    with pytest.raises(UserError, match="layer9"):
        TumorClassifier.from_pretrained(folder, device="cpu")


def test_an_ensemble_leaves_what_any_member_leaves_and_refuses_what_any_member_refuses():
    one = Answers(
        np.array([[0.7, 0.1, 0.1, 0.1]]), {95: np.array([[True, False, False, False]])}, *np.array([[0.5], [0.2]])
    )
    other = Answers(
        np.array([[0.1, 0.5, 0.2, 0.2]]), {95: np.array([[False, True, False, False]])}, *np.array([[1.5], [0.1]])
    )
    joined = Answers.combined([one, other])
    np.testing.assert_allclose(joined.probabilities, [[0.4, 0.3, 0.15, 0.15]])
    assert joined.sets[95].tolist() == [[True, True, False, False]] and joined.unlikeness.tolist() == [1.5]
    assert joined.foreign.tolist() == [0.2]
    without = Answers.combined([one, Answers(other.probabilities)])
    assert not without.sets and without.unlikeness is None


def test_an_ensemble_of_calibrated_members_decides(folder: Path, slices: list[Path]):
    write(folder, trust_for(folder))
    single = TumorClassifier.from_pretrained(folder, device="cpu")
    twice = TumorClassifier.from_pretrained([folder, folder], device="cpu")
    for alone, both in zip(single.predict(slices), twice.predict(slices), strict=True):
        assert both.decision == alone.decision and both.prediction_set == alone.prediction_set
        assert both.unlikeness == pytest.approx(alone.unlikeness)
    assert twice.describe()["trust"] == " + ".join([single.describe()["trust"]] * 2)


def test_decisions_and_probabilities_of_explain_are_those_of_predict(folder: Path, slices: list[Path]):
    from brain_tumor_mri.heat_maps.explain import explain

    write(folder, trust_for(folder, threshold=300.0))
    for mirror in (False, True):
        classifier = TumorClassifier.from_pretrained(folder, device="cpu", mirror=mirror)
        for method in METHODS:
            for shown, said in zip(explain(classifier, slices, method=method), classifier.predict(slices), strict=True):
                assert shown.prediction.decision == said.decision
                assert shown.prediction.unlikeness == pytest.approx(said.unlikeness, rel=1e-4)
                assert shown.prediction.probabilities == pytest.approx(said.probabilities, abs=1e-5)


def test_threads_that_answer_at_once_each_get_their_own_unlikeness(folder: Path, slices: list[Path]):
    from concurrent.futures import ThreadPoolExecutor

    write(folder, trust_for(folder))
    classifier = TumorClassifier.from_pretrained(folder, device="cpu")
    alone = [classifier.predict(path).unlikeness for path in slices]
    with ThreadPoolExecutor(4) as pool:
        together = [answer.unlikeness for answer in pool.map(classifier.predict, slices * 3)]
    assert len(set(alone)) > 3
    np.testing.assert_allclose(together, alone * 3, rtol=1e-4)


def test_csv_json_and_table_show_the_decision(folder: Path, slices: list[Path], tmp_path: Path, capsys):
    import csv

    from brain_tumor_mri.commands.main import main

    write(folder, trust_for(folder))
    blank = tmp_path / "blank.png"
    Image.new("L", (96, 96), 7).save(blank)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    table = tmp_path / "answers.csv"
    paths = [str(slices[0]), str(blank), str(bad)]
    assert main(["predict", *paths, "--model", str(folder), "--device", "cpu", "--csv", str(table)]) == 0
    shown = capsys.readouterr().out
    assert "not a brain MRI: it is blank" in shown and "Decisions:" in shown
    rows = {Path(row["file"]).name: row for row in csv.DictReader(table.open(encoding="utf-8"))}
    assert rows["blank.png"]["decision"] == NOT_A_BRAIN_MRI and rows["blank.png"]["reason"] == "it is blank"
    assert float(rows["blank.png"]["glioma"]) > 0
    assert rows["bad.png"]["decision"] == "" and rows["bad.png"]["error"]
    said = rows[slices[0].name]
    assert said["decision"] in (ANSWER, UNCERTAIN) and set(said["prediction_set"].split()) <= set(LABELS)
    assert main(["predict", *paths, "--model", str(folder), "--device", "cpu", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["summary"]["per_decision"][NOT_A_BRAIN_MRI] == 1
    assert record["predictions"][1]["reason"] == "it is blank" and record["model"]["trust"]


def test_a_refused_picture_keeps_no_label_that_a_count_would_take(folder: Path):
    from brain_tumor_mri.inference.prediction import Prediction, Tally, csv_columns, csv_row

    write(folder, trust_for(folder))
    blank = np.zeros((64, 64), np.uint8)
    (answer,) = TumorClassifier.from_pretrained(folder, device="cpu").predict([blank])
    assert answer.decision == NOT_A_BRAIN_MRI
    row = dict(zip(csv_columns(), csv_row(answer), strict=True))
    record = answer.to_dict()
    assert row["label"] == "" and record["label"] is None
    assert row["top_class"] == record["top_class"] == max(answer.probabilities, key=answer.probabilities.get)
    assert Prediction.from_dict(json.loads(json.dumps(record))) == answer
    tally = Tally()
    tally.add(answer)
    counts = tally.to_dict(1)
    assert counts["refused"] == 1 and counts["answered"] == counts["errors"] == sum(counts["per_label"].values()) == 0
