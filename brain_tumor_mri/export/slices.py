"""Which slices of a data set check an export, and which calibrate int8: of the parts that the model's training used.

Only names are read to choose them, so that no export waits for a whole data set to be decoded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.protocols import FIGSHARE_5FOLD, ProtocolArguments, assign, read_figshare_table
from ..errors import UserError
from ..inference.model_folder import ModelFolder

if TYPE_CHECKING:
    from torch import Tensor

    from ..inference.classifier import TumorClassifier

SEED = 42
"""Of the draws, and of the validation draw where the model's ``metrics.json`` does not give one."""


@dataclass(frozen=True)
class CalibrationSlices:
    """Training slices that int8's ranges come from.

    Attributes:
        files: in the order in which they are tried; those that cannot be read are passed over.
        count: how many are used.
        data: name of the data folder.
        protocol: whose training part they are of.
    """

    files: Sequence[Path]
    count: int
    data: str
    protocol: str

    def pixels(self, classifier: TumorClassifier) -> list[Tensor]:
        """Read and preprocess them: at most ``count``, each float32 (3, H, W).

        Raises:
            UserError: none can be read.
        """
        from ..images.read import UnreadableImageError, load_image

        slices: list[Tensor] = []
        for file in self.files:
            if len(slices) == self.count:
                break
            try:
                slices.append(classifier.preprocess(load_image(file)))
            except UnreadableImageError:
                continue  # a damaged file teaches no range; export.json says how many were used
        if not slices:
            raise UserError(f"{self.data}: none of its training slices can be read; check --data_dir")
        return slices


def calibration_slices(data_dir: str, folder: ModelFolder, count: int) -> CalibrationSlices:
    """Choose training slices.

    Args:
        data_dir: what the model was trained on.
        folder: the model; its ``metrics.json`` says under which protocol.
        count: how many, if there are as many.

    Raises:
        UserError: the data folder cannot be used.
    """
    files, protocol = _part(Path(data_dir), folder, "train")
    return CalibrationSlices(files, min(count, len(files)), Path(data_dir).resolve().name, protocol)


def check_slices(data_dir: str, folder: ModelFolder, count: int) -> list[Path]:
    """Choose test slices that can be read; see :func:`calibration_slices`.

    Raises:
        UserError: the data folder cannot be used, or no slice can be read.
    """
    from ..images.read import UnreadableImageError, load_image

    readable: list[Path] = []
    for file in _part(Path(data_dir), folder, "test")[0]:
        if len(readable) == count:
            break
        try:
            load_image(file)
        except UnreadableImageError:
            continue
        readable.append(file)
    if not readable:
        raise UserError(f"{data_dir}: none of its test slices can be read; give --check_images")
    return readable


def _part(root: Path, folder: ModelFolder, part: str) -> tuple[list[Path], str]:
    """Files of a part, in an order drawn once, under the protocol that the model was trained with; and its title."""
    import numpy as np

    from ..data.slices import scan_folders

    protocol, seed = _protocol_of(folder)
    found = read_figshare_table(root) if protocol.protocol == FIGSHARE_5FOLD else scan_folders(root)[0]
    files = sorted(root / s.relative for s in assign(found, protocol, seed).slices if s.part == part)
    return [files[i] for i in np.random.default_rng(SEED).permutation(len(files))], protocol.title


def _protocol_of(folder: ModelFolder) -> tuple[ProtocolArguments, int]:
    """Read from ``metrics.json`` which slices trained the model; without one, the published training folder's."""
    try:
        config = json.loads((folder.path / "metrics.json").read_text(encoding="utf-8"))["config"]
        named = {setting.name: config[setting.name] for setting in fields(ProtocolArguments)}
        return ProtocolArguments(**named), int(config["seed"])
    except (OSError, ValueError, KeyError, TypeError):
        return ProtocolArguments(), SEED
