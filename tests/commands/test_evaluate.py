"""``evaluate``: every fold with its own model pooled into one figure, ensembles, and what it refuses."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from rich.markdown import Markdown

from brain_tumor_mri.commands import main as cli
from brain_tumor_mri.commands.evaluate import one_column
from brain_tumor_mri.data.tables import split_rows
from brain_tumor_mri.labels import LABELS
from brain_tumor_mri.reports.tables import markdown_table


@pytest.fixture(scope="module")
def figshare_dir(phantom_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty phantoms in the layout of the Figshare downloader: three classes, two patients a fold."""
    root = tmp_path_factory.mktemp("figshare")
    (root / "images").mkdir()
    pictures = [sorted(phantom_dir.glob(f"Training/{name}/*"))[:10] for name in ("glioma", "meningioma", "pituitary")]
    with (root / "slices.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "label", "label_name", "patient_id", "fold"])
        for label, paths in zip(("glioma", "meningioma", "pituitary"), pictures, strict=True):
            for i, path in enumerate(paths):
                number = f"{label[0]}{i}"
                Image.open(path).convert("L").save(root / "images" / f"{number}.jpg")
                writer.writerow([number, 0, label, f"patient {i % 5} {i // 5}", i % 5 + 1])
    return root


def evaluate(*flags: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = cli.main(["evaluate", *flags, "--json"])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_all_folds_pools_every_slice_once(
    tiny_model_dir: Path, figshare_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for fold in range(1, 6):
        shutil.copytree(tiny_model_dir, tmp_path / f"fold-{fold}")
    flags = ["--data_dir", str(figshare_dir), "--protocol", "figshare-5fold"]
    status, out, _ = evaluate("--model", str(tmp_path / "fold-{fold}"), "--all_folds", *flags, capsys=capsys)
    assert status == 0
    record = json.loads(out)
    test = record["splits"]["test"]
    assert record["protocol"] == "figshare-5fold, all folds"
    assert (test["n"], test["interval"]["over"]) == (30, "group")
    assert len(record["model"]["weights_sha256"]) == 5
    assert test["accuracy"]["value"] == pytest.approx(np.mean([v["value"] for v in test["accuracy_by_fold"].values()]))
    one = json.loads(evaluate("--model", str(tiny_model_dir), "--fold", "3", *flags, capsys=capsys)[1])
    assert one["splits"]["test"]["accuracy"] == test["accuracy_by_fold"]["3"]


def test_all_folds_says_what_it_needs(
    tiny_model_dir: Path, figshare_dir: Path, phantom_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(tiny_model_dir), "--all_folds"]
    status, _, error = evaluate(*model, "--data_dir", str(phantom_dir), capsys=capsys)
    assert status == 2 and "protocol with folds" in error
    figshare = ["--data_dir", str(figshare_dir), "--protocol", "figshare-5fold"]
    status, _, error = evaluate(*model, *figshare, capsys=capsys)
    assert status == 2 and "{fold}" in error


def test_an_ensemble_with_mirroring_is_evaluated_as_one_model(
    tiny_model_dir: Path, phantom_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = ["--model", str(tiny_model_dir), "--model", str(tiny_model_dir), "--mirror"]
    both = json.loads(evaluate(*twice, "--data_dir", str(phantom_dir), capsys=capsys)[1])
    assert both["model"]["architecture"] == "test_resnet + test_resnet"
    assert both["model"]["mirror"] is True
    single = ["--model", str(tiny_model_dir), "--mirror"]
    one = json.loads(evaluate(*single, "--data_dir", str(phantom_dir), capsys=capsys)[1])
    assert one["splits"]["test"]["log_loss"]["value"] == pytest.approx(
        both["splits"]["test"]["log_loss"]["value"], abs=1e-5
    )


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--batch_size", "0"], "--batch_size"),
        (["--output", "missing/x.json"], "--output missing/x.json: there is no folder missing"),
        (["--protocol", "leave-collection-out", "--collection", "a"], "give --collections_dir"),
        (["--all_collections"], "give --collections_dir"),
    ],
)
def test_wrong_flags_are_one_line_before_any_model_is_loaded(
    flags: list[str], reason: str, phantom_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status, _, error = evaluate("--model", "no-such-model", "--data_dir", str(phantom_dir), *flags, capsys=capsys)
    except SystemExit as stop:  # argparse's own check
        status, error = stop.code, capsys.readouterr().err.splitlines()[-1] + "\n"
    assert status == 2 and reason in error and error.count("\n") == 1


@pytest.fixture(scope="module")
def collections_dir(phantom_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two families of phantoms, a patient a slice; one file is no image, one is a CT."""
    root = tmp_path_factory.mktemp("collections")
    with (root / "collections.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "collection", "family", "patient", "label", "sequence", "plane", "skull_stripped"])
        for family in ("a", "b"):
            for label in ("glioma", "notumor"):
                for i, path in enumerate(sorted(phantom_dir.glob(f"Training/{label}/*"))[:6]):
                    name = f"{family}-{label}-{i}.png"
                    shutil.copyfile(path, root / name)
                    writer.writerow([name, f"{family}1", family, f"{label} {i}", label, f"t{1 + i % 2}", "axial", "0"])
        for name, label in (("broken.png", "glioma"), ("ct.png", "ct")):
            (root / name).write_bytes(b"no image")
            writer.writerow([name, "a1", "a", name, label, "t1", "axial", "0"])
    return root


@pytest.fixture(scope="module")
def listed_dir(phantom_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms under names of the published files, two a class in each of three folds of patient-disjoint."""
    root = tmp_path_factory.mktemp("listed")
    pictures = {name: sorted(phantom_dir.glob(f"Training/{name}/*")) for name in LABELS}
    for name in LABELS:
        for fold in (1, 2, 3):
            rows = [path for path, row in split_rows().items() if (row.source_label, row.fold) == (name, fold)]
            for path in (min(rows), max(rows)):
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                Image.open(pictures[name].pop()).convert("RGB").save(root / path)
    return root


def test_all_collections_asks_each_family_of_the_model_without_it_and_pools(
    tiny_model_dir: Path, collections_dir: Path, listed_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for family in ("a", "b"):
        shutil.copytree(tiny_model_dir, tmp_path / f"without-{family}")
    flags = ["--collections_dir", str(collections_dir)]
    model, output = str(tmp_path / "without-{collection}"), tmp_path / "all.json"
    status, out, _ = evaluate("--model", model, "--all_collections", *flags, "--output", str(output), capsys=capsys)
    record = json.loads(out)
    assert status == 0 and record == json.loads(output.read_text())
    assert record["protocol"] == "leave-collection-out, all families" and len(record["model"]["weights_sha256"]) == 2
    measured = record["collections"]
    assert (measured["n"], measured["by_family"]["a"]["n"], measured["by_sequence"]["t1"]["n"]) == (24, 12, 12)
    assert measured["data"]["counts"] == {name: {"glioma": 6, "notumor": 6} for name in ("a1", "b1")}
    assert [file["path"] for file in measured["data"]["unreadable"]] == ["broken.png"]
    assert str(tmp_path) not in output.read_text()

    left_out = ["--protocol", "leave-collection-out", "--collection", "a", "--data_dir", str(listed_dir)]
    status, out, error = evaluate("--model", str(tiny_model_dir), *left_out, *flags, capsys=capsys)
    assert status == 0, error
    one = json.loads(out)
    assert one["protocol"] == "leave-collection-out: a" and one["collections"]["n"] == 12
    assert one["collections"]["pooled"]["auroc"]["value"] == measured["by_family"]["a"]["auroc"]["value"]
    shutil.rmtree(tmp_path / "without-b")
    status, _, error = evaluate("--model", model, "--all_collections", *flags, capsys=capsys)
    assert status == 2 and "without-b" in error and error.count("\n") == 1


def test_only_the_measured_part_is_decoded(
    tiny_model_dir: Path, listed_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(listed_dir, tmp_path / "data")
    training = next(path for path, row in split_rows().items() if row.fold == 3 and (root / path).exists())
    (root / training).write_bytes(b"no image")
    flags = ["--model", str(tiny_model_dir), "--data_dir", str(root), "--protocol", "patient-disjoint", "--fold", "1"]
    status, out, _ = evaluate(*flags, capsys=capsys)
    assert (status, json.loads(out)["splits"]["test"]["n"]) == (0, 8)
    status, _, error = evaluate(*flags, "--split", "train", capsys=capsys)
    assert status == 2 and training in error


def test_collections_stand_in_the_printed_tables(
    tiny_model_dir: Path,
    collections_dir: Path,
    listed_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    flags = ["--model", str(tiny_model_dir), "--data_dir", str(listed_dir), "--collections_dir", str(collections_dir)]
    assert cli.main(["evaluate", *flags, "--protocol", "leave-collection-out", "--collection", "b"]) == 0
    shown = capsys.readouterr().out
    assert "further collections" in shown and "sequence t1" in shown and "weighs alike" in shown


def test_on_a_console_of_80_characters_a_table_of_one_row_stands_upright_and_no_interval_is_cut():
    row = ["a model with a long name", "patient-disjoint fold 1, test", *["94.7 % (90.9-97.4)"] * 4]
    table = markdown_table(["model", "protocol", "accuracy", "balanced accuracy", "macro F1", "AUROC"], [row])
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(Markdown(one_column(table)))
    assert console.export_text().count("94.7 % (90.9-97.4)") == 4
    assert one_column("two\n\nlines\n") == "two\n\nlines\n"
