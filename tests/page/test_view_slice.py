"""The view of one slice without a browser: what the answer says for each decision, and what the viewer draws."""

import base64
import io
import json
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from app_server import EXAMPLES
from matplotlib.text import Text
from PIL import Image
from pydicom.data import get_testdata_file

from brain_tumor_mri import TumorClassifier, UserError
from brain_tumor_mri.heat_maps.explain import Explanation, explain
from brain_tumor_mri.images.facts import slice_facts
from brain_tumor_mri.inference.prediction import Prediction
from brain_tumor_mri.labels import LABELS, RESEARCH_NOTICE, TITLES
from brain_tumor_mri.page.fragments import classes_in_words, decision_mark, percent
from brain_tumor_mri.page.handle import ModelHandle
from brain_tumor_mri.page.slice_panel import answer_panel
from brain_tumor_mri.page.slice_report import SliceReport
from brain_tumor_mri.page.slice_viewer import heat_uri, viewer
from brain_tumor_mri.page.view_slice import answer_slice, explain_slice, heat_maps_of, history_list, slice_report
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
    above, folded = panel.split('<details class="meaningless"')
    assert 'role="meter"' not in above and folded.count('role="meter"') == len(LABELS)


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
    seen = Image.new("RGB", (224, 224), "grey")
    drawn = viewer(Image.new("RGB", (700, 400)), [Explanation(PLAIN, "glioma", np.eye(224), seen, (700, 400))])
    assert drawn.count("--ratio:1.75000") == 2, "the slice, and the slice under the map"
    assert drawn.count('class="heat"') == 1
    assert "700 × 400" in drawn and "224\u00a0×\u00a0224" in drawn


def test_the_notes_of_the_maps_say_what_is_empty_and_what_lies_outside_the_head():
    head = np.zeros((64, 64, 3), np.uint8)
    head[16:48, 16:48] = 200
    image = Image.fromarray(head)
    outside, inside = np.zeros((64, 64), np.float32), np.zeros((64, 64), np.float32)
    outside[:4, :4], inside[30:34, 30:34] = 1, 1
    found = [Explanation(PLAIN, "glioma", inside, image, (64, 64))]
    found += [Explanation(PLAIN, "meningioma", outside, image, (64, 64))]
    found += [Explanation(PLAIN, "pituitary", inside * 0, image, (64, 64))]
    drawn = text_of(viewer(image, found))
    assert "Glioma 60.0\u00a0%; 0 % of the evidence lies outside".replace("\u00a0", " ") in drawn.replace("\u00a0", " ")
    assert "100 % of the evidence for meningioma lies outside the head" in drawn
    assert "The map is empty: the model finds hardly any evidence for pituitary tumour" in drawn


def layer_of(explanation: Explanation) -> Image.Image:
    uri = heat_uri(explanation.shown_map)
    layer = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGBA")
    layer.putalpha(layer.getchannel("A").point(lambda alpha: round(0.6 * alpha)))
    return layer


def test_a_heat_map_drawn_over_the_slice_is_the_overlay_of_explain():
    heat = np.random.default_rng(0).random((24, 20)).astype(np.float32)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 20, 3), dtype=np.uint8))
    explanation = Explanation(PLAIN, "glioma", heat, image, image.size)
    layer = layer_of(explanation)
    drawn = Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")
    expected = explanation.overlay(0.6)
    np.testing.assert_allclose(np.asarray(drawn).astype(int), np.asarray(expected), atol=3)


def test_each_kind_of_tumour_has_the_map_that_explain_gives_and_no_tumour_has_none(tiny_model_dir: Path):
    classifier = TumorClassifier.from_pretrained(tiny_model_dir, device="cpu")
    image = Image.open(EXAMPLES / "phantom-glioma.png").convert("RGB")
    found = heat_maps_of(classifier, image)
    assert [one.target for one in found] == [name for name in LABELS if name != "notumor"]
    for one in found:
        alone = explain(classifier, image, one.target)
        np.testing.assert_allclose(one.heat_map, alone.heat_map, atol=1e-5)
        np.testing.assert_allclose(one.shown_map, alone.shown_map, atol=1e-5)


def test_the_answer_comes_first_and_the_heat_maps_of_the_same_slice_after_it(tiny_model_dir: Path):
    model, path = ModelHandle(str(tiny_model_dir)), str(EXAMPLES / "phantom-glioma.png")
    answer = answer_slice(model, path)
    assert "phantom-glioma.png" in answer.panel and answer.explainable
    explained, panel = explain_slice(model, path)
    assert panel is None, "without a trust.json there is no decision that a map could change"
    assert "heat-opacity" not in answer.viewer
    assert re.findall(r"--heat-(\w+):url\(data:image/png", explained) == [n for n in LABELS if n != "notumor"]


def test_a_refused_picture_gets_no_heat_maps(tiny_model_dir: Path, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    write(folder, trust_for(folder))
    Image.new("RGB", (200, 200)).save(tmp_path / "blank.png")
    answer = answer_slice(ModelHandle(str(folder)), str(tmp_path / "blank.png"))
    assert "it is blank" in answer.panel and not answer.explainable and "heat-opacity" not in answer.viewer


def test_an_unfamiliar_slice_gets_no_heat_maps_and_a_line_that_says_why(tiny_model_dir: Path, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    write(folder, trust_for(folder, threshold=1e-9))
    answer = answer_slice(ModelHandle(str(folder)), str(EXAMPLES / "phantom-glioma.png"))
    assert "Unfamiliar" in answer.panel and not answer.explainable and "No heat map" in answer.viewer


def test_a_member_of_a_zip_is_opened_again_by_its_place_and_a_removed_upload_says_so(tiny_model_dir: Path, tmp_path):
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.write(EXAMPLES / "phantom-glioma.png", "a.png")
        archive.write(EXAMPLES / "phantom-pituitary.png", "b.png")
    model, paths = ModelHandle(str(tiny_model_dir)), (str(tmp_path / "two.zip"),)
    assert "two.zip/b.png" in answer_slice(model, (paths, 1)).panel
    (tmp_path / "two.zip").unlink()
    assert "choose the file again" in answer_slice(model, (paths, 1)).panel


@pytest.mark.parametrize("error", [MemoryError(), ValueError("x"), UserError("the weights are damaged")])
def test_whatever_goes_wrong_leaves_neither_picture_nor_answer_nor_maps(
    tiny_model_dir: Path, monkeypatch, error: Exception
):
    model, path = ModelHandle(str(tiny_model_dir)), str(EXAMPLES / "phantom-glioma.png")

    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(model.get(), "predict", broken)
    told = answer_slice(model, path)
    assert 'role="alert"' in told.panel and 'class="finding"' not in told.panel
    assert "<img" not in told.viewer and not told.explainable and told.title == ""
    monkeypatch.setattr("brain_tumor_mri.page.view_slice.read_upload", broken)
    assert 'role="alert"' in answer_slice(model, path).panel and "<img" not in answer_slice(model, path).viewer


def test_an_answer_whose_evidence_lies_outside_the_head_becomes_uncertain(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch
):
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    write(folder, trust_for(folder, left=1e-9))  # one class in each set
    model, path = ModelHandle(str(folder)), str(EXAMPLES / "phantom-glioma.png")
    assert model.get().predict(path).decision == ANSWER
    assert model.get().predict(path).label != "notumor", "the tiny model's answer must have a place"
    monkeypatch.setattr(Explanation, "outside_head", 0.2)
    assert explain_slice(model, path)[1] is None
    monkeypatch.setattr(Explanation, "outside_head", 0.61)
    panel = explain_slice(model, path)[1]
    assert "Uncertain" in text_of(panel) and "Model's answer" not in panel and 'class="mark uncertain"' in panel
    assert "61% of the evidence for it lies outside the head" in panel and "phantom-glioma.png" in panel


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.png")), ids=lambda path: path.stem)
def test_the_released_model_answers_every_example(example: Path):
    answer = answer_slice(ModelHandle("model-lite"), str(example))
    label = example.stem.removeprefix("phantom-") if example.stem.startswith("phantom") else "notumor"
    assert answer.explainable and TITLES[label].lower() in answer.title.lower()


def test_the_page_of_pdf_says_what_the_panel_says_and_names_no_file(tmp_path):
    model = ModelHandle("model-lite")
    name = tmp_path / "Jane-Doe-1950.png"
    shutil.copy2(EXAMPLES / "phantom-glioma.png", name)
    drawn = []

    def kept(report: SliceReport) -> bytes:
        drawn.append(report.figure())
        return b"%PDF-"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SliceReport, "pdf", kept)
        slice_report(model, str(name))
        slice_report(model, str(Path(__file__).parents[2] / "docs" / "screenshot.png"))  # refused
    words, refused = (" ".join(text.get_text() for text in figure.findobj(Text)) for figure in drawn)
    answer = model.get().predict(name)
    for part in (RESEARCH_NOTICE, answer.title, f"{100 * answer.confidence:.1f} %", "SHA-256", "no outline"):
        assert part in words, part
    assert "Jane" not in words and "Not a brain MRI" in refused and "no outline" not in refused
    assert slice_report(model, str(name)).startswith(b"%PDF-")


def test_the_report_holds_the_answer_and_the_notice():
    panel = answer_panel(UNSURE, "x.png", "my model", 95)
    uri = re.search(r'href="data:application/json;base64,([^"]+)"', panel)
    record = json.loads(base64.b64decode(uri[1]))
    assert record["model"] == "my model" and record["notice"] == RESEARCH_NOTICE
    assert record["probabilities"] == UNSURE.probabilities


def test_the_history_lists_what_was_answered_and_names_cannot_bring_html_along():
    shown = history_list([((("/tmp/<b>.png",), 0), "Glioma")])
    assert "&lt;b&gt;.png" in shown and "Glioma" in shown and 'data-entry="0"' in shown
    assert history_list([]) == ""


def test_a_dicom_slice_tells_plane_position_and_sides_and_nothing_of_the_patient(tmp_path: Path):
    dataset = pydicom.dcmread(get_testdata_file("MR_small.dcm"))
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [-100, -100, 42]
    dataset.PatientName, dataset.PatientID = "Secret^Name", "ID-77"
    dataset.save_as(tmp_path / "slice.dcm")
    facts = slice_facts(str(tmp_path / "slice.dcm"))
    assert dict(facts.lines)["Plane"] == "axial" and dict(facts.lines)["Position"] == "H 42 mm"
    assert (facts.left, facts.right) == ("R", "L")
    assert "Secret" not in str(facts) and "ID-77" not in str(facts)
    dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    dataset.save_as(tmp_path / "slice.dcm")
    sagittal = slice_facts(str(tmp_path / "slice.dcm"))
    assert dict(sagittal.lines)["Plane"] == "sagittal" and (sagittal.left, sagittal.right) == ("A", "P")
    assert slice_facts(str(EXAMPLES / "phantom-glioma.png")).lines == ()


def test_a_file_that_cannot_be_read_and_a_model_that_is_missing_are_told_in_the_panel(tmp_path: Path):
    (tmp_path / "bad.png").write_text("no image")
    told = answer_slice(ModelHandle("no-such-model"), str(tmp_path / "bad.png"))
    assert 'role="alert"' in told.panel and "bad.png: not a readable" in told.panel and not told.explainable
    told = answer_slice(ModelHandle("no-such-model"), str(EXAMPLES / "phantom-glioma.png"))
    assert 'role="alert"' in told.panel and "no-such-model" in told.panel and not told.explainable


@pytest.mark.parametrize(
    ("value", "text"), [(0.99999, "> 99.9 %"), (0.00001, "< 0.1 %"), (0.5, "50.0 %"), (1, "> 99.9 %")]
)
def test_no_probability_is_shown_as_certain(value: float, text: str):
    assert percent(value).replace("\u00a0", " ") == text.replace("> ", ">\u00a0").replace("\u00a0", " ")


def test_classes_are_listed_as_people_say_it():
    assert classes_in_words(["glioma"]) == "Glioma"
    assert classes_in_words(["glioma", "notumor", "pituitary"], 4) == "Glioma, no tumour or pituitary tumour"


def test_a_list_of_all_classes_is_said_to_rule_none_out():
    sets = {90: ("glioma",), 95: LABELS}
    said = parts(answer_panel(replace(UNSURE, prediction_set=LABELS, prediction_sets=sets), "x.png", "model", 95))
    assert "No class ruled out" in said["95"] and "cannot tell its classes apart" in said["95"]
    assert "Model's answer Glioma" in said["90"]
