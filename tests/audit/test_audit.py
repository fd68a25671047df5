"""The audit: mechanics on synthetic slices, and the counts of the real data set where it is at hand."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter

from brain_tumor_mri.audit import copies as duplicates
from brain_tumor_mri.audit.report import audit as audit_folder
from brain_tumor_mri.commands.main import main


def scan(seed: int, size: int = 160) -> Image.Image:
    """A smooth, asymmetric texture inside an ellipse: no two seeds are alike, and no orientation like another."""
    rng, texture = np.random.default_rng(seed), np.zeros((size, size))
    for width in (2, 5, 11):
        blurred = gaussian_filter(rng.normal(size=(size, size)), width)
        texture += blurred / blurred.std()
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    head = (x / 0.8) ** 2 + (y / 0.9) ** 2 < 1
    return Image.fromarray(np.where(head, np.clip(110 + 30 * texture, 20, 250), 0).astype(np.uint8))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(io.BytesIO(data.getvalue()))


def save(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


CHANGES = {
    "recompressed": (lambda im: jpeg(im, 50), "as is"),
    "smaller": (lambda im: im.resize((96, 96)), "as is"),
    "not square": (lambda im: im.resize((200, 120)), "as is"),
    "darker": (lambda im: ImageEnhance.Brightness(im).enhance(0.6), "as is"),
    "brighter": (lambda im: ImageEnhance.Brightness(im).enhance(1.3), "as is"),
    "more contrast": (lambda im: ImageEnhance.Contrast(im).enhance(1.4), "as is"),
    "gamma": (lambda im: im.point([round(255 * (v / 255) ** 1.4) for v in range(256)]), "as is"),
    "mirrored": (lambda im: im.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "mirrored"),
    "upside down": (lambda im: im.transpose(Image.Transpose.FLIP_TOP_BOTTOM), "upside down"),
    "half a turn": (lambda im: im.transpose(Image.Transpose.ROTATE_180), "turned 180"),
    # Pillow turns counterclockwise, and the table names what turns the copy back
    "a quarter turn": (lambda im: im.transpose(Image.Transpose.ROTATE_90), "turned 90 clockwise"),
    "three quarter turns": (lambda im: im.transpose(Image.Transpose.ROTATE_270), "turned 90 counterclockwise"),
    "transposed": (lambda im: im.transpose(Image.Transpose.TRANSPOSE), "transposed"),
    "transversed": (lambda im: im.transpose(Image.Transpose.TRANSVERSE), "anti-transposed"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_kind_of_copy_is_found_with_what_was_done_to_it(change: str) -> None:
    apply, orientation = CHANGES[change]
    images = [scan(1), scan(2), apply(scan(1)), scan(3)]
    pairs = duplicates.find_copies(np.stack([duplicates.thumbnail(image) for image in images]))
    assert list(zip(pairs.first, pairs.second, strict=True)) == [(0, 2)]
    assert duplicates.ORIENTATIONS[pairs.orientation[0]] == orientation
    assert pairs.score[0] >= duplicates.COPY_SCORE


def test_search_by_invariants_finds_every_pair_that_brute_force_finds() -> None:
    rng = np.random.default_rng(0)
    bases = [scan(seed) for seed in range(12)]
    images = [duplicates.thumbnail(image) for image in bases]
    for strength in (5, 15, 25, 40):
        noisy = [np.asarray(b, float) + rng.normal(0, strength, (160, 160)) for b in bases]
        turned = [np.clip(duplicates.orient(n, int(rng.integers(8))), 0, 255).astype(np.uint8) for n in noisy]
        images += [duplicates.thumbnail(Image.fromarray(np.ascontiguousarray(t))) for t in turned]
    thumbnails = np.stack(images)
    pooled = thumbnails.reshape(-1, 32, 2, 32, 2).mean(axis=(2, 4))
    upright = duplicates.normalise(pooled)
    best = np.max([upright @ duplicates.normalise(duplicates.orient(pooled, o)).T for o in range(8)], axis=0)
    for threshold in (0.9, 0.96, 0.99):
        found = duplicates.find_copies(thumbnails, min_score=0, min_correlation=threshold)
        expected = set(zip(*np.nonzero(np.triu(best >= threshold + 1e-5, 1)), strict=True))
        assert expected <= set(zip(found.first, found.second, strict=True))
        assert np.all(found.correlation.max(axis=1) >= threshold)


def test_correlations_match_turned_images() -> None:
    thumbnails = np.stack([duplicates.thumbnail(scan(seed)) for seed in range(4)])
    pooled = thumbnails.reshape(-1, 32, 2, 32, 2).mean(axis=(2, 4))
    first, second = np.array([0, 1, 2]), np.array([1, 3, 2])
    expected = [
        (duplicates.normalise(pooled[first]) * duplicates.normalise(duplicates.orient(pooled[second], o))).sum(axis=1)
        for o in range(8)
    ]
    measured = duplicates.correlations(duplicates.spectra(thumbnails), first, second)
    np.testing.assert_allclose(measured, np.transpose(expected), atol=1e-5)


def test_blank_images_are_nobodys_copies() -> None:
    blank = [Image.new("L", (64, 64), value) for value in (0, 0, 128)]
    pairs = duplicates.find_copies(np.stack([duplicates.thumbnail(image) for image in [*blank, scan(1)]]))
    assert len(pairs) == 0
    assert len(duplicates.find_copies(np.stack([duplicates.thumbnail(image) for image in blank]))) == 0


def test_groups_follow_pairs_of_pairs_and_count_by_appearance() -> None:
    groups = duplicates.connected_groups(6, np.array([4, 1]), np.array([5, 4]))
    assert groups.tolist() == [0, 1, 2, 3, 1, 1]


@pytest.fixture
def leaky(tmp_path: Path) -> Path:
    """Training/Testing with one identical file, one mirrored copy, one conflict, one bad file, one hidden folder."""
    root = tmp_path / "data"
    for n in range(4):
        save(scan(n), root / "Training" / "glioma" / f"g{n}.png")
        save(scan(10 + n), root / "Training" / "notumor" / f"n{n}.png")
    save(scan(20), root / "Testing" / "glioma" / "new.png")
    save(scan(0), root / "Testing" / "glioma" / "same_file.png")
    save(scan(1).transpose(Image.Transpose.FLIP_LEFT_RIGHT), root / "Testing" / "glioma" / "mirror.png")
    save(scan(10).convert("RGB"), root / "Testing" / "notumor" / "same_pixels.bmp")
    save(jpeg(scan(2), 60), root / "Testing" / "notumor" / "conflict.png")
    (root / "Testing" / "notumor" / "bad.jpg").write_bytes(b"no image")
    save(scan(0), root / ".cache" / "hidden.png")
    save(scan(0), root / "Training" / ".thumbs" / "hidden.png")
    return root


def test_audit_counts_copies_across_splits_by_kind_and_class(leaky: Path) -> None:
    report = audit_folder(leaky).report
    assert report["images"] == 13
    assert [bad["path"] for bad in report["bad_files"]] == ["Testing/notumor/bad.jpg"]
    assert report["splits"] == {"Testing": {"glioma": 3, "notumor": 2}, "Training": {"glioma": 4, "notumor": 4}}
    leak = next(leak for leak in report["across_splits"] if leak["split"] == "Testing")
    assert (leak["with_copy"], leak["images"], leak["copy_in"]) == (4, 5, "Training")
    assert leak["by_kind"] == {"same file": 1, "same pixels": 1, "near-copy": 1, "mirrored": 1, "turned": 0}
    assert leak["by_class"] == {"glioma": 2, "notumor": 2}
    assert {(entry["path"], entry["copy"]) for entry in report["leaks"]} == {
        ("Testing/glioma/same_file.png", "Training/glioma/g0.png"),
        ("Testing/glioma/mirror.png", "Training/glioma/g1.png"),
        ("Testing/notumor/same_pixels.bmp", "Training/notumor/n0.png"),
        ("Testing/notumor/conflict.png", "Training/glioma/g2.png"),
    }
    assert report["identical"] == {"repeated_files": 1, "repeated_pixels": 2}
    assert report["copy_groups"] == {"count": 4, "images": 8, "largest": 2, "distinct": 9}


def test_audit_names_copies_with_different_labels(leaky: Path) -> None:
    conflicts = audit_folder(leaky).report["label_conflicts"]
    assert (conflicts["pairs"], conflicts["images"]) == (1, 2)
    assert {conflicts["examples"][0]["first"], conflicts["examples"][0]["second"]} == {
        "Training/glioma/g2.png",
        "Testing/notumor/conflict.png",
    }


def test_audit_of_other_layouts(tmp_path: Path) -> None:
    for folder, splits, classes in (
        ("flat", {"": {"": 2}}, [""]),
        ("classes", {"": {"glioma": 1, "notumor": 1}}, ["glioma", "notumor"]),
        ("patients", {"": {"glioma": 2}}, ["glioma"]),
    ):
        first, second = {
            "flat": ("a.png", "b.png"),
            "classes": ("glioma_tumor/a.png", "no_tumor/b.png"),
            "patients": ("glioma/p1/a.png", "glioma/p2/b.png"),
        }[folder]
        save(scan(1), tmp_path / folder / first)
        save(scan(1), tmp_path / folder / second)
        report = audit_folder(tmp_path / folder).report
        assert report["splits"] == splits and report["classes"] == classes
        assert report["identical"]["repeated_files"] == 1
        assert report["across_splits"] == []


def test_files_beside_the_splits_and_folders_of_patients_are_no_leak(tmp_path: Path) -> None:
    save(scan(1), tmp_path / "loose" / "Training" / "glioma" / "a.png")
    save(scan(1), tmp_path / "loose" / "overview.png")
    report = audit_folder(tmp_path / "loose").report
    assert report["across_splits"] == [] and report["label_conflicts"]["pairs"] == 0
    for patient in range(25):
        save(scan(patient % 5), tmp_path / "many" / f"patient_{patient}" / "axial" / "1.png")
    report = audit_folder(tmp_path / "many").report
    assert report["splits"] == {"": {"axial": 25}} and report["copy_groups"]["distinct"] == 5


def test_audit_command_writes_report_page_and_contact_sheet(leaky: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "out"
    assert main(["audit", str(leaky), "--output_dir", str(output)]) == 0
    assert "have a copy in" in capsys.readouterr().out
    assert sorted(path.name for path in output.iterdir()) == ["audit.json", "audit.md", "audit_pairs.png"]
    report = json.loads((output / "audit.json").read_text())
    assert report["images"] == 13 and len(report["leaks"]) == 4
    page = (output / "audit.md").read_text()
    assert "4 of 5 images in Testing (80.0%) have a copy in Training" in page and "bad.jpg" in page
    with Image.open(output / "audit_pairs.png") as sheet:
        assert sheet.width > 400


def test_audit_fails_on_leaks_only_when_asked_and_only_across_splits(leaky: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    assert main(["audit", str(leaky), "--output_dir", output, "--fail_on_leak"]) == 1
    training = str(leaky / "Training")
    assert main(["audit", training, "--output_dir", output, "--fail_on_leak"]) == 0


def test_audit_json_is_one_object_and_nothing_else(leaky: Path, tmp_path: Path, capsys) -> None:
    assert main(["audit", str(leaky), "--output_dir", str(tmp_path / "out"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["across_splits"][0]["with_copy"] == 4
    assert len(printed["files"]) == 3 and "leaks" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nowhere"], "no such folder"), ([".", "--min_score", "0.5"], "--min_score"), (["EMPTY"], "no images")],
)
def test_wrong_input_is_one_line_and_exit_2(
    arguments: list[str], message: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    assert main(["audit", *arguments, "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1


def test_folder_of_only_bad_files_is_reported_not_fatal(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    report = audit_folder(tmp_path).report
    assert report["images"] == 0 and len(report["bad_files"]) == 1


def test_committed_audit_of_the_kaggle_data_has_the_counts_of_its_readme() -> None:
    report = json.loads((Path(__file__).parents[2] / "results/audit-kaggle/audit.json").read_text())
    assert report["images"] == 7019 and report["identical"]["repeated_files"] == 426
    leak = next(leak for leak in report["across_splits"] if leak["split"] == "Testing")
    assert leak["strict"]["as_is_or_mirrored"] == 979
    assert leak["with_copy"] >= 979
    assert report["label_conflicts"]["images"] == 8
