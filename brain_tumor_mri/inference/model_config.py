"""What a model's ``config.json`` may say: a timm network, no other file to load, preprocessing that can be run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ..errors import UserError, safe_line

_TIMM = "timm_wrapper"
# timm follows "local-dir:" and "hf-hub:" before a name to files elsewhere
_ARCHITECTURE = re.compile(r"\w[\w.-]*")
_SIDES = range(8, 1025)
_CROPS = (0.5, 1.0)  # the picture is resized to the input's size over this


def require_timm(source: str, config: Mapping[str, Any]) -> None:
    """Refuse a config by which transformers or timm would load more than the folder's weights.

    Args:
        source: the model, for messages.
        config: the content of ``config.json``.
    """
    # timm's own repositories have no model_type; transformers knows them by the same key
    kind = config.get("model_type", _TIMM if "pretrained_cfg" in config else None)
    if kind != _TIMM:
        raise UserError(
            f"{source} is of the type {safe_line(str(kind))[:40]}; only networks of timm are loaded ({_TIMM})"
        )
    architecture = config.get("architecture")
    if not (isinstance(architecture, str) and _ARCHITECTURE.fullmatch(architecture)):
        raise UserError(f"{source} names no network of timm as its architecture; download or train it again")
    arguments = config.get("model_args") or {}
    if not isinstance(arguments, dict):
        raise UserError(f"{source} has model_args that are no JSON object; download or train it again")
    for name in arguments:
        if name in ("checkpoint_path", "cache_dir") or name.startswith("pretrained"):
            raise UserError(
                f"{source} has {safe_line(name)[:40]} in model_args, by which timm loads other files; remove it"
            )


def require_preprocessing(source: str, config: Mapping[str, Any]) -> None:
    """Refuse a ``pretrained_cfg`` that would fail later, or resize every picture to gigabytes."""
    cfg = config.get("pretrained_cfg")
    fault = _fault(cfg) if isinstance(cfg, dict) else "is missing"
    if fault:
        raise UserError(f"{source}: pretrained_cfg of its config.json {fault}; download or train it again")


def _fault(cfg: Mapping[str, Any]) -> str | None:
    size = cfg.get("input_size")
    if not (isinstance(size, list | tuple) and len(size) == 3 and size[0] == 3 and _whole(size[1]) and _whole(size[2])):
        return f"has an input_size other than 3 channels of {_SIDES[0]} to {_SIDES[-1]} pixels"
    if "crop_pct" in cfg and not _number(cfg["crop_pct"], *_CROPS):
        return f"has a crop_pct other than {_CROPS[0]} to {_CROPS[1]}"
    for name, low, high in (("mean", -10, 10), ("std", 0.001, 10)):
        values = cfg.get(name)
        if not (isinstance(values, list | tuple) and len(values) == 3 and all(_number(v, low, high) for v in values)):
            return f"has a {name} other than three numbers of {low} to {high}"
    return None


def _whole(value: object) -> bool:
    return type(value) is int and value in _SIDES


def _number(value: object, low: float, high: float) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and low <= value <= high
