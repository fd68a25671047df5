"""A run's record is complete and readable; tables and README blocks are rendered from it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.render_tables import main as render_tables_main
from benchmarks.render_tables import render_results
from brain_tumor_mri.data.protocols import ProtocolArguments
from brain_tumor_mri.evaluation.metrics import classification_figures, external_figures
from brain_tumor_mri.evaluation.record import run_record
from brain_tumor_mri.files import write_json
from brain_tumor_mri.labels import TITLES
from brain_tumor_mri.reports import tables as report
from brain_tumor_mri.training.run import write_run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def record() -> dict:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 80)
    probabilities = rng.dirichlet(np.ones(4), 80) * 0.6 + 0.4 * np.eye(4)[labels]
    return run_record(
        protocol=ProtocolArguments(),
        model={"name": "m", "architecture": "resnet50", "image_size": 224, "weights_sha256": "0" * 64},
        data={"name": "d", "fingerprint": "f", "counts": {}, "skipped": []},
        splits={"test": classification_figures(probabilities, labels, n_resamples=50)},
        config={"seed": 7, "from_scratch": True},
        training={},
    )


EPOCHS = [
    {"epoch": e, "train_loss": 1 / e, "train_accuracy": 0.5, "validation_loss": 1.1 / e, "validation_accuracy": 0.6}
    | {"learning_rate": 1e-4}
    for e in (1.0, 2.0)
]


def test_a_record_names_protocol_seed_versions_and_hardware(record):
    assert record["protocol"] == "official"
    assert "leak" in record["protocol_note"]
    assert record["seed"] == 7
    assert {"python", "torch", "timm", "transformers", "datasets"} <= set(record["versions"])
    assert record["hardware"]["cores"] >= 1
    json.dumps(record, allow_nan=False)


def test_a_run_folder_has_tables_and_plots_that_open(record, tmp_path):
    write_run(tmp_path, record, EPOCHS)
    assert json.loads((tmp_path / "metrics.json").read_text()) == record
    assert (tmp_path / "training_log.csv").read_text().splitlines()[1].startswith("1,1,0.5,1.1,0.6")
    assert "| 2 | 0.5000 |" in (tmp_path / "training_log.md").read_text()
    for name in ("confusion_matrix.png", "training_curves.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 400
    assert not list(tmp_path.glob(".*"))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}


def test_tables_show_protocol_value_and_interval(record):
    accuracy = record["splits"]["test"]["accuracy"]
    shown = f"{100 * accuracy['value']:.1f} % ({100 * accuracy['low']:.1f}-{100 * accuracy['high']:.1f})"
    assert shown in report.summary_table([record])
    assert "official, test" in report.summary_table([record])
    assert all(title in report.class_table(record) for title in TITLES.values())
    assert "95 % intervals: percentile bootstrap over images" in report.interval_note(record)
    assert report.percent(None) == "-"


def test_results_blocks_of_a_markdown_file_are_rendered_and_the_rest_is_kept(record, tmp_path):
    write_json(tmp_path / "m.json", record)
    path = tmp_path / "README.md"
    path.write_text("# Title\n<!-- results: m.json -->\nlast week\n<!-- /results -->\nend\n")
    assert render_tables_main([str(path)]) == 0
    text = path.read_text()
    assert text.startswith("# Title\n<!-- results: m.json -->\n| model |")
    assert text.endswith("<!-- /results -->\nend\n")
    assert "last week" not in text
    assert render_tables_main([str(path)]) == 0
    assert path.read_text() == text


def test_speed_blocks_are_rendered_from_the_benchmarks_records(tmp_path):
    write_json(tmp_path / "b.json", {"summary": [["predict", "bare model", "0.95 times"]]})
    text = render_results("<!-- speed: b.json -->\n<!-- /speed -->\n", tmp_path)
    assert "| predict | bare model | 0.95 times |" in text


def test_published_figures_stand_beside_ours_and_say_so(record, tmp_path):
    (tmp_path / "m.json").write_text(json.dumps(record | {"title": "our network"}))
    published = {
        "model": "Net",
        "protocol": "figshare-5fold",
        "accuracy": {"value": 0.9465, "low": 0.924, "high": 0.966},
    }
    (tmp_path / "l.json").write_text(json.dumps({"literature": [published]}))
    page = render_results("<!-- protocols: m.json l.json -->\n<!-- /protocols -->", tmp_path)
    ours, theirs = page.splitlines()[3:5]
    test = record["splits"]["test"]
    assert ours.startswith(f"| our network | official | 80 | {report.percent(test['accuracy'])} | ")
    assert ours.count("|") == theirs.count("|") == 10
    assert theirs.startswith("| Net (published) | figshare-5fold | - | 94.65 % (92.40-96.60) | - |")


def test_an_external_block_names_what_is_measured_on_what(record, tmp_path):
    rows = np.tile([[0.7, 0.1, 0.1, 0.1], [0.2, 0.1, 0.6, 0.1]], (5, 1))
    names = [str(i) for i in range(10)]
    figures = external_figures(rows, rows[1::2], tumour_groups=names, healthy_groups=names[:5], n_resamples=50)
    (tmp_path / "m.json").write_text(json.dumps(record | {"external": figures}))
    page = render_results("<!-- external: m.json -->\n<!-- /external -->", tmp_path)
    assert "| resnet50, 224 px, from random weights | external, notumor of official | 50.0 %" in page
    assert "10 tumours, 5 notumor" in page and "over groups" in page


def test_a_missing_metrics_file_is_one_line_and_exit_2(tmp_path, capsys):
    path = tmp_path / "README.md"
    path.write_text("<!-- results: nowhere.json -->\n<!-- /results -->\n")
    assert render_tables_main([str(path)]) == 2
    assert "nowhere.json" in capsys.readouterr().err


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{file.name}" for file in sorted((ROOT / "docs").glob("*.md")))])
def test_the_tables_of_readme_and_docs_are_those_of_the_recorded_runs(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert render_results(text, (ROOT / page).parent) == text
    assert page != "README.md" or "<!-- protocols: model-lite/metrics.json" in text
