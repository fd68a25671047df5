"""Publishing, with the unmodified huggingface_hub client, to a local Hub over HTTP: see ``hub/server.py``."""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants

from brain_tumor_mri.commands import main as cli
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.files import write_json
from brain_tumor_mri.hub import plan_model as publish
from brain_tumor_mri.hub import push as pushing
from brain_tumor_mri.inference import registry
from brain_tumor_mri.inference.model_folder import find_model
from brain_tumor_mri.training.backbone import build_model, save_release
from hub.server import READ_TOKEN, TOKEN, Fault, LocalHub

pytest_plugins = ["hub.fixtures"]
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's uploads

ROOT = Path(__file__).parents[2]
REPO = "someone/brain"
FILES = {"LICENSE", "README.md", "config.json", "confusion_matrix.png", "metrics.json", "model.safetensors"}
REQUESTS = [
    ("GET", "/api/models/[^/]+/[^/]+$"),
    ("POST", "/api/repos/create"),
    ("GET", "/refs$"),
    ("GET", "/tree/"),
    ("POST", "/validate-yaml"),
    ("POST", "/preupload/"),
    ("POST", "/objects/batch"),
    ("PUT", "/_lfs/"),
    ("POST", "/verify"),
    ("POST", "/commit/"),
    ("POST", "/tag/"),
]
"""Every request of a first push."""


@pytest.fixture
def model(versions: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of v1 to spoil."""
    return Path(shutil.copytree(versions["v1"], tmp_path / "model"))


def publish_model(folder: Path, *more: str, repo: str = REPO) -> int:
    return cli.main(["publish", "model", "--repo_id", repo, "--model", str(folder), *more])


def refused(capsys: pytest.CaptureFixture[str], status: int = 2) -> str:
    """The last line on stderr; nothing may be on stdout, and the token nowhere."""
    out, err = capsys.readouterr()
    assert out == "" and TOKEN not in err and "Traceback" not in err
    *notes, last = err.splitlines()
    assert last.startswith("brain-tumor-mri: ") and (status == 1 or not notes)
    return last


def edit_json(file: Path, **changes: Any) -> None:
    write_json(file, (json.loads(file.read_text()) if file.is_file() else {}) | changes)


# --- the local Hub itself ---


def test_the_local_hub_answers_the_client_as_the_hub_does(hub: LocalHub, sleeps: list[float], tmp_path: Path):
    from huggingface_hub import HfApi, errors, hf_hub_download, snapshot_download
    from huggingface_hub.utils import get_session

    api = HfApi(endpoint=hub.url, token=TOKEN)
    assert api.whoami()["name"] == "someone"
    for kind, sdk in (("model", None), ("dataset", None), ("space", "gradio")):
        repo = {"repo_id": "someone/x", "repo_type": kind}
        for _ in range(2):
            api.create_repo(**repo, private=True, space_sdk=sdk, exist_ok=True)
        for name in ("a/one.bin", "a/two.txt"):
            api.upload_file(**repo, path_or_fileobj=name.encode() * 100, path_in_repo=name)
        api.create_tag(**repo, tag="both")
        api.delete_file("a/two.txt", **repo)
        assert [item.path for item in api.list_repo_tree(**repo)] == [".gitattributes", "a"]
        assert [item.path for item in api.list_repo_tree(**repo, path_in_repo="a")] == ["a/one.bin"]
        assert [item.path for item in api.get_paths_info(**repo, paths=["a", "none"])] == ["a"]
        assert len(api.list_repo_commits(**repo)) == 4
        where = {"endpoint": hub.url, "token": TOKEN, "cache_dir": tmp_path / "cache"}
        folder = Path(snapshot_download(**repo, revision="both", **where))
        assert (folder / "a/one.bin").read_bytes() == b"a/one.bin" * 100 and (folder / "a/two.txt").is_file()
        for wrong, error in (
            (lambda r=repo: api.repo_info(**r, revision="none"), errors.RevisionNotFoundError),
            (lambda r=repo, w=where: hf_hub_download(**r, filename="none", **w), errors.RemoteEntryNotFoundError),
            (lambda r=repo: api.repo_info(**r, token=READ_TOKEN), errors.RepositoryNotFoundError),
            (lambda r=repo: api.repo_info(**r, token=False), errors.RepositoryNotFoundError),
            (lambda r=repo: api.create_tag(**r, tag="both"), errors.HfHubHTTPError),
        ):
            with pytest.raises(error):
                wrong()
    url, login = f"{hub.url}/datasets/someone/x/resolve/both/a/one.bin", {"Authorization": f"Bearer {TOKEN}"}
    part = get_session().get(url, headers={"Range": "bytes=2-4", **login})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"one", "bytes 2-4/900")
    head = get_session().head(url, headers=login)
    assert len(head.headers["etag"].strip('"')) == 64 and head.headers["x-repo-commit"] and not head.content


# --- what a push leaves on the Hub ---


def test_two_versions_are_loaded_at_their_tags_and_then_from_the_cache_without_the_hub(
    hub: LocalHub, versions: dict[str, Path], phantom_dir: Path, tmp_path: Path
):
    """Real processes from end to end: the command, then transformers and TumorClassifier, online and offline."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }

    def python(*arguments: object, **changes: str) -> str:
        line = [sys.executable, *map(str, arguments)]
        done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment | changes)
        assert done.returncode == 0, done.stderr
        assert TOKEN not in done.stdout + done.stderr
        return done.stdout

    command = ("-m", "brain_tumor_mri.commands.main", "publish", "model", "--repo_id", REPO, "--json")
    for tag, folder in versions.items():
        told = json.loads(python(*command, "--model", folder, "--tag", tag))
        assert told["commit"] == hub.repo(REPO).refs["tags"][tag] and told["tagged"]
    assert told["uploaded"] == ["README.md", "confusion_matrix.png", "metrics.json", "model.safetensors"]
    assert told["message"] == "v2: resnet50, 224 px, from random weights; official accuracy 94.6 % (92.6-96.6)"

    client = tmp_path / "client.py"
    client.write_text(
        "import sys\n"
        "import torch\n"
        "from transformers import AutoModelForImageClassification, pipeline\n"
        "from brain_tumor_mri import TumorClassifier\n"
        "repo, image, *pairs = sys.argv[1:]\n"
        "for tag, folder in zip(pairs[::2], pairs[1::2]):\n"
        "    pulled = AutoModelForImageClassification.from_pretrained(repo, revision=tag).state_dict()\n"
        "    local = AutoModelForImageClassification.from_pretrained(folder).state_dict()\n"
        "    assert all(torch.equal(pulled[name], local[name]) for name in local), tag\n"
        "    answers = [TumorClassifier.from_pretrained(m, revision=r).predict(image).probabilities\n"
        "               for m, r in ((repo, tag), (folder, None))]\n"
        "    assert answers[0] == answers[1], tag\n"
        "    best = pipeline('image-classification', model=repo, revision=tag)(image)[0]\n"
        "    assert abs(best['score'] - answers[0][best['label']]) < 1e-4, tag\n"
        "    print(tag, best['label'], best['score'])\n"
    )
    image = next(phantom_dir.glob("Testing/*/*.png"))
    pairs = [part for tag, folder in versions.items() for part in (tag, folder)]
    online = python(client, REPO, image, *pairs)
    asked = len(hub.requests)
    assert [line.split()[0] for line in online.splitlines()] == ["v1", "v2"] and asked > 0
    assert len({line.split()[2] for line in online.splitlines()}) == 2, "the versions answer alike"
    assert python(client, REPO, image, *pairs, HF_HUB_OFFLINE="1") == online
    assert len(hub.requests) == asked


def test_a_registered_version_is_found_by_name_at_its_commit_and_then_without_the_hub(
    hub: LocalHub, sleeps: list[float], versions: dict[str, Path], tmp_path: Path, monkeypatch, capsys
):
    names = tmp_path / "registry.json"
    names.write_text(registry.REGISTRY.read_text())
    monkeypatch.setattr(registry, "REGISTRY", names)
    monkeypatch.setattr(registry, "CLONE", tmp_path)  # an installed package has no folders beside it
    assert publish_model(versions["v1"], "--register", "other", "--dry_run") == 2
    assert publish_model(versions["v1"], "--register", "model-lite") == 0
    assert publish_model(versions["v2"]) == 0  # a later version changes nothing for the name
    capsys.readouterr()
    assert cli.main(["models", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["models"][0]
    assert (row["hub_id"], row["folder"], row["accuracy"]["value"]) == (REPO, None, 0.9123)
    first = find_model(versions["v1"])
    assert (row["size_bytes"], row["weights_sha256"]) == (first.size_bytes, first.sha256())
    assert cli.main(["models"]) == 0 and REPO in capsys.readouterr().out

    client = tmp_path / "client.py"
    client.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from brain_tumor_mri import TumorClassifier\n"
        "from brain_tumor_mri.inference import registry\n"
        "registry.REGISTRY, registry.CLONE = map(Path, sys.argv[1:])\n"
        "folder = TumorClassifier.from_pretrained().folder\n"
        "print(folder.source, folder.path.name, folder.sha256())\n"
    )
    line = [sys.executable, str(client), str(names), str(tmp_path)]
    environment = hub.environment(tmp_path / "home") | {"PYTHONPATH": str(ROOT)}
    for _ in ("from the Hub", "from the cache"):
        told = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert told.stdout.split() == ["model-lite", row["revision"], first.sha256()], told.stderr
        hub.stop()


def test_timm_loads_what_was_pushed_by_its_own_route(
    hub: LocalHub, sleeps: list[float], versions: dict[str, Path], tmp_path: Path
):
    folder = tmp_path / "release"
    save_release(build_model(str(versions["v1"])), folder, half=False)
    record = json.loads((versions["v1"] / "metrics.json").read_text())
    record["model"]["weights_sha256"] = find_model(folder).sha256()
    write_json(folder / "metrics.json", record)
    assert publish_model(folder) == 0
    client = (
        "import sys, timm, torch\n"
        "from safetensors.torch import load_file\n"
        "theirs = timm.create_model(f'hf-hub:{sys.argv[1]}', pretrained=True).state_dict()\n"
        "ours = load_file(sys.argv[2])\n"
        "assert set(ours) <= set(theirs) and all(torch.equal(theirs[name], ours[name]) for name in ours)\n"
    )
    line = [sys.executable, "-c", client, REPO, str(folder / "model.safetensors")]
    done = subprocess.run(line, env=hub.environment(tmp_path / "home"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_training_that_pushes_ends_in_the_same_files_and_card(hub: LocalHub, phantom_dir: Path, tmp_path: Path):
    output = tmp_path / "run"
    flags = ["--num_train_epochs", "1", "--image_size", "64", "--disable_tqdm", "true"]
    flags += ["--push_to_hub", "true", "--hub_model_id", REPO]
    line = ["train.py", "configs/smoke.yaml", *flags, "--data_dir", str(phantom_dir), "--output_dir", str(output)]
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run([sys.executable, *line], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert TOKEN not in done.stdout + done.stderr
    plan = publish.plan_model(output, REPO)
    repo = hub.repo(REPO)
    assert set(repo.commit("main")["files"]) - {".gitattributes"} == {file.path for file in plan.files}
    assert done.stdout.splitlines()[-1] == f"{hub.url}/{REPO}"


def test_a_version_is_one_commit_with_card_figures_plots_and_licence(
    hub: LocalHub, sleeps: list[float], versions: dict[str, Path], capsys: pytest.CaptureFixture[str]
):
    assert publish_model(versions["v1"], "--tag", "v1.0.0") == 0
    out, err = capsys.readouterr()
    assert err == "" and out.count("\n") == 1 and "tag v1.0.0 set" in out and hub.url in out
    repo = hub.repo(REPO)
    commit = repo.commit("v1.0.0")
    assert commit["files"].keys() - {".gitattributes"} == FILES
    assert repo.commit(commit["parent"])["title"] == "initial commit"
    assert find_model(versions["v1"]).sha256() in commit["message"]
    files = {name: (hub.folder / "objects" / file["sha256"]).read_bytes() for name, file in commit["files"].items()}
    card = ModelCard(files["README.md"].decode())
    assert card.data.model_name == "brain" and f'"{REPO}"' in card.text
    assert card.data.eval_results[0].metric_value == 0.9123
    assert files["LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert files["metrics.json"] == (versions["v1"] / "metrics.json").read_bytes()


def test_nothing_changed_pushes_nothing_but_sets_a_missing_tag(
    hub: LocalHub, sleeps: list[float], versions: dict[str, Path], capsys: pytest.CaptureFixture[str]
):
    assert publish_model(versions["v1"]) == 0
    head, before = hub.repo(REPO).refs["branches"]["main"], len(hub.requests)
    capsys.readouterr()
    assert publish_model(versions["v1"]) == 0
    assert "nothing changed, nothing pushed" in capsys.readouterr().out
    assert {request.split()[0] for request in hub.requests[before:]} == {"GET"}
    assert publish_model(versions["v1"], "--tag", "v1") == 0
    assert "nothing changed, nothing pushed; tag v1 set" in capsys.readouterr().out
    assert publish_model(versions["v1"], "--tag", "v1") == 0
    assert "tag v1 was set already" in capsys.readouterr().out
    assert hub.repo(REPO).refs == {"private": False, "branches": {"main": head}, "tags": {"v1": head}}


def test_what_the_new_version_lacks_is_removed_and_files_of_others_stay(
    hub: LocalHub, sleeps: list[float], model: Path, capsys: pytest.CaptureFixture[str]
):
    from huggingface_hub import HfApi

    edit_json(model / "trust.json", weights_sha256=find_model(model).sha256())
    assert publish_model(model) == 0
    api = HfApi(endpoint=hub.url, token=TOKEN)
    api.upload_file(path_or_fileobj=b"by hand", path_in_repo="notes.png", repo_id=REPO)
    (model / "trust.json").unlink()
    (model / "confusion_matrix.png").unlink()
    assert publish_model(model) == 0
    assert "pushed README.md; removed confusion_matrix.png, trust.json" in capsys.readouterr().out
    there = hub.repo(REPO).commit("main")["files"].keys()
    assert there == FILES - {"confusion_matrix.png"} | {"notes.png", ".gitattributes"}


def put_onnx(folder: Path, content: bytes = b"a network") -> None:
    """What `export` leaves in a model's folder, up to the network."""
    (folder / "onnx").mkdir(exist_ok=True)
    (folder / "onnx" / "model.onnx").write_bytes(content)
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "stored_as": "F32"}
    source = {"weights_sha256": find_model(folder).sha256(), "parameters": 1}
    write_json(folder / "export.json", {"schema": 1, "source": source, "files": {"onnx": entry}})


def test_onnx_files_go_along_and_those_of_an_earlier_version_are_removed(
    hub: LocalHub, sleeps: list[float], model: Path, versions: dict[str, Path], capsys: pytest.CaptureFixture[str]
):
    from huggingface_hub import HfApi

    put_onnx(model)
    assert publish_model(model, "--onnx") == 0
    there = hub.repo(REPO).commit("main")["files"].keys()
    assert there == FILES | {"export.json", "onnx/model.onnx", ".gitattributes"}
    api = HfApi(endpoint=hub.url, token=TOKEN)
    api.upload_file(path_or_fileobj=b"by hand", path_in_repo="models/model.safetensors", repo_id=REPO)
    capsys.readouterr()
    assert publish_model(versions["v2"]) == 0
    assert "removed export.json, onnx/model.onnx" in capsys.readouterr().out
    assert "models/model.safetensors" in hub.repo(REPO).commit("main")["files"]


def test_onnx_files_that_are_asked_for_and_missing_or_of_other_weights_are_refused(
    hub: LocalHub, sleeps: list[float], model: Path, versions: dict[str, Path], capsys: pytest.CaptureFixture[str]
):
    assert publish_model(model, "--onnx") == 2
    assert "has no ONNX file; write it: brain-tumor-mri export" in refused(capsys)
    put_onnx(model)
    (model / "onnx" / "model.onnx").write_bytes(b"another")
    assert publish_model(model) == 2
    assert "is not the file that export.json describes" in refused(capsys)
    put_onnx(model)
    for name in ("model.safetensors", "metrics.json"):
        shutil.copy2(versions["v2"] / name, model)
    assert publish_model(model) == 2
    assert "made from other weights" in refused(capsys)
    assert hub.requests == []


def test_a_branch_is_made_and_main_left_alone(hub: LocalHub, sleeps: list[float], versions: dict[str, Path]):
    assert publish_model(versions["v1"], "--private") == 0
    assert publish_model(versions["v2"], "--revision", "next/big", "--tag", "v2-rc1", "--private") == 0
    repo = hub.repo(REPO)
    assert repo.refs["private"] and repo.commit("next/big")["parent"] == repo.refs["branches"]["main"]
    assert repo.refs["tags"] == {"v2-rc1": repo.refs["branches"]["next/big"]}


def test_a_dry_run_lists_files_and_sizes_and_asks_nobody(
    hub: LocalHub,
    sleeps: list[float],
    versions: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.delenv("HF_TOKEN")
    assert publish_model(versions["v1"], "--dry_run") == 0
    shown = capsys.readouterr().out
    assert publish_model(versions["v1"], "--dry_run", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {file["path"] for file in told["files"]} == FILES and told["commit"] is None
    for file in told["files"]:
        assert file["path"] in shown and f"{file['size']:,}" in shown
    monkeypatch.chdir(versions["v1"])  # where a path without a name is the model folder
    assert publish_model(Path("."), "--dry_run") == 0
    assert hub.requests == [] and not (hub.folder / "repos").exists()


# --- what goes wrong on the way ---


@pytest.mark.parametrize("kind", ["cut", "lost", 429, 500, 503])
def test_any_request_may_fail_once(
    kind: int | str, hub: LocalHub, sleeps: list[float], versions: dict[str, Path], capsys: pytest.CaptureFixture[str]
):
    plan = publish.plan_model(versions["v1"], REPO, tag="v1")
    for number, (method, path) in enumerate(REQUESTS):
        for file in (hub.folder / "objects").iterdir():
            file.unlink()  # so that the weights are uploaded again
        fault = Fault(method, path, kind)
        hub.faults = [fault]
        outcome = pushing.push(pushing.Plan(f"someone/brain-{number}", plan.files, plan.message), tag="v1")
        assert fault.times == 0, f"{method} {path} was not asked"
        repo = hub.repo(f"someone/brain-{number}")
        commit = repo.commit("main")
        assert commit["files"].keys() - {".gitattributes"} == FILES
        assert repo.commit(commit["parent"])["parent"] is None, f"{method} {path}: more than one commit"
        assert repo.refs["tags"] == {"v1": outcome.commit} == {"v1": commit["id"]}
        assert set(outcome.uploaded) == FILES and outcome.tagged
    assert sleeps == [1.0] * len(REQUESTS)
    assert TOKEN not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["cut", 503])
@pytest.mark.parametrize("request_", [("PUT", "/_lfs/"), ("POST", "/commit/")], ids=lambda request: request[0])
def test_a_hub_that_keeps_failing_ends_in_one_line_with_the_old_version_intact(
    request_: tuple[str, str],
    kind: int | str,
    hub: LocalHub,
    sleeps: list[float],
    versions: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    assert publish_model(versions["v1"], "--tag", "v1") == 0
    old = hub.repo(REPO).refs
    capsys.readouterr()
    hub.faults = [Fault(*request_, kind, times=1000)]
    with caplog.at_level(logging.DEBUG):
        assert publish_model(versions["v2"], "--tag", "v2") == 1
    line = refused(capsys, status=1)
    assert REPO in line and "after 5 attempts; run the same command again" in line
    assert TOKEN not in caplog.text
    assert hub.repo(REPO).refs == old and max(sleeps) <= 8.0
    if request_[0] == "POST":
        assert sleeps == [1.0, 2.0, 4.0, 8.0]
    hub.faults = []
    assert publish_model(versions["v2"], "--tag", "v2") == 0
    repo = hub.repo(REPO)
    assert repo.refs["tags"] == old["tags"] | {"v2": repo.refs["branches"]["main"]}
    assert repo.commit("main")["parent"] == old["tags"]["v1"]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"Retry-After": "7"}, 7.0), ({"ratelimit": '"api";r=0;t=55'}, 56.0), ({"Retry-After": "99999"}, 330.0)],
)
def test_the_hub_says_how_long_to_wait(
    headers: dict[str, str], seconds: float, hub: LocalHub, sleeps: list[float], versions: dict[str, Path]
):
    hub.faults = [Fault("POST", "/commit/", 429, headers=headers)]
    assert publish_model(versions["v1"]) == 0
    assert sleeps == [seconds]


def test_a_commit_of_someone_else_meanwhile_is_seen(
    hub: LocalHub, sleeps: list[float], versions: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    from huggingface_hub import HfApi

    assert publish_model(versions["v1"]) == 0
    create_commit, seen = HfApi.create_commit, []

    def late(self: HfApi, *arguments: Any, **named: Any) -> Any:
        if not seen:
            repo = hub.repo(REPO)
            seen.append(repo.add_commit("main", repo.commit("main")["files"], "meanwhile"))
        return create_commit(self, *arguments, **named)

    monkeypatch.setattr(HfApi, "create_commit", late)
    assert publish_model(versions["v2"]) == 0
    assert hub.repo(REPO).commit("main")["parent"] == seen[0] and sleeps == [1.0]


# --- what is refused ---


@pytest.mark.parametrize(
    ("file", "changes", "expected"),
    [
        (
            "metrics.json",
            {"model": {"weights_sha256": "0" * 64}},
            "metrics.json belongs to other weights (000000000000",
        ),
        ("metrics.json", {"model": {}}, "metrics.json"),
        ("metrics.json", {"splits": {}}, "the card's metadata has no model-index"),
        ("trust.json", {"weights_sha256": "0" * 64}, "trust.json belongs to other weights"),
        ("trust.json", {"temperature": 1.2}, "trust.json has no weights_sha256"),
        ("config.json", {"label_names": ["cat", "dog"]}, "answers with other classes (cat, dog)"),
    ],
)
def test_a_folder_that_does_not_fit_together_is_refused_before_anything_is_asked(
    file: str, changes: dict[str, Any], expected: str, hub, sleeps, model: Path, capsys
):
    if changes.get("model"):
        changes = {"model": json.loads((model / file).read_text())["model"] | changes["model"]}
    edit_json(model / file, **changes)
    assert publish_model(model) == 2
    assert expected in refused(capsys) and hub.requests == []


def test_missing_parts_and_bad_names_are_refused(hub, sleeps, model: Path, tmp_path: Path, capsys):
    for arguments, expected in (
        (("--tag", "v 1"), "--tag 'v 1' is no name"),
        (("--tag", "main"), "--tag main is the branch's name too"),
        (("--revision", "../x"), "--revision '../x' is no name"),
    ):
        assert publish_model(model, *arguments) == 2
        assert expected in refused(capsys)
    assert publish_model(model, repo="brain") == 2
    assert "give a Hub id, owner/name" in refused(capsys)
    assert publish_model(tmp_path / "none") == 2
    assert "is not a model folder" in refused(capsys)
    (model / "metrics.json").unlink()
    assert publish_model(model) == 2
    assert "metrics.json is missing" in refused(capsys) and hub.requests == []


def test_a_tag_on_another_version_is_refused(hub, sleeps, versions: dict[str, Path], capsys):
    assert publish_model(versions["v1"], "--tag", "v1") == 0
    old = hub.repo(REPO).refs
    capsys.readouterr()
    assert publish_model(versions["v2"], "--tag", "v1") == 2
    assert f"{REPO} has a tag v1 already, on another version" in refused(capsys)
    assert hub.repo(REPO).refs == old
    assert publish_model(versions["v2"]) == 0
    capsys.readouterr()
    assert publish_model(versions["v2"], "--tag", "v1") == 2
    assert "has a tag v1 already" in refused(capsys)
    assert publish_model(versions["v2"], "--revision", "v1") == 2
    assert "--revision takes a branch" in refused(capsys)
    assert publish_model(versions["v2"], "--private") == 2
    assert "exists and is public" in refused(capsys)


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (None, "there is none; run `hf auth login`, or set HF_TOKEN"),
        ("hf_unknown", "does not accept the token; run `hf auth login`"),
        (f"{TOKEN}\u2028x", "characters that no token has"),
        (READ_TOKEN, "the Hub answered 403"),
    ],
)
def test_tokens_that_will_not_do_are_refused_in_one_line(
    token: str | None, expected: str, hub, sleeps, versions: dict[str, Path], capsys, monkeypatch
):
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    assert publish_model(versions["v1"]) == 2
    line = refused(capsys)
    assert expected in line and (token is None or token not in line) and sleeps == []


def test_the_login_of_hf_auth_is_used_where_no_variable_is_set(
    hub, sleeps, versions: dict[str, Path], tmp_path: Path, monkeypatch
):
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "no-login").write_text(TOKEN)
    assert publish_model(versions["v1"]) == 0


def test_a_token_that_the_server_repeats_is_blanked(hub, sleeps, versions: dict[str, Path], capsys):
    for status, code in ((400, 1), (503, 1), (403, 2)):
        hub.faults = [Fault("GET", "/refs", status, times=9, headers={"X-Error-Message": f"no {TOKEN} here"})]
        assert publish_model(versions["v1"]) == code
        assert "no *** here" in refused(capsys, status=1)


def test_a_hub_out_of_reach_is_said_in_one_line(hub, sleeps, versions, capsys, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert publish_model(versions["v1"]) == 1
    assert f"{REPO} on http://127.0.0.1:9: the Hub could not be asked" in refused(capsys, status=1)
    monkeypatch.setenv("HF_ENDPOINT", "http://someone:hf_secret@127.0.0.1:9")
    assert publish_model(versions["v1"]) == 1
    told = refused(capsys, status=1)
    assert f"{REPO} on http://127.0.0.1:9: the Hub could not be asked" in told and "secret" not in told
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert publish_model(versions["v1"]) == 2
    assert "HF_HUB_OFFLINE is set" in refused(capsys)


def test_a_refusal_shows_no_chain_of_errors_in_which_a_token_could_stand(hub, sleeps, versions):
    hub.faults = [Fault("GET", "/refs", 403, headers={"X-Error-Message": TOKEN})]
    with pytest.raises(UserError) as caught:
        pushing.push(publish.plan_model(versions["v1"], REPO))
    assert caught.value.__cause__ is None and caught.value.__context__ is None
