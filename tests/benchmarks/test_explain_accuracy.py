"""Heat maps scored against outlines: the outlines as pixels, the scores, the baselines, the record."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.accuracy import explain_accuracy, heat_map_scores
from brain_tumor_mri.data import outlines
from brain_tumor_mri.evaluation.metrics import bootstrap
from brain_tumor_mri.inference.classifier import TumorClassifier

SIZE = (64, 128)  # height, width


def square_mask(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


def test_an_outline_in_pixels_becomes_the_mask_of_another_size():
    border = [[20, 8], [39, 8], [39, 23], [20, 23]]  # corner pixels of a square in an image 256 wide, 32 high
    outline = outlines.shares(border, 256, 32)
    same_size = outlines.outline_mask([outline], (32, 256))
    expected = np.zeros((32, 256), bool)
    expected[8:24, 20:40] = True
    np.testing.assert_array_equal(same_size, expected)
    rows, columns = np.nonzero(outlines.outline_mask([outline], SIZE))
    assert abs(rows.mean() - 31.5) <= 1 and abs(columns.mean() - 14.5) <= 1


def test_the_outline_of_a_mirrored_slice_runs_from_the_right():
    border = [[20, 8], [39, 8], [39, 23], [25, 30]]
    plain, mirrored = (
        outlines.outline_mask([outlines.shares(border, 128, 64, mirrored=flag)], SIZE) for flag in (False, True)
    )
    assert (plain != mirrored).any()
    np.testing.assert_array_equal(mirrored, plain[:, ::-1])


def test_several_outlines_make_one_mask():
    borders = ([[0, 0], [9, 0], [9, 9], [0, 9]], [[50, 50], [59, 50], [59, 59], [50, 59]])
    mask = outlines.outline_mask([outlines.shares(border, 128, 64) for border in borders], SIZE)
    np.testing.assert_array_equal(mask, square_mask(0, 0, 10, 10) | square_mask(50, 50, 60, 60))


def test_a_map_scores_where_its_maximum_lies_and_how_much_of_it_is_inside():
    mask = square_mask(40, 20, 60, 30)
    heat = np.zeros(SIZE, np.float32)
    heat[25, 50], heat[5, 100] = 1, 0.25
    assert heat_map_scores.score(heat, mask) == {"hit": 1, "hit_15px": 1, "energy": 0.8}
    heat[25, 50], heat[25, 59 + 15] = 0.5, 1
    assert heat_map_scores.score(heat, mask) == {"hit": 0, "hit_15px": 1, "energy": pytest.approx(0.5 / 1.75)}
    heat[25, 59 + 16] = 2
    assert heat_map_scores.score(heat, mask)["hit_15px"] == 0
    assert heat_map_scores.score(np.zeros(SIZE), mask) == {"hit": 0, "hit_15px": 0, "energy": 0}
    assert heat_map_scores.score(mask.astype(float), mask) == {"hit": 1, "hit_15px": 1, "energy": 1}


def test_a_plateau_at_the_edge_points_with_its_middle():
    heat = np.zeros(SIZE)
    heat[:17, :9] = 1
    assert heat_map_scores.highest_point(heat) == (8, 4)


def test_the_baselines_are_a_gaussian_at_the_centre_and_seeded_noise():
    gaussian = heat_map_scores.centred_gaussian(SIZE)
    np.testing.assert_allclose(gaussian, gaussian[::-1, ::-1])
    assert heat_map_scores.highest_point(gaussian) in {(r, c) for r in (31, 32) for c in (63, 64)}
    assert gaussian[32, 64 + 32] == pytest.approx(np.exp(-0.5), abs=0.02)
    one, same, other = (heat_map_scores.random_map(SIZE, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any() and one.shape == SIZE and one.min() >= 0 and one.max() <= 1


def test_rank_correlation_sees_order_only():
    heat = np.random.default_rng(0).random(SIZE)
    assert heat_map_scores.rank_correlation(heat, np.exp(5 * heat)) == pytest.approx(1)
    assert heat_map_scores.rank_correlation(heat, 1 - heat) == pytest.approx(-1)
    assert np.isnan(heat_map_scores.rank_correlation(heat, np.zeros(SIZE)))


def test_intervals_are_over_groups():
    values = np.repeat([0.0, 1.0], 50)
    of_images = explain_accuracy.mean(values, bootstrap(100, None, 500, 0))
    of_groups = explain_accuracy.mean(values, bootstrap(100, ["a"] * 50 + ["b"] * 50, 500, 0))
    assert of_images["value"] == of_groups["value"] == 0.5
    assert of_images["high"] - of_images["low"] < 0.25 and (of_groups["low"], of_groups["high"]) == (0, 1)


def test_randomising_draws_what_it_names_and_leaves_the_model_alone(tiny_model_dir: Path, phantom_dir: Path):
    classifier = TumorClassifier.from_pretrained(tiny_model_dir, device="cpu")
    slices = sorted(phantom_dir.glob("Testing/*/*.png"))[::4]
    pixels = np.stack([classifier.preprocess(Image.open(path).convert("RGB")) for path in slices])
    before = {name: tensor.clone() for name, tensor in classifier.model.state_dict().items()}
    head, everything, again = (
        heat_map_scores.randomised(classifier, what, pixels, seed=3).model.state_dict()
        for what in ("head", "all", "all")
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.model.state_dict().items())
    changed = {name for name in before if not torch.equal(head[name], before[name])}
    assert changed and all("fc" in name for name in changed)
    assert all(not torch.equal(everything[name], before[name]) for name in before if before[name].ndim == 4)
    assert all(torch.equal(everything[name], again[name]) for name in before)


def write_sets(folder: Path, phantom_dir: Path) -> list[str]:
    """Figshare outlines and a provenance table for the phantoms' test part, and phantoms as Br35H's first tumours."""
    names = [path.relative_to(phantom_dir).as_posix() for path in sorted(phantom_dir.glob("Testing/*/*.png"))]
    traced = [name for name in names if "notumor" not in name][1:]  # one tumour is of unknown source
    rows = [f"{name},{i},{'true' if i % 2 else 'false'},0.9999,p{i}" for i, name in enumerate(traced, 1)]
    (folder / "provenance.csv").write_text("\n".join(["path,figshare_id,mirrored,score,group", *rows]))
    (folder / "figshare").mkdir()
    border = [[200, 200], [300, 200], [300, 300], [200, 300]]
    lines = [json.dumps({"image_id": i, "border": border}) for i in range(1, len(traced) + 1)]
    (folder / "figshare" / "borders.jsonl").write_text("\n".join(lines))
    (folder / "external" / "images").mkdir(parents=True)
    lines = []
    for i in (0, 1):
        Image.open(phantom_dir / names[i]).save(folder / "external" / "images" / f"y{i}.jpg")
        borders = [[[30, 30], [60, 30], [60, 60], [30, 60]]]
        lines.append(json.dumps({"file": f"y{i}.jpg", "width": 96, "height": 96, "borders": borders}))
    (folder / "external" / "borders.jsonl").write_text("\n".join(lines))
    return traced


def test_the_benchmark_writes_a_record_without_paths(
    tiny_model_dir: Path, phantom_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    traced = write_sets(tmp_path, phantom_dir)
    line = ["--model", tiny_model_dir, "--data_dir", phantom_dir, "--figshare_dir", tmp_path / "figshare"]
    line += ["--external_dir", tmp_path / "external", "--provenance", tmp_path / "provenance.csv"]
    line += ["--protocol", "official", "--n_resamples", 50, "--output", tmp_path / "out" / "metrics.json"]
    assert explain_accuracy.main(list(map(str, line))) == 0
    text = (tmp_path / "out" / "metrics.json").read_text()
    assert str(tmp_path) not in text and str(tiny_model_dir) not in text
    record = json.loads(text)
    assert record["protocol"] == "official" and record["data"]["fingerprint"] and "scipy" in record["versions"]
    kaggle, br35h = record["sets"].values()
    assert kaggle["n"] == len(traced) and br35h["n"] == 2 and kaggle["tumours_without_outline"] == 1
    assert next(iter(kaggle["methods"])) == "fused-cam" and len(kaggle["methods"]) == 5
    for method in kaggle["methods"].values():
        assert 0 <= method["hit"]["low"] <= method["hit"]["value"] <= method["hit"]["high"] <= 1
    assert set(kaggle["rank_correlation"]) == {"head randomised", "all weights randomised"}
    assert "hit" in capsys.readouterr().out
    (tmp_path / "figshare" / "borders.jsonl").unlink()
    assert explain_accuracy.main(list(map(str, line))) == 2
    assert "borders.jsonl" in capsys.readouterr().err
