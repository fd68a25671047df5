"""web/ in Node: the JavaScript computes what Python does, and transformers.js runs an exported folder as it is."""

import base64
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brain_tumor_mri import TumorClassifier
from brain_tumor_mri.commands.main import main
from brain_tumor_mri.heat_maps.cam import GraphView, mean_maps
from brain_tumor_mri.heat_maps.explain import COLOURS, Explanation
from brain_tumor_mri.heat_maps.head import head_mask
from brain_tumor_mri.inference.prediction import Prediction
from brain_tumor_mri.labels import LABELS
from brain_tumor_mri.trust import decision as decisions
from brain_tumor_mri.trust import trust_file as trust
from brain_tumor_mri.trust.decision import picture_fault
from tests.trust.test_trust_file import trust_for, write

WEB = Path(__file__).resolve().parents[2] / "web"
INSTALL = "run `npm install --prefix web --ignore-scripts`"
NODE = shutil.which("node")
if not NODE:
    pytest.skip("Node is not installed (nodejs.org, version 20 or later)", allow_module_level=True)


def run_js(script: str, request: object) -> object:
    """Run a module that finds ``request`` and sets ``answer``; both are JSON."""
    imports = "\n".join(
        f"import * as {name} from {json.dumps((WEB / f'{name}.js').as_uri())};"
        for name in ("heat", "preprocess", "trust")
    )
    reading = 'import fs from "node:fs"; const request = JSON.parse(fs.readFileSync(0)); let answer;'
    picture = "const picture = (p) => ({ ...p, data: new Uint8ClampedArray(Buffer.from(p.data, 'base64')) });"
    whole = f"{imports}\n{reading}\n{picture}\n{script}\nconsole.log(JSON.stringify(answer));"
    command = [NODE, "--input-type=module", "-e", whole]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def as_request(image: Image.Image) -> dict:
    return {"data": base64.b64encode(image.tobytes()).decode(), "width": image.width, "height": image.height}


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def slices_of(phantom_dir: Path, folder: Path, count: int) -> list[Path]:
    """Phantoms as people have slices: of several sizes and ratios, PNG and JPEG, grey and RGB."""
    files = []
    sizes = [(96, 96), (512, 512), (300, 260), (97, 401)]
    for i, path in enumerate(sorted(phantom_dir.glob("Testing/*/*.png"))[:: 16 // count][:count]):
        image = Image.open(path).convert("RGB" if i % 3 else "L").resize(sizes[i % len(sizes)])
        files.append(folder / f"slice-{i}.{'jpg' if i % 2 else 'png'}")
        image.save(files[-1])
    return files


def export_of(model: Path, folder: Path, images: list[Path]) -> Path:
    """Export a copy of the tiny model with a trust.json that leaves half of these slices uncertain."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (requirements-dev.txt)")
    copy = Path(shutil.copytree(model, folder / "model"))
    plain = TumorClassifier.from_pretrained(copy, device="cpu").predict(images)
    roots = np.sqrt([sorted(said.probabilities.values()) for said in plain])  # in proportion those at temperature 2
    second = np.median((roots / roots.sum(axis=1, keepdims=True))[:, -2])
    write(copy, trust_for(copy, temperature=2.0, left=1 - second))
    arguments = ["--model", str(copy), "--output", str(folder / "exported"), "--check_images", *map(str, images[:2])]
    assert main(["export", "--format", "onnx", *arguments]) == 0
    return folder / "exported"


@pytest.fixture(scope="module")
def slices(phantom_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("slices")
    coloured = folder / "coloured.png"
    noise(80, 80).save(coloured)
    return [*slices_of(phantom_dir, folder, 9), coloured]


@pytest.fixture(scope="module")
def exported(tiny_model_dir: Path, slices: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_of(tiny_model_dir, tmp_path_factory.mktemp("export"), slices)


def answers_of_node(folder: Path, images: list[Path]) -> list[dict]:
    if not (WEB / "node_modules" / "@huggingface" / "transformers").is_dir():
        pytest.skip(f"transformers.js is not installed; {INSTALL}")
    command = [NODE, str(WEB / "transformers.mjs"), str(folder), *map(str, images)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_same(theirs: list[dict], ours: list[Prediction], tolerance: float) -> None:
    """Compare JavaScript's answers with Python's."""
    assert len(theirs) == len(ours) > 0
    for said, expected in zip(theirs, ours, strict=True):
        assert said["probabilities"] == pytest.approx(expected.probabilities, abs=tolerance)
        assert said["label"] == expected.label
        if expected.decision is not None:
            found = (said["decision"], said["reason"], said["prediction_set"])
            assert found == (expected.decision, expected.reason, list(expected.prediction_set))
            assert said["unlikeness"] == pytest.approx(expected.unlikeness, rel=1e-3)
            assert said["foreign"] == pytest.approx(expected.foreign, abs=1e-3)


@pytest.mark.parametrize("size", [(224, 224), (96, 160)])
def test_heat_maps_head_and_overlay_are_those_of_python(size: tuple[int, int], phantom_dir: Path):
    width, height = size
    rng = np.random.default_rng(0)
    cells = [np.maximum(rng.normal(size=(1, 4, *shape)), 0).astype(np.float32) for shape in ((7, 5), (14, 10))]
    image = Image.open(next(phantom_dir.glob("Testing/glioma/*.png"))).convert("RGB").resize(size)
    probabilities = {"glioma": 0.3, "meningioma": 0.6, "notumor": 0.06, "pituitary": 0.04}
    request = {
        "picture": as_request(image), "share": 0.5, "colours": [list(bytes.fromhex(colour)) for colour in COLOURS],
        "outputs": [{"data": c.ravel().tolist(), "dims": c.shape} for c in cells],
    }  # fmt: skip
    script = """
      const seen = picture(request.picture);
      const outputs = request.outputs.map(({ data, dims }) => ({ data: Float32Array.from(data), dims }));
      const map = heat.heatMap(outputs, 0, seen);
      const head = heat.headMask(seen);
      const drawn = heat.overlay(seen, map, head, request.share, request.colours);
      answer = { map: [...map], head: [...head], drawn: [...drawn] };
    """
    found = run_js(script, request)
    (expected,) = mean_maps([[GraphView(cells, None, None, False)]], [0], (height, width))
    np.testing.assert_allclose(np.reshape(found["map"], (height, width)), expected, atol=1e-5)
    assert np.array_equal(np.reshape(found["head"], (height, width)), head_mask(image))
    explanation = Explanation(Prediction("x", "meningioma", 0.6, probabilities), "glioma", expected, image, size)
    overlay = np.asarray(explanation.overlay(), int)
    drawn = np.reshape(found["drawn"], (height, width, 4))
    assert np.abs(drawn[..., :3] - overlay).max() <= 1 and (drawn[..., 3] == 255).all()


def test_transformers_js_answers_an_exported_folder_as_python_does(exported: Path, slices: list[Path]):
    ours = TumorClassifier.from_pretrained(exported).predict(slices)
    assert {p.decision for p in ours} == set(decisions.DECISIONS) - {decisions.UNFAMILIAR} and len(
        {p.label for p in ours}
    ) > 1
    assert_same(answers_of_node(exported, slices), ours, 1e-4)


def test_transformers_js_answers_the_released_small_model_as_python_does(slices: list[Path]):
    model = WEB.parent / "model-lite"
    if not (model / "onnx" / "model.onnx").is_file():
        pytest.skip(f"{model} has no ONNX file")
    ours = TumorClassifier.from_pretrained(model, backend="onnx").predict(slices)
    assert_same(answers_of_node(model, slices), ours, 1e-4)


@pytest.mark.real_data
def test_transformers_js_answers_ten_real_slices_as_python_does(
    released_model_dir: Path, real_data_dir: Path, tmp_path: Path
):
    # the Kaggle copy may be resized already; the Figshare slices are not
    figshare = sorted((real_data_dir.parent / "figshare-brain-tumor" / "images").glob("*.jpg"))[::500][:5]
    kaggle = sorted(real_data_dir.glob("Testing/*/*.jpg"))[:: 1311 // 10][: 10 - len(figshare)]
    images = [*figshare, *kaggle]
    arguments = ["--model", str(released_model_dir), "--output", str(tmp_path / "exported")]
    assert main(["export", "--format", "onnx", *arguments, "--check_images", *map(str, images)]) == 0
    ours = TumorClassifier.from_pretrained(tmp_path / "exported").predict(images)
    assert_same(answers_of_node(tmp_path / "exported", images), ours, 1e-3)


def test_resizing_equals_pillow_in_every_pixel():
    cases = [
        (noise(*size, seed=i), target, name)
        for i, size in enumerate([(512, 300), (97, 60), (33, 500), (224, 150)])
        for target in [(224, 224), (64, 64)]
        for name in ("box", "bilinear", "bicubic", "lanczos")
    ]
    request = [{"picture": as_request(image), "size": size, "name": name} for image, size, name in cases]
    script = "answer = request.map(({ picture: p, size, name }) => Buffer.from("
    script += "preprocess.resize(picture(p), ...size, name).data).toString('base64'));"
    for (image, size, name), found in zip(cases, run_js(script, request), strict=True):
        expected = image.resize(size, getattr(Image.Resampling, name.upper()))
        assert base64.b64decode(found) == expected.tobytes(), (image.size, size, name)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pixel_values_equal_those_of_the_models_own_processor(tiny_model_dir: Path, tmp_path: Path, interpolation: str):
    from transformers import AutoImageProcessor

    config = json.loads((tiny_model_dir / "config.json").read_text())
    config["pretrained_cfg"]["interpolation"] = interpolation
    (tmp_path / "config.json").write_text(json.dumps(config))
    image = noise(300, 260)
    script = "const { config, image } = request;"
    script += "answer = [...preprocess.pixelValues(picture(image), preprocess.preprocessingOf(config))];"
    found = np.float32(run_js(script, {"config": config, "image": as_request(image)}))
    expected = AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"][0].numpy()
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["one", "several"])
def test_the_rules_of_trust_json_give_pythons_sets_scores_and_faults(kind: str):
    rng = np.random.default_rng(1)
    logits, features = rng.normal(0, 3, (50, 4)), rng.normal(0, 2, (50, 12))
    limits = {90: [0.3, 0.6, 0.9, 0.5], 95: [0.5, 0.8, 0.95, 0.7]}
    thresholds = {c: np.array([row, [0.98, 0.99, 1, 0.97]]) for c, row in limits.items()}
    calibration = trust.Calibration(np.array([0.7, 1.7]), thresholds)
    rows = np.linalg.qr(rng.normal(size=(12, 3)))[0].T
    if kind == "one":
        check = trust.InDistribution("layer3", rng.normal(size=12), rows, np.array([9.0, 4.0, 2.0]), 0.5, 70.0)
    else:
        weights = rng.normal(0, 0.3, (2, 12))
        check = trust.KnownCollections("layer3", ["a", "b"], weights, np.array([0.5, 0.0]))
    brain_mri = trust.BrainMriCheck(rng.normal(0, 0.5, (2, 12)), np.array([-1.5, -2.0]))
    whole = trust.Trust("", calibration, calibration, check, brain_mri, {})
    again = trust.Trust.from_dict(whole.to_dict())  # the file has six digits
    grey = noise(90, 90).convert("L").resize((200, 100))
    pictures = [grey.convert("RGB"), noise(200, 100), noise(20, 90), Image.new("RGB", (99, 50), "gray")]
    faults = [picture_fault(picture) for picture in pictures]
    assert None in faults and len(set(faults)) == 4
    request = {"trust": whole.to_dict(), "logits": logits.tolist(), "features": features.tolist(), "labels": LABELS}
    script = """
      const { labels, logits, features } = request;
      const faults = request.pictures.map((p) => trust.pictureFault(picture(p)));
      answer = { faults, said: logits.map((z, i) => trust.judge(labels, z, features[i], faults[i], request.trust)) };
    """
    found = run_js(script, request | {"pictures": [as_request(picture) for picture in pictures]})
    assert found["faults"] == faults
    scores, foreign = again.in_distribution.unlikeness(features), again.foreign(features)
    probabilities = calibration.probabilities(logits[:, None], scores)
    outcomes = set()
    for coverage in decisions.COVERAGES:
        inside = calibration.prediction_sets(probabilities, scores, coverage)
        for row, said in enumerate(found["said"]):
            left = tuple(np.array(LABELS)[inside[row]])
            fault = faults[row] if row < len(faults) else None
            expected = decisions.decide(left, scores[row], foreign[row], fault)
            outcomes.add(expected[0])
            decided = said["decisions"][str(coverage)]
            assert (decided["decision"], decided["reason"], tuple(decided["prediction_set"])) == (*expected, left)
            assert said["unlikeness"] == pytest.approx(scores[row], rel=1e-9)
            assert said["foreign"] == pytest.approx(foreign[row], rel=1e-9)
            assert list(said["probabilities"].values()) == pytest.approx(probabilities[row])
    assert outcomes == set(decisions.DECISIONS)
    unchecked = request | {"trust": {**whole.to_dict(), "brain_mri": None}, "pictures": []}
    assert {said["foreign"] for said in run_js(script, unchecked)["said"]} == {0}


def test_constants_that_javascript_spells_are_those_of_python():
    names = ("MIN_SIDE", "MIN_CONTRAST", "MAX_COLOUR", "FOREIGN_LIMIT", "COVERAGES", "DEFAULT_COVERAGE")
    found = run_js("answer = request.map((name) => trust[name]);", names)
    expected = [getattr(trust, name, getattr(decisions, name, None)) for name in names]
    assert found == [list(value) if isinstance(value, tuple) else value for value in expected]


def test_what_the_javascript_cannot_do_is_refused(exported: Path):
    files = {name: json.loads((exported / f"{name}.json").read_text()) for name in ("config", "export", "trust")}
    script = """
      const { config, export: record, trust: content } = request;
      const told = (act) => { try { act(); return null; } catch (error) { return error.message; } };
      const stage = { ...content.in_distribution, stage: "layer1" };
      const cropped = { ...config, pretrained_cfg: { ...config.pretrained_cfg, crop_pct: 0.9 } };
      answer = [
        told(() => trust.checkTrust(content, record, "onnx")),
        told(() => trust.checkTrust({ ...content, weights_sha256: "0" }, record, "onnx")),
        told(() => trust.checkTrust({ ...content, in_distribution: stage }, record, "onnx")),
        told(() => trust.checkTrust({ ...content, calibration: {} }, record, "onnx")),
        told(() => preprocess.preprocessingOf(cropped)),
      ];
    """
    fine, other, stage, damaged, crop = run_js(script, files)
    assert fine is None
    assert "other weights" in other and "layer1" in stage and "damaged" in damaged and "crop" in crop
