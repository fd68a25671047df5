import csv
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from brain_tumor_mri.commands import main as cli
from brain_tumor_mri.commands import predict as predicting
from brain_tumor_mri.commands.progress import DelayedProgress
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.inference import registry
from brain_tumor_mri.inference.classifier import TumorClassifier
from brain_tumor_mri.labels import LABELS, RESEARCH_NOTICE

COLUMNS = [
    "file", "label", "top_class", "confidence", *LABELS, "decision", "prediction_set", "unlikeness", "foreign",
    "reason", "error", "schema_version",
]  # fmt: skip


@pytest.fixture(scope="module")
def slices(phantom_dir: Path) -> list[Path]:
    return sorted(phantom_dir.glob("Testing/*/*.png"))


@pytest.fixture
def bad_file(tmp_path: Path) -> Path:
    file = tmp_path / "text.jpg"
    file.write_text("not an image")
    return file


def command(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "brain_tumor_mri.commands.main", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=Path(__file__).parents[2], **options)


def read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
        return list(csv.DictReader(stream))


# --- predict ---


def test_predict_json_is_one_object_and_nothing_else_on_stdout(
    tiny_model_dir: Path, slices: list[Path], bad_file: Path
):
    done = command("predict", slices[0].parent, bad_file, "--model", tiny_model_dir, "--json")
    assert done.returncode == 0 and done.stderr == ""
    answer = json.loads(done.stdout)
    assert [p["name"] for p in answer["predictions"]] == [*map(str, slices[:4]), str(bad_file)]
    assert answer["summary"] == {
        "images": 5,
        "answered": 4,
        "refused": 0,
        "errors": 1,
        "per_label": answer["summary"]["per_label"],
        "per_decision": {
            "answer": 0,
            "uncertain": 0,
            "unfamiliar": 0,
            "not-a-brain-mri": 0,
        },  # the weights have no trust.json
        "complete": True,
    }
    assert answer["schema_version"] == 2
    assert answer["notice"] == RESEARCH_NOTICE and answer["labels"] == list(LABELS)
    assert answer["predictions"][0].keys() >= {"name", "label", "confidence", "probabilities", "error"}
    assert answer["predictions"][4]["error"] and answer["predictions"][4]["label"] is None


def test_predict_prints_a_table_with_the_notice_once(
    tiny_model_dir: Path, slices: list[Path], bad_file: Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["predict", *map(str, slices), str(bad_file), "--model", str(tiny_model_dir)]) == 0
    out = capsys.readouterr().out
    assert out.count(RESEARCH_NOTICE) == 1
    assert out.count(str(bad_file)) == 2 and "Not readable" in out  # its row, and the reason below
    assert f"{len(slices) + 1} images: " in out and "1 not readable" in out
    for path in slices:
        assert str(path) in out


def test_a_long_table_is_cut_and_says_how_many_more(
    tiny_model_dir: Path, phantom_dir: Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["predict", str(phantom_dir), "--model", str(tiny_model_dir)]) == 0
    out = capsys.readouterr().out
    assert out.count(".png") == predicting.SHOWN_ROWS
    assert f"... and {64 - predicting.SHOWN_ROWS} more: see --csv FILE or --json" in out


def test_csv_has_a_row_an_image_with_what_the_classifier_says(
    tiny_model_dir: Path, slices: list[Path], bad_file: Path, tmp_path: Path
):
    target = tmp_path / "answers.csv"
    arguments = [*map(str, slices[:3]), str(bad_file), "--model", str(tiny_model_dir), "--csv", str(target)]
    assert cli.main(["predict", *arguments]) == 0
    rows = read_csv(target)
    assert list(rows[0]) == COLUMNS
    assert [row["file"] for row in rows] == [*map(str, slices[:3]), str(bad_file)]
    for row, answer in zip(rows, TumorClassifier.from_pretrained(tiny_model_dir).predict(slices[:3]), strict=False):
        assert row["label"] == answer.label and row["error"] == ""
        assert float(row["confidence"]) == pytest.approx(answer.confidence, abs=2e-6)
        assert [float(row[label]) for label in LABELS] == pytest.approx(list(answer.probabilities.values()), abs=2e-6)
    assert rows[3]["error"] and not rows[3]["label"] + rows[3]["confidence"] + rows[3]["glioma"]
    assert not list(tmp_path.glob("*.part"))


def test_names_that_a_spreadsheet_would_run_become_harmless_and_still_name_the_file(
    tiny_model_dir: Path, slices: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    names = ["=HYPERLINK(1).png", "+1.png", "@sum.png", "plain, with comma.png", 'quo"te.png', "new\nline.png"]
    for name in names:
        Path(name).write_bytes(slices[0].read_bytes())
    assert cli.main(["predict", *names, "--model", str(tiny_model_dir), "--csv", "out.csv"]) == 0
    cells = [row["file"] for row in read_csv(Path("out.csv"))]
    assert not [cell for cell in cells if cell[0] in "=+-@"]
    assert [os.path.samefile(cell, name) for cell, name in zip(cells, names, strict=True)] == [True] * len(names)


@pytest.mark.skipif(sys.platform != "linux", reason="only here may a file name be any bytes")
def test_a_name_that_is_not_utf8_passes_through_all_outputs(
    tiny_onnx_dir: Path, slices: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    odd = os.path.join(os.fsencode(tmp_path), b"sc\xff\x1b[31m.png")
    Path(os.fsdecode(odd)).write_bytes(slices[0].read_bytes())
    assert cli.main(["predict", str(tmp_path), "--model", str(tiny_onnx_dir)]) == 0
    assert "\x1b" not in capsys.readouterr().out
    done = command("predict", tmp_path, "--model", tiny_onnx_dir, "--json", "--csv", tmp_path / "out.csv")
    assert done.returncode == 0, done.stderr
    assert os.fsencode(read_csv(tmp_path / "out.csv")[0]["file"]) == odd
    assert os.fsencode(json.loads(done.stdout)["predictions"][0]["name"]) == odd


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C when so many answers are out."""
    real = TumorClassifier.predict_stream

    def stopped(self: TumorClassifier, images: object, **options: object) -> Iterator[object]:
        for number, answer in enumerate(real(self, images, **options)):
            if number == count:
                raise KeyboardInterrupt
            yield answer

    monkeypatch.setattr(TumorClassifier, "predict_stream", stopped)


def test_an_interrupted_csv_is_taken_up_again_and_ends_the_same(
    tiny_model_dir: Path,
    slices: list[Path],
    bad_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    paths = [str(slices[0]), str(bad_file), *map(str, slices[1:])]
    target, whole = tmp_path / "out.csv", tmp_path / "whole.csv"
    assert cli.main(["predict", *paths, "--model", str(tiny_model_dir), "--csv", str(whole)]) == 0
    arguments = ["predict", *paths, "--model", str(tiny_model_dir), "--csv", str(target)]
    with monkeypatch.context() as patched:
        stop_after(5, patched)
        assert cli.main(arguments) == 130
    captured = capsys.readouterr()
    assert "stopped after 5 of 17 images" in captured.err and captured.err.count("\n") == 1
    assert not target.exists()
    (part,) = tmp_path.glob("out.csv.*.part")
    assert len(part.read_bytes().splitlines()) == 5
    part.write_bytes(part.read_bytes() + b"half,a,ro")  # and a kill cut the next row
    seen: list[object] = []
    real = TumorClassifier.predict_stream

    def spied(self: TumorClassifier, images: list[Path], **options: object) -> Iterator[object]:
        seen.extend(images)
        return real(self, images, **options)

    monkeypatch.setattr(TumorClassifier, "predict_stream", spied)
    assert cli.main(arguments) == 0
    assert [str(path) for path in seen] == paths[5:], "what was done was done again"
    assert target.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.part"))


def test_a_resumed_run_gives_the_json_of_an_unbroken_one(
    tiny_model_dir: Path,
    slices: list[Path],
    bad_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    paths = [str(slices[0]), str(bad_file), *map(str, slices[1:6])]
    arguments = ["predict", *paths, "--model", str(tiny_model_dir), "--json", "--csv"]
    assert cli.main([*arguments, str(tmp_path / "whole.csv")]) == 0
    whole = json.loads(capsys.readouterr().out)
    with monkeypatch.context() as patched:
        stop_after(4, patched)
        assert cli.main([*arguments, str(tmp_path / "out.csv")]) == 130
    capsys.readouterr()
    assert cli.main([*arguments, str(tmp_path / "out.csv")]) == 0
    resumed = json.loads(capsys.readouterr().out)
    assert resumed["predictions"][:4] == whole["predictions"][:4] and resumed["summary"] == whole["summary"]


def test_rows_of_a_file_that_has_changed_since_are_not_taken_over(
    tiny_model_dir: Path, slices: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    image, target = tmp_path / "a.png", tmp_path / "out.csv"
    image.write_bytes(slices[0].read_bytes())
    arguments = ["predict", str(image), str(slices[1]), "--model", str(tiny_model_dir), "--csv", str(target)]
    with monkeypatch.context() as patched:
        stop_after(1, patched)
        assert cli.main(arguments) == 130
    image.write_text("no longer an image")
    assert cli.main(arguments) == 0
    assert read_csv(target)[0]["error"]


def test_interrupted_json_is_still_one_object_that_says_it_is_incomplete(
    tiny_model_dir: Path, slices: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    stop_after(2, monkeypatch)
    assert cli.main(["predict", *map(str, slices), "--model", str(tiny_model_dir), "--json"]) == 130
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["predictions"]) == 2 and answer["summary"]["complete"] is False


def test_ctrl_c_in_a_terminal_is_one_line_and_130(tiny_onnx_dir: Path, phantom_dir: Path, tmp_path: Path):
    target = tmp_path / "out.csv"
    copies = [tmp_path / f"{i}.png" for i in range(3000)]
    for copy in copies:
        copy.symlink_to(next(phantom_dir.glob("Testing/*/*.png")))
    line = ["predict", tmp_path, "--model", tiny_onnx_dir, "--csv", target, "--batch_size", "4"]
    # a shell that starts the tests in the background has SIGINT ignored, and children inherit that
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"from brain_tumor_mri.commands.main import main; sys.exit(main({[str(part) for part in line]}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not [part for part in tmp_path.glob("*.part") if part.stat().st_size > 500]:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert b"stopped after" in err and err.count(b"\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.png"], "no image could be read"),
        (["empty_folder"], "empty_folder"),
        (["*.nothing"], "*.nothing"),
        (["good.png", "--model", "none"], "none is not a model folder here"),
        (["good.png", "--batch_size", "0"], "--batch_size"),
        (["good.png", "--device", "tpu9"], "device tpu9"),
        (["good.png", "--csv", "no/such/folder.csv"], "there is no folder no/such"),
        (["good.png", "--csv", "empty_folder"], "is a folder"),
        (["--csv", "good.png", "good.png"], "has an image's name"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(
    tiny_model_dir: Path,
    slices: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
):
    monkeypatch.chdir(tmp_path)
    Path("empty_folder").mkdir()
    Path("good.png").write_bytes(slices[0].read_bytes())
    model = [] if "--model" in arguments else ["--model", str(tiny_model_dir)]
    assert cli.main(["predict", *arguments, *model]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and "Traceback" not in err
    assert Path("good.png").read_bytes() == slices[0].read_bytes()


def test_the_progress_bar_comes_after_patience_only_and_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    early = DelayedProgress(10, started=time.monotonic())
    early.advance()
    assert early.bar is None
    with DelayedProgress(10, started=time.monotonic() - 3) as late:
        late.advance()
        assert late.bar is not None and late.bar.tasks[0].completed == 1
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    piped = DelayedProgress(10, started=time.monotonic() - 3)
    piped.advance()
    assert piped.bar is None


# --- info ---


def test_info_json_answers_within_a_second_without_torch(tiny_model_dir: Path):
    code = (
        "import sys; from brain_tumor_mri.commands.main import main; "
        f"status = main(['info', '--json', '--model', {str(tiny_model_dir)!r}]); "
        "heavy = {'torch', 'transformers', 'timm', 'PIL'} & set(sys.modules); "
        "assert not heavy, heavy; sys.exit(status)"
    )
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # of the processor, which other work on this machine does not lengthen
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0, done.stderr
    assert min(times) < 1.0
    facts = json.loads(done.stdout)
    assert [label["name"] for label in facts["labels"]] == list(LABELS)
    assert facts["model"]["architecture"] == "test_resnet"
    assert facts["model"]["preprocessing"]["input_size"] == [3, 224, 224]
    assert facts["dependencies"]["torch"] and "transformers" in facts["dependencies"]


def test_info_counts_parameters_and_hashes_as_others_do(tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]):
    import hashlib

    assert cli.main(["info", "--json", "--model", str(tiny_model_dir)]) == 0
    model = json.loads(capsys.readouterr().out)["model"]
    assert model["sha256"] == hashlib.sha256((tiny_model_dir / "model.safetensors").read_bytes()).hexdigest()
    loaded = TumorClassifier.from_pretrained(tiny_model_dir).model
    assert model["parameters"] == sum(p.numel() for p in loaded.parameters())
    assert model["stored_as"] == ["F32"] and model["metrics"] is None


def test_info_repeats_the_headline_of_metrics_json(tmp_path: Path):
    from brain_tumor_mri.commands.info import headline

    file = tmp_path / "metrics.json"
    accuracy = {"value": 0.963, "low": 0.952, "high": 0.973}
    test = {"n": 1311, "accuracy": accuracy, "confusion_matrix": [[1]]}
    file.write_text(json.dumps({"protocol": "official", "splits": {"test": test}}))
    assert headline(file) == {"protocol": "official", "splits": {"test": {"n": 1311, "accuracy": accuracy}}}
    file.write_text("{}")
    assert headline(file) == {"protocol": None, "splits": {}}
    file.write_text("[1]")
    with pytest.raises(UserError, match="not a metrics file"):
        headline(file)


def test_info_without_a_model_still_answers_but_a_wrong_model_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "CLONE", tmp_path)  # as after a plain `pip install`
    assert cli.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model"] is None and "model" in facts["problem"]
    assert cli.main(["info"]) == 0
    assert "classes" in capsys.readouterr().out
    assert cli.main(["info", "--model", "none"]) == 2
    assert "none is not a model folder here" in capsys.readouterr().err


# --- the command itself ---


def test_help_lists_every_command_and_imports_none(capsys: pytest.CaptureFixture[str]):
    parser = cli.build_parser()
    assert "run" not in {action.dest for action in parser._actions}
    done = command("--help")
    assert done.returncode == 0
    for name in cli.COMMANDS:
        assert re.search(rf"^    {name}\s", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_command_tells_its_flags(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        cli.main([name, "--help"])
    told = capsys.readouterr().out
    assert "--json" in told or name in ("app", "train", "node", "ping", "decoder", "average")


def test_help_needs_no_torch():
    light = [
        name for name in cli.COMMANDS if name not in ("calibrate", "decoder", "average")
    ]  # minutes, with all of it
    code = (
        "import sys, contextlib; from brain_tumor_mri.commands.main import main\n"
        f"for name in {light!r}:\n"
        "    with contextlib.suppress(SystemExit): main([name, '--help'])\n"
        "    assert 'torch' not in sys.modules, name"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_command_or_an_unknown_one_is_exit_2_with_usage():
    for arguments in ([], ["nonsense"]):
        done = command(*arguments)
        assert done.returncode == 2 and "usage: brain-tumor-mri" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_reader_that_leaves_early_is_no_traceback(tiny_model_dir: Path):
    process = subprocess.Popen(
        [sys.executable, "-m", "brain_tumor_mri.commands.main", "info", "--json", "--model", str(tiny_model_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    err = process.stderr.read()
    process.wait(timeout=60)
    assert b"Traceback" not in err and b"Exception" not in err
