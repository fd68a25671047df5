"""benchmarks/hostile: spoiled files and tampered folders come by their seed, and what ends a process is counted."""

import argparse
import itertools
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.hostile import files, kills, model_folders, page
from benchmarks.hostile.children import ask
from benchmarks.hostile.samples import mutations, whole_files
from brain_tumor_mri.images.read import load_image

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and limits memory as Linux does")

SCRIPT = """import os, sys
for line in sys.stdin:
    word = line.strip()
    if word == "dies":
        os.abort()
    if word == "waits":
        import time; time.sleep(60)
    if word == "speaks":
        sys.stderr.write("12345")
    print('{"seconds": 1, "mb": 2, "said": "%s"}' % word, flush=True)
"""


def test_what_a_process_does_not_survive_is_told_and_the_next_is_asked_of_a_new_one(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("benchmarks.hostile.children.DEADLINE", 3)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    words: list[int] = []
    found = list(ask([str(script)], map(Path, ["a", "dies", "b", "waits", "speaks"]), words))
    assert [one.get("said") for one in found] == ["a", None, "b", None, "speaks"]
    assert found[1]["ended"] == -6 and found[3]["hangs"] and sum(words) == 5 and len(words) == 3


def test_files_are_whole_before_they_are_spoiled_and_the_same_for_one_seed():
    for kind, content in whole_files(np.random.default_rng(0)).items():
        assert kind == "zip" or load_image(content).size == (96, 96)
    first, again, other = (list(itertools.islice(mutations(seed), 40)) for seed in (0, 0, 1))
    assert first == again != other


def test_spoiled_files_are_read_twice_and_a_difference_counts(tmp_path: Path, monkeypatch):
    trial = files.Trial()
    written = files._written([("PNG", whole_files(np.random.default_rng(0))["PNG"]), ("none", b"nothing")], tmp_path)
    trial.add(written)
    record = trial.to_dict()
    assert (record["pictures"], record["refused_in_a_line"], record["differ_between_readings"]) == (1, 1, 0)
    assert not record["faults"] and record["worst_memory_mb"]["mb"] > 0
    answers = iter([[{"digest": "1", "seconds": 0, "mb": 0}], [{"digest": "2", "seconds": 0, "mb": 0}]])
    monkeypatch.setattr(files, "ask", lambda *_: next(answers))
    trial.add(written[:1])
    assert trial.to_dict()["differ_between_readings"] == 1 and trial.to_dict()["faults"][0]["kind"] == "PNG"


def test_tampered_folders_answer_or_are_refused_and_code_that_runs_is_noticed(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch
):
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    (folder / "trust.json").write_text("{}")
    chosen = ("no trust.json", "other code", "weights NaN", "std: [0, 0, 0]", "a pipe as model.safetensors")
    every = model_folders.named
    monkeypatch.setattr(model_folders, "named", lambda trace: {name: every(trace)[name] for name in chosen})
    args = argparse.Namespace(model=folder, folders=2, seconds=600, seed=0)
    record = model_folders.measure(args)
    assert record["folders"] == 7 and record["answered"] == 1 and record["refused_in_a_line"] == 6
    assert not record["faults"] and not record["code_of_a_folder_ran"] and record["bytes_on_stderr"] == 0

    def runs(trace: Path) -> dict[str, model_folders.Tampering]:
        return {"runs": lambda folder: (trace.touch(), (folder / "trust.json").unlink())}

    monkeypatch.setattr(model_folders, "named", runs)
    assert model_folders.measure(argparse.Namespace(**vars(args) | {"folders": 0}))["code_of_a_folder_ran"]


def test_a_part_of_the_visit_that_does_not_end_in_its_time_is_told_and_shown():
    assert page.within(5, lambda: {"found": 1}) == {"found": 1}
    stuck = page.within(0.2, lambda: time.sleep(30))
    record = dict.fromkeys(("files", "names", "uploads", "slow", "kill"), stuck)
    rows = page.summary(record | {"log": {"tracebacks": 0, "names_of_files": 0}})
    assert rows[0] == ["files", "did not end in 0.2 s", "-"] and len(rows) == 6


def test_a_killed_training_ends_in_the_weights_of_one_that_was_not():
    record = kills.measure(argparse.Namespace(kills=2, seconds=600, seed=0))
    assert record["two_uninterrupted_runs_agree"]
    assert record["kills"] == record["ended_in_the_same_weights"] == 2 and record["with_leftovers"] == 0
