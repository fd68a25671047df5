"""``calibrate``: which slices were held out is read from the training's record."""

import json
from pathlib import Path

import pytest

from brain_tumor_mri.commands.calibrate import training_settings


@pytest.mark.parametrize(
    ("seeds", "drawn_by"), [({"data_seed": 7}, 7), ({"data_seed": 0}, 0), ({"data_seed": None}, 42)]
)
def test_the_validation_part_is_drawn_by_data_seed_as_in_training(tmp_path: Path, seeds: dict, drawn_by: int):
    config = {"seed": 42, "protocol": "official", "external_dir": None, **seeds}
    (tmp_path / "metrics.json").write_text(json.dumps({"config": config, "model": {"weights_sha256": "ab"}}))
    protocol, seed, trained_on = training_settings(tmp_path, "ab")
    assert (protocol.protocol, seed, trained_on) == ("official", drawn_by, [])
