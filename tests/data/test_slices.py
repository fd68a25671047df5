"""The Kaggle folders load into the right splits and labels, and what is wrong with them is found first."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from brain_tumor_mri.data.protocols import ProtocolArguments
from brain_tumor_mri.data.slices import load_slices, resolve_class_weights
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.labels import LABELS

QUARTER = ProtocolArguments(validation_fraction=0.25)


@pytest.fixture
def folders(phantom_dir: Path, tmp_path: Path) -> Path:
    """A private copy of the phantoms, to damage."""
    return shutil.copytree(phantom_dir, tmp_path / "slices")


def test_training_and_testing_become_train_validation_and_test(folders):
    splits = load_slices(folders, QUARTER, seed=1).splits
    assert {name: len(split) for name, split in splits.items()} == {"train": 36, "validation": 12, "test": 16}
    assert all(path.startswith("Testing/") for path in splits["test"]["path"])
    train, validation = set(splits["train"]["path"]), set(splits["validation"]["path"])
    assert not train & validation
    assert all(path.startswith("Training/") for path in train | validation)


def test_every_image_has_the_label_of_its_folder_and_stays_with_its_path(folders):
    for split in load_slices(folders).splits.values():
        assert split.features["label"].names == list(LABELS)
        for row in split:
            assert row["path"].split("/")[1] == LABELS[row["label"]]
            with Image.open(folders / row["path"]) as expected:
                assert row["image"].tobytes() == expected.tobytes()


def test_validation_is_stratified_and_depends_on_the_seed_alone(folders):
    def chosen(seed: int) -> list[str]:
        data = load_slices(folders, QUARTER, seed=seed)
        assert set(data.counts()["validation"].values()) == {3}
        return sorted(data.splits["validation"]["path"])

    assert chosen(1) == chosen(1)
    assert chosen(1) != chosen(2)


def test_sartaj_folder_names_map_to_the_same_labels(folders):
    for split in ("Training", "Testing"):
        for label in LABELS:
            new = "no_tumor" if label == "notumor" else f"{label}_tumor"
            (folders / split / label).rename(folders / split / new)
    data = load_slices(folders)
    assert data.counts()["test"] == dict.fromkeys(LABELS, 4)
    assert data.splits["test"].features["label"].names == list(LABELS)


def test_hidden_files_and_folders_are_ignored(folders):
    before = load_slices(folders)
    for hidden in (folders / ".ipynb_checkpoints", folders / "Training/glioma/.ipynb_checkpoints"):
        hidden.mkdir()
        (hidden / "copy.png").write_bytes(b"not an image")
    (folders / "Training/glioma/.DS_Store").write_bytes(b"x")
    after = load_slices(folders)
    assert after.counts() == before.counts()
    assert after.fingerprint == before.fingerprint


def test_bad_files_are_counted_and_the_first_ten_named_in_one_line(folders):
    for number in range(12):
        (folders / f"Training/glioma/bad-{number:02}.jpg").write_bytes(b"")
    (folders / "Testing/pituitary/notes.txt").write_text("hello")
    with pytest.raises(UserError) as error:
        load_slices(folders)
    message = str(error.value)
    assert "13 files cannot be used" in message
    assert "and 3 more" in message
    assert "--skip_unreadable" in message
    assert message.count("bad-") + message.count("notes.txt") == 10
    assert "\n" not in message


def test_skip_unreadable_leaves_bad_files_out_and_lists_them(folders):
    victim = folders / "Training/meningioma" / sorted(p.name for p in (folders / "Training/meningioma").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:100])
    (folders / "Testing/pituitary/notes.txt").write_text("hello")
    data = load_slices(folders, skip_unreadable=True)
    assert {file.path for file in data.skipped} == {
        f"Training/meningioma/{victim.name}",
        "Testing/pituitary/notes.txt",
    }
    assert all(file.reason for file in data.skipped)
    assert sum(sum(c.values()) for c in data.counts().values()) == 4 * 16 - 1


@pytest.mark.parametrize("missing", ["Training", "Testing", "Training/glioma", "Testing/notumor"])
def test_a_missing_folder_is_named(folders, missing):
    shutil.rmtree(folders / missing)
    with pytest.raises(UserError, match=missing.split("/")[-1]):
        load_slices(folders)


def test_an_empty_split_an_empty_class_and_an_unknown_class_are_named(folders):
    (folders / "Training/glioma_grade_4").mkdir()
    with pytest.raises(UserError, match="glioma_grade_4"):
        load_slices(folders)
    (folders / "Training/glioma_grade_4").rmdir()
    for path in (folders / "Testing/glioma").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="Testing: no images of glioma"):
        load_slices(folders)
    for path in folders.glob("Testing/*/*"):
        path.unlink()
    with pytest.raises(UserError, match="Testing: holds no images"):
        load_slices(folders)


@pytest.mark.parametrize("name", ["Validation", "valid", "val"])
def test_a_validation_folder_is_the_validation_part(folders, name):
    for label in LABELS:
        (folders / name / label).mkdir(parents=True)
        for path in sorted((folders / "Training" / label).iterdir())[:2]:
            path.rename(folders / name / label / path.name)
    data = load_slices(folders, QUARTER)
    assert data.counts()["validation"] == dict.fromkeys(LABELS, 2)
    assert data.counts()["train"] == dict.fromkeys(LABELS, 10)
    assert all(path.startswith(f"{name}/") for path in data.splits["validation"]["path"])


@pytest.mark.parametrize(("first", "second"), [("Training", "train"), ("Testing", "test")])
def test_two_folders_for_one_part_are_named_and_none_is_taken(folders, first, second):
    shutil.copytree(folders / first, folders / second)
    with pytest.raises(UserError, match=f"holds {first}/ and {second}/|holds {second}/ and {first}/"):
        load_slices(folders)


def test_links_to_blobs_without_suffix_as_in_the_hubs_cache_load_as_files(folders, tmp_path):
    plain = load_slices(folders)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(folders.glob("*/*/*.png"))):
        path.rename(blobs / f"{number:040x}")
        path.symlink_to(blobs / f"{number:040x}")
    linked = load_slices(folders)
    assert linked.counts() == plain.counts() and linked.fingerprint == plain.fingerprint
    assert linked.splits["test"][0]["image"].tobytes() == plain.splits["test"][0]["image"].tobytes()


@pytest.mark.parametrize("name", ["a[1]", "b::c", "$HOME", "d*e?", "{f,g}", "h i#j%20", "~k"])
def test_names_that_look_like_patterns_are_names(folders, name):
    counts = load_slices(folders).counts()
    path = next((folders / "Training/glioma").iterdir())
    path.rename(path.with_name(f"{name}.png"))
    moved = folders.rename(folders.parent / name)
    data = load_slices(moved)
    assert data.counts() == counts
    assert f"Training/glioma/{name}.png" in [*data.splits["train"]["path"], *data.splits["validation"]["path"]]


@pytest.mark.skipif(sys.platform != "linux", reason="only here may a file name be any bytes")
def test_a_name_that_is_no_utf8_is_named_and_the_others_load(folders):
    path = next((folders / "Training/glioma").iterdir())
    os.rename(path, os.path.join(os.fsencode(path.parent), b"sl\xffice.png"))
    data = load_slices(folders, skip_unreadable=True)
    assert sum(sum(part.values()) for part in data.counts().values()) == 4 * 16 - 1
    assert any("UTF-8" in file.reason for file in data.skipped)


def test_fingerprint_follows_content_and_names(folders):
    before = load_slices(folders).fingerprint
    path = next((folders / "Training/glioma").iterdir())
    path.rename(path.with_name("renamed.png"))
    renamed = load_slices(folders).fingerprint
    with Image.open(folders / "Training/glioma/renamed.png") as image:
        image.rotate(90).save(folders / "Training/glioma/renamed.png")
    assert len({before, renamed, load_slices(folders).fingerprint}) == 3


def test_class_weights_are_n_over_n_c_as_the_source_gives_them():
    published = [0] * 1321 + [1] * 1339 + [2] * 1595 + [3] * 1457
    assert [round(w, 2) for w in resolve_class_weights("inverse", published)] == [4.32, 4.27, 3.58, 3.92]
    assert resolve_class_weights("none", published) is None
    assert resolve_class_weights("1,2,0.5,4", published) == [1.0, 2.0, 0.5, 4.0]


@pytest.mark.parametrize("setting", ["1,2,3", "a,b,c,d", "1,2,3,-4", "inf,1,1,1", "balanced"])
def test_wrong_class_weights_are_refused(setting):
    with pytest.raises(UserError, match="--class_weights"):
        resolve_class_weights(setting, [0, 1, 2, 3])


@pytest.mark.real_data
def test_the_published_folders_hold_5708_and_1311_images_here(real_data_dir):
    """imagefolder's own reading of this layout puts all 7,019 into one split."""
    counts = load_slices(real_data_dir, ProtocolArguments(random_validation=True)).counts()
    train = {label: counts["train"][label] + counts["validation"][label] for label in LABELS}
    assert train == {"glioma": 1321, "meningioma": 1339, "notumor": 1591, "pituitary": 1457}
    assert counts["test"] == {"glioma": 300, "meningioma": 306, "notumor": 405, "pituitary": 300}
    assert sum(train.values()) == 5708
    assert sum(counts["validation"].values()) == 571
