"""PyTorch as a runtime: features of a stage, passes of a size that suits the device."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from brain_tumor_mri import TumorClassifier, UserError
from brain_tumor_mri.inference.load import load_network
from brain_tumor_mri.inference.model_folder import find_model


def test_a_stage_that_the_network_lacks_is_told(tiny_model_dir: Path) -> None:
    with pytest.raises(UserError, match="names the stage nowhere"):
        load_network(find_model(tiny_model_dir), "cpu", "nowhere")


def test_features_are_the_means_of_the_stages_and_each_thread_gets_its_own(tiny_model_dir: Path) -> None:
    network = load_network(find_model(tiny_model_dir), "cpu", "layer2+layer3")
    batches = [np.random.default_rng(seed).random((2, 3, 64, 64), np.float32) for seed in range(4)]
    kept = []
    stages = network.module.timm_model.layer2, network.module.timm_model.layer3
    handles = [s.register_forward_hook(lambda *args: kept.append(args[2].mean((2, 3)))) for s in stages]
    with torch.inference_mode():
        alone = [network(batch)[1] for batch in batches]
        for handle in handles:
            handle.remove()
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda batch: network(batch)[1], batches * 3))
    each = [torch.cat(pair, 1).numpy() for pair in zip(kept[::2], kept[1::2], strict=True)]
    np.testing.assert_allclose(alone, each, rtol=1e-6)
    np.testing.assert_allclose(together, alone * 3, rtol=1e-4, atol=1e-6)


def test_a_cpu_gets_16_slices_in_a_pass_and_a_gpu_the_whole_batch(tiny_model_dir: Path, monkeypatch) -> None:
    classifier = TumorClassifier.from_pretrained(tiny_model_dir, device="cpu")
    passes, network = [], classifier.network
    run = type(network).__call__
    monkeypatch.setattr(type(network), "__call__", lambda self, x: (passes.append(len(x)), run(self, x))[1])
    pixels = np.zeros((37, 3, *classifier.image_size), np.float32)
    assert len(classifier.answers(pixels).probabilities) == 37
    network.largest_batch = None  # as on a GPU
    classifier.answers(pixels)
    assert passes == [16, 16, 5, 37]


@pytest.mark.parametrize("backend", ["torch-compile", "torch-bf16"])
def test_a_backend_that_is_no_more_is_refused_with_those_that_are(tiny_model_dir: Path, backend: str) -> None:
    with pytest.raises(ValueError, match="backend must be one of torch, onnx"):
        TumorClassifier.from_pretrained(tiny_model_dir, backend=backend)
