"""What a wheel carries beside the Python files, and that the version is the same everywhere."""

import re
from pathlib import Path

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
