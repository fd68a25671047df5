"""A federation on one machine: Flower's SuperLink in simulation mode on loopback, gone when the run is over.

``simulate(settings)`` starts it, submits the app, follows the run and leaves no process. Nothing goes to the network:
telemetry, the look for updates and the installation of packages are off, in Flower and in Ray.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import psutil
import yaml

from ..errors import UserError
from ..files import read_json, write_text
from ..machine import cpu_count
from .arguments import parse_settings, read_settings
from .server_app import FAILED, FederationError, prepare_folder
from .task import hospital_names

__all__ = ["FederationError", "read_settings", "simulate"]

APP = Path(__file__).with_name("app")
PATHS = ("model_name_or_path", "data_dir", "external_dir", "collections_dir", "output_dir")
OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
START_SECONDS, LEAVE_SECONDS = 180, 20
SETTINGS_FILE, LOG_FILE = "federation.yaml", "federation.log"


def simulate(settings: Mapping[str, Any], say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run a federation on this machine, one hospital at a time.

    Args:
        settings: of ``arguments.read_settings``.
        say: gets the run's own lines as they come; all that Flower prints is in ``federation.log`` of the folder.

    Returns:
        What ``metrics.json`` of the output folder holds.

    Raises:
        UserError: a setting or the data cannot be used.
        FederationError: no hospital is left, or Flower stopped; the line says what is in the log.
    """
    settings = {
        name: os.path.abspath(value) if name in PATHS and (name == "output_dir" or os.path.exists(value)) else value
        for name, value in settings.items()
    }
    federation, args = parse_settings(settings)
    names = hospital_names(federation, args)
    settings["clients"] = len(names)
    folder = Path(args.training.output_dir)
    settings["output_dir"] = str(folder.absolute())
    prepare_folder(folder, settings)
    file = folder / SETTINGS_FILE
    write_text(file, yaml.safe_dump(settings, sort_keys=False))
    with tempfile.TemporaryDirectory(prefix="flwr-") as home, (folder / LOG_FILE).open("w") as log:
        environment = _environment(Path(home))
        port = _free_port()
        _write_connection(Path(home), port)
        try:
            _start_superlink(port, environment, log)
            _follow(_submit(file, len(names), environment), say, log)
        finally:
            _stop_all(Path(home))
    if (folder / FAILED).is_file():
        failed = read_json(folder / FAILED)
        raise (UserError if failed["status"] == 2 else FederationError)(failed["error"])
    if not (folder / "metrics.json").is_file():
        late = "timed out during startup" in (folder / LOG_FILE).read_text(errors="replace")
        why = "this machine is too busy: Ray waits half a minute for its own processes" if late else "see the log"
        raise FederationError(f"the run ended without a result ({why}); {folder / LOG_FILE}. The same again goes on")
    return read_json(folder / "metrics.json")


def _environment(home: Path) -> dict[str, str]:
    """Of all processes of a run. FLWR_HOME is its own, and marks them."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    own = {"FLWR_HOME": str(home), "RAY_TMPDIR": str(home), "PATH": path, "PYTHONUNBUFFERED": "1"}
    return os.environ | OFFLINE | own


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _write_connection(home: Path, port: int) -> None:
    lines = ["[superlink]", 'default = "here"', "[superlink.here]", f'address = "127.0.0.1:{port}"', "insecure = true"]
    write_text(home / "config.toml", "\n".join(lines) + "\n")


def _start_superlink(port: int, environment: Mapping[str, str], log: Any) -> None:
    command = [
        "flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port),
        "--isolation", "subprocess", "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    process = _popen(command, environment, stdout=log, stderr=subprocess.STDOUT)
    deadline = monotonic() + START_SECONDS
    while monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=2, trust_env=False).is_success:
                return
        except httpx.HTTPError:
            sleep(0.3)
    raise FederationError(f"Flower's SuperLink did not start; {log.name} says why")


def _submit(file: Path, hospitals: int, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    cores = cpu_count()
    simulation = {
        "num-supernodes": hospitals,
        "init-args-num-cpus": cores,
        "client-resources-num-cpus": cores,  # one hospital at a time, with all cores
    }
    command = [
        "flwr", "run", str(APP), "here", "--stream",
        "--run-config", f'settings-file="{file.absolute()}"',
        "--federation-config", " ".join(f"{name}={value}" for name, value in simulation.items()),
    ]  # fmt: skip
    return _popen(command, environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")


def _popen(command: list[str], environment: Mapping[str, str], **options: Any) -> subprocess.Popen[Any]:
    return subprocess.Popen(
        command, env=dict(environment), stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent, **options
    )


def _die_with_parent() -> None:
    """In the child: Linux ends it when this process is killed, so that a killed run leaves nothing behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _follow(run: subprocess.Popen[str], say: Callable[[str], None], log: Any) -> None:
    """Hand on the server's own lines until the run is over."""
    assert run.stdout is not None
    for line in run.stdout:
        log.write(line)
        log.flush()
        if line.startswith(("hospitals: ", "round ", "going on ", "privacy: ", "a hospital ")):
            say(line.rstrip())
    run.wait()


def _stop_all(home: Path) -> None:
    """End every process of this run, known by its FLWR_HOME: also those of Ray, which are nobody's children."""
    ours = [process for process in psutil.process_iter() if _is_of(process, home)]
    for process in ours:
        _signal(process, signal.SIGTERM)
    _, stubborn = psutil.wait_procs(ours, timeout=LEAVE_SECONDS)
    for process in {*stubborn, *(p for p in psutil.process_iter() if _is_of(p, home))}:
        _signal(process, signal.SIGKILL)


def _is_of(process: psutil.Process, home: Path) -> bool:
    try:
        return process.pid != os.getpid() and process.environ().get("FLWR_HOME") == str(home)
    except (psutil.Error, OSError):
        return False


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.Error:
        return
