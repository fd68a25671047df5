"""One answer from several slices of a patient, and how sure it must be: ``log_mean(rows)``, ``patients.json``.

The file stands beside the weights. ``benchmarks/accuracy/patients.py --write`` makes it, of patients whose collections
trained nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .beside import read_beside
from .model_folder import ModelFolder

FILE_NAME = "patients.json"
SCHEMA = 1


def log_mean(rows: np.ndarray) -> np.ndarray:
    """Combine probabilities (..., n, C) of n slices to (..., C): the mean of their logarithms, normalised.

    A slice that stands alone moves it less than the mean. No rule compared by patient was clearly better
    (``docs/volumes.md``).
    """
    logs = np.log(np.clip(rows, 1e-6, 1)).mean(-2)
    powers = np.exp(logs - logs.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@dataclass(frozen=True)
class PatientLimit:
    """How sure an answer for a patient must be, of ``patients.json``.

    Attributes:
        coverage: percent of patients, in the worst of the collections left out, whose class is possible by ``least``.
        least: probability with which a class is possible, split conformal by patient.
    """

    coverage: int
    least: float

    def possible(self, probabilities: Mapping[str, float]) -> tuple[str, ...]:
        """Return the classes that are possible for a patient, the likeliest among them."""
        least = min(self.least, max(probabilities.values()))
        return tuple(name for name, value in probabilities.items() if value >= least)


def load_patient_limit(folder: ModelFolder, coverage: int) -> PatientLimit | None:
    """Read the ``patients.json`` of a model folder; None when it has none, or one of other weights."""

    def parse(content: Mapping) -> PatientLimit:
        least = float(content["limits"][str(coverage)])
        if not 0 <= least < 1:
            raise ValueError("a limit that is no probability")
        return PatientLimit(coverage, least)

    return read_beside(folder, FILE_NAME, SCHEMA, parse, "benchmarks/accuracy/patients.py --write")
