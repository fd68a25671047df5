"""A hospital's round: the project's trainer from the common weights, without Flower."""

from pathlib import Path

import pytest
import torch
import yaml

from brain_tumor_mri.errors import UserError
from brain_tumor_mri.federated.task import (
    build_network,
    describe_network,
    evaluate_round,
    frozen_tensors,
    is_statistic,
    load_weights,
    own_hospital,
    round_seed,
    simulated_hospitals,
    train_round,
    travelling,
)
from brain_tumor_mri.training.backbone import build_model

SETTINGS = {
    "image_size": 32, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8, "learning_rate": 3e-3,
    "seed": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def hospital(phantom_dir: Path):
    return own_hospital("north", str(phantom_dir))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model("timm/test_resnet", from_scratch=True, image_size=32)


@pytest.fixture(scope="module")
def start(model):
    return travelling(model, "average")


def one_round(hospital, model, weights, server_round=1, proximal_mu=0.0, **settings):
    return train_round(
        hospital, SETTINGS | settings, describe_network(model), weights,
        server_round=server_round, proximal_mu=proximal_mu,
    )  # fmt: skip


def distance(a, b) -> float:
    return float(sum(((a[name] - b[name]) ** 2).sum() for name in a if not is_statistic(name)) ** 0.5)


def test_only_the_tensors_that_are_needed_travel(model, start) -> None:
    assert not any("num_batches" in name for name in start)
    assert any(is_statistic(name) for name in start)
    assert not any(is_statistic(name) for name in travelling(model, "frozen"))
    assert all(is_statistic(name) for name in frozen_tensors(model, "frozen"))
    assert not frozen_tensors(model, "average")
    assert {*travelling(model, "frozen"), *frozen_tensors(model, "frozen")} == set(start)


def test_a_round_is_decided_by_seed_round_and_name(hospital, model, start) -> None:
    first, figures = one_round(hospital, model, start, slices_per_round=16)
    again, _ = one_round(hospital, model, start, slices_per_round=16)
    later, _ = one_round(hospital, model, start, server_round=2, slices_per_round=16)
    assert distance(first, start) > 0
    assert distance(first, again) == 0 < distance(first, later)
    assert (figures["num-examples"], figures["steps"]) == (16, 2)
    _, figures = one_round(hospital, model, start, slices_per_round=0.5)
    assert figures["num-examples"] == round(len(hospital.train) / 2)
    assert round_seed(3, 1, "north") != round_seed(3, 1, "south")


def test_the_proximal_term_keeps_a_hospital_near_the_common_weights(hospital, model, start) -> None:
    plain = {"slices_per_round": 24, "optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0}
    free, _ = one_round(hospital, model, start, **plain)
    held, _ = one_round(hospital, model, start, **plain, proximal_mu=15.0)
    assert 0 < distance(held, start) < 0.9 * distance(free, start)


def test_frozen_statistics_stay_while_the_weights_train(hospital, model) -> None:
    weights = travelling(model, "frozen") | frozen_tensors(model, "frozen")
    new, _ = one_round(hospital, model, weights, batch_norm="frozen", slices_per_round=16)
    assert set(new) == set(travelling(model, "frozen"))
    assert any("bn" in name and not torch.equal(new[name], weights[name]) for name in new)
    averaged, _ = one_round(hospital, model, weights, slices_per_round=16)
    assert any(is_statistic(name) and not torch.equal(averaged[name], weights[name]) for name in averaged)


def test_the_common_weights_are_measured_on_validation_slices(hospital, model, start) -> None:
    figures = evaluate_round(hospital, SETTINGS, describe_network(model), start)
    assert figures["num-examples"] == len(hospital.validation) > 0
    assert 0 <= figures["right"] <= 1 < figures["loss"] + 1


def test_a_network_comes_by_its_name_alone(model) -> None:
    built = build_network(describe_network(model))
    assert built.config.pretrained_cfg == model.config.pretrained_cfg
    for name in ("no_such_net", "../../etc", "hf_hub:somebody/net"):
        with pytest.raises(UserError, match="timm does not have"):
            build_network(describe_network(model).replace("test_resnet", name))
    with pytest.raises(UserError, match="do not fit"):
        load_weights(built, {"timm_model.conv1.weight": torch.zeros(1)})


def test_a_folder_without_slices_is_named(tmp_path) -> None:
    with pytest.raises(UserError, match=str(tmp_path)):
        own_hospital("north", str(tmp_path))


def test_hospitals_can_be_named_and_hold_what_they_hold_among_all(phantom_dir, tmp_path) -> None:
    def held(**changed):
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.yaml"
        settings = {"data_dir": str(phantom_dir), "partition": "patient", "clients": 3, "output_dir": "unused"}
        file.write_text(yaml.safe_dump(settings | changed))
        return simulated_hospitals(str(file))

    whole, alone = held(), held(hospitals="hospital-2")
    assert list(whole) == ["hospital-1", "hospital-2", "hospital-3"]
    assert list(alone) == ["hospital-2"]
    assert alone["hospital-2"].train["path"][:] == whole["hospital-2"].train["path"][:]
    with pytest.raises(UserError, match=r"mars.*hospital-1"):
        held(hospitals="mars")
