"""The real ``app.py`` in a process of its own, one for each model, shared by the page's tests and ended with them."""

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from ports import free_port

REPOSITORY = Path(__file__).resolve().parent.parent
EXAMPLES = REPOSITORY / "examples"
NO_MODEL = str(REPOSITORY / "no-such-model")
START_SECONDS = 120  # generous: test machines are shared
_LOGS: dict[str, Path] = {}
_UPLOADS: dict[str, Path] = {}


def log_of(url: str) -> str:
    """What the app at this address has written so far."""
    return _LOGS[url].read_text(encoding="utf-8", errors="replace")


def uploads_of(url: str) -> list[Path]:
    """The files that lie in the app's folder for uploads."""
    return sorted(path for path in _UPLOADS[url].rglob("*") if path.is_file())


@functools.cache
def running_app(model: str) -> str:
    """Start the app with MODEL_ID=model, wait until its page answers, and return its address."""
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="page-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    url = f"http://127.0.0.1:{port}"
    _LOGS[url], _UPLOADS[url] = folder / "log", folder / "uploads"
    environment = {
        **os.environ,
        "MODEL_ID": model,
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(_UPLOADS[url]),
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    for name in ("GRADIO_SERVER_NAME", "MODEL_REVISION"):
        environment.pop(name, None)
    with _LOGS[url].open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=REPOSITORY, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    atexit.register(process.kill)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=10):
                return url
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"app.py did not answer (exit code {process.poll()}):\n{log_of(url)[-3000:]}")
