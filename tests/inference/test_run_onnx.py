"""Which device an ONNX export runs on is for onnxruntime to say, whatever PyTorch has."""

from types import SimpleNamespace

import pytest

from brain_tumor_mri.errors import UserError
from brain_tumor_mri.inference.load import check_device
from brain_tumor_mri.inference.run_onnx import _providers


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
