"""``average``: the mean of two trainings' weights is a model folder like any other; what cannot be averaged is told."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from brain_tumor_mri import TumorClassifier
from brain_tumor_mri.commands.main import main
from brain_tumor_mri.inference.model_folder import find_model


def training(folder: Path, source: Path, factor: float) -> Path:
    """A copy of the tiny model, its head multiplied, with the metrics.json that a training would have left."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    head = next(name for name in weights if name.endswith("fc.weight"))
    weights[head] = weights[head] * np.float32(factor)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"protocol": "official", "fold": 1, "validation_fraction": 0.3, "random_validation": True}
    config |= {"train_on_validation": False, "seed": 42, "external_dir": None, "external_train": True}
    record = {"config": config, "model": {"weights_sha256": find_model(folder).sha256()}, "data": {}, "training": {}}
    (folder / "metrics.json").write_text(json.dumps(record))
    return folder


def test_the_mean_lies_between_both_and_is_measured(tiny_model_dir: Path, phantom_dir: Path, tmp_path: Path, capsys):
    first, second = training(tmp_path / "a", tiny_model_dir, 1.0), training(tmp_path / "b", tiny_model_dir, 3.0)
    output = tmp_path / "mean"
    line = ["average", str(first), str(second), "--share", "0.25", "--data_dir", str(phantom_dir)]
    assert main([*line, "--output", str(output)]) == 0
    ours, theirs = load_file(output / "model.safetensors"), load_file(first / "model.safetensors")
    head = next(name for name in theirs if name.endswith("fc.weight"))
    np.testing.assert_allclose(ours[head.removeprefix("timm_model.")], 1.5 * theirs[head], rtol=1e-6)
    assert not any(name.startswith("timm_model.") for name in ours)  # timm's own names
    record = json.loads((output / "metrics.json").read_text())
    assert record["splits"]["test"]["n"] == 16
    assert [part["share"] for part in record["training"]["averaged"]] == [0.75, 0.25]
    assert record["model"]["weights_sha256"] == find_model(output).sha256()
    assert TumorClassifier.from_pretrained(output, device="cpu").predict(sorted(phantom_dir.glob("Testing/*/*.png"))[0])

    assert main([*line, "--output", str(output)]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("share", ["-0.1", "1.5"])
def test_a_share_out_of_range_is_told(tmp_path: Path, capsys, share: str):
    line = ["average", "a", "b", f"--share={share}", "--output", str(tmp_path / "mean"), "--data_dir", "data"]
    assert main(line) == 2
    assert "from 0 to 1" in capsys.readouterr().err
