"""Heat maps point where a model of known behaviour looks, and the command writes files that open."""

import gc
import json
import threading
import weakref
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from brain_tumor_mri.commands import main as cli
from brain_tumor_mri.commands.explain import output_names
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.heat_maps.cam import forward, mean_maps
from brain_tumor_mri.heat_maps.explain import COLOURS, METHODS, Explanation, explain, explain_classes, heat_maps
from brain_tumor_mri.images.read import UnreadableImageError
from brain_tumor_mri.inference.classifier import TumorClassifier
from brain_tumor_mri.inference.prediction import Prediction
from brain_tumor_mri.labels import LABEL2ID, LABELS, RESEARCH_NOTICE

SIDE, CELL = 64, 8


class PlainProcessor:
    """Squashes to SIDE x SIDE and divides by 255."""

    def __call__(self, image: Image.Image, return_tensors: str) -> dict[str, torch.Tensor]:
        pixels = np.asarray(image.resize((SIDE, SIDE)), np.float32) / 255
        return {"pixel_values": torch.from_numpy(pixels).permute(2, 0, 1)[None]}


class ColourNetwork(nn.Module):
    """Classes 0, 1 and 3 score the mean red, green and blue of 8 x 8 pixel cells; class 2 scores nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.Conv2d(3, 3, CELL, stride=CELL, bias=False)
        self.cells.weight.data = torch.eye(3)[:, :, None, None].expand(3, 3, CELL, CELL) / CELL**2
        self.head = nn.Linear(3, 4)
        self.head.weight.data = 20 * torch.eye(4)[:, [0, 1, 3]]
        self.head.bias.data.zero_()

    def forward_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.cells(pixel_values)

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        return self.head(features.mean((2, 3)))


class Model(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.timm_model = network

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        network = self.timm_model
        return SimpleNamespace(logits=network.forward_head(network.forward_features(pixel_values)))


def colour_classifier(network: nn.Module | None = None, **options: object) -> TumorClassifier:
    return TumorClassifier(Model(network or ColourNetwork()), PlainProcessor(), device="cpu", **options)


def ensemble(*classifiers: TumorClassifier) -> TumorClassifier:
    return TumorClassifier([member for classifier in classifiers for member in classifier.members])


def squares(**boxes: tuple[int, int, int, int]) -> Image.Image:
    """A black SIDE x SIDE image with squares of a colour: left, top, right, bottom."""
    image = Image.new("RGB", (SIDE, SIDE))
    for colour, box in boxes.items():
        image.paste(colour, box)
    return image


RED_AND_BLUE = squares(red=(8, 16, 24, 32), blue=(40, 40, 48, 48))


@pytest.fixture(scope="module")
def classifier(tiny_model_dir: Path) -> TumorClassifier:
    return TumorClassifier.from_pretrained(tiny_model_dir, device="cpu")


@pytest.fixture(scope="module")
def slices(phantom_dir: Path) -> list[Path]:
    return sorted(phantom_dir.glob("Testing/*/*.png"))[::4]


def test_the_map_is_the_evidence_of_a_model_that_scores_a_colour():
    answer = explain(colour_classifier(), RED_AND_BLUE)
    assert answer.target == answer.prediction.label == "glioma"
    heat = answer.heat_map
    assert heat.shape == (SIDE, SIDE) and heat.dtype == np.float32
    assert heat.max() == 1 and heat.min() == 0
    inside = np.zeros_like(heat, bool)
    inside[16:32, 8:24] = True
    assert inside[heat > 0.99].all()
    near = np.zeros_like(inside)
    near[16 - CELL : 32 + CELL, 8 - CELL : 24 + CELL] = True  # as far as interpolation between cells reaches
    assert not heat[~near].any()


def test_another_class_has_another_map_and_a_class_without_evidence_an_empty_one():
    model = colour_classifier()
    blue, none = (explain(model, RED_AND_BLUE, target) for target in ("pituitary", "notumor"))
    assert blue.prediction.label == "glioma" and blue.target == "pituitary"
    row, column = np.unravel_index(blue.heat_map.argmax(), blue.heat_map.shape)
    assert 40 <= row < 48 and 40 <= column < 48
    assert not none.heat_map.any()
    np.testing.assert_array_equal(none.overlay(), none.image)


def test_probabilities_are_the_classifiers_own(classifier: TumorClassifier, slices: list[Path]):
    for model in (classifier, TumorClassifier(classifier.model, classifier.processor, device="cpu", mirror=True)):
        for explained, predicted in zip(explain(model, slices), model.predict(slices), strict=True):
            assert explained.prediction.name == predicted.name
            assert explained.prediction.probabilities == pytest.approx(predicted.probabilities, abs=1e-5)


def test_maps_of_a_timm_model_are_in_range_and_a_batch_gives_what_single_images_give(
    classifier: TumorClassifier, slices: list[Path]
):
    together = explain(classifier, slices, "meningioma")
    for path, one in zip(slices, together, strict=True):
        assert one.heat_map.shape == classifier.image_size and one.heat_map.dtype == np.float32
        assert one.heat_map.min() >= 0 and one.heat_map.max() in (0, 1)
        alone = explain(classifier, path, "meningioma")
        np.testing.assert_allclose(alone.heat_map, one.heat_map, atol=1e-4)
    in_ones = explain(classifier, slices, "meningioma", batch_size=1)
    np.testing.assert_allclose([e.heat_map for e in in_ones], [e.heat_map for e in together], atol=1e-4)


def test_each_image_of_a_batch_is_explained_by_its_own_answer(classifier: TumorClassifier, phantom_dir: Path):
    paths = sorted(phantom_dir.glob("Training/*/*.png"))
    answers = explain(classifier, paths)
    assert len({answer.target for answer in answers}) > 1
    for path, answer in list(zip(paths, answers, strict=True))[::7]:
        assert answer.target == answer.prediction.label
        np.testing.assert_allclose(explain(classifier, path, answer.target).heat_map, answer.heat_map, atol=1e-4)


def test_a_mirrored_image_gives_the_mirrored_map_of_a_model_that_knows_no_sides():
    left = explain(colour_classifier(), RED_AND_BLUE).heat_map
    right = explain(colour_classifier(), RED_AND_BLUE.transpose(Image.Transpose.FLIP_LEFT_RIGHT)).heat_map
    np.testing.assert_allclose(right, left[:, ::-1], atol=1e-6)
    assert np.abs(right - left).max() > 0.5


def test_a_mirroring_classifier_averages_the_maps_of_both_views_turned_back(
    classifier: TumorClassifier, slices: list[Path]
):
    both = TumorClassifier(classifier.model, classifier.processor, device="cpu", mirror=True)
    pixels = np.stack([classifier.preprocess(Image.open(path).convert("RGB")) for path in slices])
    classes = [LABEL2ID["glioma"]] * len(slices)
    plain, turned = heat_maps(classifier, pixels, classes)[0], heat_maps(classifier, pixels[..., ::-1], classes)[0]
    expected = plain + turned[..., ::-1]
    expected /= np.maximum(expected.max((1, 2), keepdims=True), 1e-9)
    np.testing.assert_allclose(heat_maps(both, pixels, classes)[0], expected, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mirror", [False, True])
def test_one_forward_pass_explains_all_classes_as_explain_does_one_by_one(
    classifier: TumorClassifier, slices: list[Path], method: str, mirror: bool, monkeypatch: pytest.MonkeyPatch
):
    model = TumorClassifier(classifier.model, classifier.processor, device="cpu", mirror=mirror)
    alone = [explain(model, slices[0], label, method=method) for label in LABELS]
    passes = []
    network = type(classifier.model.timm_model)
    forward = network.forward_features
    monkeypatch.setattr(network, "forward_features", lambda self, x: (passes.append(len(x)), forward(self, x))[1])
    together = explain_classes(model, slices[0], method=method)
    assert passes == [1] * (1 + mirror)
    assert [explanation.target for explanation in together] == list(LABELS)
    for one, same in zip(alone, together, strict=True):
        np.testing.assert_allclose(same.heat_map, one.heat_map, atol=1e-5)
        np.testing.assert_array_equal(same.image, one.image)
        assert same.original_size == one.original_size and same.prediction.name == one.prediction.name
        assert same.prediction.probabilities == pytest.approx(one.prediction.probabilities, abs=1e-6)
    assert not np.allclose(together[0].heat_map, together[1].heat_map, atol=0.01)
    with pytest.raises(ValueError, match="method"):
        explain_classes(model, slices[0], method="saliency")


def test_an_ensemble_averages_its_members_maps():
    swapped = ColourNetwork()
    swapped.head.weight.data = swapped.head.weight.data[[3, 1, 2, 0]]  # blue speaks for glioma
    members = [colour_classifier(), colour_classifier(swapped)]
    answer = explain(ensemble(*members), RED_AND_BLUE, "glioma")
    one, other = (explain(member, RED_AND_BLUE, "glioma").heat_map for member in members)
    mean = one + other
    np.testing.assert_allclose(answer.heat_map, mean / mean.max(), atol=1e-6)
    assert answer.heat_map[24, 16] > 0.9 and answer.heat_map[44, 44] > 0.9


def test_an_ensemble_of_two_input_sizes_shows_the_larger():
    class Halved(PlainProcessor):
        def __call__(self, image, **options):
            return {"pixel_values": super().__call__(image, **options)["pixel_values"][..., ::2, ::2]}

    half = TumorClassifier(Model(ColourNetwork()), Halved(), device="cpu")
    alone = explain(half, RED_AND_BLUE, "glioma")
    assert alone.heat_map.shape == (SIDE // 2, SIDE // 2)
    for members in ([half, colour_classifier()], [colour_classifier(), half]):
        answer = explain(ensemble(*members), RED_AND_BLUE, "glioma")
        assert answer.heat_map.shape == (SIDE, SIDE) and answer.image.size == (SIDE, SIDE)
        assert answer.heat_map[24, 16] > 0.9 and answer.heat_map[44, 44] < 0.1


def test_the_model_is_left_as_it_was(classifier: TumorClassifier, slices: list[Path]):
    model = classifier.model
    free = [parameter.requires_grad for parameter in model.parameters()]
    assert any(free)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.inference_mode():
        for method in METHODS:
            explain(classifier, slices, method=method)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == free
    assert all(not m._forward_hooks and not m._backward_hooks and not m.training for m in model.modules())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_threads_that_explain_and_predict_at_once_get_the_answers_of_one(
    classifier: TumorClassifier, slices: list[Path]
):
    method = dict(zip(LABELS, cycle(METHODS), strict=False))
    expected = {label: explain(classifier, slices, label, method=method[label]) for label in LABELS}
    predicted = classifier.predict(slices)
    wrong: list[str] = []

    def work(label: str) -> None:
        for _ in range(3):
            for one, other in zip(
                explain(classifier, slices, label, method=method[label]), expected[label], strict=True
            ):
                if np.abs(one.heat_map - other.heat_map).max() > 1e-4:
                    wrong.append(label)
            for one, other in zip(classifier.predict(slices), predicted, strict=True):
                if abs(one.confidence - other.confidence) > 1e-5:
                    wrong.append("predict")

    threads = [threading.Thread(target=work, args=(label,)) for label in LABELS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert all(parameter.grad is None for parameter in classifier.model.parameters())


@pytest.mark.parametrize("architecture", ["test_resnet", "test_efficientnet", "test_convnext"])
@pytest.mark.parametrize("method", METHODS)
def test_convolutional_architectures_of_timm_are_explained(architecture: str, method: str):
    import timm

    network = timm.create_model(architecture, num_classes=4)
    classifier = colour_classifier(network)
    maps, answers = heat_maps(
        classifier, np.random.default_rng(0).random((2, 3, SIDE, SIDE), np.float32), [0, 3], method=method
    )
    assert maps.shape == (2, SIDE, SIDE) and answers.probabilities.shape == (2, 4)
    assert maps.min() >= 0 and set(maps.max((1, 2)).tolist()) <= {0, 1}


def test_layer_cam_weighs_each_place_of_the_finer_map_by_its_own_gradient(tiny_model_dir: Path):
    classifier = TumorClassifier.from_pretrained(tiny_model_dir, device="cpu")
    pixels = torch.rand(1, 3, *classifier.image_size, generator=torch.Generator().manual_seed(0))
    network = classifier.model.timm_model
    kept = []
    layer = next(row["module"] for row in network.feature_info if row["reduction"] == 16)
    handle = network.get_submodule(layer).register_forward_hook(lambda layer, inputs, output: kept.append(output))
    (gradient,) = torch.autograd.grad(network(pixels)[0, 3], kept)
    handle.remove()
    expected = (gradient.clamp_min(0) * kept[0]).sum(1).clamp_min(0)[0].detach()
    assert expected.shape == (14, 14)
    pixels = pixels.numpy()
    maps = heat_maps(classifier, pixels, [3], method="layer-cam")[0]
    centres = maps[0, 7::16, 7::16]  # half a pixel beside the cells' centres, so their neighbours add a little
    assert np.corrcoef(centres.ravel(), expected.numpy().ravel())[0, 1] > 0.995
    assert np.abs(maps - heat_maps(classifier, pixels, [3])[0]).max() > 0.1


def test_maps_are_those_that_the_package_grad_cam_made():
    """The numbers were recorded from grad-cam 1.5.5 on these weights and pixels, before plain torch took its place."""
    import timm

    network = timm.create_model("test_resnet", num_classes=4)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                wave = torch.sin(torch.arange(parameter.numel(), dtype=torch.float64).reshape(parameter.shape) * 1.7)
                parameter.copy_(wave * (2 / parameter[0].numel()) ** 0.5)
    pixels = torch.sin(torch.arange(3 * SIDE**2, dtype=torch.float64) * 0.37).reshape(1, 3, SIDE, SIDE).float().numpy()
    recorded = {
        "grad-cam": [[0.244, 0.223, 0.1835, 0.1649], [0.4448, 0.3589, 0.197, 0.1211],
                     [0.8228, 0.6145, 0.2224, 0.0387], [1, 0.7344, 0.2344, 0]],
        "layer-cam": [[0.4613, 0.4626, 0.0394, 0.0031], [0.3463, 0.4824, 0.1401, 0.1238],
                      [0.1275, 0.1282, 1, 0.872], [0.1501, 0.1413, 0.9107, 0.6862]],
        "fused-cam": [[0.4001, 0.3666, 0.0257, 0.0018], [0.5475, 0.6151, 0.0981, 0.0533],
                      [0.3727, 0.2801, 0.7905, 0.1198], [0.5334, 0.3687, 0.7585, 0]],
    }  # fmt: skip
    for method, expected in recorded.items():
        found = heat_maps(colour_classifier(network), pixels, [1], method=method)[0][0]
        np.testing.assert_allclose(found[8::16, 8::16], expected, atol=5e-4)


def test_fused_cam_is_the_product_of_both_maps_with_a_highest_value_of_one(classifier: TumorClassifier):
    for mirror in (False, True):
        model = TumorClassifier(classifier.model, classifier.processor, device="cpu", mirror=mirror)
        pixels = np.random.default_rng(1).random((2, 3, *model.image_size), np.float32)
        if mirror:  # the product is taken view by view, before the mean
            pixels = np.concatenate([pixels, pixels[..., ::-1]])
        plain = TumorClassifier(classifier.model, classifier.processor, device="cpu")
        classes = [0] * len(pixels)
        coarse, fine = (heat_maps(plain, pixels, classes, method=m)[0] for m in ("grad-cam", "layer-cam"))
        expected = coarse * fine
        assert (expected.max((1, 2)) > 0).all()
        expected /= expected.max((1, 2), keepdims=True)
        if mirror:
            expected = expected[:2] + expected[2:, :, ::-1]
            expected /= expected.max((1, 2), keepdims=True)
        np.testing.assert_allclose(heat_maps(model, pixels[:2], [0, 0])[0], expected, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_of_a_batch_is_kept_after_its_maps(classifier: TumorClassifier, method: str):
    views, _ = forward(classifier, np.zeros((1, 3, *classifier.image_size), np.float32), method)
    kept = [weakref.ref(tensor) for pair in views[0][0].paths.values() for tensor in pair]
    for target in range(2):
        mean_maps(views, [target], classifier.image_size)
    del views
    gc.collect()
    assert [ref() for ref in kept] == [None] * len(kept)


def test_layer_cam_needs_the_finer_map():
    with pytest.raises(UserError, match="1/16"):
        explain(colour_classifier(), RED_AND_BLUE, method="layer-cam")


def test_a_model_without_a_feature_map_is_refused():
    import timm

    network = timm.create_model("test_vit", num_classes=4, img_size=SIDE)
    with pytest.raises(UserError, match="no convolutional feature map"):
        explain(colour_classifier(network), RED_AND_BLUE)


def test_the_overlay_colours_the_slice_as_the_model_saw_it():
    image = Image.fromarray(np.random.default_rng(0).integers(99, 256, (SIDE, SIDE, 3)).astype(np.uint8))
    answer = explain(colour_classifier(), image)
    assert answer.target != "notumor" and answer._head.all(), "all of it is bright"
    np.testing.assert_array_equal(answer.image, image)
    assert answer.overlay().mode == "RGB" and answer.overlay().size == (SIDE, SIDE)
    np.testing.assert_array_equal(answer.overlay(0), image)
    top = np.array(list(bytes.fromhex(COLOURS[-1])))
    np.testing.assert_array_equal(np.asarray(answer.overlay(1))[answer.heat_map == 1], np.tile(top, (1, 1)))
    with pytest.raises(ValueError, match="opacity"):
        answer.overlay(2)


def test_a_map_is_drawn_inside_the_head_on_one_scale_and_an_empty_one_says_so():
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[16:48, 16:48] = 200
    pixels[28:36, 28:36] = 0  # a dark ventricle belongs to the head
    heat = np.full((64, 64), 0.8, np.float32)
    probabilities = {"glioma": 0.5, "meningioma": 0.25, "notumor": 0.24, "pituitary": 0.01}
    prediction = Prediction("x", "glioma", 0.5, probabilities)
    image = Image.fromarray(pixels)
    glioma, second, none, last = (Explanation(prediction, name, heat, image, (64, 64)) for name in LABELS)
    assert glioma.shown_map[32, 32] == pytest.approx(0.8) and not glioma.shown_map[:12].any()
    assert second.shown_map.max() == pytest.approx(0.4)
    assert not none.shown_map.any() and last.is_empty and not glioma.is_empty
    assert glioma.outside_head == pytest.approx(1 - 32 * 32 / 64**2, abs=0.03)


def test_normalisation_is_undone(classifier: TumorClassifier, slices: list[Path]):
    answer = explain(classifier, slices[0])
    expected = Image.open(slices[0]).convert("RGB").resize(answer.image.size, Image.Resampling.BILINEAR)
    assert np.abs(np.asarray(answer.image, float) - np.asarray(expected, float)).max() <= 1


def test_the_map_goes_back_to_the_size_and_place_of_the_image_it_came_from():
    wide = RED_AND_BLUE.resize((3 * SIDE, 2 * SIDE), Image.Resampling.NEAREST)
    answer = explain(colour_classifier(), wide)
    heat = answer.original_heat_map()
    assert heat.shape == (2 * SIDE, 3 * SIDE) and heat.dtype == np.float32
    assert heat.min() >= 0 and heat.max() <= 1
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert 2 * 16 <= row < 2 * 32 and 3 * 8 <= column < 3 * 24


def test_a_bad_image_raises_or_is_recorded(tmp_path: Path):
    bad = tmp_path / "text.jpg"
    bad.write_text("not an image")
    with pytest.raises(UnreadableImageError, match=r"text\.jpg"):
        explain(colour_classifier(), [RED_AND_BLUE, bad])
    first, second, third = explain(colour_classifier(), [RED_AND_BLUE, bad, RED_AND_BLUE], on_error="record")
    assert first.error is None and third.heat_map.any()
    assert isinstance(second, Explanation) and second.error and second.heat_map is None and second.target is None
    with pytest.raises(ValueError, match="no heat map"):
        second.overlay()
    assert [e.error is None for e in explain(colour_classifier(), [bad, bad], on_error="record")] == [False, False]
    assert explain(colour_classifier(), []) == []


def test_what_is_not_allowed_is_named():
    for options, named in (
        ({"target": "tumour"}, "target"),
        ({"method": "saliency"}, "method"),
        ({"on_error": "ignore"}, "on_error"),
        ({"batch_size": 0}, "batch_size"),
    ):
        with pytest.raises(ValueError, match=named):
            explain(colour_classifier(), RED_AND_BLUE, **options)


# --- the command ---


def test_the_command_writes_files_that_open_and_a_bad_file_is_a_row(
    tiny_model_dir: Path, slices: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bad = tmp_path / "text.jpg"
    bad.write_text("not an image")
    big = tmp_path / "big.png"
    Image.open(slices[0]).convert("RGB").resize((150, 90)).save(big)
    out = tmp_path / "new" / "out"
    arguments = ["--model", tiny_model_dir, "--output_dir", out, "--class", "glioma", "--json", "--batch_size", 2]
    assert cli.main(list(map(str, ["explain", slices[0], bad, big, slices[1], *arguments]))) == 0
    answer = json.loads(capsys.readouterr().out)
    rows = answer["explanations"]
    assert [row["name"] for row in rows] == [*map(str, (slices[0], bad, big, slices[1]))]
    assert answer["summary"] == {"images": 4, "explained": 3, "errors": 1, "complete": True}
    assert rows[1]["error"] and rows[1]["files"] == {} and rows[1]["target"] is None
    assert {row["target"] for row in rows if row["error"] is None} == {"glioma"}
    files = rows[2]["files"]
    assert Path(files["heatmap"]) == out / "big-glioma-heatmap.png"
    assert Image.open(files["heatmap"]).size == (150, 90)
    assert Image.open(files["overlay"]).size == (224, 224)
    heat = np.load(files["map"], allow_pickle=False)
    assert heat.shape == (224, 224) and heat.dtype == np.float32 and 0 <= heat.min() <= heat.max() <= 1
    assert len(list(out.iterdir())) == 9


def test_the_table_names_answer_class_and_overlay_with_the_notice_once(
    tiny_model_dir: Path, slices: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bad = tmp_path / "text.jpg"
    bad.write_text("not an image")
    arguments = ["--model", tiny_model_dir, "--output_dir", tmp_path / "out"]
    assert cli.main(list(map(str, ["explain", slices[0], bad, *arguments]))) == 0
    out = capsys.readouterr().out
    assert out.count(RESEARCH_NOTICE) == 1 and "1 image explained" in out
    assert "-overlay.png" in out and out.count(str(bad)) == 2 and "Not readable" in out


def test_a_folder_explained_again_leaves_out_what_the_command_wrote(
    tiny_model_dir: Path, slices: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    Image.open(slices[0]).save(tmp_path / "slice.png")
    for _ in range(2):
        arguments = ["explain", tmp_path, "--model", tiny_model_dir, "--output_dir", tmp_path / "out", "--json"]
        assert cli.main(list(map(str, arguments))) == 0
        assert json.loads(capsys.readouterr().out)["summary"]["images"] == 1
    assert cli.main(["explain", str(tmp_path / "out"), "--output_dir", str(tmp_path / "out")]) == 2
    assert "nothing to explain" in capsys.readouterr().err


def test_only_bad_files_or_no_place_to_write_exit_with_2(
    tiny_model_dir: Path, slices: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bad = tmp_path / "text.jpg"
    bad.write_text("not an image")
    line = ["explain", "--model", str(tiny_model_dir), "--output_dir"]
    assert cli.main([*line, str(tmp_path / "out"), str(bad)]) == 2
    assert cli.main([*line, str(bad), str(slices[0])]) == 2
    assert "--output_dir" in capsys.readouterr().err


def test_outputs_of_files_with_one_name_are_kept_apart():
    files = [Path(name) for name in ("a/x.png", "b/x.jpg", "x-2.png", "c/X.png", "y.png", "é" * 120 + ".png")]
    names = output_names(files)
    assert names[:5] == ["x", "x-2", "x-2-2", "X-3", "y"]
    assert len(names[5].encode()) <= 200
    assert len({name.casefold() for name in names}) == len(files)
