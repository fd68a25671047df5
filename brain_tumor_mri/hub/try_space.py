"""A Space tried out before it is sent: the app is started from its files alone and asked for a prediction."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep

import httpx
from huggingface_hub import HfApi
from rich.console import Console

from ..errors import UserError
from ..inference.model_folder import find_model
from .plan_space import EXAMPLE, SOURCE, ModelVersion
from .push import Plan, one_line, quiet_client

START_SECONDS = 300.0
ANSWER_SECONDS = 600.0  # the first answer waits for the weights

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


def check_space(plan: Plan, model: ModelVersion, *, folder: str | None = None, fresh: bool = True) -> None:
    """Start the app from the Space's files alone, and ask its API for a prediction on an example.

    Its process ends, and the temporary folder goes, in any case.

    Args:
        plan: of ``space.plan_space``.
        model: the one that the plan names.
        folder: a model folder to answer with instead; None takes the model from the Hub.
        fresh: install requirements.txt into a fresh environment, which takes minutes; else use this interpreter.
    """
    if folder:
        find_model(Path(folder), backend="onnx").require_project_labels()
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
    if not isinstance(answer, dict) or not answer.get("label") or answer.get("model") != name:
        raise UserError(f"the app's API gave no prediction of {name}, but {one_line(answer)}; nothing was sent")


def _require_model(model: ModelVersion) -> None:
    """Refuse what the app would refuse, before minutes are spent, and what a Space, which has no token, cannot have."""
    quiet_client()
    find_model(model.id, model.revision, "onnx").require_project_labels()  # PyTorch is not on the Space
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
    """Make a virtual environment with what the file asks for, and return its interpreter."""
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
