"""Brain MRI slices classified as glioma, meningioma, pituitary tumour or no tumour. Research software.

``from brain_tumor_mri import TumorClassifier`` is the way in. Names are imported when first used, so that
``import brain_tumor_mri`` and commands that need no model stay fast.
"""

import os
from importlib import import_module

# Nothing is reported to anybody. onnxruntime, from 1.29 on, tells Microsoft of each process, and keeps an identifier in
# the home folder, unless it finds this when it is first imported.
for _switch in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_switch, "1")

__version__ = "0.2.0"

_HOMES = {
    "Explanation": "heat_maps.explain",
    "Prediction": "inference.prediction",
    "TumorClassifier": "inference.classifier",
    "UnreadableImageError": "images.read",
    "UserError": "errors",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> object:
    """Import a public name from its module on first use (PEP 562)."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
