"""The view of one slice without a browser: what the answer says for each decision, and what the viewer draws."""

import base64
import io
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from app_server import EXAMPLES
from PIL import Image

from brain_tumor_mri import TumorClassifier
from brain_tumor_mri.heat_maps.explain import Explanation, explain
from brain_tumor_mri.inference.prediction import Prediction
from brain_tumor_mri.labels import LABELS
from brain_tumor_mri.page.fragments import classes_in_words, decision_mark, percent
from brain_tumor_mri.page.handle import ModelHandle
from brain_tumor_mri.page.view_slice import answer_panel, answer_slice, explain_slice, heat_maps_of, heat_uri, viewer
from brain_tumor_mri.trust.decision import ANSWER, DECISIONS, NOT_A_BRAIN_MRI, UNCERTAIN, UNFAMILIAR
from tests.trust.test_trust_file import trust_for, write

PLAIN = Prediction("x.png", "glioma", 0.6, {"glioma": 0.6, "meningioma": 0.3, "notumor": 0.06, "pituitary": 0.04})
SETS = {90: ("glioma",), 95: ("glioma", "meningioma")}
UNFAMILIAR_SLICE = "it is unlike the brain MRI that the model knows"
UNSURE = replace(PLAIN, decision=UNCERTAIN, prediction_set=SETS[95], prediction_sets=SETS, unlikeness=0.4)


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def parts(panel: str) -> dict[str, str]:
    """Coverage -> what is said at it; a leading ``hidden`` where the page does not show it at first."""
    found = re.findall(r'<div class="decision" data-coverage="(\d+)"( hidden)?>(.*?)</div>', panel, re.DOTALL)
    return {coverage: f"{hidden.strip()} {text_of(inner)}".strip() for coverage, hidden, inner in found}


def test_each_coverage_has_its_own_decision_and_the_classifiers_is_shown():
    said = parts(answer_panel(UNSURE, "x.png", "model", 95))
    assert "Uncertain Glioma or meningioma" in said["95"] and not said["95"].startswith("hidden")
    assert said["90"].startswith("hidden") and "Model's answer Glioma" in said["90"]
    narrow = parts(answer_panel(replace(UNSURE, decision=ANSWER, prediction_set=SETS[90]), "x.png", "model", 90))
    assert not narrow["90"].startswith("hidden") and narrow["95"].startswith("hidden")


def test_a_refusal_says_why_and_folds_its_probabilities_away_as_meaningless():
    panel = answer_panel(replace(UNSURE, decision=NOT_A_BRAIN_MRI, reason="it is blank"), "x.png", "model", 95)
    above, folded = panel.split("<details")
    assert "Not a brain MRI" in above and "it is blank" in above and 'role="meter"' not in above
    assert "mean nothing" in folded and folded.count('role="meter"') == len(LABELS) and " open" not in folded
    assert "fieldset" not in panel and "alibrated" not in panel


def test_an_unfamiliar_slice_shows_the_answer_and_says_not_to_rely_on_it():
    panel = answer_panel(replace(UNSURE, decision=UNFAMILIAR, reason=UNFAMILIAR_SLICE), "x.png", "model", 90)
    said = parts(panel)
    assert "Glioma" in said["90"] and "Glioma or meningioma" in said["95"]
    for words in said.values():
        assert "Unfamiliar" in words and "Do not rely on this" in words and UNFAMILIAR_SLICE in words
        assert "Model's answer" not in words and "of 100" not in words, "no promise was measured on such slices"
    assert 'class="mark unfamiliar"' in panel and "fieldset" in panel and "Calibrated" not in panel


def test_an_answer_has_no_tick_and_every_other_decision_has_a_mark_of_its_own():
    marks = {name: decision_mark(name) for name in DECISIONS}
    assert marks[ANSWER] == "" and "✓" not in answer_panel(replace(UNSURE, decision=ANSWER), "x", "m", 90)
    assert len(set(marks.values())) == len(DECISIONS) and all(marks[name] for name in DECISIONS if name != ANSWER)


def test_without_trust_the_panel_says_that_nothing_was_checked():
    panel = answer_panel(PLAIN, "x.png", "model", 95)
    assert "without a trust.json" in panel and "not calibrated" in panel and "fieldset" not in panel
    assert "trust.json" not in answer_panel(UNSURE, "x.png", "model", 95)


def test_names_and_reasons_cannot_bring_html_along():
    evil = "<img src=x onerror=alert(1)>"
    for prediction in (PLAIN, replace(UNSURE, decision=NOT_A_BRAIN_MRI, reason=evil)):
        assert "<img" not in answer_panel(prediction, evil, evil, 95)


def test_the_viewer_keeps_the_ratio_of_the_slice_and_names_both_sizes():
    drawn = viewer(Image.new("RGB", (700, 400)), Image.new("RGB", (224, 224)), {"glioma": np.eye(4)}, "glioma")
    assert "--ratio:1.75000" in drawn and "--ratio:1.00000" in drawn
    assert "700 × 400" in drawn and "224\u00a0×\u00a0224" in drawn


def test_a_heat_map_drawn_over_the_slice_is_the_overlay_of_explain():
    heat = np.random.default_rng(0).random((24, 20)).astype(np.float32)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 20, 3), dtype=np.uint8))
    layer = Image.open(io.BytesIO(base64.b64decode(heat_uri(heat).split(",")[1]))).convert("RGBA")
    layer.putalpha(layer.getchannel("A").point(lambda alpha: round(0.6 * alpha)))
    drawn = Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")
    expected = Explanation(PLAIN, "glioma", heat, image, image.size).overlay(0.6)
    np.testing.assert_allclose(np.asarray(drawn).astype(int), np.asarray(expected), atol=3)


def test_the_four_maps_are_those_that_explain_gives_one_by_one(tiny_model_dir: Path):
    classifier = TumorClassifier.from_pretrained(tiny_model_dir, device="cpu")
    image = Image.open(EXAMPLES / "phantom-glioma.png").convert("RGB")
    seen, maps, target = heat_maps_of(classifier, image)
    assert list(maps) == list(LABELS) and target == classifier.predict(image).label
    for name in LABELS:
        alone = explain(classifier, image, name)
        np.testing.assert_allclose(maps[name], alone.heat_map, atol=1e-5)
        np.testing.assert_array_equal(np.asarray(seen), np.asarray(alone.image))


def test_the_answer_comes_first_and_the_heat_maps_of_the_same_slice_after_it(tiny_model_dir: Path):
    model, path = ModelHandle(str(tiny_model_dir)), str(EXAMPLES / "phantom-glioma.png")
    picture, panel, explainable = answer_slice(model, path)
    assert "phantom-glioma.png" in panel and explainable
    explained = explain_slice(model, path)
    assert "heat-opacity" not in picture and explained.count("--heat-") == 4 + 1
    assert all(f"--heat-{name}:url(data:image/png" in explained for name in LABELS)


def test_a_refused_picture_gets_no_heat_maps(tiny_model_dir: Path, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    write(folder, trust_for(folder))
    Image.new("RGB", (200, 200)).save(tmp_path / "blank.png")
    picture, panel, explainable = answer_slice(ModelHandle(str(folder)), str(tmp_path / "blank.png"))
    assert "it is blank" in panel and not explainable and "heat map" not in picture


def test_a_file_that_cannot_be_read_and_a_model_that_is_missing_are_told_in_the_panel(tmp_path: Path):
    (tmp_path / "bad.png").write_text("no image")
    _, told, explainable = answer_slice(ModelHandle("no-such-model"), str(tmp_path / "bad.png"))
    assert 'role="alert"' in told and "bad.png: not a readable" in told and not explainable
    _, told, explainable = answer_slice(ModelHandle("no-such-model"), str(EXAMPLES / "phantom-glioma.png"))
    assert 'role="alert"' in told and "no-such-model" in told and not explainable


@pytest.mark.parametrize(
    ("value", "text"), [(0.99999, "> 99.9 %"), (0.00001, "< 0.1 %"), (0.5, "50.0 %"), (1, "> 99.9 %")]
)
def test_no_probability_is_shown_as_certain(value: float, text: str):
    assert percent(value).replace("\u00a0", " ") == text.replace("> ", ">\u00a0").replace("\u00a0", " ")


def test_classes_are_listed_as_people_say_it():
    assert classes_in_words(["glioma"]) == "Glioma"
    assert classes_in_words(["glioma", "notumor", "pituitary"]) == "Glioma, no tumour or pituitary tumour"
