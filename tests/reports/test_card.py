"""The model card: valid metadata, every figure from the records, snippets that run, no card that disagrees."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2.meta
import pytest
from huggingface_hub import ModelCard

from brain_tumor_mri.commands import main as cli
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.files import write_json
from brain_tumor_mri.labels import RESEARCH_NOTICE
from brain_tumor_mri.reports import card
from brain_tumor_mri.reports.tables import percent

ROOT = Path(__file__).parents[2]
SECTIONS = (
    "Model Details", "Uses", "Bias, Risks, and Limitations", "How to Get Started with the Model", "Training Details",
    "Evaluation", "Environmental Impact", "Citation", "Licence",
)  # fmt: skip


@pytest.fixture
def record() -> dict[str, Any]:
    """The first release's record: of random weights, from before the external protocol."""
    return json.loads((ROOT / "results" / "scratch-cpu-official" / "metrics.json").read_text())


@pytest.fixture
def new_record(record: dict[str, Any]) -> dict[str, Any]:
    """A record as train.py writes it now: fine-tuned, Br35H trained and measured, one twin under official."""
    share = {"value": 0.91, "low": 0.88, "high": 0.94}
    none = {"corrected_labels": [], "not_in_splits": [], "missing_from_folder": []}
    twin = json.loads(json.dumps(record))
    twin["data"] |= none | {"leaking_share": {"validation": 0.5, "test": 0.8764}}
    twin["splits"]["test"]["accuracy"] = {"value": 0.7654}
    config = {"from_scratch": False, "model_name_or_path": "resnet50.a1_in1k", "external_dir": "br35h-tumour"}
    external = {
        "n_tumour": 226,
        "n_notumor": 400,
        "interval": {"resamples": 2000},
        "sensitivity": share,
        "specificity": share,
        "sensitivity_at_95_specificity": {"value": 0.9312, "low": 0.9, "high": 0.95},
        "auroc": share,
    }
    return record | {
        "protocol": "patient-disjoint fold 1",
        "protocol_note": "no patient in two parts",
        "data": record["data"] | none | {"leaking_share": {"validation": 0.0, "test": 0.0}},
        "config": record["config"] | config | {"external_train": True, "external_repeats": 3},
        "external": external,
        "twins": [twin],
    }


@pytest.fixture
def folder_of(tmp_path: Path) -> Callable[..., Path]:
    def write(record: dict[str, Any], name: str = "model") -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        write_json(folder / "metrics.json", record)
        return folder

    return write


# --- metadata ---


@pytest.mark.parametrize("kind", ["record", "new_record"])
def test_metadata_has_what_the_hub_asks_for_and_survives_a_round_trip(kind, request, folder_of):
    text = card.render_card(folder_of(request.getfixturevalue(kind)), repo_id="someone/brain")
    data = ModelCard(text).data
    assert data.license == "apache-2.0" and data.library_name == "transformers"
    assert data.pipeline_tag == "image-classification" and data.model_name == "brain"
    assert data.metrics == ["accuracy", "f1", "roc_auc"] and data.tags
    assert "datasets" not in data.to_dict()
    assert ModelCard(text).content.rstrip("\n") == text.rstrip("\n")
    for result in data.eval_results:
        assert result.task_type == "image-classification" and result.dataset_split == "test"
        assert 0 <= result.metric_value <= 1 and result.verified is False


def test_the_model_index_has_one_result_a_protocol_and_names_twins(new_record, folder_of):
    index = ModelCard(card.render_card(folder_of(new_record))).data.to_dict()["model-index"]
    results = {result["dataset"]["config"]: result for result in index[0]["results"]}
    assert list(results) == [
        "patient-disjoint fold 1",
        "external, notumor of patient-disjoint fold 1",
        f"official ({card.TWIN})",
    ]
    own, external, twin = results.values()
    assert [metric["type"] for metric in own["metrics"]] == ["accuracy", "f1", "recall", "roc_auc"]
    assert [metric["value"] for metric in external["metrics"]] == [0.91, 0.9312, 0.91]
    assert "not these weights" in twin["dataset"]["name"]
    assert twin["metrics"][0]["value"] == 0.7654


def test_a_fine_tuned_model_names_its_base_model_and_a_scratch_one_none(record, new_record, folder_of):
    assert "base_model" not in ModelCard(scratch := card.render_card(folder_of(record))).data.to_dict()
    assert "trained from random weights" in scratch
    tuned = card.render_card(folder_of(new_record))
    assert ModelCard(tuned).data.base_model == "timm/resnet50.a1_in1k"
    assert "https://huggingface.co/timm/resnet50.a1_in1k" in tuned


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm/resnet50.a1_in1k", "timm/resnet50.a1_in1k"),
        ("resnet50.a1_in1k", "timm/resnet50.a1_in1k"),
        ("run-3", None),
    ],
)
def test_only_a_hub_id_becomes_the_base_model(name, expected):
    record = {"model": {"architecture": "resnet50"}, "config": {"from_scratch": False, "model_name_or_path": name}}
    assert card.base_model(record) == expected


# --- text ---


@pytest.mark.parametrize("kind", ["record", "new_record"])
def test_the_card_has_the_hubs_sections_and_no_gap(kind, request, folder_of):
    text = card.render_card(folder_of(request.getfixturevalue(kind)))
    headings = re.findall(r"^## (.*)", text, re.MULTILINE)
    assert set(SECTIONS) <= set(headings)
    assert text.count(RESEARCH_NOTICE) == 1
    assert "10.6084/m9.figshare.1512427" in text and "CC BY 4.0" in text
    assert not re.search(r"\bNone\b(?! of the)|\{\{|\{%|Undefined|nan\b| $", text, re.MULTILINE)


def test_the_template_asks_for_nothing_that_is_not_given(record, folder_of):
    asked = jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(card.TEMPLATE.read_text()))
    assert asked <= {*card._texts(folder_of(record), record), "card_data", "repo_id", "lite"}


def test_a_new_record_shows_external_figures_leak_training_on_br35h_and_twins(new_record, folder_of):
    text = card.render_card(folder_of(new_record))
    assert percent(new_record["external"]["sensitivity_at_95_specificity"]) in text
    assert "Under `official`, 87.6 % of the test images" in text
    assert "Hamada" in text and "each drawn 3 times an epoch" in text
    assert f"#### official: {card.TWIN}" in text
    assert "| resnet50 (twin), 224 px, from random weights | official, test |" in text and "| 76.5 % |" in text
    assert "has not been measured" not in text


def test_the_card_names_the_further_collections_that_trained(new_record, folder_of):
    assert "further collections" not in card.render_card(folder_of(new_record))
    new_record["config"] |= {"collections_dir": "collections", "collection": "brats"}
    text = card.render_card(folder_of(new_record))
    assert "tcga-lgg (459)" in text and "of which brats was left out" in text and "head-ct (" not in text


def test_a_record_without_external_figures_says_so_and_leaves_br35hs_citation_out(record, folder_of):
    text = card.render_card(folder_of(record))
    assert "has not been measured for these weights" in text
    assert "Hamada" not in text


def test_the_plot_and_the_small_model_are_shown_where_they_are(record, folder_of):
    folder = folder_of(record)
    assert "confusion_matrix.png" not in card.render_card(folder)
    (folder / "confusion_matrix.png").touch()
    folder_of(record | {"model": record["model"] | {"architecture": "small_net"}}, "model-lite")
    text = card.render_card(folder)
    assert "](confusion_matrix.png)" in text
    assert "#### A smaller model" in text and "| small_net, 224 px, from random weights |" in text


# --- the command, and the card in the repository ---


def test_the_committed_card_is_what_the_committed_record_renders():
    assert (ROOT / "model_card.md").read_text(encoding="utf-8") == card.render_card(ROOT / "model")


def test_check_fails_in_one_line_when_one_figure_changes(record, folder_of, tmp_path, capsys):
    arguments = ["card", "--model", str(folder_of(record)), "--output", str(tmp_path / "card.md")]
    assert cli.main([*arguments, "--check"]) == 2
    assert "card.md is missing" in capsys.readouterr().err
    assert cli.main(arguments) == 0
    capsys.readouterr()
    assert cli.main([*arguments, "--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changed"] is False
    record["splits"]["test"]["per_class"]["glioma"]["recall"]["value"] -= 0.01
    folder_of(record)
    before = (tmp_path / "card.md").read_text()
    assert cli.main([*arguments, "--check"]) == 2
    error = capsys.readouterr().err
    assert "card.md differs from" in error and error.count("\n") == 1
    assert (tmp_path / "card.md").read_text() == before


def test_missing_or_damaged_records_and_a_wrong_id_are_one_line(record, folder_of, tmp_path):
    with pytest.raises(UserError, match=r"metrics\.json is missing") as missing:
        card.render_card(tmp_path)
    assert "\n" not in str(missing.value)
    del record["splits"]["test"]["ece"]
    with pytest.raises(UserError, match=r"incomplete .*ece"):
        card.render_card(folder_of(record))
    for damaged in ([], {"protocol": "official"}):
        with pytest.raises(UserError, match=r"metrics\.json (holds no JSON object|is not a metrics file)"):
            card.render_card(folder_of(damaged))
    with pytest.raises(UserError, match="owner/name"):
        card.render_card(folder_of(record), repo_id="no id")


def test_a_card_is_written_from_inside_the_model_folder_too(record, folder_of, tmp_path, monkeypatch):
    monkeypatch.chdir(folder_of(record))
    folder_of(record, "model-lite")
    assert cli.main(["card", "--model", ".", "--output", str(tmp_path / "inside.md")]) == 0
    assert cli.main(["card", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "outside.md")]) == 0
    assert (tmp_path / "inside.md").read_text() == (tmp_path / "outside.md").read_text()


def test_each_python_snippet_runs(tiny_model_dir, phantom_dir, record, folder_of, capsys):
    text = card.render_card(folder_of(record), repo_id="someone/brain")
    image = next(phantom_dir.glob("Testing/*/*.png"))
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippets) == 3
    for snippet in snippets:
        assert '"someone/brain"' in snippet and '"slice.png"' in snippet
        code = snippet.replace("someone/brain", str(tiny_model_dir)).replace("slice.png", str(image))
        exec(compile(code, "model card", "exec"), {})
        assert "glioma" in capsys.readouterr().out
    (line,) = re.findall(r"```bash\nbrain-tumor-mri (.*?)\n```", text)
    filled = {"someone/brain": str(tiny_model_dir), "folder/of/slices": str(image.parent)}
    arguments = [filled.get(word, word) for word in line.split()]
    arguments[-1] = str(image.parent.parent / "answers.csv")
    assert cli.main(arguments) == 0
    assert Path(arguments[-1]).is_file()
