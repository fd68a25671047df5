"""Where a network's features look like outlined tumour: ``decoder.json`` beside the weights, read here.

A linear decoder: a multinomial logistic regression on every cell of the network's stages, fitted to radiologists'
outlines by ``brain-tumor-mri decoder``. It needs the forward pass alone. ``run_pytorch.decoded`` applies it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..labels import LABELS
from .beside import read_beside, record_of
from .model_folder import ModelFolder

FILE_NAME = "decoder.json"
SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Decoder:
    """The content of ``decoder.json``.

    Attributes:
        weights_sha256: of the weights that it was fitted to.
        stages: names of the network's modules, the finest first, such as ``blocks.2+blocks.4+blocks.6``.
        weights: (4, D) on the channels of the stages, one stage after the other; rows in label order, ``notumor``
            being what is no tumour.
        biases: (4,).
        record: what it was fitted on and what was measured, as in the file.
    """

    weights_sha256: str
    stages: str
    weights: np.ndarray
    biases: np.ndarray
    record: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The content of the file, six digits a number."""
        rows = {name: [float(f"{v:.6g}") for v in row] for name, row in zip(LABELS, self.weights, strict=True)}
        return {
            "schema": SCHEMA,
            "weights_sha256": self.weights_sha256,
            "stages": self.stages,
            "biases": [float(f"{v:.6g}") for v in self.biases],
            "weights": rows,
            **self.record,
        }


def load_decoder(folder: ModelFolder) -> Decoder | None:
    """Read the ``decoder.json`` of a model folder; None when it has none, or one of other weights."""

    def parse(content: Mapping[str, Any]) -> Decoder:
        weights = np.array([content["weights"][name] for name in LABELS], np.float32)
        biases = np.array(content["biases"], np.float32)
        if weights.ndim != 2 or biases.shape != (len(LABELS),) or not np.isfinite(weights).all():
            raise ValueError("weights that do not fit")
        record = record_of(content, "stages", "weights", "biases")
        return Decoder(content["weights_sha256"], str(content["stages"]), weights, biases, record)

    return read_beside(folder, FILE_NAME, SCHEMA, parse, "brain-tumor-mri decoder")
