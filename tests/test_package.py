"""What a wheel carries beside the Python files, and that the version is the same everywhere."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import brain_tumor_mri

try:
    import tomllib
except ImportError:  # Python 3.10, where pytest brings it
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_data_file_of_the_library_goes_into_the_wheel() -> None:
    packaged = set()
    for package, patterns in SETTINGS["tool"]["setuptools"]["package-data"].items():
        for pattern in patterns:
            packaged |= set(ROOT.joinpath(*package.split(".")).glob(pattern))
    files = {path for path in (ROOT / "brain_tumor_mri").rglob("*.*") if path.suffix not in (".py", ".pyc")}
    assert {path for path in files - packaged if path.name != "README.md"} == set()


def test_citation_and_changes_are_of_this_version() -> None:
    version = brain_tumor_mri.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == version


def dockerfiles() -> dict[str, str]:
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    return {"page": (ROOT / "Dockerfile").read_text(), "node": services["node"]["build"]["dockerfile_inline"]}


@pytest.mark.parametrize("name", ["page", "node"])
def test_hadolint_finds_nothing_in_a_dockerfile(name: str) -> None:
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")
    if not hadolint:
        pytest.skip("hadolint is not installed (requirements-dev.txt)")
    found = subprocess.run([hadolint, "--no-color", "-"], input=dockerfiles()[name], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize("name", ["page", "node"])
def test_what_a_dockerfile_copies_is_there_and_no_more_is_sent_to_the_build(name: str) -> None:
    copied = {
        part for line in re.findall(r"^COPY (.+) \S+$", dockerfiles()[name], re.MULTILINE) for part in line.split()
    }
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in sent and copied <= {line.removeprefix("!") for line in sent if line.startswith("!")}
    assert all((ROOT / part).exists() for part in copied) and len(copied) >= 5
