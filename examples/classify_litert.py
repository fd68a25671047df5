"""Classify a PNG or JPEG slice without PyTorch: python classify_litert.py EXPORT_FOLDER SLICE; research only.

Needs ai-edge-litert, numpy and pillow, and a folder that ``brain-tumor-mri export --format litert`` wrote.
"""

import json
import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image, ImageOps

folder, file = Path(sys.argv[1]), sys.argv[2]
config = json.loads((folder / "config.json").read_text())
seen = config["pretrained_cfg"]  # the whole slice, squashed to the input's size
height, width = seen["input_size"][1:]
picture = ImageOps.exif_transpose(Image.open(file))
if picture.mode[0] in "IF":
    sys.exit(f"{file}: more than 8 bits a pixel, which Pillow would clip; export the slice with 8 bits")
picture = picture.convert("RGB")
picture = picture.resize((width, height), Image.Resampling[seen["interpolation"].upper()])
pixels = (np.asarray(picture, np.float32) / 255 - np.float32(seen["mean"])) / np.float32(seen["std"])
network = Interpreter(str(folder / "litert" / "model.tflite")).get_signature_runner()
logits = network(pixel_values=pixels.transpose(2, 0, 1)[None])["logits"][0]
if (trust := folder / "trust.json").is_file():
    logits = logits / json.loads(trust.read_text())["calibration"]["single"]["temperature"]["familiar"]
odds = np.exp(logits - logits.max())
for name, odd in zip(config["label_names"], odds / odds.sum(), strict=True):
    print(f"{name} {odd:.6f}")
