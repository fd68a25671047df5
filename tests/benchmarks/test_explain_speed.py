"""benchmarks/speed/explain_speed.py: how turns are taken, and its record on the tiny model."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import harness
from benchmarks.render_tables import speed_table
from benchmarks.speed import explain_speed


def test_turns_alternate_their_order_and_the_warm_up_is_not_counted(monkeypatch: pytest.MonkeyPatch):
    clock = iter(range(1000))
    monkeypatch.setattr(harness.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(harness, "WARM_UP", 1)
    calls: list[str] = []
    seconds = harness.take_turns({name: lambda name=name: calls.append(name) for name in "ab"}, 2)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert {name: values.tolist() for name, values in seconds.items()} == {"a": [1, 1], "b": [1, 1]}


def test_the_spread_is_the_middle_four_fifths():
    assert harness.spread(np.arange(11.0)) == {"value": 5.0, "low": 1.0, "high": 9.0}


def test_the_record_has_a_row_a_model_that_the_table_of_speeds_shows(tiny_model_dir: Path, tmp_path: Path):
    output = tmp_path / "speed" / "explain.json"
    model = ["--model", str(tiny_model_dir)]
    assert explain_speed.main([*model, *model, "--rounds", "2", "--output", str(output)]) == 0
    record = json.loads(output.read_text())
    for figures in record["models"]:
        times = figures["milliseconds"]
        assert set(times) == {"forward pass", "heat_maps", "predict", "explain"}
        assert all(0 < row["low"] <= row["value"] <= row["high"] for row in times.values())
        assert figures["map_to_forward"]["value"] > 0 and figures["device"] == "cpu" and figures["trust"] is False
    table = speed_table([record])
    assert table.count("Grad-CAM times LayerCAM map of one") == 2 and table.count("| `predict` on it |") == 2
    assert "{value:.2f} ({low:.2f}-{high:.2f}) times".format(**record["models"][0]["map_to_forward"]) in table


def test_a_model_that_is_not_there_is_told_in_one_line(tmp_path: Path, capsys):
    assert explain_speed.main(["--model", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
