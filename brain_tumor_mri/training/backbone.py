"""A backbone id or folder becomes a ``TimmWrapperForImageClassification`` configured for the four classes.

``build_model("timm/resnet50.a1_in1k")`` fine-tunes Hub weights; ``from_scratch=True`` needs no network. The released
folder is plain transformers: no code of ours is needed to load it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from transformers import AutoModelForImageClassification, PreTrainedModel, TimmWrapperConfig
from transformers.utils import logging as transformers_logging

from ..errors import UserError, first_line
from ..inference.model_config import require_timm
from ..labels import LABELS, OWN_LABELS

DEFAULT_BACKBONE = "timm/resnet50.a1_in1k"
IMAGENET_MEAN = timm.data.IMAGENET_DEFAULT_MEAN
IMAGENET_STD = timm.data.IMAGENET_DEFAULT_STD


def task_preprocessing(pretrained_cfg: dict[str, Any], image_size: int) -> dict[str, Any]:
    """Return a backbone's ``pretrained_cfg`` with this project's geometry: the whole slice, squashed to a square.

    Args:
        pretrained_cfg: the backbone's; its mean, std and interpolation are kept, as its weights were made for them.
        image_size: side of the model's input, in pixels.
    """
    kept = {k: v for k, v in pretrained_cfg.items() if not k.startswith("test_") and k not in ("num_classes", "url")}
    return kept | {"input_size": [3, image_size, image_size], "crop_pct": 1.0, "crop_mode": "squash"}


def build_model(
    name_or_path: str = DEFAULT_BACKBONE,
    *,
    revision: str = "main",
    from_scratch: bool = False,
    image_size: int = 224,
    names: Sequence[str] = LABELS,
) -> PreTrainedModel:
    """Build the classifier in fp32.

    Args:
        name_or_path: a timm Hub id such as ``timm/resnet50.a1_in1k``, or a local folder in that layout.
        revision: branch, tag or commit of a Hub id.
        from_scratch: random weights (timm's own initialisation, from torch's global generator); no network is used.
        image_size: side of the input in pixels, declared in ``config.pretrained_cfg``.
        names: of the C classes; where they are not this project's, ``config.json`` says so.

    Returns:
        ``TimmWrapperForImageClassification``: ``pixel_values`` (N, 3, H, W) -> ``logits`` (N, C).
    """
    ids = dict(enumerate(names))
    labels = {"num_labels": len(ids), "id2label": ids, "label2id": {name: i for i, name in ids.items()}}
    if from_scratch:
        return _with_names(_random_model(name_or_path, image_size, labels), names)
    try:
        require_timm(name_or_path, TimmWrapperConfig.get_config_dict(name_or_path, revision=revision)[0])
        model = AutoModelForImageClassification.from_pretrained(
            name_or_path,
            revision=revision,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            trust_remote_code=False,  # left out, transformers asks on the console
            dtype=torch.float32,
            **labels,
        )
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        raise UserError(
            f"{name_or_path}: cannot load these weights ({first_line(error)}); give --model_name_or_path a local "
            "folder that holds config.json and model.safetensors, or start from random weights with --from_scratch"
        ) from error
    if not hasattr(model, "timm_model"):
        raise UserError(f"{name_or_path}: not a timm model; give --model_name_or_path a timm Hub id or folder")
    model.config.pretrained_cfg = task_preprocessing(model.config.pretrained_cfg, image_size)
    return _with_names(model, names)


def _with_names(model: PreTrainedModel, names: Sequence[str]) -> PreTrainedModel:
    """Let ``config.json`` name the classes, and say where they are a laboratory's own."""
    model.config.label_names = list(names)  # transformers would keep those of the weights that it began with
    if tuple(names) != LABELS:
        setattr(model.config, OWN_LABELS, True)
    return model


def _random_model(name: str, image_size: int, labels: dict[str, Any]) -> PreTrainedModel:
    architecture = Path(name).name.split(".")[0]
    config_file = Path(name) / "config.json"
    if config_file.is_file():
        architecture = TimmWrapperConfig.from_pretrained(name).architecture
    if not timm.is_model(architecture):
        raise UserError(f"{name}: timm has no architecture {architecture!r}; see timm.list_models() for names")
    initialised = timm.create_model(architecture, pretrained=False, num_classes=labels["num_labels"])
    cfg = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD), "interpolation": "bilinear"}
    config = TimmWrapperConfig(
        architecture=architecture,
        pretrained_cfg=task_preprocessing(cfg, image_size),
        num_features=initialised.num_features,
        **labels,
    )
    model = AutoModelForImageClassification.from_config(config)
    # transformers draws every weight anew from N(0, 0.02); timm's own initialisation is what its architectures expect.
    model.timm_model.load_state_dict(initialised.state_dict())
    return model


def save_release(model: PreTrainedModel, folder: str | os.PathLike[str], *, half: bool = True) -> None:
    """Write the plain Hub layout: config.json (labels, preprocessing) and model.safetensors.

    timm reads it, too, as ``local-dir:`` and ``hf-hub:`` and by ``checkpoint_path``: for that the weights have timm's
    own names, whatever the model began as, and ``model_args`` is a dict.

    Args:
        model: any model of :func:`build_model`.
        folder: where to.
        half: store float16 weights; ``config.json`` still says float32, in which they load and run.
    """
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        state = model.state_dict()
        if half:
            state = {k: v.to(torch.float16) if v.is_floating_point() else v for k, v in state.items()}
        model.config.dtype = torch.float32
        model.config.model_args = model.config.model_args or {}
        prefix = f"{model.base_model_prefix}."
        model.save_pretrained(folder, state_dict={k.removeprefix(prefix): v.contiguous() for k, v in state.items()})
        for file in Path(folder).glob("model*.safetensors"):
            file.chmod(0o644)  # safetensors writes for the owner alone, and a server or a colleague has to read it
    finally:
        transformers_logging.set_verbosity(level)
