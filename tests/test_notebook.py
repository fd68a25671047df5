"""The notebook's cells run, one after the other, from its own folder."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "quickstart.ipynb"


def test_the_quickstart_runs_and_has_no_stored_output(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(NOTEBOOK.parent)
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in cells)
    names: dict = {}
    for cell in cells:
        exec("".join(cell["source"]), names)  # the repository's own text
    assert "glioma" in capsys.readouterr().out and names["explanation"].heat_map is not None
