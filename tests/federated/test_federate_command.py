"""``brain-tumor-mri federate`` without a network, and Flower's own programs with TLS and keys: the same weights."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from ports import free_port
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
FLOWER = all(find_spec(name) for name in ("flwr", "dp_accounting"))
BIN = Path(sys.executable).parent
OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1"
}  # fmt: skip
NAMES = ("north", "south")
pytestmark = pytest.mark.federated
needs_flower = pytest.mark.skipif(
    not FLOWER,
    reason="Flower is not installed here; run it with .venv-federated/bin/python -m pytest, after `make federated`",
)


def settings_of(phantom_dir: Path, folder: Path, **changed) -> Path:
    settings = {
        "model_name_or_path": "timm/test_resnet", "from_scratch": True, "image_size": 32, "seed": 5,
        "data_dir": str(phantom_dir), "output_dir": str(folder / "run"), "class_weights": "inverse",
        "rounds": 2, "partition": "patient", "clients": 2, "slices_per_round": 8,
        "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8, "learning_rate": 3e-3,
        "evaluate_clients": False,
    }  # fmt: skip
    file = folder / "settings.yaml"
    file.write_text(yaml.safe_dump(settings | changed))
    return file


def weights_of(folder: Path) -> dict:
    return {k: v for k, v in load_file(folder / "checkpoint.safetensors").items() if k.startswith("weights/")}


@pytest.mark.skipif(FLOWER, reason="Flower is installed here")
def test_without_flower_the_command_says_how_to_get_it(phantom_dir, tmp_path, capsys) -> None:
    from brain_tumor_mri.commands import main as cli

    assert cli.main(["federate", "--config", str(settings_of(phantom_dir, tmp_path))]) == 2
    said = capsys.readouterr().err
    assert "make federated" in said
    assert len(said.splitlines()) == 1


@needs_flower
@pytest.mark.parametrize(
    ("setting", "said"),
    [("strategy=fedsgd", "give one of fedavg"), ("hospitals=hospital-7", "there are hospital-1, hospital-2")],
)
def test_a_wrong_setting_ends_with_2_and_one_line(phantom_dir, tmp_path, capsys, setting, said) -> None:
    from brain_tumor_mri.commands import main as cli

    file = settings_of(phantom_dir, tmp_path)
    assert cli.main(["federate", "--config", str(file), "--set", setting]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert said in lines[-1]
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.fixture(scope="module")
def simulated(phantom_dir, tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path, set[int]]:
    """A simulation in a network namespace where not even loopback is up."""
    folder = tmp_path_factory.mktemp("simulated")
    alone = ["unshare", "--net", "--map-root-user"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("network namespaces are not allowed here (unshare --net)")
    mark = {"FEDERATION_OF_THIS_TEST": str(folder)}
    command = [sys.executable, "-m", "brain_tumor_mri.commands.main", "federate", "--json", "--config"]
    done = subprocess.run(
        [*alone, *command, str(settings_of(phantom_dir, folder))],
        cwd=ROOT, capture_output=True, text=True, timeout=900, env=os.environ | mark,
    )  # fmt: skip
    return done, folder / "run", {pid for pid in psutil.pids() if mark.items() <= environment_of(pid).items()}


def environment_of(pid: int) -> dict[str, str]:
    try:
        return psutil.Process(pid).environ()
    except psutil.Error:
        return {}


@needs_flower
def test_a_simulation_needs_no_network_and_leaves_no_process(simulated) -> None:
    done, folder, left = simulated
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads(done.stdout)
    assert record == json.loads((folder / "metrics.json").read_text())
    assert [entry["failed"] for entry in record["federation"]["rounds"]] == [{}, {}]
    assert "round 2: 2 of 2 hospitals trained" in done.stderr
    assert "[ROUND 2/2]" in (folder / "federation.log").read_text()
    assert left == set()


@needs_flower
def test_a_run_that_is_killed_goes_on_to_the_weights_of_one_that_was_not(simulated, phantom_dir, tmp_path) -> None:
    file, checkpoint = settings_of(phantom_dir, tmp_path), tmp_path / "run" / "checkpoint.safetensors"
    command = [sys.executable, "-m", "brain_tumor_mri.commands.main", "federate", "--config", str(file)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as killed:
        while killed.poll() is None and not checkpoint.exists():
            time.sleep(0.02)
        killed.kill()
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "run" / "metrics.json").exists()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and "going on after round 1 of 2" in done.stdout + done.stderr, done.stderr[-3000:]
    there, here = weights_of(tmp_path / "run"), weights_of(simulated[1])
    assert set(there) == set(here) and all((there[name] == here[name]).all() for name in here)


@needs_flower
def test_no_hospital_left_ends_with_1_and_one_line(phantom_dir, tmp_path, capsys, monkeypatch) -> None:
    from brain_tumor_mri.commands import main as cli
    from brain_tumor_mri.federated import client_app

    def fail(*args, **kwargs):
        raise OSError("/data/patient-0815.jpg")

    monkeypatch.setattr(client_app, "train_round", fail)
    assert cli.main(["federate", "--config", str(settings_of(phantom_dir, tmp_path))]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == ("brain-tumor-mri: round 1: no hospital is left; failed: hospital-1 (OSError), hospital-2 (OSError)")


def certificates(folder: Path) -> None:
    """As docs/federated.md has them."""
    (folder / "san.txt").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    for command in (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.crt",
        "openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr",
        "openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile san.txt "
        "-out server.pem",
        "ssh-keygen -q -t ecdsa -b 384 -N '' -f north",
        "ssh-keygen -q -t ecdsa -b 384 -N '' -f south",
        "ssh-keygen -q -t ecdsa -b 384 -N '' -f stranger",
    ):
        subprocess.run(shlex.split(command), cwd=folder, check=True, capture_output=True)


def kill(process: subprocess.Popen) -> None:
    """With all that it started, and at once: as when a machine loses its power."""
    if process.poll() is None:
        whole = psutil.Process(process.pid)
        for one in (*whole.children(recursive=True), whole):
            one.kill()
        process.wait()


@contextmanager
def deployed(folder: Path, names: tuple[str, ...]) -> Iterator[tuple[Callable, dict[str, subprocess.Popen]]]:
    """A SuperLink that knows north and south, and a SuperNode for each name; ``flwr`` and the SuperNodes."""
    certificates(folder)
    port, home = free_port(), folder / "flower"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\n'
        f'root-certificates = "{folder}/ca.crt"\n'
    )
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    options = {"env": os.environ | OFFLINE | {"FLWR_HOME": str(home), "PATH": path}, "cwd": folder, "text": True}
    log = (folder / "log").open("w")
    started: list[subprocess.Popen] = []

    def start(*command: str, stdout: Any = log) -> subprocess.Popen:
        pipes = {"stdout": stdout, "stderr": subprocess.STDOUT}
        started.append(subprocess.Popen([str(BIN / command[0]), *command[1:]], **pipes, **options))
        return started[-1]

    def flwr(*command: str) -> subprocess.Popen:
        return start("flwr", *command, stdout=subprocess.PIPE)

    start(
        "flower-superlink", "--host", "127.0.0.1", "--port", str(port), "--ssl-ca-certfile", "ca.crt",
        "--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key", "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
    )  # fmt: skip
    nodes: dict[str, subprocess.Popen] = {}
    try:
        deadline = time.monotonic() + 200
        while flwr("supernode", "list", "here").wait(300) and time.monotonic() < deadline:
            time.sleep(1)
        for name in NAMES:
            registered = flwr("supernode", "register", f"{name}.pub", "here")
            said, _ = registered.communicate(timeout=300)
            assert registered.returncode == 0, said
        for number, name in enumerate(names):
            nodes[name] = start(
                "flower-supernode", "--superlink", f"127.0.0.1:{port}", "--root-certificates", "ca.crt",
                "--auth-supernode-private-key", name, "--port", str(free_port()),
                "--node-config", f"partition-id={number} num-partitions=2",
            )  # fmt: skip
        yield flwr, nodes
    finally:
        for process in started:
            kill(process)


APP = str(ROOT / "brain_tumor_mri" / "federated" / "app")


@needs_flower
def test_two_supernodes_with_tls_and_keys_reach_the_weights_of_the_simulation(simulated, phantom_dir, tmp_path) -> None:
    file = settings_of(phantom_dir, tmp_path)
    with deployed(tmp_path, (*NAMES, "stranger")) as (flwr, _):
        said, _ = flwr("run", APP, "here", "--stream", "--run-config", f'settings-file="{file}"').communicate()
        assert (tmp_path / "run" / "metrics.json").is_file(), said + (tmp_path / "log").read_text()[-3000:]
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(record["federation"]["hospitals"]) == {"hospital-1", "hospital-2"}
    there, here = weights_of(tmp_path / "run"), weights_of(simulated[1])
    assert set(there) == set(here)
    assert all((there[name] == here[name]).all() for name in here)


@needs_flower
def test_a_hospital_killed_in_the_middle_of_a_round_is_named_and_the_other_goes_on(phantom_dir, tmp_path) -> None:
    file = settings_of(phantom_dir, tmp_path, num_train_epochs=20)
    with deployed(tmp_path, NAMES) as (flwr, nodes):
        run = flwr("run", APP, "here", "--stream", "--run-config", f'settings-file="{file}"')
        said = []
        for line in run.stdout:
            said.append(line)
            if line.startswith("hospitals: "):  # the first round begins; a node needs seconds to load what trains
                kill(nodes["south"])
        run.wait()
    lines = "".join(said)
    assert "round 1: 1 of 2 hospitals trained; failed: hospital-2 (it is gone)" in lines, lines[-3000:]
    assert "round 2: 1 of 2 hospitals trained; failed: hospital-2 (not there)" in lines
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert [sorted(entry["hospitals"]) for entry in record["federation"]["rounds"]] == [["hospital-1"]] * 2
