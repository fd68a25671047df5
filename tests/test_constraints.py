"""The lock, constraints.txt, holds what pyproject.toml and requirements-dev.txt ask for; it names no registry."""

import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info < (3, 11):
    pytest.skip("tomllib is of Python 3.11", allow_module_level=True)
import tomllib

ROOT = Path(__file__).parents[1]


def test_every_requirement_is_pinned_to_a_version_that_it_allows():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = list(project.get("dependencies", []))
    for extra in ("train", "page", "dicom", "volumes", "export", "clinical"):
        asked += project["optional-dependencies"][extra]
    lines = (ROOT / "requirements-dev.txt").read_text().splitlines()
    asked += [line for line in lines if line and not line.startswith(("#", "-"))]
    pins: dict[str, set[str]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        pin = Requirement(line)
        pins.setdefault(canonicalize_name(pin.name), set()).add(str(pin.specifier).removeprefix("=="))
    for requirement in map(Requirement, asked):
        if requirement.name == "brain-tumor-mri":
            continue
        held = pins.get(canonicalize_name(requirement.name), set())
        assert held and all(requirement.specifier.contains(version) for version in held), (str(requirement), held)


def test_the_lock_is_of_versions_alone():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"[a-z0-9.-]+==[\w.]+( ; .*)?", line), line
