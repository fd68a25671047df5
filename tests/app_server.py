"""The real ``app.py`` in a process of its own, one for each model, shared by the page's tests and ended with them."""

import atexit
import functools
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
EXAMPLES = REPOSITORY / "examples"
NO_MODEL = str(REPOSITORY / "no-such-model")
START_SECONDS = 120  # generous: test machines are shared


@functools.cache
def running_app(model: str) -> str:
    """Start the app with MODEL_ID=model, wait until its page answers, and return its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "MODEL_ID": model, "GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    for name in ("GRADIO_SERVER_NAME", "MODEL_REVISION"):
        environment.pop(name, None)
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=REPOSITORY, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        atexit.register(process.kill)
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            try:
                with urllib.request.urlopen(url, timeout=10):
                    return url
            except OSError:
                time.sleep(0.1)
        log.seek(0)
        raise RuntimeError(f"app.py did not answer (exit code {process.poll()}):\n{log.read()[-3000:]}")
