"""What a writer is handed: a network whose answer holds, after logits and features, the cells of its decoder."""

from pathlib import Path

import numpy as np
import torch

from brain_tumor_mri import TumorClassifier
from brain_tumor_mri.export.outputs import LogitsAndFeatures
from brain_tumor_mri.inference.decoder import Decoder
from brain_tumor_mri.inference.run_pytorch import decoded, stage_maps


def test_the_decoders_cells_come_last_and_are_those_of_pytorch(tiny_model_dir: Path):
    network = TumorClassifier.from_pretrained(tiny_model_dir, backend="torch", device="cpu").model
    inner, stages = network.timm_model, "layer2+layer3"
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps = stage_maps(inner, stages, pixels)[1]
        rng = np.random.default_rng(0)
        weights = rng.normal(size=(4, sum(part.shape[1] for part in maps)), scale=0.02).astype(np.float32)
        decoder = Decoder("0" * 64, stages, weights, rng.normal(size=4).astype(np.float32), {})
        logits, features, cells = LogitsAndFeatures(network, "layer3+layer4", decoder=decoder)(pixels)
        assert torch.allclose(cells, decoded(maps, decoder), atol=1e-4) and cells.std() > 0.01
        plain = LogitsAndFeatures(network, "layer3+layer4")(pixels)
        assert len(plain) == 2 and torch.allclose(plain[0], logits) and torch.allclose(plain[1], features)
        assert len(LogitsAndFeatures(network, None)(pixels)) == 1
        assert torch.allclose(logits, network(pixel_values=pixels).logits, atol=1e-5)
