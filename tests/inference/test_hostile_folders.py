"""Model folders of strangers: every tampering ends in one line, and nothing but the folder's weights is read."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from brain_tumor_mri import TumorClassifier, UserError
from brain_tumor_mri.inference.model_config import require_preprocessing, require_timm
from brain_tumor_mri.training.backbone import build_model
from brain_tumor_mri.trust.trust_file import FILE_NAME


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "copy"))


def edited(folder: Path, **changes: object) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as told:
        TumorClassifier.from_pretrained(folder, device="cpu")
    assert "\n" not in str(told.value) and len(str(told.value)) < 1000
    return str(told.value)


GOOD = {"input_size": [3, 224, 224], "crop_pct": 0.875, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "evil"}, "of the type evil; only networks of timm"),
        ({"model_type": "vit"}, "only networks of timm"),
        ({"model_type": None}, "only networks of timm"),
        ({"architecture": "local-dir:/tmp/other"}, "no network of timm as its architecture"),
        ({"architecture": "hf-hub:someone/other"}, "no network of timm as its architecture"),
        ({"architecture": "../other"}, "no network of timm as its architecture"),
        ({"architecture": ["resnet50"]}, "no network of timm as its architecture"),
        ({"architecture": None}, "no network of timm as its architecture"),
        ({"model_args": {"checkpoint_path": "/tmp/evil.pt"}}, "has checkpoint_path in model_args"),
        ({"model_args": {"cache_dir": "/tmp"}}, "has cache_dir in model_args"),
        ({"model_args": {"pretrained": True}}, "has pretrained in model_args"),
        ({"model_args": {"pretrained_cfg": {"file": "/tmp/evil.pt"}}}, "has pretrained_cfg in model_args"),
        ({"model_args": {"pretrained_cfg_overlay": {}}}, "has pretrained_cfg_overlay in model_args"),
        ({"model_args": ["checkpoint_path"]}, "model_args that are no JSON object"),
    ],
)
def test_a_config_that_names_other_code_or_files_is_refused_and_nothing_of_it_is_looked_at(
    folder: Path, changes: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("timm.create_model", lambda *_, **__: pytest.fail("timm was asked"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the terminal was asked"))
    assert said in refusal(edited(folder, **changes))
    with pytest.raises(UserError, match=said):
        build_model(str(folder))


@pytest.mark.parametrize(
    "change",
    [
        {"input_size": size}
        for size in (
            [3, 0, 0],
            [3, 60_000, 60_000],
            [1, 224, 224],
            [3, -224, 224],
            [3, 224],
            [3, "224", 224],
            None,
            224,
        )
    ]
    + [{"std": std} for std in ([0, 0, 0], [0.25, 0.25], [1e-30] * 3, [float("nan")] * 3, "0.25", None, [True] * 3)]
    + [{"mean": mean} for mean in ([float("inf")] * 3, [1e30] * 3, {}, [[0.5]] * 3)]
    + [{"crop_pct": crop} for crop in (0, 1e-9, -1, 2, float("nan"), "1", None)],
)
def test_preprocessing_that_cannot_be_run_or_would_fill_the_memory_is_refused(change: dict[str, object]):
    require_preprocessing("model", {"pretrained_cfg": GOOD})
    with pytest.raises(
        UserError, match=f"^model: pretrained_cfg of its config.json has an? {next(iter(change))} other"
    ):
        require_preprocessing("model", {"pretrained_cfg": GOOD | change})


def test_a_config_without_preprocessing_or_of_a_timm_repository_is_told_apart():
    for nothing in ({}, {"pretrained_cfg": "x"}, {"pretrained_cfg": None}):
        with pytest.raises(UserError, match=r"of its config\.json is missing"):
            require_preprocessing("model", nothing)
    require_timm("timm/resnet50.a1_in1k", {"architecture": "resnet50", "pretrained_cfg": {}})
    require_timm("model", {"model_type": "timm_wrapper", "architecture": "resnet50.a1_in1k", "model_args": {"act": 1}})


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "resnet5000"},
        {"architecture": "test_vit"},
        {"num_classes": 7},
        {"num_classes": "4"},
        {"model_args": {"no_such_argument": 1}},
        {"label_names": {"0": "glioma"}},
        {"id2label": {"²": "glioma"}, "label_names": None},
    ],
)
def test_a_config_at_odds_with_its_weights_is_one_line(folder: Path, changes: dict[str, object]):
    assert refusal(edited(folder, **changes))


@pytest.mark.parametrize(
    "change", [{"interpolation": "no such"}, {"interpolation": 7}, {"crop_mode": "no such"}, {"crop_mode": 3}]
)
def test_an_odd_way_of_resizing_is_one_line_or_an_answer_of_the_usual_size(folder: Path, change: dict[str, object]):
    config = json.loads((folder / "config.json").read_text())
    edited(folder, pretrained_cfg=config["pretrained_cfg"] | change)
    try:
        assert TumorClassifier.from_pretrained(folder, device="cpu").image_size == (224, 224)
    except UserError as told:
        assert "\n" not in str(told)


@pytest.mark.parametrize("name", ["config.json", FILE_NAME])
@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "", "[]", "nan", '{"schema": 1e999}', "\0", "9" * 9000]
)
def test_json_of_any_kind_is_one_line(folder: Path, name: str, text: str):
    (folder / name).write_text(text)
    assert name in (told := refusal(folder)) or "answers with other classes (none)" in told


def test_weights_that_are_cut_off_are_told_as_a_broken_download_although_trust_json_names_others(folder: Path):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (folder / FILE_NAME).write_text(json.dumps({"schema": 4, "weights_sha256": "0" * 64}))
    assert "is not a whole safetensors file" in refusal(folder) and "download it again" in refusal(folder)


def test_weights_beside_an_onnx_file_are_looked_at_as_alone(tiny_onnx_dir: Path, tmp_path: Path):
    weights = Path(shutil.copytree(tiny_onnx_dir, tmp_path / "onnx")) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert "is not a whole safetensors file" in refusal(weights.parent)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "was made from other weights" in refusal(weights.parent)
    weights.unlink()
    os.mkfifo(weights)
    assert "model.safetensors is not a regular file" in refusal(weights.parent)


@pytest.mark.parametrize("head", [b"\xff" * 8, b"\x00" * 8, (2**40).to_bytes(8, "little"), (4).to_bytes(8, "little")])
def test_a_header_of_weights_that_lies_is_one_line(folder: Path, head: bytes):
    weights = folder / "model.safetensors"
    weights.write_bytes(head + weights.read_bytes()[8:])
    assert "is not a whole safetensors file" in refusal(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_named_pipe_is_refused_and_not_waited_for(folder: Path, name: str):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert name in refusal(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_give_no_finite_numbers_are_an_error_of_the_model(folder: Path, value: float):
    state = load_file(folder / "model.safetensors")
    head = next(name for name in state if name.endswith("fc.bias"))
    state[head][0] = value
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    classifier = TumorClassifier.from_pretrained(folder, device="cpu")
    picture = np.zeros((8, 8), np.uint8)
    for on_error in ("raise", "record"):
        with pytest.raises(UserError, match="does not answer with finite numbers: its weights are damaged"):
            classifier.predict(picture, on_error=on_error)
