"""The view of the model without a browser: figures of the records beside the weights, or why there are none."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from brain_tumor_mri import TumorClassifier
from brain_tumor_mri.page.view_model import model_facts
from tests.trust.test_trust_file import trust_for, write

ROOT = Path(__file__).resolve().parents[2]
METRICS = ROOT / "results" / "scratch-cpu-official" / "metrics.json"


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def facts(folder: Path, change=lambda record, sha256: None) -> tuple[str, str, str]:
    classifier = TumorClassifier.from_pretrained(folder, device="cpu")
    record = json.loads(METRICS.read_text(encoding="utf-8"))
    sha256 = classifier.describe()["sha256"]
    record["model"]["weights_sha256"] = sha256
    change(record, sha256)
    (folder / "metrics.json").write_text(json.dumps(record), encoding="utf-8")
    return model_facts(classifier, "my <model>")


def test_the_view_shows_figures_weights_data_and_licence_of_the_records(folder: Path):
    top, tables, rest = facts(folder)
    record = json.loads((folder / "metrics.json").read_text())
    test = record["splits"]["test"]
    assert f"{100 * test['accuracy']['value']:.1f} %" in top and record["protocol"] in top
    assert record["model"]["weights_sha256"] in top and "my &lt;model&gt;" in top
    for row in test["confusion_matrix"]:
        for count in row:
            assert f"<b>{count:,}</b>" in top
    assert "Pituitary tumour" in tables and "no trust.json" in tables
    for words in ("Class goes with source", "leaks", "Apache-2.0", "CC BY 4.0", "not for diagnosis"):
        assert words in rest


def test_tumours_of_another_collection_are_said_to_be_unmeasured_or_shown(folder: Path):
    assert "not measured" in facts(folder)[0]
    lite = json.loads((ROOT / "model-lite" / "metrics.json").read_text())

    def with_external(record: dict, sha256: str) -> None:
        record["external"] = lite["external"]

    top, tables, _ = facts(folder, with_external)
    share = f"{100 * lite['external']['sensitivity']['value']:.1f} %"
    assert share in top and "not measured" not in top and "Tumours of another collection" in tables


def test_figures_of_other_weights_are_not_shown(folder: Path):
    top, tables, _ = facts(folder, lambda record, sha256: record["model"].update(weights_sha256="0" * 64))
    assert "metrics.json is of other weights" in top and "94.0" not in top + tables


def share(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def test_what_trust_json_measured_is_shown_by_part(folder: Path):
    single = {
        "n": 1234,
        "before": {"ece": share(0.08)},
        "after": {"ece": share(0.021)},
        "coverage": {"90": {"covered": share(0.912)}, "95": {"covered": share(0.957)}},
        "decisions": {"answer": share(0.83), "uncertain": share(0.15), "not-a-brain-mri": share(0.02)},
        "correct": {"answer": share(0.981), "uncertain": None, "all": share(0.95)},
    }
    foreign = {"n": 61, "refused": 0.967}
    measured = {"test": {"single": single}, "external": {"single": single}, "foreign": foreign}
    trust = replace(trust_for(folder), record={"protocol": "patient-disjoint fold 1", "measured": measured})
    write(folder, trust)
    _, tables, _ = facts(folder)
    for text in (
        "patient-disjoint fold 1, test",
        "Br35H",
        "1,234",
        "91.2 % (90.2-92.2)",
        "98.1 %",
        "2.1 %, 8.0 % before",
    ):
        assert text in tables
    assert "Of 61 pictures that are no brain MRI, 96.7 % are refused" in tables


@pytest.mark.parametrize("content", ["{", "[]", '{"splits": {}}', '{"splits": {"test": {"n": 5}}, "model": {}}'])
def test_a_damaged_record_leaves_the_rest_of_the_view(folder: Path, content: str):
    (folder / "metrics.json").write_text(content)
    classifier = TumorClassifier.from_pretrained(folder, device="cpu")
    top, _, rest = model_facts(classifier, "model")
    assert "No figures" in top and classifier.describe()["sha256"] in top and "Licence" in rest


def test_a_model_without_records_says_so(tiny_model_dir: Path):
    top, tables, _ = model_facts(TumorClassifier.from_pretrained(tiny_model_dir, device="cpu"), "model")
    assert "no metrics.json" in top and "no trust.json" in tables
