import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from app_server import EXAMPLES
from PIL import Image, ImageChops

from brain_tumor_mri import TumorClassifier
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.labels import LABELS
from brain_tumor_mri.trust.decision import ANSWER, UNCERTAIN
from data_scripts.draw_phantoms import draw_phantom, make_phantom
from data_scripts.make_phantoms import DESCRIPTION, main, marked, write_examples, write_phantoms

SEEDS = range(12)


def phantoms(label):
    return [draw_phantom(label, np.random.default_rng([5, seed])) for seed in SEEDS]


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    out = mask.copy()
    for _ in range(pixels):
        padded = np.pad(out, 1)
        out = padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return out


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("size", [32, 128, 256])
def test_a_phantom_is_a_grey_slice_with_dark_background_and_a_bright_head(label, size):
    image = make_phantom(label, np.random.default_rng(1), size)
    assert (image.mode, image.size) == ("L", (size, size))
    pixels = np.asarray(image)
    corners = [pixels[:3, :3], pixels[-3:, :3], pixels[:3, -3:], pixels[-3:, -3:]]
    assert max(corner.mean() for corner in corners) < 20
    assert pixels[size // 3 : -size // 3, size // 3 : -size // 3].mean() > 40


def test_the_same_seed_draws_the_same_slice_and_another_seed_another():
    first, again, other = (make_phantom("glioma", np.random.default_rng(seed)).tobytes() for seed in (3, 3, 4))
    assert first == again != other


def test_gliomas_lie_within_the_brain_off_the_midline_with_a_ring_brighter_than_the_core():
    for phantom in phantoms("glioma"):
        pixels = np.asarray(phantom.image, float)
        assert phantom.lesion.sum() > 200
        assert phantom.brain[grown(phantom.lesion, 2)].all()
        assert abs(np.argwhere(phantom.lesion)[:, 1].mean() - phantom.midline[0]) > 12
        core = phantom.lesion & ~grown(~phantom.lesion, 9)
        rim = phantom.lesion & ~grown(~phantom.lesion, 1) & grown(~phantom.lesion, 5)
        assert pixels[rim].mean() > 1.5 * pixels[core].mean()


def test_meningiomas_are_bright_even_and_attached_to_the_edge():
    for phantom in phantoms("meningioma"):
        pixels = np.asarray(phantom.image, float)
        inner = phantom.lesion & ~grown(~phantom.lesion, 3)
        assert (grown(phantom.lesion, 4) & ~phantom.brain).sum() > 20
        assert pixels[inner].mean() > 1.2 * np.median(pixels[phantom.brain & ~phantom.lesion])
        assert pixels[inner].std() < 0.12 * pixels[inner].mean()


def test_pituitary_tumours_are_bright_low_and_at_the_midline():
    for phantom in phantoms("pituitary"):
        pixels = np.asarray(phantom.image, float)
        rows, columns = np.argwhere(phantom.lesion).T
        assert phantom.view == "coronal"
        assert abs(columns.mean() - phantom.midline[0]) < 18
        assert rows.mean() > phantom.midline[1] + 10
        assert pixels[phantom.lesion].mean() > 1.2 * np.median(pixels[phantom.brain & ~phantom.lesion])


def test_slices_without_tumour_have_no_lesion_and_both_views_occur():
    drawn = phantoms("notumor")
    assert not any(phantom.lesion.any() for phantom in drawn)
    assert {phantom.view for phantom in drawn} == {"axial", "coronal"}


def test_the_kaggle_layout_is_written_with_a_note_and_a_mark_in_every_file(tmp_path):
    assert write_phantoms(tmp_path / "out", 2, 1, seed=0, size=64) == 12
    files = tree(tmp_path / "out")
    assert "No patient" in files.pop("SYNTHETIC.txt").decode()
    assert set(files) == {
        f"{split}/{label}/Ph-{label[:2]}_{number:04d}.png"
        for label in LABELS
        for split, number in (("Training", 1), ("Training", 2), ("Testing", 3))
    }
    assert len(set(files.values())) == 12
    for path in (tmp_path / "out").rglob("*.png"):
        with Image.open(path) as image:
            assert image.text["Description"] == DESCRIPTION and image.size == (64, 64)


def test_the_same_seed_writes_identical_files_and_a_smaller_run_leaves_none_behind(tmp_path):
    write_phantoms(tmp_path / "a", 3, 1, seed=7, size=48)
    write_phantoms(tmp_path / "b", 5, 2, seed=7, size=48)
    write_phantoms(tmp_path / "b", 3, 1, seed=7, size=48)
    write_phantoms(tmp_path / "c", 3, 1, seed=8, size=48)
    assert tree(tmp_path / "a") == tree(tmp_path / "b") != tree(tmp_path / "c")


def test_a_folder_with_something_else_in_it_is_refused_and_left_alone(tmp_path, capsys):
    (tmp_path / "Training").mkdir()
    (tmp_path / "Training" / "patient.jpg").write_bytes(b"x")
    assert main(["--output_dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert tree(tmp_path) == {"Training/patient.jpg": b"x"}


def test_marked_examples_differ_from_their_plain_twins_only_in_the_corner(tmp_path):
    assert write_examples(tmp_path) == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"phantom-{label}.png" for label in LABELS)
    plain = make_phantom("notumor", np.random.default_rng(2))
    left, top, right, _ = ImageChops.difference(plain, marked(plain)).getbbox()
    assert left < 30 and right < 120 and top > 230


def test_examples_fill_the_frame_and_are_those_in_the_repository(tmp_path):
    write_examples(tmp_path)
    for label in LABELS:
        with (
            Image.open(tmp_path / f"phantom-{label}.png") as made,
            Image.open(EXAMPLES / f"phantom-{label}.png") as kept,
        ):
            assert made.size == (256, 256)
            np.testing.assert_allclose(np.asarray(made, int), np.asarray(kept, int), atol=1)
            head = np.asarray(made) > 90
        assert max(np.ptp(np.flatnonzero(head.any(axis))) for axis in (0, 1)) > 235


def test_all_examples_of_the_page_are_answered():
    classifier = TumorClassifier.from_pretrained(EXAMPLES.parent / "model-lite")
    for path in sorted(EXAMPLES.glob("*.png")):
        answer = classifier.predict(path)
        assert answer.decision in (ANSWER, UNCERTAIN), f"{path.name}: {answer.decision}"
        assert answer.label == ("notumor" if "template" in path.name else path.stem.removeprefix("phantom-"))


@pytest.mark.parametrize("arguments", [("tumour", 256), ("glioma", 8)])
def test_unknown_labels_and_tiny_sizes_are_user_errors(arguments):
    label, size = arguments
    with pytest.raises(UserError):
        make_phantom(label, np.random.default_rng(0), size)


def test_the_script_runs_as_a_command_and_prints_one_line(tmp_path):
    script = Path(__file__).parents[2] / "data_scripts" / "make_phantoms.py"
    arguments = ["--output_dir", "out", "--train_per_class", "1", "--test_per_class", "1", "--size", "64"]
    done = subprocess.run([sys.executable, script, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "Wrote 8 synthetic slices in out\n"
    assert main(["--output_dir", str(tmp_path / "out"), "--seed", "-1"]) == 2
