"""``brain-tumor-mri federate`` and Flower itself: simulated without a network, and deployed with TLS and keys."""

import json
import os
import shlex
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import yaml
from ports import free_port
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
FLOWER = all(find_spec(name) for name in ("flwr", "ray", "dp_accounting"))
BIN = Path(sys.executable).parent
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


def federate(*flags: str, before: str = "", **options) -> subprocess.CompletedProcess:
    command = f'{before} exec "{sys.executable}" -m brain_tumor_mri.commands.main federate "$@"'
    return subprocess.run(
        [*options.pop("wrapped", []), "sh", "-c", command, "federate", *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=900, **options,
    )  # fmt: skip


def flower_processes() -> set[int]:
    words = ("flower-super", "flwr-", "raylet", "gcs_server")
    return {
        p.pid for p in psutil.process_iter(["cmdline"]) if any(w in " ".join(p.info["cmdline"] or ()) for w in words)
    }


@pytest.mark.skipif(FLOWER, reason="Flower is installed here")
def test_without_flower_the_command_says_how_to_get_it(phantom_dir, tmp_path, capsys) -> None:
    from brain_tumor_mri.commands import main as cli

    assert cli.main(["federate", "--config", str(settings_of(phantom_dir, tmp_path))]) == 2
    said = capsys.readouterr().err
    assert "make federated" in said
    assert len(said.splitlines()) == 1


@needs_flower
def test_a_wrong_setting_ends_with_2_before_anything_starts(phantom_dir, tmp_path, capsys) -> None:
    from brain_tumor_mri.commands import main as cli

    file = settings_of(phantom_dir, tmp_path)
    assert cli.main(["federate", "--config", str(file), "--set", "strategy=fedsgd"]) == 2
    assert "give one of fedavg" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def simulated(phantom_dir, tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path, set[int]]:
    """A simulation in a network namespace that has loopback alone."""
    folder = tmp_path_factory.mktemp("simulated")
    alone = ["unshare", "--net", "--map-root-user"]
    if subprocess.run([*alone, "ip", "link", "set", "lo", "up"], capture_output=True).returncode:
        pytest.skip("network namespaces are not allowed here (unshare --net)")
    before = flower_processes()
    done = federate(
        "--config", str(settings_of(phantom_dir, folder)), "--json", wrapped=alone, before="ip link set lo up;"
    )
    time.sleep(1)
    return done, folder / "run", flower_processes() - before


@pytest.fixture(scope="module")
def alike(phantom_dir, tmp_path_factory) -> dict:
    """The weights that the same settings give when the nodes are called in this process."""
    from in_process_grid import InProcessGrid

    from brain_tumor_mri.federated.server_app import federate

    folder = tmp_path_factory.mktemp("in-process")
    file = settings_of(phantom_dir, folder)
    federate(InProcessGrid(str(file), 2), yaml.safe_load(file.read_text()))
    return weights_of(folder / "run")


@needs_flower
def test_a_simulation_needs_no_network_and_leaves_no_process(simulated, alike) -> None:
    done, folder, left = simulated
    assert done.returncode == 0, done.stderr[-2000:] + (folder / "federation.log").read_text()[-3000:]
    record = json.loads(done.stdout)
    assert record == json.loads((folder / "metrics.json").read_text())
    assert [entry["failed"] for entry in record["federation"]["rounds"]] == [{}, {}]
    assert "round 2: 2 of 2 hospitals trained" in done.stderr
    assert left == set()
    stored = weights_of(folder)
    assert all((stored[name] == alike[name]).all() for name in alike)


@needs_flower
def test_no_hospital_left_ends_with_1_and_one_line(phantom_dir, tmp_path) -> None:
    # an optimizer of a package that the hospitals do not have
    done = federate("--config", str(settings_of(phantom_dir, tmp_path)), "--set", "optim=adamw_bnb_8bit")
    assert done.returncode == 1, done.stderr[-2000:]
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("brain-tumor-mri: round 1: no hospital is left; failed: hospital-1 (")
    assert "Traceback" not in done.stderr


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


@needs_flower
def test_two_supernodes_with_tls_and_keys_reach_the_same_weights(alike, phantom_dir, tmp_path) -> None:
    from brain_tumor_mri.federated.simulate import APP, OFFLINE

    certificates(tmp_path)
    port = free_port()
    home = tmp_path / "flower"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\n'
        f'root-certificates = "{tmp_path}/ca.crt"\n'
    )
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    environment = os.environ | OFFLINE | {"FLWR_HOME": str(home), "PATH": path}
    file = settings_of(phantom_dir, tmp_path)
    log = (tmp_path / "log").open("w")
    started: list[subprocess.Popen] = []

    def start(*command: str) -> None:
        options = {"env": environment, "cwd": tmp_path, "stdout": log, "stderr": log, "start_new_session": True}
        started.append(subprocess.Popen([str(BIN / command[0]), *command[1:]], **options))

    def flwr(*command: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [BIN / "flwr", *command], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=900
        )

    try:
        start(
            "flower-superlink", "--host", "127.0.0.1", "--port", str(port), "--ssl-ca-certfile", "ca.crt",
            "--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key", "--enable-supernode-auth",
            "--disable-runtime-dependency-installation",
        )  # fmt: skip
        deadline = time.monotonic() + 200
        while flwr("supernode", "list", "here").returncode and time.monotonic() < deadline:
            time.sleep(1)
        for name in ("north", "south"):
            registered = flwr("supernode", "register", f"{name}.pub", "here")
            assert registered.returncode == 0, registered.stdout + registered.stderr
        for number, name in enumerate(("north", "south", "stranger")):
            start(
                "flower-supernode", "--superlink", f"127.0.0.1:{port}", "--root-certificates", "ca.crt",
                "--auth-supernode-private-key", name, "--port", str(free_port()),
                "--node-config", f"partition-id={number} num-partitions=2",
            )  # fmt: skip
        ran = flwr("run", str(APP), "here", "--stream", "--run-config", f'settings-file="{file}"')
        said = ran.stdout + ran.stderr + (tmp_path / "log").read_text()[-3000:]
        assert (tmp_path / "run" / "metrics.json").is_file(), said
    finally:
        for process in (psutil.Process(p.pid) for p in started if p.poll() is None):
            for one in (*process.children(recursive=True), process):
                one.kill()
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(record["federation"]["hospitals"]) == {"hospital-1", "hospital-2"}
    deployed = weights_of(tmp_path / "run")
    assert all((deployed[name] == alike[name]).all() for name in alike)
