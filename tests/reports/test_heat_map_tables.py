"""What card and README show of the heat maps' and the stress test's records."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.render_tables import render_results
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.reports.card import render_card
from brain_tumor_mri.reports.heat_map_tables import explain_note, explain_table


def scored(hit: float) -> dict:
    return {key: {"value": hit, "low": hit - 0.1, "high": hit + 0.1} for key in ("hit", "hit_15px", "energy")}


def record(method: str, hit: float, fingerprint: str = "a") -> dict:
    methods = {method: scored(hit), "centred gaussian": scored(0.11), "random map": scored(0.12), "all": scored(0.13)}
    rank = {"all": {"value": 0.05, "low": -0.01, "high": 0.2}, "head": None}
    figures = {"n": 40, "methods": methods, "rank_correlation": rank, "fingerprint": fingerprint}
    model = {"architecture": "resnet50", "image_size": 224}
    return {"config": {"method": method}, "model": model, "title": None, "sets": {"br35h test part": figures}}


def test_baselines_of_one_set_are_shown_once_for_several_maps():
    table = explain_table([record("grad-cam", 0.5), record("layer-cam", 0.7)])
    assert "| resnet50, 224 px, layer-cam | br35h test part | 40 | 70.0 % (60.0-80.0) |" in table
    assert table.count("centred gaussian") == table.count("random map") == 1 and "| - all" not in table
    assert explain_table([record("grad-cam", 0.5), record("grad-cam", 0.5, "b")]).count("centred gaussian") == 2


def test_the_note_gives_the_rank_correlation_with_randomised_weights():
    assert "all 0.05 (-0.01-0.20) on br35h test part" in explain_note(record("grad-cam", 0.5))


def test_a_block_of_a_markdown_file_is_rendered(tmp_path: Path):
    (tmp_path / "explain.json").write_text(json.dumps(record("grad-cam", 0.5)))
    text = render_results("<!-- explain: explain.json -->\n<!-- /explain -->\n", tmp_path)
    assert "50.0 % (40.0-60.0)" in text and "Rank correlation" in text


def test_the_card_shows_the_record_beside_the_weights_and_refuses_a_damaged_one(
    released_model_dir: Path, tmp_path: Path
):
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(released_model_dir / "metrics.json", folder)
    assert "Where it looks" not in render_card(folder)
    (folder / "explain.json").write_text(json.dumps(record("grad-cam", 0.5)))
    assert "#### Where it looks" in render_card(folder) and "50.0 % (40.0-60.0)" in render_card(folder)
    (folder / "explain.json").write_text("[]")
    with pytest.raises(UserError, match=r"explain\.json holds no JSON object"):
        render_card(folder)
