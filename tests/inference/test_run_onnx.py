"""Which device an ONNX export runs on is for onnxruntime to say, whatever PyTorch has."""

from types import SimpleNamespace

import pytest

from brain_tumor_mri.errors import UserError
from brain_tumor_mri.inference.load import check_device
from brain_tumor_mri.inference.run_onnx import OnnxNetwork, _providers


def runtime(*providers: str) -> SimpleNamespace:
    return SimpleNamespace(get_available_providers=lambda: [*providers, "CPUExecutionProvider"])


def test_pytorch_without_cuda_does_not_refuse_it_for_an_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    check_device("cuda", "onnx")
    with pytest.raises(UserError, match="not available here"):
        check_device("no such device", "onnx")


def test_cuda_is_taken_where_onnxruntime_has_it_and_refused_where_not() -> None:
    with_cuda = runtime("CUDAExecutionProvider")
    assert _providers(with_cuda, "cuda:1")[0] == ("CUDAExecutionProvider", {"device_id": 1})
    assert _providers(with_cuda, None)[0][0] == "CUDAExecutionProvider"
    assert _providers(with_cuda, "cpu") == _providers(runtime(), None) == ["CPUExecutionProvider"]
    with pytest.raises(UserError, match="cannot run on cuda"):
        _providers(runtime(), "cuda")


@pytest.mark.parametrize("place", ["weights.bin", "../weights.bin", "{folder}/weights.bin"])
def test_a_graph_that_names_another_file_is_refused_and_opens_none(place, tmp_path, monkeypatch, capfd):
    onnx = pytest.importorskip("onnx")
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    for folder in (tmp_path, tmp_path / "inside"):
        (folder / "weights.bin").write_bytes(bytes(16))
    weights = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4])
    weights.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", place.format(folder=tmp_path)), ("offset", "0"), ("length", "16")):
        weights.external_data.add(key=key, value=value)
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in ("pixel_values", "logits")
    ]
    add = onnx.helper.make_node("Add", ["pixel_values", "w"], ["logits"])
    graph = onnx.helper.make_graph([add], "g", values[:1], values[1:], [weights])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    with pytest.raises(UserError, match=r"model\.onnx cannot be run \(.*\); export the model again") as error:
        OnnxNetwork(model.SerializeToString(), "model.onnx", "cpu")
    assert "\n" not in str(error.value) and capfd.readouterr().err == ""
