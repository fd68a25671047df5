"""Where a model looked. The methods' names stand here, so that a command line can list them without loading torch."""

GRAD_CAM, LAYER_CAM, FUSED_CAM = "grad-cam", "layer-cam", "fused-cam"
METHODS = {GRAD_CAM: (GRAD_CAM,), LAYER_CAM: (LAYER_CAM,), FUSED_CAM: (GRAD_CAM, LAYER_CAM)}
"""Class activation map -> the maps that it multiplies; see ``cam.py``."""
DECODER = "decoder"
"""The method of a model that has a ``decoder.json``, and what it is asked for by default; others: ``FUSED_CAM``."""
