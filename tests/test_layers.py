"""The library's layers (`[tool.importlinter]` in pyproject.toml), and how many imports hide inside functions."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "brain_tumor_mri"
MOST_INNER_IMPORTS = 32  # may only fall, but for packages that have become extras


def inner_imports(path: Path) -> list[str]:
    """The imports of a file that run when a function is called, as `file:line: text`."""
    functions = (
        n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    found = {
        n.lineno for function in functions for n in ast.walk(function) if isinstance(n, ast.Import | ast.ImportFrom)
    }
    lines = path.read_text().splitlines()
    return [f"{path.relative_to(ROOT)}:{line}: {lines[line - 1].strip()}" for line in sorted(found)]


def test_a_folder_imports_only_from_the_layers_below_it(capsys, monkeypatch) -> None:
    cli = pytest.importorskip("importlinter.cli", reason="pip install import-linter")
    monkeypatch.chdir(ROOT)
    status = cli.lint_imports(config_filename="pyproject.toml", no_cache=True)
    assert status == 0, capsys.readouterr().out


def test_few_imports_hide_inside_functions_and_each_says_why() -> None:
    found = [line for path in sorted(LIBRARY.rglob("*.py")) for line in inner_imports(path)]
    assert len(found) <= MOST_INNER_IMPORTS, f"{len(found)}:\n" + "\n".join(found)
    assert all("  # " in line for line in found), [line for line in found if "  # " not in line]


def test_commands_are_imported_by_nobody() -> None:
    for path in sorted(LIBRARY.rglob("*.py")):
        if path.parent.name != "commands":
            assert ".commands" not in path.read_text(), path
