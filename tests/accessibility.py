"""What axe-core finds on a page that stands in a browser, for the tests of both pages."""

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright import sync_api

INSTALLED = Path(__file__).resolve().parent.parent / "web" / "node_modules" / "axe-core" / "axe.min.js"


@functools.cache
def axe() -> str:
    """The source of axe-core: the file that AXE_CORE names, web's, or the package registry's; skips where none is."""
    for file in (os.environ.get("AXE_CORE"), INSTALLED):
        if file and Path(file).is_file():
            return Path(file).read_text(encoding="utf-8")
    if not (npm := shutil.which("npm")):
        pytest.skip("npm is not installed, and AXE_CORE names no axe.min.js")
    with tempfile.TemporaryDirectory() as folder:
        options = ["--no-save", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=0", "--prefix", folder]
        try:
            subprocess.run([npm, "install", *options, "axe-core@4.10"], check=True, capture_output=True, timeout=30)
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"axe-core could not be fetched ({type(error).__name__}); AXE_CORE can name its axe.min.js")
        return Path(folder, "node_modules", "axe-core", "axe.min.js").read_text(encoding="utf-8")


def barriers(page: "sync_api.Page", state: str) -> list[str]:
    """Serious and critical barriers for people with disabilities, a line each, which begins with ``state``."""
    page.evaluate(axe())
    result = page.evaluate("async () => await axe.run(document)")
    assert len(result["passes"]) > 10
    return [
        f"{state}: {rule['id']} at {node['target'][-1]} ({node['failureSummary']})"
        for rule in result["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]
