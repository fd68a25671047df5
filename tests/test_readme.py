"""What README and docs promise: commands and flags exist, links lead somewhere, examples run, tables are up to date."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from slow_tests import SLOW

from benchmarks.render_tables import render_results
from brain_tumor_mri.commands.main import COMMANDS, build_parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_COMMANDS = [*PAGES, ROOT / "results" / "README.md", ROOT / "CONTRIBUTING.md"]
TEXT = {page: page.read_text(encoding="utf-8") for page in [*WITH_COMMANDS, ROOT / "CHANGELOG.md"]}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def parser_of(words: list[str]) -> argparse.ArgumentParser:
    """The parser of `brain-tumor-mri WORDS`, that of the kind for a command with kinds."""

    def chosen(parser: argparse.ArgumentParser, word: str) -> argparse.ArgumentParser:
        kinds = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        return kinds.choices[word]

    parser = chosen(build_parser(words[0]), words[0])
    return chosen(parser, words[1]) if words[0] == "publish" and len(words) > 1 else parser


def test_readme_is_short() -> None:
    assert len(TEXT[ROOT / "README.md"].splitlines()) <= 150


@each_page
def test_tables_are_those_of_the_recorded_runs(page: Path) -> None:
    assert render_results(TEXT[page], page.parent) == TEXT[page]


@pytest.mark.parametrize("page", list(TEXT), ids=lambda page: f"{page.parent.name}-{page.name}")
def test_links_and_pictures_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXT[page]):
        if not target.startswith(("http", "mailto:")):
            name, _, anchor = target.partition("#")
            linked = (page.parent / name).resolve() if name else page
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: f"{page.parent.name}-{page.name}")
def test_files_and_make_targets_that_are_named_are_there(page: Path) -> None:
    named = re.findall(
        r"(?<![\w/.-])((?:configs|benchmarks|data_scripts|tests|brain_tumor_mri)/[\w/.-]*\w)", TEXT[page]
    )
    missing = {name for name in named if not (ROOT / name).exists() and not (page.parent / name).exists()}
    assert not missing
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([\w-]+)", TEXT[page], re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: f"{page.parent.name}-{page.name}")
def test_commands_that_are_named_have_the_flags_that_they_are_given(page: Path) -> None:
    for line in re.findall(r"brain-tumor-mri ([a-z]+ [^\n`|&]*)", TEXT[page]):
        words = shlex.split(line.split("#")[0])
        if words[0] in COMMANDS:
            flags = parser_of(words)._option_string_actions
            unknown = [word for word in words if word.startswith("--") and word not in flags]
            assert not unknown, line


def test_every_command_and_every_recipe_is_described() -> None:
    table = TEXT[ROOT / "README.md"].split("## Commands")[1].split("\n## ")[0]
    assert set(re.findall(r"`([a-z]+)`(?=[^|]*\|[^|]*\|$)", table, re.MULTILINE)) == set(COMMANDS)
    training = TEXT[ROOT / "docs" / "training.md"]
    recipes = {f"configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    assert recipes <= set(re.findall(r"configs/[\w.-]*\w", training))


def test_every_folder_of_the_library_stands_in_the_tree() -> None:
    tree = TEXT[ROOT / "README.md"].split("## Where things are")[1].split("\n## ")[0]
    folders = {path.parent.name for path in (ROOT / "brain_tumor_mri").glob("*/__init__.py")}
    assert folders <= set(re.findall(r"([a-z_]+)/", tree.split("brain_tumor_mri/")[1]))


def test_python_examples_run_and_print_what_they_say(tmp_path: Path, monkeypatch, capsys) -> None:
    for name in ("examples", "model-lite"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)  # one writes a file
    ran = 0
    for page in PAGES:
        for example in blocks(TEXT[page], "python"):
            if "gradio_client" in example:  # asks a server: tests/test_app.py
                continue
            exec(compile(example, page.name, "exec"), {})
            printed = capsys.readouterr().out
            for said in re.findall(r"^# (.*)$", example, re.MULTILINE):
                pattern = r"\d*".join(re.escape(part) for part in said.split("..."))
                assert re.search(pattern, printed), f"{page.name} says {said}, not {printed}"
            ran += 1
    assert ran >= 3


def test_the_table_of_predict_is_what_the_command_prints(tmp_path: Path) -> None:
    example = blocks(TEXT[ROOT / "README.md"], "console")[0]
    command, said = example.removeprefix("$ ").split("\n", 1)
    words = shlex.split(command.replace("answers.csv", str(tmp_path / "answers.csv")))
    done = subprocess.run(
        [Path(sys.executable).with_name(words[0]), *words[1:]],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.replace(f"{tmp_path}/", "")
    assert [line.split() for line in said.splitlines()] == [line.split() for line in printed.splitlines()]
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 6


def test_every_slow_test_that_is_named_is_there() -> None:
    for entry in SLOW:
        file, _, name = entry.partition("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text() if name else (ROOT / "tests" / file).is_file(), (
            entry
        )
