"""The Space: this source tree's app, its requirements pinned and its model written down, tried out before it is sent.

``plan_space(repo_id, model)`` lists the files, ``check_space(plan, model)`` starts the app from them and asks it for a
prediction, and ``hub.push(plan)`` sends them. The model is named in the file ``space.json``, not in variables of the
Space: so code and model change in one commit and go back in one. Variables MODEL_ID and MODEL_REVISION win over it.
"""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep

from . import __version__
from .errors import UserError
from .hub import Plan, Upload, one_line, quiet_client
from .labels import LABELS, RESEARCH_NOTICE
from .weights import find_model

SOURCE = Path(__file__).resolve().parents[1]
PACKAGE = Path(__file__).parent.name
EXAMPLE = "examples/phantom-glioma.png"
START_SECONDS = 300.0
ANSWER_SECONDS = 600.0  # the first answer waits for the weights

_PACKAGE_SUFFIXES = {".py", ".md", ".css", ".js", ".html", ".svg", ".json", ".csv"}
_IMPORTED_BY_NAME = {"timm", "torchvision"}
"""What transformers imports to build the model and its preprocessing, and no module here does for the app."""
_NOT_NEEDED = {"onnxruntime", "ai_edge_litert", "tensorrt"}
"""What the package imports for exports only, which a Space does not run."""
_HUB_ID = r"[\w-][\w.-]*/[\w-][\w.-]*"
_STALE = (f"{PACKAGE}/*", "examples/*")

_START_APP = """\
import os, runpy, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
source = sys.argv.pop()
sys.meta_path[:] = [f for f in sys.meta_path if not getattr(f, "__module__", "").startswith("__editable__")]
sys.path[:] = [os.getcwd(), *(p for p in sys.path if os.path.realpath(p) != source)]
runpy.run_path("app.py", run_name="__main__")
"""
"""As ``python app.py``, but an editable install of the source tree is not found, so that a file which the folder lacks
is missed; and the app ends with the process that started it, however that one ends."""
_ASK_APP = """\
import json, sys
from gradio_client import Client, handle_file
answer = Client(sys.argv[1], verbose=False).predict(handle_file(sys.argv[2]), api_name="/predict")
print(json.dumps(answer))
"""


@dataclass(frozen=True)
class ModelVersion:
    """A model on the Hub.

    Attributes:
        id: ``owner/name``.
        revision: branch, tag or commit; None for the latest.
    """

    id: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelVersion:
        """Read ``owner/name`` or ``owner/name@revision``.

        Raises:
            UserError: it is neither.
        """
        found = re.fullmatch(rf"({_HUB_ID})(?:@(\w[\w./-]*))?", text)
        if not found:
            raise UserError(f"--model_id {text}: give a model's Hub id, owner/name or owner/name@revision")
        return cls(found[1], found[2])

    def __str__(self) -> str:
        return f"{self.id}@{self.revision}" if self.revision else self.id


def plan_space(repo_id: str, model: ModelVersion, *, source: Path = SOURCE) -> Plan:
    """List the files of the Space.

    Args:
        repo_id: the Space's Hub id ``owner/name``.
        model: what it answers with.
        source: the source tree; app.py, examples/ and LICENSE are not part of an installed package.

    Raises:
        UserError: no Hub id; no source tree; an import of the app is of no installed package.
    """
    if not re.fullmatch(_HUB_ID, repo_id):
        raise UserError(f"--repo_id {repo_id}: give the Space's Hub id, owner/name")
    if missing := [name for name in ("app.py", PACKAGE, EXAMPLE, "LICENSE") if not (source / name).exists()]:
        raise UserError(f"{source} has no {missing[0]}; a Space is published from the source tree: clone that first")
    package = [file for file in (source / PACKAGE).rglob("*") if file.suffix in _PACKAGE_SUFFIXES and file.is_file()]
    examples = [file for file in (source / "examples").iterdir() if file.suffix in (".png", ".md")]
    copied = [source / "app.py", source / "LICENSE", *package, *examples]
    settings = {"model_id": model.id, "revision": model.revision}
    written = {
        "README.md": _readme(model),
        "requirements.txt": _requirements_file(requirements(source)),
        "space.json": json.dumps(settings, indent=2) + "\n",
    }
    files = [Upload(file.relative_to(source).as_posix(), file) for file in copied]
    files += [Upload(name, text.encode()) for name, text in written.items()]
    return Plan(
        repo_id,
        tuple(sorted(files, key=lambda file: file.path)),
        message=f"Answer with {model}",
        description=f"published by brain-tumor-mri {__version__}",
        stale=_STALE,
        repo_type="space",
        space_sdk="gradio",
    )


def requirements(source: Path = SOURCE) -> dict[str, str]:
    """Return what the app runs on: the packages that it imports, here and now, with their versions.

    Their own dependencies are left to pip: the builder of a Space installs packages of its own beside these, which pins
    of everything could contradict.

    Returns:
        Version by name, sorted.

    Raises:
        UserError: an import is of no installed package, or a file is no Python.
    """
    providers = metadata.packages_distributions()
    pinned = {}
    for module in imported_modules(source) - _NOT_NEEDED | _IMPORTED_BY_NAME:
        if not (names := providers.get(module)):
            raise UserError(f"the app imports {module}, which no installed package has; `pip install` it first")
        name = min(names)
        # what follows the plus sign names a build (2.9.0+cu128) that registries do not have
        pinned[re.sub("[-_.]+", "-", name).lower()] = metadata.version(name).partition("+")[0]
    return dict(sorted(pinned.items()))


def imported_modules(source: Path) -> set[str]:
    """Return the top-level modules that app.py imports, itself or by modules of the package.

    Imports inside functions count; those under ``if TYPE_CHECKING`` and of the standard library do not.
    """
    package = source / PACKAGE
    pending, seen, found = [source / "app.py", package / "__init__.py"], set(), set()
    while pending:
        file = pending.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        try:
            tree = ast.parse(file.read_bytes(), str(file))
        except SyntaxError as error:
            raise UserError(f"{file}, line {error.lineno}: {error.msg}; repair it first") from error
        for name in _imports(tree):
            top, *below = name.split(".")
            if top == PACKAGE:
                pending += [package.joinpath(*below).with_suffix(".py")] if below else []
            elif top not in sys.stdlib_module_names:
                found.add(top)
    return found


def _imports(node: ast.AST) -> Iterator[str]:
    """Yield the dotted names of modules, and of what may be modules, that a tree imports; the package is flat."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from _imports(ast.Module([other], []))
        elif isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            home = ".".join(part for part in (PACKAGE if child.level else "", child.module or "") if part)
            yield from (home, *(f"{home}.{alias.name}" for alias in child.names if home == PACKAGE))
        else:
            yield from _imports(child)


def _requirements_file(pinned: dict[str, str]) -> str:
    lines = [f"{name}=={version}" for name, version in pinned.items()]
    return "\n".join(["# What app.py imports, as it was when this Space was published.", *lines, ""])


def _readme(model: ModelVersion) -> str:
    from huggingface_hub import SpaceCardData

    data = SpaceCardData(
        title="Brain tumour MRI classifier",
        emoji="🧠",
        colorFrom="blue",
        colorTo="gray",
        sdk="gradio",
        sdk_version=metadata.version("gradio"),
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        short_description="One MRI slice in, four probabilities out; for research",
        license="apache-2.0",
        models=[model.id],
        tags=["medical-imaging", "mri", "brain-tumor", "image-classification"],
    )
    version = f", revision `{model.revision}`" if model.revision else ""
    return f"""---
{data.to_yaml()}
---

# Brain tumour MRI classifier

**{RESEARCH_NOTICE}**

One brain MRI slice in, four probabilities out: glioma, meningioma, pituitary tumour, or none of them. The answers are
those of the model `{model.id}`{version}. Its card says on which images it was measured, how often it is wrong, and for
what it must not be used, and what it makes of a picture that is no brain MRI. The examples are synthetic drawings and
an average of 152 healthy brains (terms: `examples/README.md`), no patients. Do not upload images of patients.

A CPU is enough. `pip install -r requirements.txt && python app.py` serves the same page elsewhere. `space.json` names
the model; the variables `MODEL_ID` and `MODEL_REVISION` win over it.
"""


def check_space(plan: Plan, model: ModelVersion, *, folder: str | None = None, fresh: bool = True) -> None:
    """Start the app from the Space's files alone, and ask its API for a prediction on an example.

    Its process ends, and the temporary folder goes, in any case.

    Args:
        plan: of :func:`plan_space`.
        model: the one that the plan names.
        folder: a model folder to answer with instead; None takes the model from the Hub.
        fresh: install requirements.txt into a fresh environment, which takes minutes; else use this interpreter.

    Raises:
        UserError: one line that says what failed, with the end of the log.
    """
    from rich.console import Console

    if folder:
        find_model(Path(folder)).require_project_labels()
        name = str(Path(folder).resolve())
    else:
        _require_model(model)
        name = str(model)
    status = Console(stderr=True).status("Writing the Space's files ...")
    with _sigterm_cleans_up(), TemporaryDirectory(prefix="brain-tumor-mri-space-", ignore_cleanup_errors=True) as here:
        root = Path(here)
        space = root / "space"
        with status:
            try:
                for file in plan.files:
                    target = space / file.path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(file.content if isinstance(file.content, bytes) else file.content.read_bytes())
                python = sys.executable
                if fresh:
                    status.update("Installing requirements.txt into a fresh environment: minutes ...")
                    python = _fresh_python(root / "environment", space / "requirements.txt")
                status.update("Starting the app, and asking it for a prediction ...")
                with _serving(space, python, _environment(root, folder and name)) as (url, log):
                    answer = _ask(python, url, space / EXAMPLE, log)
            except OSError as error:
                raise UserError(f"the Space could not be checked: {one_line(error)}; see --check") from error
    if not isinstance(answer, dict) or answer.get("label") not in LABELS or answer.get("model") != name:
        raise UserError(f"the app's API gave no prediction of {name}, but {one_line(answer)}; nothing was sent")


def _require_model(model: ModelVersion) -> None:
    """Refuse what the app would refuse, before minutes are spent, and what a Space, which has no token, cannot have.

    Raises:
        UserError: the Hub has no such model; it is none of this project, or private, or gated.
    """
    import httpx
    from huggingface_hub import HfApi

    with quiet_client():
        find_model(model.id, model.revision).require_project_labels()
    try:
        hidden = HfApi(token=False).model_info(model.id, revision=model.revision).gated
    except (OSError, httpx.HTTPError) as error:
        hidden = one_line(error, 60)
    if hidden:
        raise UserError(
            f"the Hub does not give {model} to a Space, which has no token ({hidden}); make it public, or send with "
            "--check none and give the Space a secret HF_TOKEN"
        )


def _environment(root: Path, model: str | None) -> dict[str, str]:
    """Return the app's variables: this process's, without tokens and what else would set the app up differently."""
    foreign = ("GRADIO_", "MODEL_", "PYTHON", "SPACE_")
    tokens = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign) and key not in tokens}
    return {
        **kept,
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_TEMP_DIR": str(root / "uploads"),
        **({"MODEL_ID": model} if model else {}),
    }


def _fresh_python(environment: Path, wanted: Path) -> str:
    """Make a virtual environment with what the file asks for, and return its interpreter.

    Raises:
        UserError: it could not be made, or the requirements do not install.
    """
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = [python, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "-r", wanted]
    for line in ([sys.executable, "-m", "venv", environment], pip):
        done = subprocess.run(list(map(str, line)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=wanted.parent)
        if done.returncode:
            what = "`pip install -r requirements.txt` failed" if line is pip else "no virtual environment could be made"
            raise UserError(f"{what} (nothing was sent): {_tail(done.stdout)}")
    return str(python)


@contextmanager
def _serving(space: Path, python: str, environment: dict[str, str]) -> Iterator[tuple[str, Path]]:
    """Run the folder's app.py, and yield its address and its log once it answers; it is ended in any case."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", space.with_name("app.log")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [python, "-I", "-u", "-c", _START_APP, str(SOURCE)],
            cwd=space,
            env={**environment, "GRADIO_SERVER_PORT": str(port)},
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = monotonic() + START_SECONDS
        while True:
            if process.poll() is not None:
                raise UserError(f"the app ended at its start (nothing was sent): {_tail(log.read_bytes())}")
            if monotonic() > deadline:
                raise UserError(f"the app's page did not come (nothing was sent): {_tail(log.read_bytes())}")
            try:
                with direct.open(url, timeout=10):
                    break
            except OSError:
                sleep(0.1)
        yield url, log
    finally:
        process.kill()
        process.communicate()


def _ask(python: str, url: str, example: Path, log: Path) -> object:
    """Return what the app's API answers; asked by a process of its own, which can be stopped when it waits for ever."""
    line = [python, "-I", "-c", _ASK_APP, url, str(example)]
    try:
        done = subprocess.run(line, capture_output=True, timeout=ANSWER_SECONDS, env=_environment(log.parent, None))
        if not done.returncode:
            return json.loads(done.stdout)
        problem = _tail(done.stderr, lines=1)
    except subprocess.TimeoutExpired:
        problem = f"nothing came within {ANSWER_SECONDS:g} s"
    except ValueError:
        problem = "the answer is no JSON"
    said = f"; its log ends: {_tail(log.read_bytes())}"
    raise UserError(f"the app gave no prediction (nothing was sent): {problem}{said}")


def _tail(log: bytes, lines: int = 3, limit: int = 400) -> str:
    """Return the last lines of a log on one line."""
    shown = [" ".join(line.split()) for line in log.decode(errors="replace").splitlines() if line.strip()]
    text = " | ".join(shown[-lines:]) or "its log is empty"
    return text if len(text) <= limit else f"...{text[-limit:]}"


@contextmanager
def _sigterm_cleans_up() -> Iterator[None]:
    """Let SIGTERM unwind as Ctrl-C does: by default it would leave the app's folder, and gigabytes of environment."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
