"""Tracing, grouping and folds: mechanics on synthetic slices, and the split files as they are committed."""

import csv
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from brain_tumor_mri.audit import copies as duplicates
from brain_tumor_mri.labels import LABELS
from data_scripts import make_splits
from data_scripts import make_splits as provenance
from tests.audit.test_audit import scan

SPLITS = Path(__file__).parents[2] / "brain_tumor_mri" / "data" / "splits"


def read(name: str) -> list[dict[str, str]]:
    with (SPLITS / name).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def two_sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Six slices of three patients, and a Kaggle-like set made of them and of images from elsewhere."""
    root = tmp_path_factory.mktemp("provenance")
    figshare, kaggle = root / "figshare", root / "kaggle"
    (figshare / "images").mkdir(parents=True)
    patients = {1: "77", 2: "77", 3: "MR5", 4: "MR5", 5: "9", 6: "9"}
    labels = {1: "glioma", 2: "glioma", 3: "meningioma", 4: "meningioma", 5: "pituitary", 6: "pituitary"}
    with (figshare / "slices.csv").open("w") as file:
        file.write("image_id,label,label_name,patient_id,fold\n")
        for n, patient in patients.items():
            file.write(f"{n},0,{labels[n]},{patient},{(n + 1) // 2 + 1}\n")
    for n in patients:
        scan(n).resize((512, 512)).save(figshare / "images" / f"{n}.jpg")
    for part in ("Training", "Testing"):
        for label in LABELS:
            (kaggle / part / label).mkdir(parents=True)
    scan(1).save(kaggle / "Training" / "glioma" / "a.jpg")
    ImageOps.mirror(scan(2)).save(kaggle / "Testing" / "glioma" / "b.jpg")
    scan(3).save(kaggle / "Training" / "pituitary" / "wrong.jpg")  # the source says meningioma
    scan(5).save(kaggle / "Training" / "pituitary" / "c.jpg")
    for n in range(50, 62):
        scan(n).save(kaggle / "Training" / "notumor" / f"n{n}.jpg")
    scan(50).rotate(180).save(kaggle / "Testing" / "notumor" / "n50_turned.jpg")
    scan(51).save(kaggle / "Testing" / "notumor" / "n51_again.jpg")
    return kaggle, figshare


@pytest.fixture(scope="module")
def splits(two_sets: tuple[Path, Path]) -> provenance.Splits:
    return provenance.make_splits(*two_sets)


def test_files_are_traced_with_mirroring(splits: provenance.Splits) -> None:
    traced = {row["path"]: (row["figshare_id"], row["mirrored"], row["group"]) for row in splits.provenance}
    assert traced["Training/glioma/a.jpg"] == ("1", "false", "p001")
    assert traced["Testing/glioma/b.jpg"] == ("2", "true", "p001")
    assert traced["Training/pituitary/wrong.jpg"] == ("3", "false", "p002")
    assert traced["Training/notumor/n50.jpg"][:2] == ("", "")


def test_traced_patients_keep_their_published_fold(splits: provenance.Splits) -> None:
    folds = {row["path"]: row["fold"] for row in splits.patient_disjoint}
    assert folds["Training/glioma/a.jpg"] == folds["Testing/glioma/b.jpg"] == "2"
    assert folds["Training/pituitary/wrong.jpg"] == "3"
    assert folds["Training/pituitary/c.jpg"] == "4"


def test_label_is_the_sources_and_the_folder_is_kept(splits: provenance.Splits) -> None:
    row = next(row for row in splits.patient_disjoint if row["path"].endswith("wrong.jpg"))
    assert (row["label"], row["source_label"]) == ("meningioma", "pituitary")
    assert [entry["path"] for entry in splits.counts["corrected_labels"]] == ["Training/pituitary/wrong.jpg"]


def test_untraced_copies_share_a_group_and_a_fold(splits: provenance.Splits) -> None:
    rows = {row["path"]: row for row in splits.patient_disjoint}
    for one, other in (("n50", "n50_turned"), ("n51", "n51_again")):
        a, b = rows[f"Training/notumor/{one}.jpg"], rows[f"Testing/notumor/{other}.jpg"]
        assert a["group"] == b["group"] and a["group"].startswith("n") and a["fold"] == b["fold"]
    sizes = Counter(row["fold"] for row in rows.values() if row["label"] == "notumor")
    assert len(sizes) == 5 and max(sizes.values()) - min(sizes.values()) <= 1
    assert splits.counts["near_copies_across_folds"] == 0


def test_patient_ids_are_not_written(splits: provenance.Splits) -> None:
    groups = {row["group"] for row in splits.provenance}
    assert all(group[0] in "pn" and group[1:].isdigit() for group in groups)
    assert "MR5" not in json.dumps([splits.provenance, splits.patient_disjoint, splits.counts])


def test_same_seed_gives_the_same_splits(two_sets: tuple[Path, Path], splits: provenance.Splits) -> None:
    assert provenance.make_splits(*two_sets).patient_disjoint == splits.patient_disjoint


def test_near_copies_join_groups_and_the_larger_part_decides_the_fold() -> None:
    patients = np.array([0, 0, 1, -1, -1])
    pairs = duplicates.CopyPairs(
        np.array([1, 2, 0]),
        np.array([3, 3, 2]),
        np.zeros(3, np.uint8),
        np.array([0.98, 0.995, 0.98], np.float32),
        np.zeros((3, 8), np.float32),
    )
    assert provenance.group_images(patients, pairs).tolist() == [0, 0, 0, 0, 1]
    # Two known patients are not joined below the score of a copy.
    assert provenance.group_images(patients, pairs.select(np.array([True, False, True]))).tolist() == [0, 0, 1, 0, 2]


def test_folds_are_balanced_around_groups_that_have_one() -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(200), rng.integers(1, 9, 200))
    classes = (groups % 3).astype(np.int64)
    fixed = {int(g): 1 + int(g) % 2 for g in range(40)}
    folds = provenance.assign_folds(groups, classes, fixed)
    assert all(folds[g] == fold for g, fold in fixed.items()) and set(folds) == set(range(200))
    for c in range(3):
        sizes = Counter(folds[int(g)] for g in groups[classes == c])
        assert max(sizes.values()) - min(sizes.values()) <= 4


@pytest.mark.parametrize("missing", ["kaggle", "figshare", "layout"])
def test_wrong_folders_are_one_line_and_exit_2(
    two_sets: tuple[Path, Path], tmp_path: Path, capsys, missing: str
) -> None:
    kaggle, figshare = two_sets
    if missing == "kaggle":
        kaggle = tmp_path / "nowhere"
    elif missing == "figshare":
        figshare = tmp_path
    else:
        kaggle = kaggle / "Training"
    command = ["--kaggle_dir", str(kaggle), "--figshare_dir", str(figshare), "--output_dir", str(tmp_path / "o")]
    assert make_splits.main(command) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_command_writes_tables_and_counts(two_sets: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    kaggle, figshare = two_sets
    command = ["--kaggle_dir", str(kaggle), "--figshare_dir", str(figshare), "--output_dir", str(tmp_path), "--json"]
    assert make_splits.main(command) == 0
    assert json.loads(capsys.readouterr().out)["traced"] == 4
    assert {path.name for path in tmp_path.iterdir()} == {"provenance.csv", "patient_disjoint.csv", "counts.json"}


def test_the_external_split_and_its_counts_stay_when_only_the_others_are_made_anew(
    two_sets: tuple[Path, Path], tmp_path: Path
) -> None:
    kaggle, figshare = two_sets
    external, output = tmp_path / "br35h", tmp_path / "splits"
    (external / "images").mkdir(parents=True)
    for n in range(80, 90):
        scan(n).save(external / "images" / f"y{n}.jpg")
    command = ["--kaggle_dir", str(kaggle), "--figshare_dir", str(figshare), "--output_dir", str(output)]
    assert make_splits.main([*command, "--external_dir", str(external)]) == 0
    before = {path.name: path.read_text() for path in output.iterdir()}
    assert json.loads(before["counts.json"])["external"]["images"]["test"] == 5
    assert make_splits.main(command) == 0
    assert {path.name: path.read_text() for path in output.iterdir()} == before


def test_committed_splits_have_no_group_in_two_folds() -> None:
    folds: dict[str, set[str]] = defaultdict(set)
    for row in read("patient_disjoint.csv"):
        folds[row["group"]].add(row["fold"])
    assert all(len(found) == 1 for found in folds.values())


def test_committed_splits_have_every_path_once_and_agree() -> None:
    disjoint, traced = read("patient_disjoint.csv"), read("provenance.csv")
    paths = [row["path"] for row in disjoint]
    assert len(paths) == len(set(paths)) == 7019
    assert [(r["path"], r["group"]) for r in traced] == [(r["path"], r["group"]) for r in disjoint]
    assert {row["fold"] for row in disjoint} == set("12345")
    assert all(row["path"].split("/")[1] == row["source_label"] for row in disjoint)


def test_committed_splits_keep_one_slice_and_one_patient_together() -> None:
    by_slice: dict[str, set[str]] = defaultdict(set)
    for row in read("provenance.csv"):
        if row["figshare_id"]:
            by_slice[row["figshare_id"]].add(row["group"])
            assert float(row["score"]) > provenance.TRACE_CORRELATION
    assert len(by_slice) == 3064 and all(len(groups) == 1 for groups in by_slice.values())


def test_committed_folds_are_of_like_size() -> None:
    rows = read("patient_disjoint.csv")
    for label in LABELS:
        sizes = Counter(row["fold"] for row in rows if row["label"] == label)
        mean = sum(sizes.values()) / 5
        # Gliomas are nearly all of patients whose fold is published, and those folds differ in size.
        assert all(abs(size - mean) / mean < 0.25 for size in sizes.values())


def test_committed_splits_correct_the_four_mislabelled_images() -> None:
    changed = {row["path"]: row for row in read("patient_disjoint.csv") if row["label"] != row["source_label"]}
    assert set(changed) == {
        "Training/pituitary/Tr-pi_0043.jpg",
        "Training/pituitary/Tr-pi_0515.jpg",
        "Training/pituitary/Tr-pi_0520.jpg",
        "Testing/pituitary/Te-piTr_0002.jpg",
    }
    assert all((r["label"], r["source_label"]) == ("meningioma", "pituitary") for r in changed.values())


def test_committed_counts_are_those_of_the_datas_readme() -> None:
    counts = json.loads((SPLITS / "counts.json").read_text())
    assert (counts["traced"], counts["tumour_images"]) == (4750, 5023)
    assert (counts["slices_found_mirrored"], counts["slices_found_unmirrored"]) == (3064, 1665)
    assert (counts["test_traced"], counts["test_traced_of_training_patients"]) == (788, 788)
    assert counts["near_copies_across_folds"] == 0


@pytest.mark.real_data
def test_audit_finds_no_copy_across_the_committed_folds() -> None:
    data = Path(__file__).parents[3] / "shared" / "data" / "brain-tumor-mri-dataset"
    if not data.is_dir():
        pytest.skip(f"{data} is not there")
    rows = read("patient_disjoint.csv")
    images = [Image.open(data / row["path"]) for row in rows]
    thumbnails = np.stack([duplicates.thumbnail(image) for image in images])
    distinct, content = np.unique(thumbnails.reshape(len(rows), -1), axis=0, return_inverse=True)
    pairs = duplicates.find_copies(distinct.reshape(-1, 64, 64))
    fold = np.zeros(len(distinct), int)
    folds = np.array([int(row["fold"]) for row in rows])
    fold[content] = folds
    assert np.array_equal(fold[content], folds)  # the same picture is never in two folds
    assert np.array_equal(fold[pairs.first], fold[pairs.second])
