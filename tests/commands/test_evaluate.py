"""``evaluate``: every fold with its own model pooled into one figure, ensembles, and what it refuses."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brain_tumor_mri.commands import main as cli


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
