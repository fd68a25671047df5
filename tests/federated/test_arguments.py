"""The settings of a federation: what hospitals are told, what they refuse, what is said of wrong ones."""

from pathlib import Path

import pytest

from brain_tumor_mri.errors import UserError
from brain_tumor_mri.federated.arguments import for_clients, parse_client_settings, parse_settings, read_settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def settings() -> dict:
    return read_settings(ROOT / "configs" / "federated.yaml")


def test_the_recipe_is_read_and_overridden(settings) -> None:
    federation, args = parse_settings(settings | {"learning_rate": "1e-4"})
    assert (federation.strategy, federation.partition, federation.private) == ("fedavg", "collection", False)
    assert args.training.learning_rate == pytest.approx(1e-4)
    assert read_settings(ROOT / "configs" / "federated.yaml", ["rounds=2", "bf16=false"])["rounds"] == 2


def test_hospitals_are_told_no_folder_and_no_file(settings) -> None:
    told = for_clients(settings | {"collections_dir": "/data/further", "external_dir": "/data/br35h"})
    assert not any(isinstance(value, str) and "/" in value for value in told.values())
    assert not {"data_dir", "output_dir", "model_name_or_path", "collections_dir", "external_dir"} & set(told)
    assert told["learning_rate"] == settings["learning_rate"]


@pytest.mark.parametrize("name", ["output_dir", "push_to_hub", "hub_token", "resume_from_checkpoint", "data_dir"])
def test_a_hospital_refuses_settings_that_are_not_for_it(settings, name, tmp_path) -> None:
    with pytest.raises(UserError, match=name):
        parse_client_settings(for_clients(settings) | {name: "/anywhere"}, str(tmp_path))


def test_a_hospital_trains_into_a_folder_of_its_own_and_reports_nowhere(settings, tmp_path) -> None:
    _, args = parse_client_settings(for_clients(settings), str(tmp_path))
    assert args.training.output_dir == str(tmp_path)
    assert args.training.report_to == []
    assert not args.training.push_to_hub


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"strategy": "fedsgd"}, "strategy: fedsgd: give one of fedavg"),
        ({"rounds": 0}, "rounds: 0"),
        ({"rounds": "many"}, "rounds"),
        ({"partition": "patient"}, "give clients"),
        ({"clipping_norm": 1.0}, "batch_norm: frozen"),
        ({"clipping_norm": 1.0, "batch_norm": "frozen", "strategy": "fedadam"}, "averages only"),
        ({"hospitals": "a", "partition": "pooled"}, "not with partition: pooled"),
    ],
)
def test_wrong_settings_are_told_in_one_line(settings, changed, said) -> None:
    with pytest.raises(UserError, match=said) as told:
        parse_settings(settings | changed)
    assert "\n" not in str(told.value)


def test_what_has_no_place_in_a_federation_is_refused(tmp_path) -> None:
    config = tmp_path / "federated.yaml"
    config.write_text("teacher: model/\n")
    with pytest.raises(UserError, match="teacher: not in a federation"):
        read_settings(config)
    config.write_text("roundz: 2\n")
    with pytest.raises(UserError, match="unknown setting roundz"):
        read_settings(config)
    with pytest.raises(UserError, match="name=value"):
        read_settings(config, ["rounds"])
