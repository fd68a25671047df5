"""ablation.py: paired changes by hand, a table from real answers, and models that may not be compared."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from benchmarks.accuracy import ablation
from benchmarks.render_tables import main as render_tables_main
from brain_tumor_mri.data.br35h import load_external
from brain_tumor_mri.inference.classifier import TumorClassifier
from tests.data import test_br35h as test_external

tumours_dir = test_external.tumours_dir


def run_folder(folder: Path, model_dir: Path, *, order: tuple[int, ...] = (0, 1, 2, 3), title: str = "official") -> str:
    """A folder as train.py leaves it, of a model whose classes change places."""
    shutil.copytree(model_dir, folder)
    weights = load_file(folder / "model.safetensors")
    heads = [name for name, tensor in weights.items() if tensor.shape[:1] == (4,) and tensor.ndim <= 2]
    assert len(heads) == 2
    save_file(
        weights | {name: weights[name][list(order)] for name in heads},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    sha256 = TumorClassifier.from_pretrained(str(folder)).describe()["sha256"]
    record = {"protocol": title, "model": {"weights_sha256": sha256}, "config": {"train_sizes": "64:1", "seed": 42}}
    (folder / "metrics.json").write_text(json.dumps(record))
    return str(folder)


def test_changes_are_paired_and_their_intervals_are_drawn_over_groups():
    labels = np.array([0, 1, 2, 3, 0, 1])
    before = np.eye(4)[[0, 0, 2, 0, 1, 1]]  # right: 1st, 3rd, 6th
    after = np.eye(4)[[0, 1, 2, 3, 2, 0]]  # right: the first four
    found = ablation.differences(before, after, labels, ["a", "a", "b", "b", "c", "c"])
    assert found["accuracy"]["value"] == pytest.approx(1 / 6)
    assert found["answers"]["value"] == pytest.approx(4 / 6)
    # by group a gains 1/2, b 1/2 and c loses 1/2: no draw of groups is outside of that
    assert found["accuracy"]["low"] == pytest.approx(-0.5) and found["accuracy"]["high"] == pytest.approx(0.5)
    same = ablation.differences(before, before, labels, list("aabbcc"))
    assert same["accuracy"] == same["answers"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_each_step_is_measured_and_set_against_the_one_before(
    tmp_path, phantom_dir, tumours_dir, tiny_model_dir, capsys
):
    first = run_folder(tmp_path / "first", tiny_model_dir)
    other = run_folder(tmp_path / "other", tiny_model_dir, order=(2, 3, 1, 0))
    steps = [("plain", first), ("classes exchanged", other), ("the same again", other)]
    flags = [flag for step in steps for flag in ("--step", *step)]
    flags += ["--data_dir", str(phantom_dir), "--external_dir", str(tumours_dir), "--protocol", "official"]
    assert ablation.main([*flags, "--output", str(tmp_path / "out" / "metrics.json")]) == 0

    text = (tmp_path / "out" / "metrics.json").read_text()
    assert str(tmp_path) not in text
    plain, exchanged, again = json.loads(text)["steps"]
    assert plain["change"] is None and plain["settings"]["train_sizes"] == "64:1"
    assert plain["test"]["n"] == 16 and plain["external"]["n_tumour"] == 8
    for kind, part, key in (("accuracy", "test", "accuracy"), ("sensitivity", "external", "sensitivity")):
        gained = exchanged[part][key]["value"] - plain[part][key]["value"]
        assert exchanged["change"][kind]["value"] == pytest.approx(gained)
    assert exchanged["change"]["answers"]["value"] > 0.5
    assert again["change"]["answers"]["value"] == again["change"]["accuracy"]["value"] == 0

    images = load_external(tumours_dir)["test"]
    found = [p.label for p in TumorClassifier.from_pretrained(first).predict([r["image"] for r in images])]
    assert plain["external"]["sensitivity"]["value"] == pytest.approx(np.mean([label != "notumor" for label in found]))

    readme = tmp_path / "README.md"
    readme.write_text("<!-- ablation: out/metrics.json -->\n<!-- /ablation -->\n")
    assert render_tables_main([str(readme)]) == 0
    rows = readme.read_text().splitlines()
    assert [row.split(" | ")[0] for row in rows[3:6]] == ["| plain", "| classes exchanged", "| the same again"]
    assert " | +0.0 (+0.0 to +0.0) | 0.0 % (0.0-0.0) | " in rows[5] and " | - | - | " in rows[3]
    assert "classes exchanged" in capsys.readouterr().out


def test_a_model_that_may_have_trained_on_the_test_slices_is_refused(
    tmp_path, phantom_dir, tumours_dir, tiny_model_dir, capsys
):
    flags = ["--data_dir", str(phantom_dir), "--external_dir", str(tumours_dir), "--protocol", "official"]
    flags += ["--output", str(tmp_path / "metrics.json"), "--step", "a"]

    def refusal(folder: str) -> str:
        assert ablation.main([*flags, folder]) == 2
        assert not (tmp_path / "metrics.json").exists()
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    elsewhere = run_folder(tmp_path / "elsewhere", tiny_model_dir, title="patient-disjoint fold 2")
    assert "trained under patient-disjoint fold 2" in refusal(elsewhere)
    silent = run_folder(tmp_path / "silent", tiny_model_dir)
    (Path(silent) / "metrics.json").unlink()
    assert "does not say how the model was trained" in refusal(silent)
    changed = run_folder(tmp_path / "changed", tiny_model_dir)
    shutil.copy(Path(run_folder(tmp_path / "b", tiny_model_dir, order=(1, 0, 2, 3))) / "model.safetensors", changed)
    assert "belongs to other weights" in refusal(changed)
