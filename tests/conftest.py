"""What tests share: a tiny model in the released layout, synthetic slices, the real images where they are."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

# before anything imports huggingface_hub, which reads it once; subprocesses of tests inherit it
os.environ["HF_HUB_OFFLINE"] = "1"
# torch's threads otherwise spin while they wait for each other: on a busy machine tests take ten times as long
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
from filelock import FileLock
from slow_tests import SLOW

REPO_ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of ``SLOW``, and those that drive a browser."""
    for item in items:
        file = item.path.relative_to(REPO_ROOT / "tests").as_posix()
        name = f"{file}::{item.name.partition('[')[0]}"
        if file in SLOW or name in SLOW or "browser" in item.keywords:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def _two_torch_threads() -> None:
    import torch

    torch.set_num_threads(2)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first worker makes and all of them read."""
    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder = root / name
    with FileLock(root / f"{name}.lock"):
        if not folder.exists():
            part = root / f"{name}.part" / name
            part.mkdir(parents=True)
            make(part)
            part.rename(folder)
    return folder


@pytest.fixture(scope="session")
def phantom_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic slices in the Kaggle layout: 12 a class under Training, 4 under Testing, 96 x 96 pixels."""
    from data_scripts.make_phantoms import write_phantoms

    return made_once(tmp_path_factory, "phantoms", lambda folder: write_phantoms(folder, 12, 4, seed=0, size=96))


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory, phantom_dir: Path) -> Path:
    """An untrained, seeded timm model (0.4 M weights) as the release has it; its answers differ from slice to slice."""
    return made_once(tmp_path_factory, "tiny-model", lambda folder: make_tiny_model(folder, phantom_dir))


def make_tiny_model(folder: Path, phantom_dir: Path) -> None:
    """Write the model."""
    import timm
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForImageClassification
    from transformers.models.timm_wrapper import TimmWrapperConfig

    from brain_tumor_mri.labels import ID2LABEL, LABEL2ID, NUM_LABELS

    config = TimmWrapperConfig(
        architecture="test_resnet",
        num_labels=NUM_LABELS,
        id2label=ID2LABEL,
        label2id=LABEL2ID,
        pretrained_cfg={
            "input_size": [3, 224, 224],
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "interpolation": "bilinear",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageClassification.from_config(config)
        # transformers draws weights so small that every image gets 0.25; a test on that would notice nothing
        weights = timm.create_model("test_resnet", num_classes=NUM_LABELS).state_dict()
    model.timm_model.load_state_dict(weights)
    model.save_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    slices = [Image.open(path).convert("RGB") for path in sorted(phantom_dir.glob("Training/*/*.png"))[::3]]
    pixels = processor(slices, return_tensors="pt")["pixel_values"]
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # a plain average: one pass settles the statistics
    with torch.no_grad():
        model.train()(pixels)
        logits = model.eval()(pixels).logits
        head = model.timm_model.get_classifier()
        scale = 1.5 / logits.std(dim=0)  # classes that all win somewhere, none of them everywhere
        head.weight.mul_(scale[:, None])
        head.bias.copy_((head.bias - logits.mean(dim=0)) * scale)
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_onnx_dir(tiny_model_dir: Path, phantom_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny_model_dir`` with its ONNX file beside the weights, as the release has it."""
    from brain_tumor_mri.commands.main import main

    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install '.[export]'")
    images = sorted(map(str, phantom_dir.glob("Testing/*/*.png")))[:4]

    def export(folder: Path) -> None:
        shutil.copytree(tiny_model_dir, folder, dirs_exist_ok=True)
        assert main(["export", "--format", "onnx", "--model", str(folder), "--check_images", *images]) == 0

    return made_once(tmp_path_factory, "tiny", export)


@pytest.fixture(scope="session")
def real_data_dir() -> Path:
    """The real images, ``BRAIN_TUMOR_MRI_DATA`` or ../shared/data/brain-tumor-mri-dataset; skips where missing."""
    default = REPO_ROOT.parent / "shared" / "data" / "brain-tumor-mri-dataset"
    folder = Path(os.environ.get("BRAIN_TUMOR_MRI_DATA", default))
    if not (folder / "Training").is_dir():
        pytest.skip(f"the real images are not in {folder}; BRAIN_TUMOR_MRI_DATA names another folder")
    return folder


@pytest.fixture(scope="session")
def released_model_dir() -> Path:
    """The released weights in model/; skips where they are missing."""
    folder = REPO_ROOT / "model"
    if not (folder / "model.safetensors").is_file():
        pytest.skip(f"there are no released weights in {folder}")
    return folder
