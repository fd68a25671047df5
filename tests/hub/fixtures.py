"""What tests that talk to the local Hub share: the server, this process pointed at it, and two versions of a model."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http as client_http

from brain_tumor_mri.files import write_json
from brain_tumor_mri.hub import push as pushing
from brain_tumor_mri.inference.model_folder import find_model

from .server import TOKEN, LocalHub

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def versions(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two versions of the tiny model, ``v1`` and ``v2``, each with a record of its own weights."""
    from safetensors.torch import load_file, save_file

    record = json.loads((ROOT / "results" / "scratch-cpu-official" / "metrics.json").read_text())
    folders = {}
    for number, accuracy in ((1, 0.9123), (2, 0.9456)):
        folder = tmp_path_factory.mktemp("versions") / "model"
        shutil.copytree(tiny_model_dir, folder)
        tensors = load_file(folder / "model.safetensors")
        assert any(name.endswith("fc.weight") for name in tensors)
        scaled = {name: t * (1 + number / 8) if name.endswith("fc.weight") else t for name, t in tensors.items()}
        save_file(scaled, folder / "model.safetensors", {"format": "pt"})
        record["model"]["weights_sha256"] = find_model(folder).sha256()
        record["splits"]["test"]["accuracy"] = {"value": accuracy, "low": accuracy - 0.02, "high": accuracy + 0.02}
        write_json(folder / "metrics.json", record)
        (folder / "confusion_matrix.png").write_bytes(f"plot {number}".encode())
        (folder / "optimizer.pt").write_bytes(b"not part of a version")
        folders[f"v{number}"] = folder
    return folders


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "hub") as running:
        yield running


@pytest.fixture
def sleeps(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Point this process at the local Hub, without pauses; the seconds that would have been slept."""
    slept: list[float] = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # conftest's setting was read at import
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(pushing, "sleep", slept.append)
    monkeypatch.setattr(client_http, "time", SimpleNamespace(sleep=slept.append))
    return slept
