"""What light.py makes of two sides' answers."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.speed import light
from brain_tumor_mri.errors import UserError


def answer(seconds: float, mb: float, probability: float, backend: str) -> dict:
    said = {
        "model": {"backend": backend, "trust": "abc"},
        "predictions": [{"probabilities": {"a": probability, "b": 1 - probability}}],
    }
    return {"seconds": seconds, "mb": mb, "said": said}


def test_ratios_are_taken_round_by_round_and_answers_compared():
    sides = {
        "before": [answer(4, 900, 0.5, "torch"), answer(8, 1000, 0.5, "torch")],
        "now": [answer(1, 200, 0.501, "onnx"), answer(1, 210, 0.501, "onnx")],
    }
    found = light.compared(sides)
    assert found["times_as_fast"]["value"] == 6 and found["peak_memory_mb"] == {"before": 1000, "now": 210}
    assert found["largest_difference"] == pytest.approx(0.001) and found["same_weights"]
    record = {"setting": {"before": "abc", "images": 5}, "one": found, "many": found, "packages_mb": 250.0}
    rows = light.summary(record)
    assert rows[0][2] == "1.00 s, 6.0 (4.4-7.6) times as fast" and rows[-1][2] == "250 MB"


def test_a_command_is_watched_from_a_small_parent_and_its_failure_told(tmp_path: Path):
    wanted = "x = bytearray(60_000_000); import json; print(json.dumps({'a': 1}))"
    found = light.watched([sys.executable, "-c", wanted], tmp_path)
    assert found["said"] == json.loads('{"a": 1}') and 60 < found["mb"] < 120 and found["seconds"] > 0
    with pytest.raises(UserError, match="exited with 3"):
        light.watched([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)
