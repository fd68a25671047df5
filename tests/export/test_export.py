"""Exports: they answer as PyTorch does, are bound to the weights they were made from, and are whole or not there."""

import json
import math
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from brain_tumor_mri import TumorClassifier, UserError
from brain_tumor_mri.commands.main import main
from brain_tumor_mri.data.folders import scan_folders
from brain_tumor_mri.data.protocols import ProtocolArguments, assign
from brain_tumor_mri.export import parity
from brain_tumor_mri.export import slices as export_slices
from brain_tumor_mri.export import write_onnx as onnx_writing
from brain_tumor_mri.heat_maps import METHODS
from brain_tumor_mri.inference import model_folder
from brain_tumor_mri.inference.model_folder import find_model
from brain_tumor_mri.inference.prediction import Prediction
from brain_tumor_mri.inference.run_pytorch import stage_of
from brain_tumor_mri.labels import LABELS
from brain_tumor_mri.trust.trust_file import Calibration, InDistribution, Trust

ARCHITECTURES = ("test_resnet", "test_efficientnet")
PHANTOM = Path("phantoms") / "Testing" / "glioma"


def add_trust(folder: Path) -> None:
    """Give a model a trust.json under which its slices get different decisions."""
    classifier = TumorClassifier.from_pretrained(folder, device="cpu")
    stage = stage_of(classifier.model.timm_model)
    names = stage.split("+")
    width = sum(row["num_chs"] for row in classifier.model.timm_model.feature_info if row["module"] in names)
    calibration = Calibration(np.full(2, 0.7), {90: np.full((2, 4), 0.5), 95: np.full((2, 4), 0.65)})
    check = InDistribution(stage, np.zeros(width), np.eye(2, width), np.ones(2), 1.0, 1.0)
    slices = sorted((folder.parent / "phantoms").glob("Testing/*/*.png"))
    mirrored = replace(calibration, temperatures=np.full(2, 1.5))
    trust = Trust(find_model(folder).sha256(), calibration, mirrored, check, None, {})
    (folder / "trust.json").write_text(json.dumps(trust.to_dict()))
    scores = [a.unlikeness for a in TumorClassifier.from_pretrained(folder, device="cpu").predict(slices)]
    trust = replace(trust, in_distribution=replace(check, threshold=float(np.sort(scores)[-3:-1].mean())))
    (folder / "trust.json").write_text(json.dumps(trust.to_dict()))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, phantom_dir: Path) -> Path:
    """Both tiny models with a trust.json, and the phantoms, under one folder."""
    import timm

    home = tmp_path_factory.mktemp("export")
    shutil.copytree(phantom_dir, home / "phantoms")
    for name in ARCHITECTURES:
        shutil.copytree(tiny_model_dir, home / name)
    other = home / ARCHITECTURES[1]
    config = json.loads((other / "config.json").read_text()) | {"architecture": ARCHITECTURES[1]}
    config.pop("num_features", None)
    (other / "config.json").write_text(json.dumps(config))
    save_network(timm.create_model(ARCHITECTURES[1], num_classes=4), other, phantom_dir)
    for name in ARCHITECTURES:
        add_trust(home / name)
    return home


def save_network(network: torch.nn.Module, folder: Path, phantom_dir: Path) -> None:
    """Write a timm network's weights, drawn anew, with a head that tells the phantoms apart."""
    from safetensors.torch import save_file
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder)
    slices = [parity.load_image(path) for path in sorted(phantom_dir.glob("Training/*/*.png"))[::3]]
    pixels = processor(slices, return_tensors="pt")["pixel_values"]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        for layer in (layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)):
            layer.momentum = None
        logits = [network.train()(pixels), network.eval()(pixels)][1]
        head = network.get_classifier()
        scale = 1.5 / logits.std(dim=0)
        head.weight.mul_(scale[:, None])
        head.bias.copy_((head.bias - logits.mean(dim=0)) * scale)
    state = {f"timm_model.{name}": tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def export_to(home: Path, name: str, export_format: str, output: Path, *flags: str) -> int:
    data = ["--data_dir", str(home / "phantoms")]
    return main(
        ["export", "--format", export_format, "--model", str(home / name), "--output", str(output), *data, *flags]
    )


@pytest.fixture(scope="module", params=[ARCHITECTURES[0], pytest.param(ARCHITECTURES[1], marks=pytest.mark.slow)])
def pair(request: pytest.FixtureRequest, home: Path) -> tuple[Path, Path]:
    """A model, and a folder that holds its ONNX and its int8 export; the command makes a folder of each."""
    output, small = home / f"{request.param}-onnx", home / f"{request.param}-int8"
    if not output.exists():
        assert export_to(home, request.param, "onnx", output) == 0
        assert export_to(home, request.param, "onnx-int8", small, "--min_agreement", "0.7") == 0
        shutil.copy2(small / "onnx" / "model_int8.onnx", output / "onnx")
        records = [json.loads((folder / "export.json").read_text()) for folder in (output, small)]
        records[0]["files"] |= records[1]["files"]
        (output / "export.json").write_text(json.dumps(records[0]))
    return home / request.param, output


@pytest.fixture(scope="module")
def exported(home: Path) -> Path:
    """An export of test_resnet."""
    output = home / "plain-onnx"
    assert export_to(home, ARCHITECTURES[0], "onnx", output) == 0
    return output


@pytest.fixture(scope="module")
def slices(home: Path) -> list[Path]:
    return sorted((home / "phantoms").glob("*/*/*.png"))[::3]


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copied"))


def rows(predictions: list[Prediction]) -> np.ndarray:
    return np.array([list(said.probabilities.values()) for said in predictions])


def said(predictions: list[Prediction]) -> list[tuple]:
    return [(p.label, p.decision, p.prediction_set, p.prediction_sets) for p in predictions]


@pytest.mark.parametrize("mirror", [False, True])
def test_an_onnx_folder_answers_and_decides_as_pytorch_does(pair, slices: list[Path], mirror: bool):
    model, output = pair
    ours = TumorClassifier.from_pretrained(model, device="cpu", mirror=mirror).predict(slices)
    theirs = TumorClassifier.from_pretrained(output, mirror=mirror).predict(slices)
    assert np.abs(rows(ours) - rows(theirs)).max() < 1e-4
    assert said(ours) == said(theirs) and len({p.decision for p in ours}) > 1 and len({p.label for p in ours}) > 1
    assert [p.unlikeness for p in theirs] == pytest.approx([p.unlikeness for p in ours], rel=1e-3)


@pytest.mark.parametrize("count", [1, 3, 17])
def test_a_batch_of_any_size_is_answered_as_its_slices_alone(exported: Path, count: int):
    classifier = TumorClassifier.from_pretrained(exported)
    pixels = np.random.default_rng(0).normal(size=(count, 3, 224, 224)).astype(np.float32)
    logits, features = classifier.network(pixels)
    assert logits.shape == (count, 4) and features.shape[0] == count
    one, its_features = classifier.network(pixels[-1:])
    np.testing.assert_allclose(one[0], logits[-1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(its_features[0], features[-1], rtol=1e-3, atol=1e-4)


def test_the_files_are_valid_and_have_the_promised_inputs_and_outputs(pair):
    import onnx

    for file in ("model.onnx", "model_int8.onnx"):
        network = onnx.load(pair[1] / "onnx" / file)
        onnx.checker.check_model(network, full_check=True)
        given, gate = network.graph.input
        assert (given.name, gate.name) == ("pixel_values", "explain")
        sides = [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim]
        assert isinstance(sides[0], str) and sides[1:] == [3, 224, 224]
        assert [result.name for result in network.graph.output] == ["logits", "features", "grad_cam", "layer_cam"]


def test_int8_is_close_and_smaller_and_quantized_as_asked(pair, slices: list[Path]):
    import onnx
    from onnx import TensorProto

    model, output = pair
    full, small = (output / "onnx" / name for name in ("model.onnx", "model_int8.onnx"))
    assert small.stat().st_size < 0.75 * full.stat().st_size  # the first convolutions are much of these
    network = onnx.load(small)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in network.graph.node}
    stored = {value.name: value for value in network.graph.initializer}
    convolutions = [node for node in network.graph.node if node.op_type == "Conv"]  # those of the heat maps are inside
    in_float = [
        node.input[1] in stored and stored[node.input[1]].data_type == TensorProto.FLOAT for node in convolutions
    ]
    assert in_float == [place < onnx_writing.FLOAT_CONVOLUTIONS for place in range(len(convolutions))]
    used = {node.input[1] for node in convolutions}
    sizes = {TensorProto.FLOAT: 0, TensorProto.INT8: 0}
    for value in stored.values():
        if value.name not in used and len(value.dims) == 4:
            sizes[value.data_type] += math.prod(value.dims)
    assert sizes[TensorProto.FLOAT] < 0.1 * sizes[TensorProto.INT8]  # the heat maps read the int8 weights, too
    fed = {name for node in convolutions for name in node.input}
    scales = [node for node in network.graph.node if node.op_type == "DequantizeLinear" and node.output[0] in fed]
    weights = [node for node in scales if node.input[0] in stored and len(stored[node.input[0]].dims) == 4]
    assert weights and all(stored[node.input[0]].data_type == TensorProto.INT8 for node in weights)
    assert all(stored[node.input[1]].dims[0] == stored[node.input[0]].dims[0] for node in weights)  # one a channel
    ours = rows(TumorClassifier.from_pretrained(model, device="cpu").predict(slices))
    theirs = rows(TumorClassifier.from_pretrained(output, backend="onnx-int8").predict(slices))
    assert 1e-6 < np.abs(ours - theirs).mean() < 0.05


def test_export_json_says_whose_weights_and_what_the_check_found(pair):
    model, output = pair
    record = json.loads((output / "export.json").read_text())
    assert record["source"]["weights_sha256"] == find_model(model).sha256()
    full, small = (record["files"][name] for name in ("onnx", "onnx-int8"))
    assert full["check"]["images"] == 16 and full["check"]["max_difference"] <= 1e-4 and full["opset"] >= 20
    assert full["check"]["same_decision"] == 1 and full["check"]["feature_difference"] <= 1e-3
    assert full["calibration"] is None and {"onnx", "onnxruntime", "torch"} <= full["versions"].keys()
    settings = small["calibration"]
    assert settings["method"] == "minmax" and settings["activations"] == "uint8" and 20 < settings["slices"] <= 48
    assert small["check"]["min_agreement"] == 0.7 and small["check"]["max_difference"] > 0
    assert {"config.json", "trust.json", "export.json", "onnx"} == {path.name for path in output.iterdir()}


def test_the_backend_follows_from_the_files_or_is_chosen(pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, output = pair
    assert TumorClassifier.from_pretrained(output).describe()["backend"] == "onnx"
    small = TumorClassifier.from_pretrained(output, backend="onnx-int8")
    assert small.describe()["sha256"] != TumorClassifier.from_pretrained(output).describe()["sha256"]
    both = Path(shutil.copytree(output, tmp_path / "both"))
    shutil.copy2(model / "model.safetensors", both)
    for gpu, first in ((True, "torch"), (False, "onnx")):
        monkeypatch.setattr(model_folder, "has_gpu", lambda gpu=gpu: gpu)
        classifier = TumorClassifier.from_pretrained(both, device="cpu")
        assert classifier.describe()["backend"] == first
    assert sum(p.numel() for p in classifier.model.parameters()) > 0  # PyTorch's weights, only now
    assert TumorClassifier.from_pretrained(both, backend="onnx").describe()["backend"] == "onnx"
    with pytest.raises(UserError, match=r"no onnx/model\.onnx.*export"):
        TumorClassifier.from_pretrained(model, backend="onnx")
    with pytest.raises(UserError, match=r"ONNX export without model\.safetensors"):
        TumorClassifier.from_pretrained(output, backend="torch")
    with pytest.raises(ValueError, match="backend"):
        TumorClassifier.from_pretrained(output, backend="tea")


def test_an_ensemble_of_pytorch_and_onnx_answers_as_one_of_pytorch(exported: Path, home: Path, slices: list[Path]):
    models = [home / name for name in ARCHITECTURES]
    ours = TumorClassifier.from_pretrained(models, device="cpu").predict(slices[:6])
    theirs = TumorClassifier.from_pretrained([exported, models[1]], device="cpu")
    assert np.abs(rows(ours) - rows(theirs.predict(slices[:6]))).max() < 1e-4
    assert said(ours) == said(theirs.predict(slices[:6]))
    assert theirs.describe()["backend"] == "onnx + torch"


def test_threads_that_answer_at_once_each_get_their_own_features(exported: Path, slices: list[Path]):
    classifier = TumorClassifier.from_pretrained(exported)
    alone = [classifier.predict(path).unlikeness for path in slices]
    with ThreadPoolExecutor(4) as pool:
        together = [answer.unlikeness for answer in pool.map(classifier.predict, slices * 2)]
    assert len(set(alone)) > 3
    np.testing.assert_allclose(together, alone * 2, rtol=1e-5)


def refusal(folder: Path, **options) -> str:
    with pytest.raises(UserError) as told:
        TumorClassifier.from_pretrained(folder, **options)
    assert "\n" not in str(told.value)
    return str(told.value)


def test_a_damaged_or_swapped_file_is_refused(copied: Path, home: Path, tmp_path: Path):
    whole = (file := copied / "onnx" / "model.onnx").read_bytes()
    file.write_bytes(whole[:-100])
    assert "not the file that export.json describes" in refusal(copied)
    file.write_bytes(whole.replace(b"logits", b"tigols", 1))
    assert "not the file that export.json describes" in refusal(copied)
    file.write_bytes(whole)
    (copied / "export.json").write_text("{}")
    assert "does not describe" in refusal(copied)
    (copied / "export.json").unlink()
    assert "has no export.json" in refusal(copied)


def test_a_file_that_is_no_onnx_is_told_even_when_its_hash_is_right(copied: Path):
    import hashlib

    content = b"no network"
    (copied / "onnx" / "model.onnx").write_bytes(content)
    record = json.loads((copied / "export.json").read_text())
    record["files"]["onnx"]["sha256"] = hashlib.sha256(content).hexdigest()
    (copied / "export.json").write_text(json.dumps(record))
    assert "cannot be run" in refusal(copied)


def test_a_trust_json_of_other_weights_or_another_stage_is_refused(copied: Path, home: Path):
    shutil.copy2(home / ARCHITECTURES[1] / "trust.json", copied)
    assert "belongs to other weights" in refusal(copied)
    content = json.loads((home / ARCHITECTURES[0] / "trust.json").read_text())
    content["in_distribution"]["stage"] = "layer2"
    (copied / "trust.json").write_text(json.dumps(content))
    assert "no features of layer2" in refusal(copied)


def test_without_onnxruntime_the_command_that_installs_it_is_named(copied: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install onnxruntime" in refusal(copied)


def test_a_model_without_trust_json_gives_the_features_that_a_calibration_would_read(home: Path, tmp_path: Path):
    model = Path(shutil.copytree(home / ARCHITECTURES[0], tmp_path / "untrusted"))
    (model / "trust.json").rename(tmp_path / "trust.json")
    images = [str(path) for path in sorted(home.glob("phantoms/Testing/*/*.png"))[:3]]
    assert export_to(tmp_path, "untrusted", "onnx", tmp_path / "out", "--check_images", *images) == 0
    assert TumorClassifier.from_pretrained(tmp_path / "out").predict(images[0]).decision is None
    shutil.copy2(tmp_path / "trust.json", tmp_path / "out")
    assert TumorClassifier.from_pretrained(tmp_path / "out").predict(images[0]).decision is not None


def nothing_but(folder: Path, *names: str) -> bool:
    return {path.name for path in folder.iterdir()} == set(names)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device"), MemoryError])
def test_an_interrupted_export_leaves_nothing(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop):
    def stopped(network, file: Path, **settings) -> None:
        file.write_bytes(b"half a netw")
        assert not (tmp_path / "out").exists()
        raise stop

    monkeypatch.setattr(onnx_writing, "write_onnx", stopped)
    if stop is MemoryError:
        with pytest.raises(MemoryError):
            export_to(home, ARCHITECTURES[0], "onnx", tmp_path / "out")
    else:
        assert export_to(home, ARCHITECTURES[0], "onnx", tmp_path / "out") in (2, 130)
    assert nothing_but(tmp_path)


def test_an_export_that_answers_otherwise_is_refused_and_leaves_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setattr(parity, "MAX_DIFFERENCE", 0.0)
    assert export_to(home, ARCHITECTURES[0], "onnx", tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert "does not answer as PyTorch does" in told and told.count("\n") == 1
    assert nothing_but(tmp_path)


def test_int8_below_the_agreement_is_refused(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    def useless(source: Path, file: Path, slices) -> None:
        import onnx

        network = onnx.load(source)
        last = {name for node in network.graph.node if node.op_type == "Gemm" for name in node.input[1:]}
        for value in network.graph.initializer:
            if value.name in last:
                value.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(value), value.name))
        onnx.save(network, file)

    monkeypatch.setattr(onnx_writing, "write_int8", useless)
    assert export_to(home, ARCHITECTURES[0], "onnx-int8", tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert "differently too often" in told and "95%" in told and told.count("\n") == 1
    assert nothing_but(tmp_path)


def test_what_is_wrong_with_the_input_is_told_in_one_line(home: Path, exported: Path, tmp_path: Path, capsys):
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    cases = {
        "full exists": ("onnx", home / ARCHITECTURES[0], full, []),
        "exists; give a new folder": ("onnx", home / ARCHITECTURES[0], exported, []),
        "is not a model folder": ("onnx", tmp_path / "nowhere", tmp_path / "out", []),
        "ONNX export without": ("onnx", exported, tmp_path / "out", []),
        "--data_dir": ("onnx-int8", home / ARCHITECTURES[0], tmp_path / "out", ["--data_dir", str(tmp_path / "none")]),
        "calibration_slices": ("onnx", home / ARCHITECTURES[0], tmp_path / "out", ["--calibration_slices", "0"]),
        "missing.png": ("onnx", home / ARCHITECTURES[0], tmp_path / "out", ["--check_images", "missing.png"]),
    }
    for message, (export_format, model, output, flags) in cases.items():
        data = [] if "--data_dir" in flags else ["--data_dir", str(home / "phantoms")]
        arguments = ["export", "--format", export_format, "--model", str(model), "--output", str(output), *data, *flags]
        assert main(arguments) == 2, message
        told = capsys.readouterr().err
        assert message in told and told.count("\n") == 1
    assert nothing_but(tmp_path, "full") and (full / "notes.txt").read_text() == "mine"


def test_predict_info_and_explain_on_an_export(exported: Path, slices: list[Path], tmp_path: Path, capsys):
    import csv

    table = tmp_path / "answers.csv"
    files = [str(path) for path in slices[:4]]
    assert main(["predict", *files, "--model", str(exported), "--csv", str(table)]) == 0
    found = list(csv.DictReader(table.open(encoding="utf-8")))
    assert [row["file"] for row in found] == files and all(row["decision"] for row in found)
    capsys.readouterr()
    assert main(["info", "--model", str(exported), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)["model"]
    assert described["backend"] == "onnx" and described["stored_as"] == ["F32"] and described["parameters"] > 1e5
    assert described["sha256"] != described["exported_sha256"]
    assert main(["explain", files[0], "--model", str(exported), "--output_dir", str(tmp_path / "maps"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["explanations"]
    assert row["label"] == found[0]["label"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mirror", [False, True])
def test_the_graph_gives_the_heat_maps_that_gradients_give(pair, slices: list[Path], method: str, mirror: bool):
    model, output = pair
    ours = TumorClassifier.from_pretrained(model, device="cpu", backend="torch", mirror=mirror)
    theirs = TumorClassifier.from_pretrained(output, backend="onnx", mirror=mirror)
    assert set(theirs.network.maps) == {"grad-cam", "layer-cam"}
    for target in LABELS:
        pairs = zip(*(side.explain(slices[:5], target, method=method) for side in (ours, theirs)), strict=True)
        for a, b in pairs:
            assert a.heat_map.max() > 0.99 or not a.heat_map.any()
            np.testing.assert_allclose(b.heat_map, a.heat_map, atol=1e-4)
            assert b.prediction.label == a.prediction.label and b.prediction.decision == a.prediction.decision


def test_int8_gives_heat_maps_too_and_they_are_alike(pair, slices: list[Path]):
    model, output = pair
    ours = TumorClassifier.from_pretrained(model, device="cpu", backend="torch").explain(slices[:6], "glioma")
    theirs = TumorClassifier.from_pretrained(output, backend="onnx-int8").explain(slices[:6], "glioma")
    assert np.corrcoef(*(np.ravel([e.heat_map for e in side]) for side in (ours, theirs)))[0, 1] > 0.8


def test_exports_go_into_the_models_folder_and_those_of_other_weights_are_noticed_and_replaced(
    home: Path, tmp_path: Path, capsys
):
    name = ARCHITECTURES[0]
    model = Path(shutil.copytree(home / name, tmp_path / "model"))
    before = {path.name for path in model.iterdir()}
    command = ["export", "--model", str(model), "--data_dir", str(home / "phantoms"), "--min_agreement", "0.7"]
    assert main([*command, "--format", "onnx-int8", "onnx"]) == 0
    told = capsys.readouterr().out
    assert "onnx/model.onnx" in told and "onnx/model_int8.onnx" in told and "heat maps by at most" in told
    assert {path.name for path in model.iterdir()} == before | {"onnx", "export.json"}
    answers = TumorClassifier.from_pretrained(model, device="cpu")
    assert answers.describe()["backend"] == "onnx" and answers.folder.sha256() == find_model(model).sha256()
    first = (model / "onnx" / "model.onnx").read_bytes()
    assert set(json.loads((model / "export.json").read_text())["files"]) == {"onnx", "onnx-int8"}

    # one of them anew leaves the other, as the weights are the same
    assert main([*command, "--format", "onnx"]) == 0
    assert set(json.loads((model / "export.json").read_text())["files"]) == {"onnx", "onnx-int8"}
    assert (
        TumorClassifier.from_pretrained(model, backend="onnx-int8").predict(next((home / PHANTOM).glob("*.png"))).label
    )

    # other weights: nothing answers with the old ones, and the next export takes them all away
    with safe_open(model / "model.safetensors", "numpy") as stored:
        weights = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    weights["timm_model.fc.bias"] = weights["timm_model.fc.bias"] + 0.5
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    (model / "trust.json").unlink()
    assert "made from other weights" in refusal(model) and "export --model" in refusal(model, backend="onnx-int8")
    assert main([*command, "--format", "onnx"]) == 0
    assert {path.name for path in (model / "onnx").iterdir()} == {"model.onnx"}
    assert (model / "onnx" / "model.onnx").read_bytes() != first
    assert TumorClassifier.from_pretrained(model, device="cpu").describe()["backend"] == "onnx"


def test_a_failed_export_into_the_models_folder_leaves_it_as_it_was(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = Path(shutil.copytree(home / ARCHITECTURES[0], tmp_path / "model"))
    before = {path.name for path in model.iterdir()}
    monkeypatch.setattr(parity, "MAX_DIFFERENCE", 0.0)
    assert main(["export", "--model", str(model), "--format", "onnx", "--data_dir", str(home / "phantoms")]) == 2
    assert {path.name for path in model.iterdir()} == before


def test_calibration_takes_training_slices_and_passes_over_damaged_ones(home: Path, tmp_path: Path):
    data = Path(shutil.copytree(home / "phantoms", tmp_path / "phantoms"))
    folder = find_model(home / ARCHITECTURES[0])
    chosen = export_slices.calibration_slices(str(data), folder, 5)
    assert all("Training" in file.parts for file in chosen.files)
    assert all("Testing" in file.parts for file in export_slices.check_slices(str(data), folder, 8))
    chosen.files[0].write_bytes(b"damaged")
    classifier = TumorClassifier.from_pretrained(folder.path, device="cpu")
    again = export_slices.calibration_slices(str(data), folder, 5)
    assert again.files == chosen.files and len(again.pixels(classifier)) == 5


@pytest.mark.parametrize(("settings", "expected"), [({"seed": 7}, 7), ({"seed": 7, "data_seed": 0}, 0)])
def test_slices_are_drawn_by_the_seed_that_the_training_drew_its_validation_part_by(
    home: Path, tmp_path: Path, settings: dict, expected: int
):
    folder = Path(shutil.copytree(home / ARCHITECTURES[0], tmp_path / "model"))
    config = {setting.name: getattr(ProtocolArguments(), setting.name) for setting in fields(ProtocolArguments)}
    (folder / "metrics.json").write_text(json.dumps({"config": config | settings}))
    found = export_slices.calibration_slices(str(home / "phantoms"), find_model(folder), 99).files
    every = scan_folders(home / "phantoms")[0]
    train = {s.relative for s in assign(every, ProtocolArguments(), expected).slices if s.part == "train"}
    assert {str(file.relative_to(home / "phantoms")) for file in found} == train
    other = {s.relative for s in assign(every, ProtocolArguments(), 3).slices if s.part == "train"}
    assert other != train


class CudaRuntime(ModuleType):
    """onnxruntime as its CUDA build is, up to the session, which starts on the named providers."""

    def __init__(self, starts_on: list[str]) -> None:
        super().__init__("onnxruntime")
        import onnxruntime

        class Session:
            def __init__(self, content: bytes, options: object, providers: list) -> None:
                self.asked = providers

            def get_providers(self) -> list[str]:
                return starts_on

            def get_inputs(self) -> list:
                return [SimpleNamespace(name="pixel_values")]

            def get_outputs(self) -> list:
                return [SimpleNamespace(name="logits")]

            def get_overridable_initializers(self) -> list:
                return []

        self.SessionOptions, self.InferenceSession = onnxruntime.SessionOptions, Session
        self.get_available_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_onnxruntime_is_asked_for_its_gpu_whether_or_not_pytorch_sees_one(exported: Path, monkeypatch):
    assert not torch.cuda.is_available()
    with pytest.raises(UserError, match="this onnxruntime cannot run on cuda"):
        TumorClassifier.from_pretrained(exported, device="cuda", backend="onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", CudaRuntime(["CUDAExecutionProvider", "CPUExecutionProvider"]))
    for backend in ("onnx", None):
        network = TumorClassifier.from_pretrained(exported, device="cuda:1", backend=backend, use_trust=False).network
        assert network.session.asked[0] == ("CUDAExecutionProvider", {"device_id": 1})
        assert network.largest_batch is None, "a GPU is to get the whole batch"
    assert TumorClassifier.from_pretrained(exported, device="cpu", use_trust=False).network.largest_batch == 16


def test_a_gpu_on_which_onnxruntime_does_not_start_is_told(exported: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", CudaRuntime(["CPUExecutionProvider"]))
    assert "cannot start on cuda:1" in refusal(exported, device="cuda:1", use_trust=False)
