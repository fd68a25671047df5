"""Model folders from the Hub: what is downloaded, and in which order."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hub.server import TOKEN, LocalHub
from huggingface_hub import HfApi

from brain_tumor_mri.errors import UserError
from brain_tumor_mri.inference.model_folder import find_model

pytest_plugins = ["hub.fixtures"]
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's uploads

LOAD = "import sys; from brain_tumor_mri import TumorClassifier; TumorClassifier.from_pretrained(sys.argv[1])"


def load(hub: LocalHub, repo: str, home: Path) -> tuple[str, list[str]]:
    """Load a model in a process of its own: what it wrote to stderr, and which files it fetched, in order."""
    before = len(hub.requests)
    line = [sys.executable, "-c", LOAD, repo]
    done = subprocess.run(line, env=hub.environment(home), capture_output=True, text=True, timeout=240)
    fetched = [r.rsplit("/", 1)[1] for r in hub.requests[before:] if r.startswith("GET") and "/resolve/" in r]
    return done.stderr, fetched


def test_a_model_of_other_classes_is_refused_before_its_weights_are_downloaded(
    hub: LocalHub, sleeps: list[float], tiny_model_dir: Path, tmp_path: Path
):
    api = HfApi(endpoint=hub.url, token=TOKEN)
    ours = {file.name: file.read_bytes() for file in tiny_model_dir.iterdir()}
    config = json.loads(ours["config.json"]) | {"label_names": ["cat", "dog"]}
    foreign = ours | {"config.json": json.dumps(config).encode(), "more/other.safetensors": b"not of the model" * 9}
    for repo, files in (("someone/cats", foreign), ("someone/brain", ours)):
        api.create_repo(repo)
        for name, content in files.items():
            api.upload_file(repo_id=repo, path_or_fileobj=content, path_in_repo=name)
    told, fetched = load(hub, "someone/cats", tmp_path / "home")
    assert "answers with other classes (cat, dog)" in told
    assert "config.json" in fetched and not [name for name in fetched if name.endswith(".safetensors")]
    told, fetched = load(hub, "someone/brain", tmp_path / "home")
    assert "Traceback" not in told and fetched[-1] == "model.safetensors"


def test_a_revision_of_a_local_folder_is_refused_not_ignored(tiny_model_dir):
    with pytest.raises(UserError, match="is a folder here, without revisions; leave out v2"):
        find_model(tiny_model_dir, "v2")
