"""What docs/clinical.md and docker/ say works as it stands there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("pynetdicom", reason="pip install 'brain-tumor-mri[clinical]'")
from clinical.orthanc import free_port
from clinical.synthetic_series import series, write

from brain_tumor_mri.clinical.config import NodeConfig, read_config

REPO_ROOT = Path(__file__).resolve().parents[2]
PAGE = (REPO_ROOT / "docs" / "clinical.md").read_text(encoding="utf-8")


def block(language: str, part: str) -> str:
    return next(found for found in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if part in found)


def test_the_settings_of_the_page_are_the_defaults(tmp_path) -> None:
    text = block("yaml", "folder:")
    (tmp_path / "node.yaml").write_text(text)
    config = read_config(tmp_path / "node.yaml")
    assert config == NodeConfig(config.folder, send=config.send)


def test_each_setting_that_is_commented_out_is_one(tmp_path) -> None:
    text = block("yaml", "folder:")
    for key in ("send", "poll"):
        text = re.sub(rf"^{key}:.*\n(  .*\n)?", "", text, flags=re.MULTILINE)
    text = re.sub(r"^#(?=   [a-z_]+:)", " ", text, flags=re.MULTILINE)
    text = re.sub(r"^# (?=[a-z_]+:)", "", text, flags=re.MULTILINE)
    (tmp_path / "node.yaml").write_text(text)
    config = read_config(tmp_path / "node.yaml")
    assert set(config.accept[0]) == {"modality", "body_part", "sequence", "orientation"}
    assert set(config.poll) == {"dicomweb", "seconds", "days"} and set(config.send) == {"host", "port", "ae_title"}


def test_the_files_for_containers_say_what_the_node_knows() -> None:
    config = read_config(REPO_ROOT / "docker" / "node.yaml")
    compose = yaml.safe_load((REPO_ROOT / "docker" / "compose.yaml").read_text())
    modalities = json.loads(compose["services"]["orthanc"]["environment"]["ORTHANC__DICOM_MODALITIES"])
    assert modalities == {"node": [config.ae_title, "node", config.port]}
    assert all(port.startswith("127.0.0.1:") for port in compose["services"]["orthanc"]["ports"])
    if shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        command = ["docker", "compose", "-f", str(REPO_ROOT / "docker" / "compose.yaml"), "config", "--quiet"]
        assert subprocess.run(command, timeout=60).returncode == 0


@pytest.mark.orthanc
@pytest.mark.skipif(not shutil.which("Orthanc"), reason="apt install orthanc orthanc-dicomweb")
def test_the_screen_that_is_copied_and_pasted_ends_with_an_answer(tmp_path, tiny_model_dir) -> None:
    screen = block("bash", "Orthanc runs")
    for line in re.findall(r"^(?:sudo apt-get|python3 -m venv) .*\n", screen, re.MULTILINE):
        screen = screen.replace(line, "")
    for port in ("8042", "4242", "11112"):
        screen = screen.replace(port, str(free_port()))
    write(series("screen"), tmp_path / "in")
    screen = screen.replace("path/to/a/series", str(tmp_path / "in")).replace("model-lite", str(tiny_model_dir))
    status = screen[screen.index("brain-tumor-mri node status") :]
    wait = f"for i in $(seq 100); do sleep 2; {status.strip()} | grep -q done && break; done;"
    screen = screen.replace("sleep 60;", wait)
    screen = screen.replace("brain-tumor-mri ", f"{sys.executable} -m brain_tumor_mri.commands.main ")
    (tmp_path / "screen.sh").write_text(screen + "\nkill $(jobs -p)\nwait\n")
    with (tmp_path / "said").open("w") as said:
        subprocess.run(
            ["bash", str(tmp_path / "screen.sh")], stdout=said, stderr=said, cwd=tmp_path, timeout=550,
            env=os.environ | {"PYTHONPATH": str(REPO_ROOT)}, check=False,
        )  # fmt: skip
    said = (tmp_path / "said").read_text()
    assert said.count(": ok") == 4 and "\ndone\t" in said, said
