"""Other ways in which PyTorch runs the safetensors: bfloat16 autocast and torch.compile."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from brain_tumor_mri import TumorClassifier, UserError
from brain_tumor_mri.inference.load import load_network
from brain_tumor_mri.inference.model_folder import TORCH_WAYS, find_model
from brain_tumor_mri.inference.run_pytorch import stage_of
from brain_tumor_mri.trust.decision import COVERAGES
from brain_tumor_mri.trust.trust_file import Calibration, InDistribution, Trust


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """The tiny model with a check that reads its features."""
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path_factory.mktemp("ways") / "model"))
    network = TumorClassifier.from_pretrained(folder, device="cpu").model.timm_model
    stage = stage_of(network)
    width = next(row["num_chs"] for row in network.feature_info if row["module"] == stage)
    check = InDistribution(stage, np.zeros(width), np.eye(2, width), np.ones(2), 1.0, 1.0)
    calibration = Calibration(0.7, {coverage: np.full(4, 0.5) for coverage in COVERAGES})
    trust = Trust(find_model(folder).sha256(), calibration, calibration, check, {})
    (folder / "trust.json").write_text(json.dumps(trust.to_dict()))
    return folder


@pytest.fixture(scope="module")
def slices(phantom_dir: Path) -> list[Path]:
    return sorted(phantom_dir.glob("Testing/*/*.png"))[:8]


def rows(classifier: TumorClassifier, slices: list[Path]) -> np.ndarray:
    """Probabilities and unlikeness, (N, 5)."""
    return np.array([[*a.probabilities.values(), a.unlikeness] for a in classifier.predict(slices, batch_size=4)])


def test_bf16_answers_much_as_float32_does_and_keeps_a_float32_module(model: Path, slices: list[Path]) -> None:
    eager = TumorClassifier.from_pretrained(model, device="cpu", backend="torch")
    half = TumorClassifier.from_pretrained(model, device="cpu", backend="torch-bf16")
    apart = np.abs(rows(eager, slices) - rows(half, slices))[:, :4].max()
    assert 1e-5 < apart < 0.1  # bf16 keeps 8 bits
    pixels = torch.zeros(1, 3, *half.image_size)
    with torch.inference_mode():
        assert torch.equal(half.model(pixel_values=pixels).logits, eager.model(pixel_values=pixels).logits)
    assert half.describe()["backend"] == "torch-bf16"
    assert half.describe()["sha256"] == eager.describe()["sha256"]


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_answers_as_pytorch_does(model: Path, slices: list[Path]) -> None:
    eager = TumorClassifier.from_pretrained(model, device="cpu")
    compiled = TumorClassifier.from_pretrained(model, device="cpu", backend="torch-compile")
    np.testing.assert_allclose(rows(compiled, slices), rows(eager, slices), atol=1e-4)
    with pytest.raises(UserError, match=r"--backend torch$"):
        _ = compiled.model
    with pytest.raises(UserError, match=r"--backend torch$"):
        compiled.take_features()


def test_what_cannot_be_compiled_is_one_line(model: Path, slices: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(config, "force_disable_caches", True)
    classifier = TumorClassifier.from_pretrained(model, device="cpu", backend="torch-compile")
    with pytest.raises(UserError, match=r"cannot be compiled here.*use --backend torch") as caught:
        classifier.predict(slices[0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("way", TORCH_WAYS)
def test_a_stage_that_the_network_lacks_is_told(way: str, tiny_model_dir: Path) -> None:
    folder = find_model(tiny_model_dir, backend=way)
    with pytest.raises(UserError, match="names the stage nowhere"):
        load_network(folder, "cpu", "nowhere")


def test_an_export_has_no_such_ways(tmp_path: Path, tiny_model_dir: Path) -> None:
    shutil.copytree(tiny_model_dir, tmp_path / "empty")
    (tmp_path / "empty" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        TumorClassifier.from_pretrained(tmp_path / "empty", backend="torch-bf16")
