"""No patient and no copy on two sides, except where a protocol says so; every part is reproducible."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from brain_tumor_mri.data.collections import read_collections
from brain_tumor_mri.data.folders import read_figshare_table
from brain_tumor_mri.data.protocols import (
    FOLDS,
    FoundSlice,
    ProtocolArguments,
    assign,
    leaking_share,
)
from brain_tumor_mri.data.slices import load_slices
from brain_tumor_mri.data.tables import split_rows
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.labels import LABELS

PATIENT_DISJOINT = "patient-disjoint"


def published() -> list[FoundSlice]:
    """The files of the published folders, by the versioned splits."""
    return [
        FoundSlice(path, row.source_label, "train" if path.startswith("Training") else "test")
        for path, row in split_rows().items()
    ]


def groups_by_part(slices) -> dict[str, set[str]]:
    groups: dict[str, set[str]] = {"train": set(), "validation": set(), "test": set()}
    for s in slices:
        groups[s.part].add(s.group)
    return groups


@pytest.mark.parametrize("fold", FOLDS)
def test_patient_disjoint_has_no_group_in_two_parts_and_every_class_in_each(fold):
    assignment = assign(published(), ProtocolArguments(PATIENT_DISJOINT, fold), seed=0)
    groups = groups_by_part(assignment.slices)
    assert not groups["train"] & groups["test"]
    assert not groups["train"] & groups["validation"]
    assert not groups["validation"] & groups["test"]
    assert len(assignment.slices) == 7019
    counts = Counter((s.part, s.label) for s in assignment.slices)
    assert all(counts[part, label] > 200 for part in groups for label in LABELS)


def test_the_test_folds_together_are_the_whole_set_once():
    tested = Counter(
        s.relative
        for fold in FOLDS
        for s in assign(published(), ProtocolArguments(PATIENT_DISJOINT, fold), seed=0).slices
        if s.part == "test"
    )
    assert len(tested) == 7019
    assert set(tested.values()) == {1}


def test_validation_is_the_fold_after_the_test_fold():
    rows = split_rows()
    for fold, following in ((1, 2), (5, 1)):
        slices = assign(published(), ProtocolArguments(PATIENT_DISJOINT, fold), seed=0).slices
        assert {rows[s.relative].fold for s in slices if s.part == "validation"} == {following}
        assert {rows[s.relative].fold for s in slices if s.part == "test"} == {fold}


def test_the_four_mislabelled_images_are_kept_under_official_and_corrected_under_patient_disjoint():
    four = {
        "Training/pituitary/Tr-pi_0043.jpg",
        "Training/pituitary/Tr-pi_0515.jpg",
        "Training/pituitary/Tr-pi_0520.jpg",
        "Testing/pituitary/Te-piTr_0002.jpg",
    }
    corrected = assign(published(), ProtocolArguments(PATIENT_DISJOINT), seed=0)
    assert set(corrected.corrected) == four
    assert {s.label for s in corrected.slices if s.relative in four} == {"meningioma"}
    official = assign(published(), ProtocolArguments(), seed=0)
    assert official.corrected == []
    assert {s.label for s in official.slices if s.relative in four} == {"pituitary"}


def test_official_tests_on_the_published_folder_and_holds_out_whole_groups():
    slices = assign(published(), ProtocolArguments(), seed=0).slices
    assert {s.relative for s in slices if s.part == "test"} == {f.relative for f in published() if f.split == "test"}
    groups = groups_by_part(slices)
    assert not groups["train"] & groups["validation"]
    counts = Counter((s.part, s.label) for s in slices)
    for label in LABELS:
        share = counts["validation", label] / (counts["validation", label] + counts["train", label])
        assert 0.06 < share < 0.14


def test_random_validation_leaks_and_group_validation_does_not():
    def share(random_validation: bool) -> float:
        arguments = ProtocolArguments(random_validation=random_validation)
        slices = assign(published(), arguments, seed=0).slices
        groups = {part: [s.group for s in slices if s.part == part] for part in ("train", "validation")}
        return leaking_share(groups["train"], groups["validation"])

    assert share(random_validation=False) == 0
    assert share(random_validation=True) > 0.9


def test_the_published_test_part_leaks():
    slices = assign(published(), ProtocolArguments(), seed=0).slices
    train, test = ([s.group for s in slices if (s.part == "test") == is_test] for is_test in (False, True))
    assert leaking_share(train, test) > 0.9


def test_the_validation_draw_depends_on_the_seed_alone():
    def chosen(seed: int) -> set[str]:
        slices = assign(published(), ProtocolArguments(), seed=seed).slices
        return {s.relative for s in slices if s.part == "validation"}

    assert chosen(1) == chosen(1)
    assert chosen(1) != chosen(2)


def test_files_that_a_download_lacks_or_adds_are_named_not_dropped_in_silence():
    found = [*published()[1:], FoundSlice("Training/notumor/Tr-no_1011.jpg", "notumor", "train")]
    disjoint = assign(found, ProtocolArguments(PATIENT_DISJOINT), seed=0)
    official = assign(found, ProtocolArguments(), seed=0)
    for assignment in (disjoint, official):
        assert assignment.unlisted == ["Training/notumor/Tr-no_1011.jpg"]
        assert assignment.missing == [published()[0].relative]
    assert len(disjoint.slices) == 7018
    assert len(official.slices) == 7019


def test_another_data_set_works_under_official_with_every_image_a_group_of_its_own(phantom_dir):
    data = load_slices(phantom_dir, ProtocolArguments(validation_fraction=0.25))
    assert data.assignment.unlisted == data.assignment.missing == []
    assert data.splits["train"]["group"][:] == data.splits["train"]["path"][:]
    with pytest.raises(UserError, match="--protocol official"):
        load_slices(phantom_dir, ProtocolArguments(PATIENT_DISJOINT))


@pytest.fixture
def figshare(phantom_dir: Path, tmp_path: Path) -> Path:
    """A folder as download_figshare.py writes it: five patients, three slices each, of the three tumour classes."""
    (tmp_path / "images").mkdir()
    names = ("meningioma", "glioma", "pituitary")
    with (tmp_path / "slices.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "label", "label_name", "patient_id", "fold"])
        for i in range(15):
            source = sorted((phantom_dir / "Training" / names[i % 3]).iterdir())[i // 3]
            (tmp_path / "images" / f"{i}.jpg").write_bytes(source.read_bytes())
            writer.writerow([i, i % 3 + 1, names[i % 3], f"secret-{i // 3}", i // 3 + 1])
    return tmp_path


def test_figshare_5fold_uses_the_published_folds_and_numbers_the_patients(figshare):
    data = load_slices(figshare, ProtocolArguments("figshare-5fold", fold=5))
    assert {part: len(split) for part, split in data.splits.items()} == {"train": 9, "validation": 3, "test": 3}
    assert data.splits["test"]["path"][:] == ["images/12.jpg", "images/13.jpg", "images/14.jpg"]
    assert [LABELS[i] for i in data.splits["test"]["label"]] == ["meningioma", "glioma", "pituitary"]
    assert set(data.splits["test"]["group"]) == {"p005"}
    assert set(data.splits["validation"]["group"]) == {"p001"}


def test_a_folder_without_the_figshare_table_is_refused(phantom_dir):
    with pytest.raises(UserError, match=r"slices\.csv"):
        load_slices(phantom_dir, ProtocolArguments("figshare-5fold"))


@pytest.mark.parametrize(
    ("line", "told"),
    [("a.png,one", "shorter than the first"), ("x" * 200_000 + ",one,one,glioma", "field larger"), ("\udcff", "utf-8")],
)
@pytest.mark.parametrize("read", [read_collections, read_figshare_table])
def test_a_table_that_is_damaged_is_one_line(tmp_path, read, line, told):
    head = "file,collection,family,label" if read is read_collections else "image_id,patient_id,label_name,fold"
    for name in ("collections.csv", "slices.csv"):
        (tmp_path / name).write_bytes(f"{head}\n{line}\n".encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=told if read is read_collections else r"slices\.csv: no table") as error:
        read(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.real_data
def test_the_real_figshare_folds_share_no_patient(real_data_dir):
    found = read_figshare_table(real_data_dir.parent / "figshare-brain-tumor")
    assert len(found) == 3064
    slices = assign(found, ProtocolArguments("figshare-5fold", 3), seed=0).slices
    groups = groups_by_part(slices)
    assert not groups["train"] & (groups["test"] | groups["validation"])
    assert len(set.union(*groups.values())) == 233


@pytest.mark.parametrize("wrong", [{"protocol": "random"}, {"fold": 6}, {"validation_fraction": 0}])
def test_wrong_settings_are_named(wrong):
    with pytest.raises(UserError, match=f"--{next(iter(wrong))}"):
        ProtocolArguments(**wrong)


def test_training_on_the_validation_part_holds_out_the_test_part_alone():
    kept = assign(published(), ProtocolArguments(PATIENT_DISJOINT), seed=0).slices
    slices = assign(published(), ProtocolArguments(PATIENT_DISJOINT, train_on_validation=True), seed=0).slices
    trained = Counter(s.relative for s in slices if s.part == "train")
    assert trained == Counter(s.relative for s in kept if s.part != "test")
    groups = groups_by_part(slices)
    assert not groups["train"] & groups["test"]
