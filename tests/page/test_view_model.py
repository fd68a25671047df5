"""The view of the model without a browser: figures of the records beside the weights, or why there are none."""

import json
import shutil
from pathlib import Path

import pytest

from brain_tumor_mri import TumorClassifier
from brain_tumor_mri.page.view_model import model_facts

ROOT = Path(__file__).resolve().parents[2]
METRICS = ROOT / "results" / "scratch-cpu-official" / "metrics.json"


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def facts(folder: Path, change=lambda record, sha256: None) -> tuple[str, str]:
    classifier = TumorClassifier.from_pretrained(folder, device="cpu")
    record = json.loads(METRICS.read_text(encoding="utf-8"))
    sha256 = classifier.describe()["sha256"]
    record["model"]["weights_sha256"] = sha256
    change(record, sha256)
    (folder / "metrics.json").write_text(json.dumps(record), encoding="utf-8")
    return model_facts(classifier, "my <model>")


def test_the_view_shows_key_figures_weights_and_the_card_with_data_limits_and_licence(folder: Path):
    top, card = facts(folder)
    record = json.loads((folder / "metrics.json").read_text())
    test = record["splits"]["test"]
    assert f"{100 * test['accuracy']['value']:.1f} %" in top and record["protocol"] in top
    assert record["model"]["weights_sha256"] in top and "my &lt;model&gt;" in top
    assert "none: nothing checks" in top
    for words in ("Class goes with source", "leaks", "Apache-2.0", "CC BY 4.0", "Diagnosis", "| Pituitary tumour |"):
        assert words in card
    assert not card.startswith(("---", "#")), "the metadata and a second title are no part of the page"


def test_weights_beside_an_onnx_file_are_named_by_their_own_hash(tiny_onnx_dir: Path):
    classifier = TumorClassifier.from_pretrained(tiny_onnx_dir, device="cpu")
    top, _ = model_facts(classifier, "tiny")
    assert classifier.folder.sha256() in top and classifier.describe()["sha256"] not in top


def test_plots_of_the_card_travel_inside_it(folder: Path):
    shutil.copy(ROOT / "model-lite" / "confusion_matrix.png", folder)
    _, card = facts(folder)
    assert "](data:image/png;base64," in card and "](confusion_matrix.png)" not in card


def test_tumours_of_another_collection_are_said_to_be_unmeasured_or_shown(folder: Path):
    assert "not measured" in facts(folder)[0]
    lite = json.loads((ROOT / "model-lite" / "metrics.json").read_text())

    def with_external(record: dict, sha256: str) -> None:
        record["external"] = lite["external"]

    top, card = facts(folder, with_external)
    share = f"{100 * lite['external']['sensitivity']['value']:.1f} %"
    assert share in top and "not measured" not in top and share in card


def test_refusals_are_those_of_kinds_that_the_check_had_not_seen(folder: Path):
    facts(folder)
    classifier = TumorClassifier.from_pretrained(folder, device="cpu")
    trust = {
        "foreign": {"refused": 1.0, "n": 69},  # chosen with these in view
        "left_out": {
            "foreign": {"photograph": {"n": 300, "refused": 0.98}, "monkey-brain-MRI": {"n": 100, "refused": 0.06}},
            "brain": {"one": {"n": 50, "refused": 0.0}, "other": {"n": 150, "refused": 0.04}},
        },
    }
    (folder / "trust.json").write_text(json.dumps({"measured": trust}))
    top, _ = model_facts(classifier, "model")
    assert "75.0 %" in top and "of 400 in 2 kinds" in top and "Least refused: monkey brain MRI 6 %" in top
    assert "3.0 %" in top and "of 200 in 2 collections" in top and "100.0 %" not in top.split('id="refusals"')[1]
    for measured in ({}, {"left_out": {}}, {"left_out": {"foreign": {}, "brain": {}}}):
        (folder / "trust.json").write_text(json.dumps({"measured": measured}))
        assert "refusals" not in model_facts(classifier, "model")[0]


def test_figures_of_other_weights_are_not_shown(folder: Path):
    top, card = facts(folder, lambda record, sha256: record["model"].update(weights_sha256="0" * 64))
    assert "metrics.json is of other weights" in top and "94.0" not in top and card == ""


@pytest.mark.parametrize("content", ["{", "[]", '{"splits": {}}', '{"splits": {"test": {"n": 5}}, "model": {}}'])
def test_a_damaged_record_leaves_the_rest_of_the_view(folder: Path, content: str):
    (folder / "metrics.json").write_text(content)
    classifier = TumorClassifier.from_pretrained(folder, device="cpu")
    top, card = model_facts(classifier, "model")
    assert "No figures" in top and classifier.describe()["sha256"] in top and card == ""


@pytest.mark.parametrize("content", ["{", '{"measured": {"test": {}}}'])
def test_a_damaged_record_of_trust_costs_the_card_and_no_figure(folder: Path, content: str):
    classifier = TumorClassifier.from_pretrained(folder, device="cpu")
    facts(folder)
    (folder / "trust.json").write_text(content)
    top, card = model_facts(classifier, "model")
    assert "No card: " in top and "accuracy" in top and card == ""


def test_a_model_without_records_says_so(tiny_model_dir: Path):
    top, card = model_facts(TumorClassifier.from_pretrained(tiny_model_dir, device="cpu"), "model")
    assert "no metrics.json" in top and "none: nothing checks" in top and card == ""
