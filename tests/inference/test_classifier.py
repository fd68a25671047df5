import io
import itertools
import json
import shutil
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from brain_tumor_mri import Explanation, Prediction, TumorClassifier, UnreadableImageError, UserError
from brain_tumor_mri.inference.model_folder import find_model
from brain_tumor_mri.labels import LABELS
from brain_tumor_mri.training.backbone import build_model


@pytest.fixture(scope="module")
def classifier(tiny_model_dir: Path) -> TumorClassifier:
    return TumorClassifier.from_pretrained(tiny_model_dir, device="cpu")


@pytest.fixture(scope="module")
def slices(phantom_dir: Path) -> list[Path]:
    return sorted(phantom_dir.glob("*/*/*.png"))


@pytest.fixture(scope="module")
def grey(slices: list[Path]) -> np.ndarray:
    """One slice as (H, W) uint8 that reaches 255 and holds only even values, so that 16 grey levels' tricks show."""
    pixels = np.asarray(Image.open(slices[0]).convert("L")).copy()
    pixels[0, 0] = 255
    return pixels


def row(prediction: Prediction) -> np.ndarray:
    assert tuple(prediction.probabilities) == LABELS
    return np.array(list(prediction.probabilities.values()))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned_by_exif(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise, so stored after one the other way
    return encoded(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)


TWINS = {
    "grey PNG": lambda g, rgb: encoded(Image.fromarray(g), "PNG"),
    "16-bit grey PNG": lambda g, rgb: encoded(Image.fromarray(g.astype(np.uint16) * 257), "PNG"),
    "RGB PNG": lambda g, rgb: encoded(rgb, "PNG"),
    "RGBA PNG": lambda g, rgb: encoded(rgb.convert("RGBA"), "PNG"),
    "grey and alpha PNG": lambda g, rgb: encoded(rgb.convert("LA"), "PNG"),
    "palette PNG": lambda g, rgb: encoded(Image.fromarray(g).convert("P"), "PNG"),
    "EXIF-turned PNG": lambda g, rgb: turned_by_exif(rgb),
    "grey BMP": lambda g, rgb: encoded(Image.fromarray(g), "BMP"),
    "RGB BMP": lambda g, rgb: encoded(rgb, "BMP"),
    "grey TIFF": lambda g, rgb: encoded(Image.fromarray(g), "TIFF"),
    "16-bit grey TIFF": lambda g, rgb: encoded(Image.fromarray(g.astype(np.uint16) * 257), "TIFF"),
    "float TIFF": lambda g, rgb: encoded(Image.fromarray(g.astype(np.float32)), "TIFF"),
    "RGB TIFF, LZW": lambda g, rgb: encoded(rgb, "TIFF", compression="tiff_lzw"),
    "CMYK TIFF": lambda g, rgb: encoded(rgb.convert("CMYK"), "TIFF"),
    "lossless WebP": lambda g, rgb: encoded(rgb, "WEBP", lossless=True),
    "PIL RGB": lambda g, rgb: rgb,
    "PIL grey": lambda g, rgb: Image.fromarray(g),
    "PIL palette": lambda g, rgb: Image.fromarray(g).convert("P"),
    "array (H, W)": lambda g, rgb: g,
    "array (H, W, 1)": lambda g, rgb: g[:, :, None],
    "array (H, W, 3)": lambda g, rgb: np.asarray(rgb),
    "array uint16": lambda g, rgb: g.astype(np.uint16) * 257,
    "array int16": lambda g, rgb: g.astype(np.int16),
    "array int64": lambda g, rgb: g.astype(np.int64),
    "memoryview of a PNG": lambda g, rgb: memoryview(encoded(rgb, "PNG")),
    "array of floats in 0..1": lambda g, rgb: g.astype(np.float64) / 255,
}


@pytest.mark.parametrize("kind", TWINS)
def test_every_lossless_kind_answers_as_its_plain_rgb_twin(classifier: TumorClassifier, grey: np.ndarray, kind: str):
    rgb = Image.fromarray(grey).convert("RGB")
    expected = row(classifier.predict(rgb))
    assert np.ptp(expected) > 0.05, "a model that answers 0.25 to everything would prove nothing"
    assert np.allclose(row(classifier.predict(TWINS[kind](grey, rgb))), expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_answers_as_the_rgb_pixels_it_decodes_to(classifier: TumorClassifier, grey: np.ndarray, mode: str):
    data = encoded(Image.fromarray(grey).convert("RGB").convert(mode), "JPEG", quality=95)
    twin = Image.open(io.BytesIO(data)).convert("RGB")
    assert np.allclose(row(classifier.predict(data)), row(classifier.predict(twin)), atol=1e-6)


def test_a_path_answers_as_its_bytes_and_its_string(classifier: TumorClassifier, slices: list[Path]):
    answers = [classifier.predict(source) for source in (slices[3], str(slices[3]), slices[3].read_bytes())]
    assert [answer.name for answer in answers] == [str(slices[3]), str(slices[3]), "image-0001"]
    assert np.allclose(row(answers[0]), [row(answer) for answer in answers[1:]], atol=1e-7)


def test_answers_differ_from_slice_to_slice_and_are_probabilities(classifier: TumorClassifier, slices: list[Path]):
    answers = classifier.predict(slices)
    rows = np.array([row(answer) for answer in answers])
    assert rows.std(axis=0).min() > 0.01
    assert np.allclose(rows.sum(axis=1), 1, atol=1e-6) and rows.min() >= 0
    for answer in answers:
        assert answer.label == max(answer.probabilities, key=answer.probabilities.get)
        assert answer.confidence == answer.probabilities[answer.label]


def test_one_image_gives_one_answer_and_an_iterable_gives_a_list(classifier: TumorClassifier, slices: list[Path]):
    assert isinstance(classifier.predict(str(slices[0])), Prediction)
    assert [answer.name for answer in classifier.predict([slices[0]])] == [str(slices[0])]
    assert len(classifier.predict(path for path in slices[:3])) == 3
    assert classifier.predict([]) == []
    many = np.zeros((2, 20, 30, 3), np.uint8)
    assert [answer.name for answer in classifier.predict(many)] == ["image-0001", "image-0002"]
    mixed = classifier.predict([str(slices[0]), slices[1].read_bytes(), Image.open(slices[2])])
    assert [answer.name for answer in mixed] == [str(slices[0]), "image-0002", "image-0003"]


@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_batches_answer_as_single_images_in_order(classifier: TumorClassifier, slices: list[Path], batch_size: int):
    singles = [classifier.predict(path) for path in slices[:13]]
    batched = classifier.predict(slices[:13], batch_size=batch_size)
    assert [answer.name for answer in batched] == [str(path) for path in slices[:13]]
    assert np.allclose([row(a) for a in batched], [row(a) for a in singles], atol=1e-5)


def test_bad_files_become_answers_with_an_error_and_the_rest_goes_on(
    classifier: TumorClassifier, slices: list[Path], tmp_path: Path
):
    text = tmp_path / "text.jpg"
    text.write_text("not an image")
    empty = tmp_path / "empty.png"
    empty.touch()
    cut = tmp_path / "cut.png"
    cut.write_bytes(slices[0].read_bytes()[:900])
    sources = [text, slices[0], empty, tmp_path / "missing.png", slices[1], cut, b"", np.zeros((3, 3, 7))]
    answers = classifier.predict(sources, on_error="record", batch_size=3)
    assert [answer.error is None for answer in answers] == [False, True, False, False, True, False, False, False]
    for answer in answers:
        assert (answer.label is None) == (answer.error is not None)
        assert "\n" not in (answer.error or "")
        json.dumps(answer.to_dict())
    assert answers[0].title == "Not readable" and answers[0].probabilities == {} and answers[0].confidence is None
    assert np.allclose(row(answers[4]), row(classifier.predict(slices[1])), atol=1e-5)


def test_a_bad_file_raises_and_is_named_by_default(classifier: TumorClassifier, slices: list[Path], tmp_path: Path):
    with pytest.raises(UnreadableImageError) as caught:
        classifier.predict([slices[0], tmp_path / "missing.png"])
    assert caught.value.name == str(tmp_path / "missing.png")
    with pytest.raises(UnreadableImageError, match="image-0002"):
        classifier.predict([slices[0], b"nonsense"])


def test_one_image_is_answered_without_threads_bad_ones_and_wrong_options_included(
    classifier: TumorClassifier, slices: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    answers = classifier.predict(slices[:1])
    monkeypatch.setattr(
        "brain_tumor_mri.inference.classifier.ThreadPoolExecutor", lambda *_, **__: pytest.fail("a pool")
    )
    assert classifier.predict(slices[0]) == answers[0]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert classifier.predict(tmp_path / "broken.png", on_error="record").error
    with pytest.raises(UnreadableImageError, match=r"broken\.png"):
        classifier.predict(tmp_path / "broken.png")
    with pytest.raises(ValueError, match="on_error"):
        classifier.predict(slices[0], on_error="ignore")
    with pytest.raises(ValueError, match="batch_size"):
        classifier.predict(slices[0], batch_size=0)


def test_wrong_options_are_refused_at_once(classifier: TumorClassifier):
    with pytest.raises(ValueError, match="on_error"):
        classifier.predict_stream([], on_error="ignore")
    with pytest.raises(ValueError, match="batch_size"):
        classifier.predict_stream([], batch_size=0)


def test_an_endless_stream_is_read_at_most_two_batches_ahead(classifier: TumorClassifier):
    taken = 0

    def endless():
        nonlocal taken
        for taken in itertools.count(1):
            yield np.full((8, 8), taken % 256, np.uint8)

    stream = classifier.predict_stream(endless(), batch_size=4)
    for number in range(1, 30):
        assert next(stream).name == f"image-{number:04d}"
        assert taken <= number + 8
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-image")]


def test_pixels_do_not_pile_up_however_long_the_stream(classifier: TumorClassifier):
    one = 3 * 224 * 224 * 4
    tracemalloc.start()
    try:
        for _ in classifier.predict_stream((np.zeros((8, 8)) for _ in range(60)), batch_size=4):
            pass
        assert one < tracemalloc.get_traced_memory()[1] < 30 * one
    finally:
        tracemalloc.stop()


def test_preprocessing_is_the_models_own(classifier: TumorClassifier, tiny_model_dir: Path, slices: list[Path]):
    from transformers import AutoImageProcessor

    image = Image.open(slices[0]).convert("RGB")
    expected = AutoImageProcessor.from_pretrained(tiny_model_dir)(image, return_tensors="pt")["pixel_values"][0]
    assert np.array_equal(classifier.preprocess(image), expected.numpy())
    assert classifier.image_size == (224, 224) == tuple(expected.shape[1:])
    assert classifier.probabilities(expected[None].numpy()).sum() == pytest.approx(1)
    assert not classifier.model.training and classifier.model.dtype == torch.float32


@pytest.mark.real_data
@pytest.mark.parametrize("model_fixture", ["tiny_model_dir", "released_model_dir"])
def test_the_plain_transformers_pipeline_gives_the_same_uncalibrated_probabilities_on_real_images(
    request: pytest.FixtureRequest, real_data_dir: Path, model_fixture: str
):
    from transformers import pipeline

    folder = request.getfixturevalue(model_fixture)
    images = sorted(real_data_dir.glob("Testing/*/*.jpg"))
    images = images[:: len(images) // 16][:16]
    assert len(images) == 16
    ours = TumorClassifier.from_pretrained(folder, device="cpu", use_trust=False).predict(images)
    theirs = pipeline("image-classification", model=str(folder), device="cpu")([str(path) for path in images])
    for answer, scores in zip(ours, theirs, strict=True):
        assert {s["label"] for s in scores} == set(LABELS)
        assert np.allclose([answer.probabilities[s["label"]] for s in scores], [s["score"] for s in scores], atol=1e-5)


# --- models that must be refused, each with one line that says what to do ---


def refusal(model: object, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        TumorClassifier.from_pretrained(model, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500  # a long temporary path, twice
    return str(caught.value)


@pytest.fixture
def copied_model(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "copy"))


def edit_config(folder: Path, **changes: object) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_labels_in_another_order_are_refused(copied_model: Path):
    said = refusal(edit_config(copied_model, label_names=["glioma", "notumor", "meningioma", "pituitary"]))
    assert "other classes (glioma, notumor, meningioma, pituitary)" in said


def test_a_model_of_other_classes_is_refused(copied_model: Path):
    assert "(10 in all)" in refusal(edit_config(copied_model, label_names=[f"class {i}" for i in range(10)]))
    assert "other classes (none)" in refusal(edit_config(copied_model, label_names=None))


def test_labels_kept_as_id2label_are_understood(copied_model: Path):
    ids = {str(i): name for i, name in reversed(list(enumerate(LABELS)))}
    assert find_model(edit_config(copied_model, label_names=None, id2label=ids)).labels == LABELS


def test_a_missing_folder_is_told(tmp_path: Path):
    assert "is not a model folder here" in refusal(tmp_path / "none")
    assert "is not a model folder here" in refusal("no-such-model")
    (tmp_path / "file").touch()
    assert "is a file" in refusal(tmp_path / "file")
    assert "no config.json" in refusal(tmp_path)


def test_an_unknown_repository_without_network_is_told():
    said = refusal("nobody/no-such-model", revision="v9")
    assert "nobody/no-such-model at revision v9" in said and "give a model folder" in said


def test_weights_that_are_missing_damaged_or_pickled_are_told(copied_model: Path):
    weights = copied_model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "is not a whole safetensors file (" in refusal(copied_model)
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "git lfs pull" in refusal(copied_model)
    weights.write_bytes(b"nonsense" * 9)
    assert "not a whole safetensors file" in refusal(copied_model)
    weights.rename(copied_model / "pytorch_model.bin")
    assert "no model.safetensors" in refusal(copied_model)


def test_weights_that_lack_a_layer_are_refused_not_filled_with_noise(copied_model: Path):
    from safetensors.torch import load_file, save_file

    state = load_file(copied_model / "model.safetensors")
    head = next(name for name in state if name.endswith("fc.weight"))
    save_file({k: v for k, v in state.items() if k != head}, copied_model / "model.safetensors", {"format": "pt"})
    assert "lacks 1 of the model's weights" in refusal(copied_model)


def test_code_that_a_model_folder_brings_is_never_run_nor_asked_about(copied_model: Path, tmp_path: Path, monkeypatch):
    trace = tmp_path / "trace"
    (copied_model / "evil.py").write_text(f"open({str(trace)!r}, 'w').close()\nclass C: pass\nM = P = C\n")
    autos = {"AutoConfig": "evil.C", "AutoModelForImageClassification": "evil.M", "AutoImageProcessor": "evil.P"}
    edit_config(copied_model, model_type="evil", architectures=["M"], auto_map=autos)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    assert refusal(copied_model)
    with pytest.raises(UserError):
        build_model(str(copied_model))
    assert not trace.exists()


def test_a_config_that_cannot_be_read_is_told(copied_model: Path):
    (copied_model / "config.json").write_text("{")
    assert "config.json is no valid JSON" in refusal(copied_model)


def test_an_architecture_that_timm_does_not_know_is_told(copied_model: Path):
    assert "cannot be loaded" in refusal(edit_config(copied_model, architecture="resnet5000"))


@pytest.mark.parametrize("device", ["tpu9", "cuda:77"])
def test_a_device_that_is_not_there_is_told(tiny_model_dir: Path, device: str):
    assert f"device {device} is not available" in refusal(tiny_model_dir, device=device)


def test_half_precision_weights_run_in_fp32(copied_model: Path, slices: list[Path], classifier: TumorClassifier):
    from safetensors.torch import load_file, save_file

    state = load_file(copied_model / "model.safetensors")
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    save_file(half, copied_model / "model.safetensors", {"format": "pt"})
    loaded = TumorClassifier.from_pretrained(copied_model, device="cpu")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert np.allclose(row(loaded.predict(slices[0])), row(classifier.predict(slices[0])), atol=0.02)


def test_loading_says_nothing_of_its_own(tiny_model_dir: Path, capfd: pytest.CaptureFixture[str]):
    TumorClassifier.from_pretrained(tiny_model_dir)
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def second_model_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with other weights in its head and another normalisation."""
    folder = tmp_path_factory.mktemp("second") / "second-model"
    shutil.copytree(tiny_model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_an_ensemble_answers_with_the_mean_of_its_members(
    classifier: TumorClassifier, tiny_model_dir: Path, second_model_dir: Path, slices: list[Path]
):
    second = TumorClassifier.from_pretrained(second_model_dir, device="cpu")
    both = TumorClassifier.from_pretrained([tiny_model_dir, second_model_dir], device="cpu")
    assert len(both.members) == 2 and both.image_size == classifier.image_size
    for wanted in ("model", "network", "processor"):
        with pytest.raises(UserError, match=r"ask \.members\[0\]"):
            getattr(both, wanted)
    for path, answer in zip(slices[:5], both.predict(slices[:5], batch_size=2), strict=True):
        rows = [row(member.predict(path)) for member in (classifier, second)]
        assert np.abs(rows[0] - rows[1]).max() > 1e-3
        assert row(answer) == pytest.approx(np.mean(rows, axis=0), abs=1e-5)
    assert both.describe()["architecture"] == "test_resnet + test_resnet"
    assert TumorClassifier.from_pretrained([tiny_model_dir]).members[0].folder.source == str(tiny_model_dir)


def test_an_ensemble_asks_each_member_at_its_own_input_size(
    classifier: TumorClassifier, tiny_model_dir: Path, copied_model: Path, slices: list[Path]
):
    for name in ("config.json", "preprocessor_config.json"):
        if (copied_model / name).is_file():
            config = json.loads((copied_model / name).read_text())
            config["pretrained_cfg"]["input_size"] = [3, 96, 96]
            (copied_model / name).write_text(json.dumps(config))
    small = TumorClassifier.from_pretrained(copied_model, device="cpu")
    assert small.image_size == (96, 96)
    for folders in ([tiny_model_dir, copied_model], [copied_model, tiny_model_dir]):
        both = TumorClassifier.from_pretrained(folders, device="cpu")
        assert both.image_size == (224, 224)
        for path, answer in zip(slices[:4], both.predict(slices[:4]), strict=True):
            rows = [row(member.predict(path)) for member in (classifier, small)]
            assert np.abs(rows[0] - rows[1]).max() > 1e-3
            assert row(answer) == pytest.approx(np.mean(rows, axis=0), abs=1e-5)
    with pytest.raises(UserError, match="no model"):
        TumorClassifier.from_pretrained([])


@pytest.mark.parametrize("wanted", ["model", "network", "processor"])
def test_an_ensemble_says_which_member_to_ask_for_what_each_has(
    tiny_model_dir: Path, second_model_dir: Path, wanted: str
):
    both = TumorClassifier.from_pretrained([tiny_model_dir, second_model_dir], device="cpu")
    with pytest.raises(UserError, match=rf"{wanted} for each member: ask \.members\[0\] to \.members\[1\]$"):
        getattr(both, wanted)
    assert getattr(both.members[1], wanted) is not None and both.trust is None and both.folder is None


def test_explain_gives_one_explanation_for_one_image_and_a_list_for_many(
    classifier: TumorClassifier, slices: list[Path]
):
    one = classifier.explain(slices[0], "glioma")
    assert isinstance(one, Explanation) and one.target == "glioma"
    many = classifier.explain(iter(slices[:2]), "glioma", method="fused-cam", batch_size=1)
    assert [explanation.prediction.name for explanation in many] == list(map(str, slices[:2]))
    np.testing.assert_allclose(many[0].heat_map, one.heat_map, atol=1e-6)
    assert classifier.explain([]) == []


def test_with_mirror_a_slice_and_its_mirror_image_get_one_answer(tiny_model_dir: Path, slices: list[Path]):
    plain = TumorClassifier.from_pretrained(tiny_model_dir, device="cpu")
    mirrored = TumorClassifier.from_pretrained(tiny_model_dir, device="cpu", mirror=True)
    image = Image.open(slices[0]).convert("RGB")
    flipped = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    rows = [row(plain.predict(view)) for view in (image, flipped)]
    assert np.abs(rows[0] - rows[1]).max() > 1e-4
    assert row(mirrored.predict(image)) == pytest.approx(np.mean(rows, axis=0), abs=1e-4)
    assert row(mirrored.predict(flipped)) == pytest.approx(row(mirrored.predict(image)), abs=1e-4)
    assert mirrored.describe()["mirror"] is True


def test_whatever_reading_or_preparing_an_image_raises_is_a_row_and_not_the_end_of_the_batch(
    classifier: TumorClassifier, slices: list[Path], monkeypatch: pytest.MonkeyPatch
):
    sizes = iter(range(9))
    prepared = classifier.preprocess

    def out_of_memory_once(image: Image.Image) -> np.ndarray:
        if next(sizes) == 1:
            raise MemoryError
        return prepared(image)

    monkeypatch.setattr(classifier, "preprocess", out_of_memory_once)
    monkeypatch.setattr("brain_tumor_mri.inference.classifier._READERS", 1)
    answers = classifier.predict(slices[:3], on_error="record")
    assert [answer.error for answer in answers] == [None, "decoding it needs more memory than there is", None]
    monkeypatch.setattr(classifier, "preprocess", lambda image: 1 / 0)
    with pytest.raises(UnreadableImageError, match="division by zero"):
        classifier.predict(slices[0])
