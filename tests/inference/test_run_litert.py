"""LiteRT files: run as the networks that they hold, refused when damaged, written to answer as PyTorch does."""

import hashlib
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")

from brain_tumor_mri import TumorClassifier, UserError
from brain_tumor_mri.commands.main import main
from brain_tumor_mri.inference.model_folder import find_model
from brain_tumor_mri.inference.run_litert import LiteRtNetwork
from tests.litert_file import tiny_tflite

REPO_ROOT = Path(__file__).resolve().parents[2]
SIZE = (224, 224)
WEIGHTS = np.array([[9, -4, 1], [-7, 2, 6], [3, 8, -9], [-5, -6, 2]], np.float32)
BIAS = np.array([0.5, -0.25, 0.0, 1.0], np.float32)


@pytest.fixture(scope="module")
def content() -> bytes:
    return tiny_tflite(WEIGHTS, BIAS, SIZE)


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path, content: bytes) -> Path:
    """An export folder, made by hand, with a trust.json that has a temperature."""
    made = tmp_path / "exported"
    (made / "litert").mkdir(parents=True)
    (made / "litert" / "model.tflite").write_bytes(content)
    shutil.copy2(tiny_model_dir / "config.json", made)
    source = find_model(tiny_model_dir)
    limits = dict.fromkeys(("glioma", "meningioma", "notumor", "pituitary"), 0.5)
    limits = {"familiar": limits, "unfamiliar": limits}
    calibration = {"temperature": {"familiar": 1.7, "unfamiliar": 1.7}, "thresholds": {"90": limits, "95": limits}}
    check = {"stage": "layer3", "threshold": 1.0, "noise": 1.0, "variances": [1.0], "mean": [0.0] * 3}
    trust = {
        "schema": 5,
        "weights_sha256": source.sha256(),
        "calibration": {"single": calibration, "mirrored": calibration},
        "in_distribution": check | {"components": [[1.0, 0.0, 0.0]]},
        "brain_mri": None,
    }
    (made / "trust.json").write_text(json.dumps(trust))
    entry = {
        "file": "litert/model.tflite",
        "sha256": hashlib.sha256(content).hexdigest(),
        "stored_as": "F32",
        "features": {"stage": "layer3"},
    }
    named = {"name": "tiny", "weights_sha256": source.sha256(), "parameters": 16}
    (made / "export.json").write_text(json.dumps({"schema": 1, "source": named, "files": {"litert": entry}}))
    return made


@pytest.fixture
def slices(phantom_dir: Path) -> list[Path]:
    return sorted(phantom_dir.glob("Testing/*/*.png"))[::2]


@pytest.mark.parametrize("count", [1, 5])
def test_a_batch_is_answered_slice_by_slice_in_order(content: bytes, count: int):
    network = LiteRtNetwork(content, "model.tflite")
    pixels = np.random.default_rng(count).normal(size=(count, 3, *SIZE)).astype(np.float32)
    pixels += np.arange(3, dtype=np.float32).reshape(3, 1, 1)
    logits, features = network(pixels)
    means = pixels.mean((2, 3))
    np.testing.assert_allclose(features, means, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logits, means @ WEIGHTS.T + BIAS, rtol=1e-3, atol=1e-3)


def test_threads_that_answer_at_once_each_get_their_own(content: bytes):
    network = LiteRtNetwork(content, "model.tflite", threads=1)
    batches = [np.full((3, 3, *SIZE), value, np.float32) for value in range(12)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(network, batches))
    for value, (logits, features) in enumerate(answers):
        np.testing.assert_allclose(features, np.full((3, 3), value), rtol=1e-5)
        np.testing.assert_allclose(logits, np.tile(WEIGHTS.sum(1) * value + BIAS, (3, 1)), rtol=1e-4)


def test_the_classifier_runs_the_folder_and_decides(folder: Path, slices: list[Path]):
    classifier = TumorClassifier.from_pretrained(folder)
    assert classifier.describe()["backend"] == "litert"
    answers = classifier.predict(slices)
    means = np.stack([classifier.preprocess(parity_image(path)) for path in slices]).mean((2, 3))
    odds = np.exp((means @ WEIGHTS.T + BIAS).astype(np.float64) / 1.7)
    expected = odds / odds.sum(1, keepdims=True)
    np.testing.assert_allclose([list(a.probabilities.values()) for a in answers], expected, atol=1e-4)
    assert all(a.decision for a in answers)
    with pytest.raises(UserError, match="is a LiteRT export"):
        _ = classifier.model


def parity_image(path: Path):
    from brain_tumor_mri.images.read import load_image

    return load_image(path)


def test_other_backends_come_first_unless_litert_is_asked_for(folder: Path, tiny_model_dir: Path):
    with pytest.raises(UserError, match=r"LiteRT export without model\.safetensors"):
        TumorClassifier.from_pretrained(folder, backend="torch")
    with pytest.raises(UserError, match=r"no litert/model_int8\.tflite.*--backend litert"):
        TumorClassifier.from_pretrained(folder, backend="litert-int8")
    with pytest.raises(UserError, match="--device cpu"):
        LiteRtNetwork((folder / "litert" / "model.tflite").read_bytes(), "model.tflite", "cuda")
    shutil.copy2(tiny_model_dir / "model.safetensors", folder)
    (folder / "trust.json").unlink()
    assert TumorClassifier.from_pretrained(folder, device="cpu").describe()["backend"] == "torch"
    assert TumorClassifier.from_pretrained(folder, backend="litert").describe()["backend"] == "litert"


def test_a_file_that_is_swapped_or_no_network_of_ours_is_refused_in_one_line(folder: Path):
    file = folder / "litert" / "model.tflite"
    file.write_bytes(file.read_bytes()[:-4] + b"abcd")
    with pytest.raises(UserError, match=r"not the file that export\.json describes"):
        TumorClassifier.from_pretrained(folder)
    with pytest.raises(UserError, match="cannot be run"):
        LiteRtNetwork(b"no network" * 9, "model.tflite")
    with pytest.raises(UserError, match="no export of this project"):
        LiteRtNetwork(tiny_tflite(WEIGHTS, BIAS, SIZE, input_name="image"), "model.tflite")


def test_without_ai_edge_litert_the_command_that_installs_it_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(UserError, match="pip install ai-edge-litert"):
        TumorClassifier.from_pretrained(folder)


def test_without_litert_torch_the_export_says_what_to_install(
    tiny_model_dir: Path, phantom_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    places = ["--model", str(tiny_model_dir), "--output", str(tmp_path / "out"), "--data_dir", str(phantom_dir)]
    assert main(["export", "--format", "litert", *places]) == 2
    told = capsys.readouterr().err
    assert "pip install litert-torch" in told and told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_nothing_of_litert_is_written_to_the_console(content: bytes, capfd):
    LiteRtNetwork(content, "model.tflite")(torch.zeros(1, 3, *SIZE))
    sys.stderr.write("still there\n")
    assert capfd.readouterr() == ("", "still there\n")


def test_the_example_answers_as_the_classifier_and_without_torch(folder: Path, slices: list[Path]):
    script = REPO_ROOT / "examples" / "classify_litert.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 30
    program = (
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
        "assert not {'torch', 'transformers', 'torchvision', 'timm'} & set(sys.modules)"
    )
    for path in slices[:2]:
        command = [sys.executable, "-c", program, str(script), str(folder), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        found = {name: float(value) for name, value in (line.split() for line in done.stdout.splitlines())}
        expected = TumorClassifier.from_pretrained(folder).predict(path).probabilities
        assert found == pytest.approx(expected, abs=1e-4) and list(found) == list(expected)


def test_the_example_refuses_a_picture_of_16_bits_which_pillow_would_clip(folder: Path, tmp_path: Path):
    Image.fromarray(np.full((40, 40), 40_000, np.uint16)).save(tmp_path / "deep.png")
    command = [
        sys.executable,
        str(REPO_ROOT / "examples" / "classify_litert.py"),
        str(folder),
        str(tmp_path / "deep.png"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "8 bits" in done.stderr and done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def converter() -> None:
    """Skips where no converter is installed; it asks for other versions of packages that the rest of the tests use."""
    pytest.importorskip("litert_torch", reason="litert-torch is not installed: pip install litert-torch")


def test_an_export_answers_as_pytorch_does_and_int8_is_close_and_small(
    converter: None, tiny_model_dir: Path, phantom_dir: Path, tmp_path: Path
):
    places = ["--model", str(tiny_model_dir), "--data_dir", str(phantom_dir), "--min_agreement", "0.7"]
    formats = ("litert", "litert-int8")
    for name in formats:
        assert main(["export", "--format", name, *places, "--output", str(tmp_path / name)]) == 0
    full, small = (json.loads((tmp_path / name / "export.json").read_text())["files"][name] for name in formats)
    assert full["check"]["max_difference"] <= 1e-4 and full["check"]["same_label"] == 1 and full["features"]["stage"]
    assert full["input"] == [1, 3, 224, 224] and "litert-torch" in full["versions"]
    assert small["size_bytes"] < 0.6 * full["size_bytes"] and small["stored_as"] == "I8"
    assert small["check"]["min_agreement"] == 0.7 and 1e-6 < small["check"]["mean_difference"] < 0.1  # untrained
    assert small["calibration"]["slices"] > 20 and small["calibration"]["activations"] == "int8"
    assert [file.name for file in (tmp_path / "litert-int8" / "litert").iterdir()] == ["model_int8.tflite"]
    from ai_edge_litert.interpreter import Interpreter

    network = Interpreter(str(tmp_path / "litert-int8" / "litert" / "model_int8.tflite"))
    network.allocate_tensors()
    ends = network.get_input_details() + network.get_output_details()
    assert all(end["dtype"] is np.float32 for end in ends)
    assert sum(tensor["dtype"] is np.int8 for tensor in network.get_tensor_details()) > 5
