"""Backbones become the four-class classifier; the release folder is plain transformers."""

import json

import pytest
import timm
import torch
from transformers import AutoModelForImageClassification, TimmWrapperForImageClassification

from brain_tumor_mri.errors import UserError
from brain_tumor_mri.labels import ID2LABEL, LABELS
from brain_tumor_mri.training.backbone import build_model, save_release


def test_from_scratch_needs_no_network_and_keeps_timms_initialisation():
    torch.manual_seed(3)
    model = build_model("timm/test_resnet.r160_in1k", from_scratch=True, image_size=64)
    torch.manual_seed(3)
    expected = timm.create_model("test_resnet", pretrained=False, num_classes=4)
    assert isinstance(model, TimmWrapperForImageClassification)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.timm_model.state_dict()[name], tensor), name


def test_the_default_backbone_is_resnet50_for_224_px_squashed_with_imagenet_statistics():
    config = build_model(from_scratch=True).config
    assert config.architecture == "resnet50"
    assert config.id2label == ID2LABEL
    cfg = config.pretrained_cfg
    assert (cfg["input_size"], cfg["crop_mode"], cfg["crop_pct"]) == ([3, 224, 224], "squash", 1.0)
    assert cfg["mean"] == [0.485, 0.456, 0.406]
    assert cfg["std"] == [0.229, 0.224, 0.225]


def test_a_local_backbone_keeps_its_weights_and_normalisation_and_gets_a_new_head(tmp_path):
    """A folder in the layout of a timm Hub repository: bare tensor names, 1,000 classes."""
    from safetensors.torch import save_file

    backbone = timm.create_model("test_resnet", pretrained=False, num_classes=1000)
    save_file(backbone.state_dict(), tmp_path / "model.safetensors")
    cfg = {
        "input_size": [3, 160, 160],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
    }
    hub_config = {"architecture": "test_resnet", "num_classes": 1000, "pretrained_cfg": cfg}
    (tmp_path / "config.json").write_text(json.dumps(hub_config))
    model = build_model(str(tmp_path), image_size=96)
    assert torch.equal(model.timm_model.conv1[0].weight, backbone.conv1[0].weight)
    assert model.timm_model.fc.weight.shape[0] == 4
    assert model.config.pretrained_cfg["mean"] == [0.5] * 3
    assert model.config.pretrained_cfg["interpolation"] == "bicubic"
    assert model.config.pretrained_cfg["input_size"] == [3, 96, 96]
    assert list(model.config.id2label.values()) == list(LABELS)


def test_without_the_hub_one_line_names_both_alternatives():
    with pytest.raises(UserError) as error:
        build_model("timm/resnet50.a1_in1k")
    message = str(error.value)
    assert "\n" not in message
    assert "timm/resnet50.a1_in1k" in message
    assert "--model_name_or_path" in message
    assert "--from_scratch" in message


def test_an_unknown_architecture_is_named():
    with pytest.raises(UserError, match="resnet5000"):
        build_model("timm/resnet5000", from_scratch=True)


def test_a_release_is_half_the_size_and_loads_as_float32_with_readable_labels(tmp_path):
    model = build_model("timm/test_resnet", from_scratch=True, image_size=64).eval()
    save_release(model, tmp_path / "half", half=True)
    save_release(model, tmp_path / "full", half=False)
    sizes = [(tmp_path / kind / "model.safetensors").stat().st_size for kind in ("half", "full")]
    assert sizes[0] < 0.6 * sizes[1]
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "float32"
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "half").eval()
    assert loaded.dtype == torch.float32
    assert loaded.config.id2label == ID2LABEL
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(loaded(pixels).logits, model(pixels).logits, atol=5e-3)
    assert all(t.dtype in (torch.float32, torch.int64) for t in model.state_dict().values()), "saving changed the model"


def test_timms_own_routes_load_a_release_whatever_it_began_as(tmp_path):
    began = build_model("timm/test_resnet", from_scratch=True, image_size=64)
    save_release(began, tmp_path / "scratch", half=False)
    save_release(build_model(str(tmp_path / "scratch"), image_size=64), tmp_path / "tuned", half=False)
    pixels = torch.randn(2, 3, 64, 64)
    expected = began.eval()(pixels).logits
    for folder in (tmp_path / "scratch", tmp_path / "tuned"):
        file = str(folder / "model.safetensors")
        assert json.loads((folder / "config.json").read_text())["model_args"] == {}
        for model in (
            timm.create_model(f"local-dir:{folder}", pretrained=True),
            timm.create_model("test_resnet", num_classes=4, checkpoint_path=file),
            AutoModelForImageClassification.from_pretrained(folder),
        ):
            answer = model.eval()(pixels)
            assert torch.allclose(getattr(answer, "logits", answer), expected, atol=1e-4)


def test_the_released_lite_backbone_of_imagenet_loads(real_data_dir):
    folder = real_data_dir.parents[1] / "pretrained/tf_efficientnet_lite0.in1k"
    if not folder.is_dir():
        pytest.skip(f"no pretrained weights in {folder}; put timm/tf_efficientnet_lite0.in1k of the Hub there")
    model = build_model(str(folder))
    assert model.config.architecture == "tf_efficientnet_lite0"
    assert model.timm_model.classifier.out_features == 4
