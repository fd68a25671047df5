"""The demo page, here and on Hugging Face Spaces: ``python app.py``, then open http://127.0.0.1:7860.

MODEL_ID (a Hub id or a folder; default: ``model/`` beside this file) and MODEL_REVISION choose the weights;
GRADIO_SERVER_NAME and GRADIO_SERVER_PORT choose the address.
"""

import os
from pathlib import Path

from brain_tumor_mri.page import LAUNCH_OPTIONS, ModelHandle, build_page

HERE = Path(__file__).resolve().parent
MODEL_ID = os.environ.get("MODEL_ID")
MODEL_REVISION = os.environ.get("MODEL_REVISION") or None

# The page calls the default model "model", not by this machine's path.
model = ModelHandle(MODEL_ID or str(HERE / "model"), MODEL_REVISION, name=None if MODEL_ID else "model")
demo = build_page(model, HERE / "examples")

if __name__ == "__main__":
    demo.launch(**LAUNCH_OPTIONS)
