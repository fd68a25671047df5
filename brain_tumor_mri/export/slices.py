"""Which slices of a data set check an export, and which calibrate int8: of the parts that the model's training used.

Only names are read to choose them, so that no export waits for a whole data set to be decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.folders import read_figshare_table, scan_folders
from ..data.protocols import FIGSHARE_5FOLD, ProtocolArguments, assign, draw_seed
from ..errors import UserError
from ..files import read_json
from ..images.read import UnreadableImageError, load_image
from ..inference.model_folder import ModelFolder

if TYPE_CHECKING:
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

    def pixels(self, classifier: TumorClassifier) -> list[np.ndarray]:
        """Read and preprocess them: at most ``count``, each float32 (3, H, W); UserError where none can be read."""
        slices: list[np.ndarray] = []
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
    """Choose at most ``count`` training slices of a data folder, under the protocol that trained the model."""
    files, protocol = _part(Path(data_dir), folder, "train")
    return CalibrationSlices(files, min(count, len(files)), Path(data_dir).resolve().name, protocol)


def check_slices(data_dir: str, folder: ModelFolder, count: int) -> list[Path]:
    """Choose at most ``count`` test slices that can be read; see :func:`calibration_slices`."""
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
    protocol, seed = _protocol_of(folder)
    found = read_figshare_table(root) if protocol.protocol == FIGSHARE_5FOLD else scan_folders(root, folder.labels)[0]
    files = sorted(root / s.relative for s in assign(found, protocol, seed).slices if s.part == part)
    return [files[i] for i in np.random.default_rng(SEED).permutation(len(files))], protocol.title


def _protocol_of(folder: ModelFolder) -> tuple[ProtocolArguments, int]:
    """Read from ``metrics.json`` which slices trained the model; without one, the published training folder's."""
    try:
        config = read_json(folder.path / "metrics.json")["config"]
        named = {setting.name: config[setting.name] for setting in fields(ProtocolArguments)}
        return ProtocolArguments(**named), draw_seed(config)
    except (UserError, ValueError, KeyError, TypeError):
        return ProtocolArguments(), SEED
