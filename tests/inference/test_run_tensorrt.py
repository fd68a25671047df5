"""TensorRT: what is asked of it, against a stand-in of its Python API, and what is said where it is not there.

No GPU ran any of this: whether an engine builds and answers is not tested here.
"""

import sys
from enum import IntEnum
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from brain_tumor_mri import TumorClassifier, UserError
from brain_tumor_mri.commands.main import main
from brain_tumor_mri.export.write_onnx import write_onnx
from brain_tumor_mri.export.write_tensorrt import write_engine
from brain_tumor_mri.inference import run_tensorrt as tensorrt_running
from brain_tumor_mri.inference.run_onnx import OnnxNetwork


class StandIn(ModuleType):
    """The names of TensorRT 10 and 11 that building needs, as NVIDIA's reference has them; it builds nothing."""

    __version__ = "10.0-stand-in"

    class NetworkDefinitionCreationFlag(IntEnum):
        STRONGLY_TYPED = 1

    def __init__(self, faults: tuple[str, ...] = (), plan: bytes | None = b"plan") -> None:
        super().__init__("tensorrt")
        asked = self.asked = {}

        class Logger:
            ERROR = 1

            def __init__(self, severity: int) -> None:
                asked["severity"] = severity

        class Profile:
            def set_shape(self, input: str, min: tuple, opt: tuple, max: tuple) -> None:
                asked["profile"] = (input, min, opt, max)

        class Config:
            def add_optimization_profile(self, profile: Profile) -> int:
                assert isinstance(profile, Profile) and "profile" in asked
                asked["profiles"] = asked.get("profiles", 0) + 1
                return 0

        class Network:
            pass

        class Builder:
            def __init__(self, logger: Logger) -> None:
                assert isinstance(logger, Logger)

            def create_network(self, flags: int) -> Network:
                asked["flags"] = flags
                return Network()

            def create_builder_config(self) -> Config:
                return Config()

            def create_optimization_profile(self) -> Profile:
                return Profile()

            def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
                assert isinstance(network, Network) and isinstance(config, Config) and asked["profiles"] == 1
                return plan

        class OnnxParser:
            num_errors = len(faults)

            def __init__(self, network: Network, logger: Logger) -> None:
                assert isinstance(network, Network) and isinstance(logger, Logger)

            def parse(self, model: bytes) -> bool:
                asked["model"] = model
                return not faults

            def get_error(self, index: int) -> str:
                return faults[index]

        self.Logger, self.Builder, self.OnnxParser = Logger, Builder, OnnxParser


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were a GPU, as far as its name goes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "stand-in GPU")


def build(tmp_path: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in)
    (tmp_path / "half.onnx").write_bytes(b"an ONNX file")
    return write_engine(tmp_path / "half.onnx", tmp_path / "model.engine", (224, 192))


def test_batches_of_1_to_64_and_the_precision_of_the_file_are_asked_for(tmp_path: Path, gpu, monkeypatch):
    stand_in = StandIn()
    bound = build(tmp_path, stand_in, monkeypatch)
    shapes = ((1, 3, 224, 192), (16, 3, 224, 192), (64, 3, 224, 192))
    assert stand_in.asked["profile"] == ("pixel_values", *shapes)
    assert stand_in.asked["flags"] == 1 << StandIn.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert stand_in.asked["model"] == b"an ONNX file"
    assert (tmp_path / "model.engine").read_bytes() == b"plan"
    assert bound == {"tensorrt": "10.0-stand-in", "gpu": "stand-in GPU"}


def test_what_tensorrt_cannot_read_or_build_is_told_in_one_line(tmp_path: Path, gpu, monkeypatch):
    for stand_in, message in (
        (StandIn(faults=("no such\noperator", "bad node")), "no such operator; bad node"),
        (StandIn(plan=None), "could not build"),
    ):
        with pytest.raises(UserError, match=message) as told:
            build(tmp_path, stand_in, monkeypatch)
        assert "\n" not in str(told.value) and not (tmp_path / "model.engine").exists()


def test_the_export_says_what_is_missing_and_leaves_nothing(
    tiny_model_dir: Path, phantom_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    places = ["--model", str(tiny_model_dir), "--output", str(tmp_path / "out"), "--data_dir", str(phantom_dir)]
    for package, has_gpu, there, absent in (
        (None, False, ("GPU", "pip install tensorrt"), "nothing"),
        (None, True, ("pip install tensorrt",), "GPU"),
        (StandIn(), False, ("GPU",), "pip install"),
    ):
        monkeypatch.setitem(sys.modules, "tensorrt", package)
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        assert main(["export", "--format", "tensorrt", *places]) == 2
        told = capsys.readouterr().err
        assert all(part in told for part in there) and absent not in told and told.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_an_engine_is_run_only_when_it_is_asked_for(tiny_model_dir: Path, tmp_path: Path, monkeypatch):
    import shutil

    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    (folder / "tensorrt").mkdir()
    (folder / "tensorrt" / "model.engine").write_bytes(b"an engine")
    assert TumorClassifier.from_pretrained(folder, device="cpu").describe()["backend"] == "torch"
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"only a TensorRT engine.*--backend tensorrt"):
        TumorClassifier.from_pretrained(folder)
    with pytest.raises(UserError, match="built on the machine that runs it"):
        TumorClassifier.from_pretrained("someone/model", backend="tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UserError, match="pip install tensorrt"):
        tensorrt_running.TensorRtNetwork(b"an engine", "model.engine")


def test_the_float16_onnx_file_that_an_engine_is_built_from_answers_as_pytorch_does(
    tiny_model_dir: Path, phantom_dir: Path, tmp_path: Path
):
    import onnx

    from brain_tumor_mri.images.read import load_image

    classifier = TumorClassifier.from_pretrained(tiny_model_dir, device="cpu")
    before = next(classifier.model.parameters()).dtype
    write_onnx(classifier.model, tmp_path / "half.onnx", stage="layer3", size=(224, 224), half=True)
    graph = onnx.load(tmp_path / "half.onnx").graph
    large = [value for value in graph.initializer if np.prod(value.dims) > 100]
    assert large and {value.data_type for value in large} == {onnx.TensorProto.FLOAT16}
    ends = [*graph.input, *graph.output]
    assert {end.type.tensor_type.elem_type for end in ends} == {onnx.TensorProto.FLOAT}
    network = OnnxNetwork((tmp_path / "half.onnx").read_bytes(), "half.onnx", "cpu")
    slices = sorted(phantom_dir.glob("Testing/*/*.png"))[::4]
    pixels = np.stack([classifier.preprocess(load_image(path)) for path in slices])
    logits, features = network(pixels)
    with torch.inference_mode():
        expected = classifier.model(pixel_values=torch.from_numpy(pixels)).logits.numpy()
    assert features.dtype == np.float32 and features.shape[0] == len(slices)
    # an untrained network makes more of rounding than a trained one
    assert (
        0 < np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()
        and next(classifier.model.parameters()).dtype == before
    )
