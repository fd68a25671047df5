"""Where a model looked. The methods' names stand here, so that a command line can list them without loading torch."""

GRAD_CAM, LAYER_CAM, FUSED_CAM = "grad-cam", "layer-cam", "fused-cam"
METHODS = {GRAD_CAM: (GRAD_CAM,), LAYER_CAM: (LAYER_CAM,), FUSED_CAM: (GRAD_CAM, LAYER_CAM)}
"""Method -> the maps that it multiplies; see ``cam.py``."""
DEFAULT_METHOD = FUSED_CAM
