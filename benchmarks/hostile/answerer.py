"""Loads the model folders named on stdin and asks each about a slice; run by ``model_folders.py``."""

import json
import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from brain_tumor_mri.errors import UserError
from brain_tumor_mri.inference.classifier import TumorClassifier
from data_scripts.make_phantoms import make_phantom


def outcome(folder: str) -> dict[str, Any]:
    """What became of a folder: an answer, a line, or an error that nobody foresaw."""
    try:
        answer = TumorClassifier.from_pretrained(folder, device="cpu").predict(
            np.asarray(make_phantom("glioma", np.random.default_rng(0)))
        )
        numbers = [*answer.probabilities.values(), answer.unlikeness or 0, answer.foreign or 0]
        return {"answered": all(map(math.isfinite, numbers))}
    except UserError as error:
        return {"said": str(error)[:300]} if "\n" not in str(error) else {"unforeseen": "a message of several lines"}
    except Exception as error:  # what this looks for
        return {"unforeseen": f"{type(error).__name__}: {error}"[:200]}


def main() -> None:
    """Answer until stdin ends."""
    before = 0
    for line in sys.stdin:
        began = time.process_time()
        found = outcome(line.rstrip("\n"))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found |= {"seconds": time.process_time() - began, "mb": (peak - before) / 1024 if before else 0.0}
        before = peak
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
