"""What people do with the Hub, in processes of their own against the local Hub, and again from the cache without it."""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import timm
import torch
from gradio_client import Client, handle_file
from huggingface_hub import HfApi
from PIL import Image
from ports import free_port
from safetensors.torch import load_file, save_file

from brain_tumor_mri import TumorClassifier
from brain_tumor_mri.hub import push as pushing
from brain_tumor_mri.hub.plan_model import plan_model
from brain_tumor_mri.labels import LABELS
from hub.server import TOKEN, LocalHub

pytest_plugins = ["hub.fixtures"]
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's uploads

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "phantom-meningioma.png"
BACKBONE = "timm/resnet50.a1_in1k"
DATASET_CARD = """---
configs:
- config_name: default
  data_files:
  - {split: train, path: "Training/**"}
  - {split: test, path: "Testing/**"}
---
"""
LOAD_DATASET = """
import collections, json
from datasets import load_dataset
loaded = load_dataset("someone/slices")
names = loaded["train"].features["label"].names
found = {part: collections.Counter(names[row["label"]] for row in rows) for part, rows in loaded.items()}
print(json.dumps({"names": names, "found": found, "size": loaded["test"][0]["image"].size}))
"""


def offline(environment: dict[str, str]) -> dict[str, str]:
    return environment | {"HF_HUB_OFFLINE": "1"}


def python(environment: dict[str, str], *arguments: object) -> str:
    """Run Python in the repository; what it printed."""
    line = [sys.executable, *map(str, arguments)]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@contextmanager
def running_app(environment: dict[str, str], log: Path) -> Iterator[Client]:
    port = free_port()
    with log.open("wb") as stream:
        settings = {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=ROOT, env=environment | settings, stdout=stream, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=10).close()
                break
            except OSError:
                time.sleep(0.1)
        client = Client(f"http://127.0.0.1:{port}", verbose=False)
        yield client
        client.close()
    finally:
        process.kill()
        process.wait()


def test_the_app_pulls_the_version_it_is_told_to_and_then_answers_from_the_cache_without_the_hub(
    hub: LocalHub, sleeps: list[float], versions: dict[str, Path], tmp_path: Path
):
    for tag, folder in versions.items():
        pushing.push(plan_model(folder, "someone/brain", tag=tag), tag=tag)
    expected, latest = (TumorClassifier.from_pretrained(versions[tag]).predict(EXAMPLE) for tag in ("v1", "v2"))
    assert expected.confidence != pytest.approx(latest.confidence, abs=1e-4)
    told = {"MODEL_ID": "someone/brain", "MODEL_REVISION": "v1"}
    environment = hub.environment(tmp_path / "home") | told
    for surroundings in (environment, offline(environment)):
        before = len(hub.requests)
        with running_app(surroundings, tmp_path / "log") as client:
            answer = client.predict(handle_file(EXAMPLE), api_name="/predict")
        assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
        assert answer["model"] == "someone/brain@v1"
        downloaded = any("/resolve/" in request for request in hub.requests[before:])
        assert downloaded == (surroundings is environment)
        hub.stop()


def test_a_backbone_of_the_hub_is_fine_tuned_and_then_again_from_the_cache_without_the_hub(
    hub: LocalHub, sleeps: list[float], phantom_dir: Path, tmp_path: Path
):
    """The repository has the layout of timm's (bare tensor names, 1,000 classes), and a small network under that id."""
    torch.manual_seed(5)
    weights = timm.create_model("test_resnet", pretrained=False, num_classes=1000).state_dict()
    statistics = {"mean": [0.5] * 3, "std": [0.5] * 3}
    layout = {"architecture": "test_resnet", "num_classes": 1000, "pretrained_cfg": statistics}
    folder = tmp_path / "backbone"
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(layout))
    hub.tokens["hf_localHubTimmToken"] = "timm"
    api = HfApi(endpoint=hub.url, token="hf_localHubTimmToken")
    api.create_repo(BACKBONE)
    api.upload_folder(repo_id=BACKBONE, folder_path=folder)

    environment = hub.environment(tmp_path / "home")
    for name, surroundings in (("online", environment), ("offline", offline(environment))):
        output, before = tmp_path / name, len(hub.requests)
        flags = f"--model_name_or_path {BACKBONE} --from_scratch false --num_train_epochs 1 --image_size 64"
        quiet = "--learning_rate 1e-9 --disable_tqdm true"
        paths = ("--data_dir", phantom_dir, "--output_dir", output)
        python(surroundings, "train.py", "configs/smoke.yaml", *flags.split(), *quiet.split(), *paths)
        trained = load_file(output / "model.safetensors")
        first = next(tensor for key, tensor in trained.items() if key.endswith("conv1.0.weight"))
        assert torch.allclose(first.float(), weights["conv1.0.weight"], atol=1e-3)
        config = json.loads((output / "config.json").read_text())
        assert config["pretrained_cfg"]["mean"] == [0.5] * 3 and config["label_names"] == list(LABELS)
        record = json.loads((output / "metrics.json").read_text())
        assert record["config"]["model_name_or_path"] == BACKBONE and record["splits"]["test"]["n"] == 16
        downloaded = any(f"/{BACKBONE}/resolve/" in request for request in hub.requests[before:])
        assert downloaded == (name == "online")
        hub.stop()


def test_a_dataset_repository_of_the_kaggle_layout_is_loaded_and_then_from_the_cache_without_the_hub(
    hub: LocalHub, sleeps: list[float], phantom_dir: Path, tmp_path: Path
):
    folder = tmp_path / "slices"
    for part, count in (("Training", 3), ("Testing", 2)):
        for label in LABELS:
            (folder / part / label).mkdir(parents=True)
            for png in sorted((phantom_dir / part / label).glob("*.png"))[:count]:
                Image.open(png).convert("L").save(folder / part / label / f"{png.stem}.jpg")
    (folder / "README.md").write_text(DATASET_CARD)
    api = HfApi(endpoint=hub.url, token=TOKEN)
    api.create_repo("someone/slices", repo_type="dataset", private=True)
    api.upload_folder(repo_id="someone/slices", repo_type="dataset", folder_path=folder)

    environment = hub.environment(tmp_path / "home")
    online = json.loads(python(environment, "-c", LOAD_DATASET))
    assert online == {
        "names": list(LABELS),
        "found": {"train": dict.fromkeys(LABELS, 3), "test": dict.fromkeys(LABELS, 2)},
        "size": [96, 96],
    }
    assert sum("/datasets/someone/slices/resolve/" in r and r.endswith(".jpg") for r in hub.requests) >= 20
    hub.stop()
    assert json.loads(python(offline(environment), "-c", LOAD_DATASET)) == online
