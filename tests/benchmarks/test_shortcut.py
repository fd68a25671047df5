"""The blind classifiers of benchmarks/accuracy/shortcut.py see what they may see and nothing else."""

import json

import numpy as np
from PIL import Image

from benchmarks.accuracy import shortcut
from brain_tumor_mri.labels import LABELS


def slices(count, level, seed=0):
    """Noise inside a head, and a border whose grey level tells the collection."""
    pixels = np.random.default_rng(seed).integers(60, 200, (count, shortcut.SIDE, shortcut.SIDE)).astype(np.uint8)
    for edge in (pixels[:, :12], pixels[:, -12:], pixels[:, :, :12], pixels[:, :, -12:]):
        edge[:] = level
    return pixels


def test_border_features_ignore_the_inside_and_histogram_features_the_arrangement():
    first, second = slices(2, 5)
    assert (first != second).any()
    np.testing.assert_array_equal(shortcut.border_features(first), shortcut.border_features(second))
    assert (shortcut.border_features(first) != shortcut.border_features(slices(1, 9)[0])).any()
    shuffled = np.random.default_rng(1).permutation(first.ravel()).reshape(first.shape)
    np.testing.assert_array_equal(shortcut.histogram_features(first), shortcut.histogram_features(shuffled))
    np.testing.assert_allclose(shortcut.histogram_features(first).sum(), 1)


def test_framing_features_are_colour_mode_brightness_and_the_heads_box():
    grey = np.zeros((224, 224), np.uint8)
    grey[56:112, 28:168] = 200
    grey[80:90, 60:70] = 0  # a hole in the head
    grey[5, 5] = 255  # a speck beside it
    features = shortcut.framing_features(grey, "L")
    np.testing.assert_allclose(features, [1, grey.mean() / 255, 56 / 224, 111 / 224, 28 / 224, 167 / 224])
    assert shortcut.framing_features(np.zeros_like(grey), "RGB").tolist() == [0] * 6


def test_a_blind_classifier_tells_two_collections_apart_by_their_borders():
    pixels = np.concatenate([slices(40, 0, seed=1), slices(40, 12, seed=2)])
    features = np.stack([shortcut.border_features(grey) for grey in pixels])
    labels = np.tile([0, 0, 1, 1, 3, 3, 3, 3], 10)
    labels[40:] = shortcut.NOTUMOR
    trees, settings = shortcut.train_blind((features[::2], labels[::2]), (features[1::2], labels[1::2]))
    assert settings["max_leaf_nodes"] in (4, 16)
    found = trees.predict(features[1::2]) == shortcut.NOTUMOR
    assert (found == (labels[1::2] == shortcut.NOTUMOR)).all()


def external_set(folder, phantom_dir):
    (folder / "images").mkdir(parents=True)
    rows = []
    for i, path in enumerate(sorted(phantom_dir.glob("Testing/*/*.png"))):
        Image.open(path).save(folder / "images" / f"y{i}.jpg")
        border = [[30, 30], [60, 30], [60, 60], [30, 60]]
        rows.append(json.dumps({"file": f"y{i}.jpg", "width": 96, "height": 96, "borders": [border]}))
    (folder / "borders.jsonl").write_text("\n".join(rows))
    return folder


def test_a_run_writes_figures_without_paths_and_takes_up_what_it_kept(
    tmp_path, phantom_dir, tiny_model_dir, monkeypatch
):
    external = external_set(tmp_path / "external", phantom_dir)
    flags = ["--data_dir", str(phantom_dir), "--external_dir", str(external), "--model", str(tiny_model_dir)]
    flags += [
        "--protocol",
        "official",
        "--work_dir",
        str(tmp_path / "work"),
        "--plot",
        str(tmp_path / "shortcut.png"),
        "--output",
    ]
    assert shortcut.main([*flags, str(tmp_path / "out" / "metrics.json")]) == 0
    text = (tmp_path / "out" / "metrics.json").read_text()
    record = json.loads(text)
    assert record["protocol"] == "official" and str(tmp_path) not in text
    assert list(record["classifiers"]) == ["border", "histogram", "framing", "full model"]
    for row in record["classifiers"].values():
        assert row["test"]["n"] == 16 and sum(row["external"]["answers"].values()) == 16
        assert list(row["external"]["answers"]) == list(LABELS)
    assert Image.open(tmp_path / "shortcut.png").width == 1200
    monkeypatch.setattr(shortcut, "ask", None)
    assert shortcut.main([*flags, str(tmp_path / "again" / "metrics.json")]) == 0
    assert json.loads((tmp_path / "again" / "metrics.json").read_text())["classifiers"] == record["classifiers"]


def test_a_folder_without_outlines_is_one_line_and_exit_2(tmp_path, capsys):
    assert shortcut.main(["--data_dir", str(tmp_path), "--external_dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "borders.jsonl" in error and error.count("\n") == 1
