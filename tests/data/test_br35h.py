"""Tumours of another collection: their split as committed, their loading, and the figures of the external protocol."""

import csv
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from brain_tumor_mri.commands import main as cli
from brain_tumor_mri.data import br35h as external
from brain_tumor_mri.data import tables
from brain_tumor_mri.data.slices import load_slices, with_slices
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.evaluation.metrics import external_figures
from brain_tumor_mri.labels import ANY_TUMOR, LABELS
from data_scripts.make_phantoms import write_phantoms
from data_scripts.make_splits import make_external_split
from tests.audit.test_audit import scan

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tumours_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic slices under names that the versioned split knows: 12 to train, 4 to validate, 8 to test."""
    root = tmp_path_factory.mktemp("external")
    phantoms = root / "phantoms"
    write_phantoms(phantoms, 8, 1, seed=7, size=96)
    (root / "images").mkdir()
    pictures = iter(sorted(phantoms.glob("Training/[gmp]*/*.png")))
    for part, count in (("train", 12), ("validation", 4), ("test", 8)):
        paths = [path for path, row in tables.external_rows().items() if row.part == part][:count]
        for path in paths:
            Image.open(next(pictures)).convert("L").save(root / path)
    return root


def test_the_committed_split_keeps_near_copies_together_and_copies_of_kaggle_images_out() -> None:
    with tables.BR35H_FILE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    parts = {row["group"]: {r["part"] for r in rows if r["group"] == row["group"]} for row in rows}
    assert all(len(found) == 1 for found in parts.values())
    counts = json.loads((ROOT / "brain_tumor_mri/data/splits/counts.json").read_text())["external"]["images"]
    assert Counter(row["part"] for row in rows) == counts
    assert len(rows) == 500
    free = 500 - counts["in-kaggle"]
    assert counts["test"] == pytest.approx(free / 2, abs=3)
    assert counts["validation"] == pytest.approx(free / 10, abs=3)


def test_a_split_is_made_by_groups_and_leaves_out_what_the_kaggle_set_holds(tmp_path: Path) -> None:
    ours, kaggle = tmp_path / "br35h" / "images", tmp_path / "kaggle" / "Training" / "glioma"
    ours.mkdir(parents=True)
    kaggle.mkdir(parents=True)
    for n in range(20):
        scan(n).save(ours / f"y{n}.png")
    scan(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(ours / "y0-mirrored.png")
    scan(19).save(kaggle / "copy.jpg")
    scan(40).save(kaggle / "other.jpg")
    rows = {row["path"]: row for row in make_external_split(ours.parent, kaggle.parents[1])}
    assert rows["images/y0.png"]["group"] == rows["images/y0-mirrored.png"]["group"]
    assert rows["images/y0.png"]["part"] == rows["images/y0-mirrored.png"]["part"]
    assert [path for path, row in rows.items() if row["part"] == tables.IN_KAGGLE] == ["images/y19.png"]
    assert Counter(row["part"] for row in rows.values())["test"] == 10


def test_tumours_of_unknown_type_join_the_training_part(phantom_dir: Path, tumours_dir: Path) -> None:
    splits = load_slices(phantom_dir).splits
    tumours = external.load_external(tumours_dir)
    assert {part: len(split) for part, split in tumours.items()} == {"train": 12, "validation": 4, "test": 8}
    joined = with_slices(splits["train"], tumours["train"], repeats=3)
    assert len(joined) == len(splits["train"]) + 36
    assert joined["label"][: len(splits["train"])] == splits["train"]["label"][:]
    assert set(joined["label"][len(splits["train"]) :]) == {ANY_TUMOR}
    assert joined[len(joined) - 1]["image"].size == (96, 96)


def test_a_folder_without_the_tumours_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--external_dir"):
        external.load_external(tmp_path)


def answers(p_notumor: list[float]) -> np.ndarray:
    """Probabilities (N, 4) with the given share for notumor and the rest on glioma."""
    rows = np.zeros((len(p_notumor), 4))
    rows[:, 2], rows[:, 0] = p_notumor, 1 - np.asarray(p_notumor)
    return rows


def test_the_figures_are_those_counted_by_hand() -> None:
    healthy = answers([0.1] + [0.9] * 19)  # one of twenty is called a tumour: 95 % specificity
    tumours = answers([0.05, 0.3, 0.6, 0.95])
    figures = external_figures(
        tumours,
        healthy,
        tumour_groups=list("abcd"),
        healthy_groups=[str(i) for i in range(20)],
        validation_healthy=answers([0.2, 0.8]),
        n_resamples=200,
    )
    assert figures["sensitivity"]["value"] == 0.5
    assert figures["specificity"]["value"] == 0.95
    assert figures["sensitivity_at_95_specificity"]["value"] == 0.75  # all with less than 0.9 for notumor
    scores = 1 - np.r_[tumours[:, 2], healthy[:, 2]]
    assert figures["auroc"]["value"] == pytest.approx(roc_auc_score([1] * 4 + [0] * 20, scores))
    chosen = figures["validation_threshold"]
    assert chosen["threshold"] == pytest.approx(0.8)
    assert (chosen["sensitivity"]["value"], chosen["specificity"]["value"]) == (0.25, 0.95)


def test_intervals_are_drawn_over_groups() -> None:
    tumours, healthy = answers([0.1] * 30 + [0.9] * 30), answers([0.9] * 50)
    options = {"healthy_groups": [str(i) for i in range(50)], "n_resamples": 500}
    single = external_figures(tumours, healthy, tumour_groups=[str(i) for i in range(60)], **options)
    grouped = external_figures(tumours, healthy, tumour_groups=["a"] * 30 + ["b"] * 30, **options)
    width = [f["sensitivity"]["high"] - f["sensitivity"]["low"] for f in (single, grouped)]
    assert width[1] > 2 * width[0]


def test_training_with_them_measures_them_and_external_alone_is_no_protocol_to_train(
    phantom_dir: Path, tumours_dir: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "train.py",
        "configs/smoke.yaml",
        "--data_dir",
        str(phantom_dir),
        "--disable_tqdm",
        "true",
    ]
    small = ["--num_train_epochs", "1", "--image_size", "64", "--external_dir", str(tumours_dir)]
    output = tmp_path / "run"
    done = subprocess.run(
        [*command, *small, "--output_dir", str(output)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((output / "metrics.json").read_text())
    assert record["config"]["external_dir"] == tumours_dir.name
    assert record["external"]["n_tumour"] == 8
    assert record["external"]["n_notumor"] == record["splits"]["test"]["per_class"]["notumor"]["support"]
    state = json.loads(next(output.glob("checkpoint-*/trainer_state.json")).read_text())
    assert "eval_tumours_found" in state["log_history"][-1]

    refused = subprocess.run(
        [*command, "--protocol", "external", "--output_dir", str(tmp_path / "no")],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "--external_dir" in refused.stderr and "Traceback" not in refused.stderr


def test_evaluate_measures_the_external_protocol(
    phantom_dir: Path, tumours_dir: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--model", str(tiny_model_dir), "--data_dir", str(phantom_dir)]
    assert cli.main([*command, "--external_dir", str(tumours_dir), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["splits"]["test"]["n"] == 4 * len(LABELS)
    assert 0 <= record["external"]["sensitivity"]["value"] <= 1
    assert cli.main([*command, "--protocol", "external"]) == 2
    assert "--external_dir" in capsys.readouterr().err
