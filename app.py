"""The demo page, here and on Hugging Face Spaces: ``python app.py``, then open http://127.0.0.1:7860.

MODEL_ID (a Hub id or a folder; default: ``model-lite/`` beside this file, or what space.json there says, which
`brain-tumor-mri publish space` writes) and MODEL_REVISION choose the weights; GRADIO_SERVER_NAME and GRADIO_SERVER_PORT
choose the address.
"""

import json
import os
from pathlib import Path

from brain_tumor_mri.images.quiet import quiet_decoders
from brain_tumor_mri.page import ModelHandle, build_page, launch

HERE = Path(__file__).resolve().parent
MODEL_ID = os.environ.get("MODEL_ID")
MODEL_REVISION = os.environ.get("MODEL_REVISION") or None
if not MODEL_ID and (HERE / "space.json").is_file():
    published = json.loads((HERE / "space.json").read_text(encoding="utf-8"))
    MODEL_ID, MODEL_REVISION = published["model_id"], MODEL_REVISION or published["revision"]

DEFAULT = "model-lite"  # of the two released models the more accurate, under both protocols, and the faster
quiet_decoders()
# The page calls the default model by this name, not by this machine's path.
model = ModelHandle(MODEL_ID or str(HERE / DEFAULT), MODEL_REVISION, name=None if MODEL_ID else DEFAULT)
demo = build_page(model, HERE / "examples")

if __name__ == "__main__":
    launch(demo)
