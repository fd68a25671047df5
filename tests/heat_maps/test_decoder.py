"""The decoder of heat maps: fitted to outlines, read from decoder.json, the same from PyTorch and from a graph."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from brain_tumor_mri import TumorClassifier, UserError
from brain_tumor_mri.commands.main import main
from brain_tumor_mri.evaluation.decoder import fit_decoder
from brain_tumor_mri.files import write_json
from brain_tumor_mri.heat_maps import METHODS
from brain_tumor_mri.labels import LABEL2ID, LABELS

SIDE = 96
GREYS = {"glioma": 250, "meningioma": 190, "pituitary": 20}


def disc(folder: Path, name: str, label: str, x: int, y: int) -> tuple[Path, int, list[np.ndarray]]:
    """A head with a disc, whose grey is that of its class, and the disc's outline."""
    picture = Image.new("L", (SIDE, SIDE))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((8, 8, 88, 88), fill=110)
    outlines = []
    if label in GREYS:
        draw.ellipse((x - 10, y - 10, x + 10, y + 10), fill=GREYS[label])
        turns = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        outlines = [np.stack([x + 10 * np.cos(turns), y + 10 * np.sin(turns)], 1) / SIDE]
    path = folder / f"{name}.png"
    picture.filter(ImageFilter.GaussianBlur(1)).save(path)
    return path, LABEL2ID[label], outlines


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """The tiny model with a decoder that knows discs."""
    home = tmp_path_factory.mktemp("decoder")
    shutil.copytree(tiny_model_dir, home / "model")
    rng = np.random.default_rng(0)
    slices = [disc(home, f"{label}-{i}", label, *rng.integers(30, 66, 2)) for label in LABELS for i in range(6)]
    classifier = TumorClassifier.from_pretrained(home / "model", device="cpu", backend="torch")
    decoder, counts = fit_decoder(classifier, slices)
    assert counts["slices"] == 24 and min(counts.values()) > 20
    write_json(home / "model" / "decoder.json", decoder.to_dict())
    return home


@pytest.mark.parametrize("label", GREYS)
@pytest.mark.parametrize("mirror", [False, True])
def test_the_highest_point_lies_in_the_tumour_of_a_slice_not_seen(home: Path, tmp_path: Path, label: str, mirror: bool):
    classifier = TumorClassifier.from_pretrained(home / "model", device="cpu", backend="torch", mirror=mirror)
    path, _, _ = disc(tmp_path, "new", label, 34, 60)
    explanation = classifier.explain(path, label)
    heat = explanation.heat_map
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    scale = SIDE / heat.shape[0]
    assert np.hypot(column * scale - 34, row * scale - 60) < 11
    assert heat.max() == 1
    other = next(name for name in GREYS if name != label)
    assert not np.array_equal(classifier.explain(path, other).heat_map, heat)


def test_a_model_without_a_decoder_of_its_weights_is_explained_by_activation_maps(home: Path, tmp_path: Path):
    path, _, _ = disc(tmp_path, "new", "glioma", 40, 40)
    folder = Path(shutil.copytree(home / "model", tmp_path / "model"))
    content = json.loads((folder / "decoder.json").read_text())
    (folder / "decoder.json").write_text(json.dumps(content | {"weights_sha256": "0" * 64}))
    classifier = TumorClassifier.from_pretrained(folder, device="cpu", backend="torch")
    by_default = classifier.explain(path, "glioma").heat_map
    np.testing.assert_array_equal(by_default, classifier.explain(path, "glioma", method="fused-cam").heat_map)
    with pytest.raises(UserError, match=r"decoder\.json"):
        classifier.explain(path, method="decoder")
    (folder / "decoder.json").write_text("{}")
    with pytest.raises(UserError, match=r"damaged.*brain-tumor-mri decoder"):
        TumorClassifier.from_pretrained(folder, device="cpu", backend="torch").explain(path)


def test_the_activation_maps_stay_to_be_had(home: Path, tmp_path: Path):
    path, _, _ = disc(tmp_path, "new", "glioma", 40, 40)
    classifier = TumorClassifier.from_pretrained(home / "model", device="cpu", backend="torch")
    ours = classifier.explain(path, "glioma").heat_map
    for method in METHODS:
        assert not np.array_equal(classifier.explain(path, "glioma", method=method).heat_map, ours)


def test_an_onnx_file_gives_the_same_maps(home: Path, tmp_path: Path):
    pytest.importorskip("onnxscript", reason="pip install onnxscript")
    images = [disc(tmp_path, f"new-{label}", label, 50, 44)[0] for label in LABELS]
    output = tmp_path / "exported"
    assert main(["export", "--model", str(home / "model"), "--format", "onnx", "--output", str(output),
                 "--check_images", *map(str, images)]) == 0  # fmt: skip
    ours = TumorClassifier.from_pretrained(home / "model", device="cpu", backend="torch").explain(images)
    theirs = TumorClassifier.from_pretrained(output, backend="onnx").explain(images)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(b.heat_map, a.heat_map, atol=1e-4)
