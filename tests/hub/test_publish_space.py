"""``publish space``: what the Space holds, how it is tried out first, and what stops it before anything is sent."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path

import pytest
from huggingface_hub import HfApi, metadata_load

from brain_tumor_mri.commands import main as cli
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.hub import plan_model as publish
from brain_tumor_mri.hub import plan_space as space
from brain_tumor_mri.hub import push as pushing
from brain_tumor_mri.hub import try_space as space_check
from brain_tumor_mri.hub.plan_space import ModelVersion, plan_space
from brain_tumor_mri.hub.try_space import check_space
from brain_tumor_mri.inference.model_folder import find_model
from brain_tumor_mri.labels import RESEARCH_NOTICE
from hub.server import READ_TOKEN, TOKEN, LocalHub

pytest_plugins = ["hub.fixtures"]
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's uploads

ROOT = Path(__file__).parents[2]
SPACE, MODEL = "someone/page", "someone/brain@v1"


def publish_space(*more: str, repo: str = SPACE, model: str = MODEL) -> int:
    return cli.main(["publish", "space", "--repo_id", repo, "--model_id", model, *more])


def command(*more: object) -> list[str]:
    start = (sys.executable, "-m", "brain_tumor_mri.commands.main", "publish", "space", "--repo_id", SPACE)
    return [str(part) for part in (*start, *more)]


def run_command(hub: LocalHub, home: Path, *more: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, from a source tree; it may say the token nowhere."""
    environment = hub.environment(home)
    done = subprocess.run(command(*more), cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)
    assert TOKEN not in done.stdout + done.stderr
    return done


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    return done.stderr


def has_space(hub: LocalHub) -> bool:
    return hub.repo(SPACE, "spaces").folder.exists()


@pytest.fixture(scope="module")
def with_onnx(versions: dict[str, Path], tiny_onnx_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a record and its ONNX file, as a Space needs it."""
    folder = Path(shutil.copytree(tiny_onnx_dir, tmp_path_factory.mktemp("with-onnx") / "model"))
    record = json.loads((versions["v1"] / "metrics.json").read_text())
    record["model"]["weights_sha256"] = find_model(folder).sha256()
    (folder / "metrics.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the source tree to spoil."""
    copy = tmp_path / "tree"
    shutil.copytree(ROOT / "brain_tumor_mri", copy / "brain_tumor_mri", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "examples", copy / "examples")
    for name in ("app.py", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


# --- what is on the Hub ---


def test_the_space_answers_with_its_model_from_the_hub_before_it_is_pushed_in_one_commit(
    hub: LocalHub, sleeps: list[float], with_onnx: Path, tmp_path: Path
):
    pushing.push(publish.plan_model(with_onnx, "someone/brain", onnx=True), tag="v1")
    before = len(hub.requests)
    done = run_command(hub, tmp_path / "home", "--model_id", MODEL, "--check", "here", "--json")
    assert done.returncode == 0, done.stderr
    told, repo = json.loads(done.stdout), hub.repo(SPACE, "spaces")
    commit = repo.commit("main")
    assert (told["commit"], told["check"], told["url"]) == (commit["id"], "here", f"{hub.url}/spaces/{SPACE}")
    assert repo.commit(commit["parent"])["title"] == "initial commit" and commit["title"] == f"Answer with {MODEL}"
    requests = hub.requests[before:]
    asked_for_weights = requests.index(
        "GET /someone/brain/resolve/" + hub.repo("someone/brain").resolve("v1") + "/onnx/model.onnx"
    )
    assert asked_for_weights < requests.index("POST /api/repos/create")


def test_the_space_holds_the_app_its_package_pins_licence_and_valid_front_matter_and_nothing_else(
    hub: LocalHub, sleeps: list[float], tmp_path: Path
):
    assert publish_space("--check", "none") == 0
    files = hub.repo(SPACE, "spaces").commit("main")["files"]
    suffixes = {".py", ".md", ".css", ".js", ".json", ".csv"}
    below = [file for file in (ROOT / "brain_tumor_mri").rglob("*") if file.suffix in suffixes]
    package = {file.relative_to(ROOT).as_posix() for file in below}
    examples = {f"examples/{file.name}" for file in (ROOT / "examples").iterdir() if file.suffix in (".png", ".md")}
    written = {"README.md", "requirements.txt", "space.json"}
    assert set(files) == {".gitattributes", "app.py", "LICENSE"} | package | examples | written

    def content(name: str) -> bytes:
        return (hub.folder / "objects" / files[name]["sha256"]).read_bytes()

    for name in ("app.py", "LICENSE", "brain_tumor_mri/page/__init__.py", "examples/phantom-glioma.png"):
        assert content(name) == (ROOT / name).read_bytes()
    assert json.loads(content("space.json")) == {"model_id": "someone/brain", "revision": "v1"}
    (tmp_path / "README.md").write_bytes(content("README.md"))
    front = metadata_load(tmp_path / "README.md")
    assert front["sdk"] == "gradio" and front["sdk_version"] == metadata.version("gradio")
    assert front["python_version"] == ".".join(map(str, sys.version_info[:2]))
    assert front["models"] == ["someone/brain"] and front["license"] == "apache-2.0"
    assert front["app_file"] in files and len(front["short_description"]) <= 60
    assert RESEARCH_NOTICE in content("README.md").decode()
    assert f"gradio=={front['sdk_version']}" in content("requirements.txt").decode().splitlines()


def test_pushed_again_only_what_changed_goes_and_files_of_others_stay(
    hub: LocalHub, sleeps: list[float], capsys: pytest.CaptureFixture[str]
):
    assert publish_space("--check", "none", "--private") == 0
    assert hub.repo(SPACE, "spaces").refs["private"]
    shown, before = capsys.readouterr().out, len(hub.requests)
    assert "files" in shown and shown.count("\n") == 1
    assert publish_space("--check", "none") == 0
    assert "nothing changed, nothing pushed" in capsys.readouterr().out
    assert {request.split()[0] for request in hub.requests[before:]} == {"GET"}
    api = HfApi(endpoint=hub.url, token=TOKEN)
    for name in ("brain_tumor_mri/of_an_earlier_version.py", "by_hand.txt"):
        api.upload_file(path_or_fileobj=b"1", path_in_repo=name, repo_id=SPACE, repo_type="space")
    assert publish_space("--check", "none", model="someone/brain") == 0
    sent = "pushed README.md, space.json; removed brain_tumor_mri/of_an_earlier_version.py"
    assert sent in capsys.readouterr().out
    assert "by_hand.txt" in hub.repo(SPACE, "spaces").commit("main")["files"]


def test_a_dry_run_lists_the_files_and_asks_nobody(
    hub: LocalHub, sleeps: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("HF_TOKEN")
    assert publish_space("--dry_run") == 0
    shown = capsys.readouterr().out
    assert "Dry run: nothing was sent." in shown
    assert publish_space("--dry_run", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["check"], told["commit"], told["model_revision"]) == ("none", None, "v1")
    for file in told["files"]:
        assert file["path"] in shown and f"{file['size']:,}" in shown
    assert hub.requests == []


# --- what stops it ---


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"model": "brain"}, "--model_id brain: give a model's Hub id"),
        ({"model": "someone/brain@"}, "--model_id someone/brain@: give"),
        ({"model": "../brain/x"}, "--model_id ../brain/x: give"),
        ({"model": "someone/brain@v1 v2"}, "owner/name@revision"),
        ({"repo": "page"}, "--repo_id page: give the Space's Hub id"),
    ],
)
def test_names_that_are_none_are_refused(arguments: dict[str, str], expected: str, hub, sleeps, capsys):
    assert publish_space("--check", "none", **arguments) == 2
    out, err = capsys.readouterr()
    assert expected in err and err.count("\n") == 1 and out == "" and hub.requests == []


@pytest.mark.parametrize("token", [None, "hf_unknown", READ_TOKEN])
def test_a_token_that_will_not_do_is_one_line(token: str | None, hub, sleeps, capsys, monkeypatch):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    else:
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(
            space_check, "check_space", lambda *_, **__: pytest.fail("minutes are spent before the refusal")
        )
    assert publish_space("--check", "none" if token else "fresh") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "hf auth login" in err and not has_space(hub)


def test_a_model_that_the_hub_has_not_or_hides_is_refused_and_nothing_sent(
    hub: LocalHub, sleeps: list[float], versions: dict[str, Path], with_onnx: Path, tmp_path: Path
):
    check = ("--check", "here", "--model_id")
    assert "no folder and no Hub model is called" in refusal(
        run_command(hub, tmp_path / "home", *check, "someone/none")
    )
    pushing.push(publish.plan_model(versions["v1"], "someone/plain"))
    line = refusal(run_command(hub, tmp_path / "home", *check, "someone/plain"))
    assert "has no onnx/model.onnx; make it with `brain-tumor-mri export --format onnx`" in line
    pushing.push(publish.plan_model(with_onnx, "someone/brain"), private=True)
    assert "has no revision v7" in refusal(run_command(hub, tmp_path / "home", *check, "someone/brain@v7"))
    line = refusal(run_command(hub, tmp_path / "home", *check, "someone/brain"))
    assert "the Hub does not give someone/brain to a Space, which has no token" in line
    assert not has_space(hub)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda tree: "raise RuntimeError('broken on purpose')", "RuntimeError: broken on purpose"),
        # in the source tree and its editable installation, but not in the Space
        (lambda tree: "import data_scripts", "No module named 'data_scripts'"),
        (lambda tree: (tree / "brain_tumor_mri/labels.py").rename(tree / "labels.txt") and "", "labels"),
        (lambda tree: "import", "SyntaxError"),
    ],
    ids=["raises", "needs-the-source-tree", "lacks-a-module", "no-python"],
)
def test_an_app_that_does_not_start_is_not_sent(
    spoil, expected: str, hub: LocalHub, tree: Path, tiny_onnx_dir: Path, tmp_path: Path
):
    app = tree / "app.py"
    first = spoil(tree)
    app.write_text(f"{first}\n{app.read_text()}")
    if expected == "labels":
        with pytest.raises(UserError, match=r"ended at its start.*No module named 'brain_tumor_mri\.labels'"):
            check_space(plan_space(SPACE, ModelVersion("a/b"), source=tree), ModelVersion("a/b"),
                        folder=str(tiny_onnx_dir), fresh=False)  # fmt: skip
        return
    more = ("--model_id", MODEL, "--check", "here", "--model", tiny_onnx_dir)
    line = refusal(run_command(hub, tmp_path / "home", *more, cwd=tree))
    assert expected in line and hub.requests == []


def test_an_app_that_starts_and_then_gives_no_prediction_is_refused_with_the_end_of_its_log(
    tree: Path, tiny_onnx_dir: Path
):
    app = tree / "app.py"
    broken = "type(model).get = lambda self: print('to the log') or 1 / 0\n\nif __name__"
    app.write_text(app.read_text().replace("if __name__", broken))
    model = ModelVersion("a/b")
    with pytest.raises(
        UserError, match=r"^the app gave no prediction \(nothing was sent\): .*its log ends: .*ZeroDivisionError"
    ):
        check_space(plan_space(SPACE, model, source=tree), model, folder=str(tiny_onnx_dir), fresh=False)


@pytest.mark.parametrize(
    "answer", ["glioma", {}, {"label": "glioma", "model": "another"}, {"label": "cat", "model": None}]
)
def test_an_answer_that_is_no_prediction_of_the_model_is_not_taken(
    answer: object, tiny_onnx_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(space_check, "_serving", lambda *_: nullcontext(("http://127.0.0.1:9", Path("log"))))
    monkeypatch.setattr(space_check, "_ask", lambda *_: answer)
    model = ModelVersion("a/b")
    with pytest.raises(UserError, match="gave no prediction of"):
        check_space(plan_space(SPACE, model), model, folder=str(tiny_onnx_dir), fresh=False)


def test_requirements_that_do_not_install_into_the_fresh_environment_are_said_with_pips_own_words(
    tiny_onnx_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    model = ModelVersion("a/b")
    with pytest.raises(UserError, match=r"pip install -r requirements\.txt` failed .*No matching distribution found"):
        check_space(plan_space(SPACE, model), model, folder=str(tiny_onnx_dir))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda how: how.name)
def test_a_check_that_is_stopped_leaves_no_app_and_no_folder(
    how: signal.Signals, hub: LocalHub, tree: Path, tiny_onnx_dir: Path, tmp_path: Path
):
    told, temporary = tmp_path / "pid", tmp_path / "temporary"
    temporary.mkdir()
    hang = f"import os, time\nopen({str(told)!r}, 'x').write(str(os.getpid()))\ntime.sleep(600)\n"
    (tree / "app.py").write_text(hang)
    more = ("--model_id", MODEL, "--check", "here", "--model", tiny_onnx_dir)
    environment = hub.environment(tmp_path / "home") | {"TMPDIR": str(temporary)}
    process = subprocess.Popen(command(*more), cwd=tree, env=environment, stderr=subprocess.PIPE, text=True)

    def wait_until(reached) -> None:
        deadline = time.monotonic() + 60
        while not reached():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    wait_until(lambda: told.is_file() and told.read_text())
    process.send_signal(how)
    error = process.communicate(timeout=30)[1]
    wait_until(lambda: not is_running(int(told.read_text())))
    assert "Traceback" not in error and hub.requests == []
    if how != signal.SIGKILL:
        assert list(temporary.iterdir()) == []


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


# --- what it runs on ---


ONLY_THE_REQUIREMENTS = """\
import sys
from importlib import metadata

from packaging.requirements import Requirement

ours, example, model, *wanted = sys.argv[1:]
allowed, pending = set(), set(wanted)
while pending:
    name = pending.pop()
    allowed.add(name)
    try:
        needed = map(Requirement, metadata.requires(name) or [])
    except metadata.PackageNotFoundError:
        continue
    found = {r.name.lower().replace("_", "-") for r in needed if not r.marker or r.marker.evaluate({"extra": ""})}
    pending |= found - allowed
owners = metadata.packages_distributions()
class Allowed:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        names = {owner.lower().replace("_", "-") for owner in owners.get(name.split(".")[0], [])}
        if not names or names & allowed or ours in names:
            return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Allowed, sys.meta_path)
from brain_tumor_mri.page import ModelHandle, build_page
from brain_tumor_mri.page.uploads import batch_answer
from brain_tumor_mri.page.view_model import model_facts
from brain_tumor_mri.page.view_slice import answer_slice, explain_slice
handle = ModelHandle(model)
build_page(handle, "examples")
answer = answer_slice(handle, example)
assert "finding" in answer.panel and answer.explainable, answer.panel
assert "--heat-glioma" in explain_slice(handle, example)[0]
assert batch_answer(handle.get(), "model", [example])["summary"]["answered"] == 1
assert model_facts(handle.get(), "model")[1]
import brain_tumor_mri.inference.study, brain_tumor_mri.page.examination_report, brain_tumor_mri.page.slice_report
"""
"""The whole page, in a process that may import nothing but the requirements and what they ask for themselves."""


def test_the_requirements_are_all_that_the_page_needs(with_onnx: Path):
    names = [name.lower() for name in space.REQUIREMENTS]
    arguments = ["brain-tumor-mri", "examples/phantom-glioma.png", with_onnx, *names]
    line = [sys.executable, "-c", ONLY_THE_REQUIREMENTS, *map(str, arguments)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_space_needs_no_training_tools_and_names_no_index():
    pinned = space.requirements()
    assert list(pinned) == list(space.REQUIREMENTS)
    assert not pinned.keys() & {"torch", "transformers", "datasets", "evaluate", "torchio", "scikit-learn"}
    text = next(
        f.content for f in plan_space(SPACE, ModelVersion("a/b")).files if f.path == "requirements.txt"
    ).decode()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert (
        lines == [f"{name}=={version}" for name, version in pinned.items()] and "://" not in text and "--" not in text
    )


def test_a_requirement_or_a_file_that_is_missing_is_refused(tree: Path, monkeypatch: pytest.MonkeyPatch):
    (tree / "LICENSE").unlink()
    with pytest.raises(UserError, match="has no LICENSE; a Space is published from the source tree"):
        plan_space(SPACE, ModelVersion("a/b"), source=tree)
    monkeypatch.setattr(space, "REQUIREMENTS", ("numpy", "no-such-package"))
    with pytest.raises(UserError, match="the app needs no-such-package, which is not installed"):
        plan_space(SPACE, ModelVersion("a/b"))
