"""``brain-tumor-mri models``, ``app`` and ``train``: names lead to folders, and the scripts have a command."""

import json
from pathlib import Path

import pytest

from brain_tumor_mri.commands import main as cli
from brain_tumor_mri.commands.models import MODELS, located


def test_the_list_has_every_released_model_with_size_and_protocol(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["models"]
    assert [row["name"] for row in rows] == list(MODELS)
    lite = rows[0]
    recorded = json.loads((Path(lite["folder"]) / "metrics.json").read_text())
    assert f"{100 * recorded['splits']['test']['accuracy']['value']:.1f} %" in lite["accuracy"]
    assert recorded["protocol"] in lite["accuracy"] and lite["size_bytes"] > 10**6
    assert cli.main(["models"]) == 0 and "model-lite" in capsys.readouterr().out


def test_a_name_leads_to_the_clones_folder_from_anywhere_and_a_folder_there_comes_first(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Path(located("model-lite")).is_absolute() and located("owner/name") == "owner/name"
    (tmp_path / "model-lite").mkdir()
    assert located("model-lite") == "model-lite"


def test_train_hands_its_arguments_over_and_returns_the_status(monkeypatch):
    import subprocess

    asked: list[list[str]] = []

    def started(command: list[str], check: bool) -> subprocess.CompletedProcess[bytes]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 2)

    monkeypatch.setattr("brain_tumor_mri.commands.train.subprocess.run", started)
    assert cli.main(["train", "configs/smoke.yaml", "--learning_rate", "1e-4"]) == 2
    assert asked[0][1].endswith("train.py") and asked[0][2:] == ["configs/smoke.yaml", "--learning_rate", "1e-4"]
