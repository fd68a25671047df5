"""Where predict writes to: links, devices, pipes, full disks, two runs at once, consoles that lack letters."""

import csv
import json
import os
import re
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from brain_tumor_mri.commands.predict import CsvOutput, JsonOutput, TableOutput, check_target
from brain_tumor_mri.commands.script import exit_status
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.inference.prediction import Prediction, Tally, csv_columns, csv_row
from brain_tumor_mri.labels import LABELS

FULL = Path("/dev/full")


def answers(count: int = 3) -> list[Prediction]:
    probabilities = dict(zip(LABELS, (0.1 + 0.2, 1 / 3, 0.2, 1 - 0.1 - 0.2 - 1 / 3 - 0.2), strict=True))
    sets = {90: ("glioma",), 95: ("glioma", "meningioma")}
    return [
        Prediction(
            f"{number}.png", "meningioma", 1 / 3, probabilities, None, "unfamiliar", "why", sets[95], sets, 1.7, 2 / 7
        )
        for number in range(count)
    ]


def names(predictions: list[Prediction]) -> list[Path]:
    return [Path(prediction.name) for prediction in predictions]


def write(target: Path, predictions: list[Prediction], total: int | None = None) -> list[Prediction]:
    """Write what is not there yet, as the command does; return what was taken over."""
    tally = Tally()
    with CsvOutput(target, names(answers()), "model") as output:
        for prediction in [*output.done, *predictions[len(output.done) :]]:
            output.add(prediction)
            tally.add(prediction)
        output.finish(tally, total or len(answers()))
        return output.done


def rows(text: str) -> list[list[str]]:
    return list(csv.reader(text.splitlines()))


EXPECTED = [list(csv_columns()), *map(csv_row, answers())]


def test_a_link_stays_a_link_and_a_file_keeps_its_mode(tmp_path: Path):
    real, link = tmp_path / "far" / "real.csv", tmp_path / "link.csv"
    real.parent.mkdir()
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    write(link, answers())
    assert link.is_symlink() and rows(real.read_text()) == EXPECTED
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["far", "link.csv", "real.csv"]


def test_a_device_and_a_pipe_get_the_rows_and_stay_what_they_are(tmp_path: Path):
    write(Path(os.devnull), answers())
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write(pipe, answers())
    reader.join(20)
    assert rows(read[0]) == EXPECTED and stat.S_ISFIFO(pipe.stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_an_interrupted_run_goes_on_with_answers_that_are_the_same_to_the_last_digit(tmp_path: Path):
    target = tmp_path / "out.csv"
    write(target, answers()[:2], total=3)
    assert not target.exists()
    (part,) = tmp_path.iterdir()
    part.write_bytes(part.read_bytes() + b'{"name": "2.p')  # a kill cut the next one off
    assert write(target, answers()) == answers()[:2]
    assert rows(target.read_text()) == EXPECTED
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_a_part_file_that_another_program_wrote_is_not_taken_over(tmp_path: Path):
    target = tmp_path / "out.csv"
    for content in (b"file,label\n", b"[]\n", b"{}\n", b"\xff\n", b'{"top_class": 1, "prediction_set": 2}\n'):
        write(target, answers()[:1], total=3)
        (part,) = tmp_path.glob("*.part")
        part.write_bytes(content)
        assert write(target, answers()) == []
        assert rows(target.read_text()) == EXPECTED


def test_a_second_run_with_the_same_csv_is_told_and_spoils_nothing(tmp_path: Path):
    target = tmp_path / "out.csv"
    first = CsvOutput(target, names(answers()), "model")
    first.add(answers()[0])
    for model in ("model", "another"):
        with pytest.raises(UserError, match=r"--csv .*out\.csv cannot be written: another run is writing it"):
            CsvOutput(target, names(answers()), model)
    tally = Tally()
    tally.add(answers()[0])
    for prediction in answers()[1:]:
        first.add(prediction)
        tally.add(prediction)
    first.finish(tally, 3)
    assert rows(target.read_text()) == EXPECTED
    write(target, answers())  # and afterwards it is free


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_line_in_the_constructor_and_later(tmp_path: Path):
    said = "cannot be written: No space left on device"
    with pytest.raises(UserError, match=f"^--csv /dev/full {said}$"):
        CsvOutput(FULL, names(answers()), "model")
    output = CsvOutput(tmp_path / "out.csv", names(answers()), "model")
    output.stream.close()
    output.stream = FULL.open("wb")
    with pytest.raises(UserError, match=f"{said}; the same command goes on"):
        output.add(answers()[0])
    output.__exit__()
    tally = Tally()
    with pytest.MonkeyPatch.context() as patched:
        output = CsvOutput(tmp_path / "late.csv", names(answers()), "model")
        for prediction in answers():
            output.add(prediction)
            tally.add(prediction)
        patched.setattr("brain_tumor_mri.files.put_in_place", lambda *_: FULL.write_text("x" * 100_000))
        with pytest.raises(UserError, match=f"late.csv {said}.*late.csv.*part keeps what is done"):
            output.finish(tally, 3)
        output.__exit__()
    assert write(tmp_path / "late.csv", answers()) == answers()


def test_where_the_csv_cannot_go_is_told_before_the_work(tmp_path: Path):
    for target, said in (
        (tmp_path, "is a folder"),
        (tmp_path / "none" / "x.csv", "there is no folder"),
        (tmp_path / "x.png", "has an image's name"),
        (tmp_path / "x.IMA", "has an image's name"),
    ):
        with pytest.raises(UserError, match=said):
            check_target(target)
    check_target(Path(os.devnull))


CHILD = r"""if True:
    import sys
    from brain_tumor_mri.commands.predict import Prediction, TableOutput, Tally, JsonOutput
    from brain_tumor_mri.commands.script import exit_status
    def work():
        tally, output = Tally(), JsonOutput({}) if sys.argv[1] == "json" else TableOutput(None)
        for name in ("se\u00f1al-\u8111\udcff.png", "b.png"):
            answer = Prediction(name, None, None, {}, "why")
            output.add(answer)
            tally.add(answer)
        output.finish(tally, 2)
    sys.exit(exit_status("name", work))
"""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("kind", ["json", "table"])
def test_names_that_the_console_lacks_letters_for_are_shown_all_the_same(encoding: str, kind: str):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, kind],
        capture_output=True, env=os.environ | {"PYTHONIOENCODING": encoding}, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == b""
    shown = done.stdout.decode(encoding)
    assert "b.png" in shown and ("\u8111" in shown or "\\u8111" in shown)


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
@pytest.mark.parametrize("kind", ["json", "table"])
def test_a_full_disk_behind_stdout_is_one_line_and_exit_1(kind: str):
    with FULL.open("w") as stdout:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, kind],
            stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "name: the output cannot be written: No space left on device\n"


def test_other_errors_of_the_system_are_no_full_disk():
    def work() -> None:
        raise PermissionError(13, "a bug")

    with pytest.raises(PermissionError):
        exit_status("name", work)


def test_no_cell_begins_with_a_formula_whatever_a_spreadsheet_takes_to_part_cells(tmp_path: Path):
    odd = ["a;=cmd|' /c calc'!A0.png", "＝1+1.png", "＠x.png", "a\t=1.png", 'a";=1.png', "-1.png", "plain.png"]
    target = tmp_path / "odd.csv"
    with CsvOutput(target, [Path(name) for name in odd], "model") as output:
        tally = Tally()
        for prediction in (replace(answers()[0], name=name) for name in odd):
            output.add(prediction)
            tally.add(prediction)
        output.finish(tally, len(odd))
    text = target.read_text(encoding="utf-8")
    for separator in ",;\t":
        cells = [cell for line in csv.reader(text.splitlines(), delimiter=separator) for cell in line]
        assert not [cell for cell in cells if cell.startswith(tuple("=+-@＝＋－＠"))]
    read = [row[0] for row in csv.reader(text.splitlines())][1:]
    assert [os.path.normpath(name) for name in read] == odd


def test_json_holds_no_number_that_is_none_and_nothing_where_the_model_cannot_answer(capsys):
    output = JsonOutput({})
    with pytest.raises(ValueError, match="JSON"):
        output.add(replace(answers()[0], confidence=float("nan")))
    assert capsys.readouterr().out == ""
    for count in (0, 2):
        output, tally = JsonOutput({"sha256": "0"}), Tally()
        for prediction in answers(count):
            output.add(prediction)
            tally.add(prediction)
        output.finish(tally, count)
        assert len(json.loads(capsys.readouterr().out)["predictions"]) == count


def test_a_console_of_80_characters_cuts_no_class_and_no_decision(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    table = TableOutput(None)
    for name in ("folder/of/a/patient/series/slice-0001.png", "b.png"):
        table.add(
            Prediction(
                name, "pituitary", 0.9, dict.fromkeys(LABELS, 0.25), decision="uncertain",
                prediction_set=("glioma", "pituitary"),
            )
        )  # fmt: skip
    table.finish(Tally(), 2)
    shown = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown and "Pituitary tumour" in shown and "uncertain" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_long_path_stands_on_one_line_where_output_is_piped(capsys):
    name, reason = "/".join(["a-folder-of-a-patient"] * 12) + "/slice-0001.png", "a reason of words, " * 6 + "in full"
    table = TableOutput(None)
    table.add(Prediction(name, "glioma", 0.9, dict.fromkeys(LABELS, 0.25), decision="unfamiliar", reason=reason))
    table.finish(Tally(), 1)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if name in line]
    assert reason in line
