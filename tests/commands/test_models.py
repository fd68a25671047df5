"""``brain-tumor-mri models``, ``app`` and ``train``: names lead to folders, and the scripts have a command."""

import json
import shutil
from pathlib import Path

import pytest

from brain_tumor_mri.commands import main as cli
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.inference import registry
from brain_tumor_mri.inference.model_folder import DEFAULT_MODEL, find_model


def test_the_list_has_every_released_model_with_size_and_protocol(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["models"]
    assert [row["name"] for row in rows] == ["model-lite", "model"]
    lite = rows[0]
    recorded = json.loads((Path(lite["folder"]) / "metrics.json").read_text())
    assert lite["accuracy"] == recorded["splits"]["test"]["accuracy"]
    assert recorded["protocol"] == lite["protocol"] and lite["size_bytes"] > 10**6
    assert cli.main(["models"]) == 0 and "model-lite" in capsys.readouterr().out


def test_a_name_leads_to_the_clones_folder_from_anywhere_and_a_folder_there_comes_first(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert find_model("model-lite").path == registry.CLONE / DEFAULT_MODEL
    shutil.copytree(tiny_model_dir, tmp_path / "model-lite")
    assert find_model("model-lite").path == Path("model-lite")


def test_a_name_that_is_neither_here_nor_on_the_hub_is_one_line(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "CLONE", tmp_path)
    with pytest.raises(UserError, match="model-lite is not on the Hub yet; clone"):
        find_model("model-lite")


def test_train_hands_its_arguments_over_and_returns_the_status(monkeypatch):
    import subprocess

    asked: list[list[str]] = []

    def started(command: list[str], check: bool) -> subprocess.CompletedProcess[bytes]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 2)

    monkeypatch.setattr("brain_tumor_mri.commands.train.subprocess.run", started)
    assert cli.main(["train", "configs/smoke.yaml", "--learning_rate", "1e-4"]) == 2
    assert asked[0][1].endswith("train.py") and asked[0][2:] == ["configs/smoke.yaml", "--learning_rate", "1e-4"]
