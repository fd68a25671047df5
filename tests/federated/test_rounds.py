# ruff: noqa: E402 (what follows needs Flower, and skips where it is missing)
"""A whole federation in one process: Flower's messages, strategies and accountant, with the nodes called directly."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

WHERE = "run it with .venv-federated/bin/python -m pytest, after `make federated`"
pytest.importorskip("flwr", reason=f"Flower is not installed here; {WHERE}")
pytest.importorskip("dp_accounting", reason=f"Flower's accountant is not installed here; {WHERE}")

from flwr.app import ConfigRecord, Context, Error, Message, MessageType, RecordDict
from flwr.common.serde import message_to_proto
from transformers import AutoModelForImageClassification

from brain_tumor_mri.errors import UserError
from brain_tumor_mri.federated.client_app import app as client_app
from brain_tumor_mri.federated.server_app import FAILED, FederationError, app, federate
from brain_tumor_mri.federated.simulate import OneProcessGrid
from brain_tumor_mri.federated.task import is_statistic, simulated_hospitals
from brain_tumor_mri.inference.classifier import TumorClassifier

pytestmark = pytest.mark.federated


@pytest.fixture
def settings(phantom_dir: Path, tmp_path: Path) -> dict:
    return {
        "model_name_or_path": "timm/test_resnet", "from_scratch": True, "image_size": 32, "seed": 5,
        "data_dir": str(phantom_dir), "output_dir": str(tmp_path / "run"), "class_weights": "inverse",
        "rounds": 2, "partition": "patient", "clients": 2, "slices_per_round": 8,
        "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8, "learning_rate": 3e-3,
    }  # fmt: skip


class WatchedGrid(OneProcessGrid):
    """Keeps all that is sent; ``fails(kind, node, round)`` says whose answer is an error."""

    def __init__(self, settings_file: str, hospitals: int, fails=None) -> None:
        super().__init__(settings_file, hospitals)
        self.fails = fails or (lambda *_: False)
        self.wire: list[tuple[Message, bytes]] = []

    def send_and_receive(self, messages, *, timeout=None):
        return super().send_and_receive(reversed(list(messages)))  # the last asked is the first to answer

    def ask(self, message: Message) -> Message:
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        message.metadata.__dict__["_message_id"] = f"{node}-{len(self.wire)}"
        if self.fails(kind, node, int(message.content["config"].get("server-round", 0))):
            reply = Message(Error(code=0, reason="killed"), reply_to=message)
        else:
            reply = super().ask(message)
        self.wire += [(m, message_to_proto(m).SerializeToString()) for m in (message, reply)]
        return reply


def grid_of(settings: dict, fails=None) -> WatchedGrid:
    file = Path(settings["output_dir"]).with_name("settings.yaml")
    file.write_text(yaml.safe_dump(settings))
    return WatchedGrid(str(file), settings["clients"], fails)


def run(settings: dict, fails=None) -> tuple[dict, WatchedGrid]:
    grid = grid_of(settings, fails)
    return federate(grid, settings), grid


def weights_of(settings: dict) -> dict[str, torch.Tensor]:
    stored = load_file(Path(settings["output_dir"]) / "checkpoint.safetensors")
    return {name.removeprefix("weights/"): value for name, value in stored.items() if name.startswith("weights/")}


def test_the_result_is_a_folder_like_any_other_with_a_record_of_the_rounds(settings) -> None:
    record, _ = run(settings)
    folder = Path(settings["output_dir"])
    assert json.loads((folder / "metrics.json").read_text())["federation"] == record["federation"]
    AutoModelForImageClassification.from_pretrained(folder)
    TumorClassifier.from_pretrained(folder)
    federation = record["federation"]
    assert record["protocol"] == "official"
    assert set(federation["hospitals"]) == {"hospital-1", "hospital-2"}
    assert sum(sum(told["classes"]) for told in federation["hospitals"].values()) == 43
    assert [entry["round"] for entry in federation["rounds"]] == [1, 2]
    size = sum(value.nbytes for value in weights_of(settings).values())
    for entry in federation["rounds"]:
        assert entry["failed"] == {}
        assert set(entry["hospitals"]) == set(entry["evaluation"]["hospitals"]) == set(federation["hospitals"])
        # to and from two hospitals, and once more to measure; a little beside the weights
        assert 6 * size < entry["bytes"] < 6.5 * size
        assert entry["seconds"] > 0
    assert record["splits"]["test"]["n"] == 16
    assert federation["privacy"] is None
    with pytest.raises(UserError, match="finished run"):
        federate(grid_of(settings), settings)


def test_weights_are_the_mean_of_the_hospitals_by_their_slices(settings) -> None:
    _, grid = run(settings | {"rounds": 1})
    replies = [m.content for m, _ in grid.wire if "arrays" in (m.content or {}) and "metrics" in m.content]
    shares = torch.tensor([float(r["metrics"]["num-examples"]) for r in replies])
    assert len(replies) == 2
    for name, value in weights_of(settings).items():
        each = torch.stack([torch.from_numpy(reply["arrays"][name].numpy()) for reply in replies])
        mean = (each * (shares / shares.sum()).view(-1, *[1] * (each.ndim - 1))).sum(0)
        assert torch.allclose(mean, value, atol=1e-6), name


def test_no_image_no_file_name_and_no_patient_crosses_the_wire(settings, phantom_dir) -> None:
    _, grid = run(settings)
    hospitals = simulated_hospitals(grid.settings_file).values()
    secret = {word for h in hospitals for part in (h.train, h.validation) for word in (*part["path"], *part["group"])}
    secret |= {str(phantom_dir), settings["output_dir"], *(path.stem for path in phantom_dir.rglob("*.png"))}
    secret = {word.encode() for word in secret if len(word) > 3}
    assert len(secret) > 50
    pixels = [Path(phantom_dir, path).read_bytes()[40:80] for h in hospitals for path in h.train["path"][:5]]
    kinds = set()
    for message, content in grid.wire:
        assert not [word for word in (*secret, *pixels) if word in content]
        kinds.add(message.metadata.message_type)
        arrays = message.content.array_records
        assert set(arrays) <= {"arrays"}
        for record in arrays.values():  # weights by the network's names, in the network's shapes, and nothing else
            assert {name: tuple(array.shape) for name, array in record.items()} == {
                name: tuple(value.shape) for name, value in weights_of(settings).items()
            }
        told = {name: dict(record) for name, record in message.content.metric_records.items()}
        assert {key for record in told.values() for key in record} <= {
            "num-examples", "steps", "train-loss", "seconds", "loss", "right", "classes", "slices"
        }  # fmt: skip
    assert kinds == {"query", "train", "evaluate"}


def test_what_goes_wrong_in_a_hospital_is_told_by_its_kind_alone(settings, tmp_path) -> None:
    grid = grid_of(settings)
    message = Message(RecordDict({"config": ConfigRecord({"private": False})}), 7, MessageType.QUERY)
    secret = tmp_path / "patient-0815"
    node = {"name": "north", "data-dir": str(secret)}
    context = Context(run_id=1, node_id=7, node_config=node, state=RecordDict(), run_config={})
    reply = client_app(message, context)
    assert reply.has_error()
    assert reply.error.reason == "UserError"
    assert grid.wire == []


def test_a_failed_hospital_is_named_and_the_others_go_on(settings, capsys) -> None:
    record, _ = run(settings, fails=lambda kind, node, number: (kind, node, number) == ("train", 3, 1))
    first, second = record["federation"]["rounds"]
    assert first["failed"] == {"hospital-2": "killed"}
    assert set(first["hospitals"]) == {"hospital-1"}
    assert second["failed"] == {}
    assert "round 1: 1 of 2 hospitals trained; failed: hospital-2 (killed)" in capsys.readouterr().out


@pytest.mark.parametrize("away", [{3}, {2, 3}])
def test_a_hospital_that_is_away_between_rounds_is_named_and_nobody_left_ends_the_run(
    settings, capsys, monkeypatch, away
) -> None:
    settings |= {"evaluate_clients": False, "connect_timeout": 0.1}
    grid = grid_of(settings)

    def then_leave(messages, *, timeout=None, send=grid.send_and_receive):
        messages = list(messages)
        replies = send(messages)
        if messages[0].metadata.message_type == "train":
            grid.nodes = {node: config for node, config in grid.nodes.items() if node not in away}
        return replies

    monkeypatch.setattr(grid, "send_and_receive", then_leave)
    if away == {2, 3}:
        with pytest.raises(FederationError, match="after round 1: no hospital is left"):
            federate(grid, settings)
    else:
        record = federate(grid, settings)
        assert record["federation"]["rounds"][1]["failed"] == {"hospital-2": "not there"}
        assert "round 2: 1 of 2 hospitals trained; failed: hospital-2 (not there)" in capsys.readouterr().out


def test_a_killed_node_that_the_superlink_answers_for_is_named(settings, monkeypatch) -> None:
    grid = grid_of(settings)
    ask = grid.ask

    def superlink(message: Message) -> Message:
        reply = ask(message)
        if message.metadata.dst_node_id == 3 and message.metadata.message_type == "train":
            reply = Message(Error(code=5, reason="Node Unavailable"), reply_to=message)
            reply.metadata.__dict__["_src_node_id"] = 1
        return reply

    monkeypatch.setattr(grid, "ask", superlink)
    record = federate(grid, settings)
    assert [entry["failed"] for entry in record["federation"]["rounds"]] == [{"hospital-2": "it is gone"}] * 2


def test_no_hospital_left_ends_the_run_and_is_left_in_a_file(settings) -> None:
    grid = grid_of(settings, fails=lambda kind, node, number: kind == "train" and number == 2)
    context = Context(
        run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={"settings-file": grid.settings_file}
    )
    with pytest.raises(FederationError, match="round 2: no hospital is left"):
        app(grid, context)
    failed = json.loads((Path(settings["output_dir"]) / FAILED).read_text())
    assert failed["status"] == 1
    assert "hospital-1 (killed)" in failed["error"]
    assert not (Path(settings["output_dir"]) / "metrics.json").exists()


def test_hospitals_that_do_not_come_end_the_run(settings) -> None:
    grid = grid_of(settings)
    del grid.nodes[3]
    with pytest.raises(FederationError, match="1 of 2 hospitals came"):
        federate(grid, settings | {"connect_timeout": 0.1})


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
def test_a_stopped_run_goes_on_to_the_same_weights(settings, strategy, tmp_path) -> None:
    settings |= {"strategy": strategy, "rounds": 3, "evaluate_clients": False}
    whole = settings | {"output_dir": str(tmp_path / "whole")}
    run(whole)
    with pytest.raises(FederationError):
        run(settings, fails=lambda kind, node, number: number == 2)
    with pytest.raises(UserError, match="rounds 3 -> 4"):
        run(settings | {"rounds": 4})
    record, _ = run(settings)
    assert [entry["round"] for entry in record["federation"]["rounds"]] == [1, 2, 3]
    for name, value in weights_of(whole).items():
        assert torch.equal(value, weights_of(settings)[name]), name
    assert all((v > 0).all() for n, v in weights_of(settings).items() if n.endswith("running_var"))
    assert any(is_statistic(name) for name in weights_of(settings))


def test_a_private_federation_clips_tells_no_counts_and_says_its_epsilon(settings, capsys) -> None:
    settings |= {
        "clipping_norm": 0.01, "noise_multiplier": 2.0, "batch_norm": "frozen", "class_weights": "none",
        "strategy": "fedprox", "learning_rate": 0.05,
    }  # fmt: skip
    record, grid = run(settings)
    privacy = record["federation"]["privacy"]
    # two Gaussian releases with sigma 2 (Mironov 2017, propositions 1 and 3); the accountant's bound is tighter
    simple = min(order / 4 + math.log(1e5) / (order - 1) for order in range(2, 60))
    assert 0.7 * simple < privacy["epsilon"] <= simple
    assert (privacy["releases"], privacy["delta"]) == (2, 1e-5)
    assert "privacy: epsilon" in capsys.readouterr().out
    assert record["federation"]["hospitals"] == {"hospital-1": {}, "hospital-2": {}}
    sent = [message for message, _ in grid.wire if message.metadata.message_type == "train"]
    asked = {message.metadata.message_id: message for message in sent if message.metadata.message_id}
    replies = [message for message in sent if message.metadata.reply_to_message_id]
    assert len(replies) == 4
    for reply in replies:
        assert dict(reply.content["metrics"]) == {"num-examples": 1}
        before, after = (m.content["arrays"] for m in (asked[reply.metadata.reply_to_message_id], reply))
        moved = sum(((after[n].numpy() - before[n].numpy()) ** 2).sum() for n in after) ** 0.5
        assert moved == pytest.approx(0.01, rel=0.01)
        assert not any(is_statistic(name) for name in after)
    first = weights_of(settings)
    shutil.rmtree(settings["output_dir"])
    run(settings)  # hospitals know the seed: noise that follows from it could be taken off
    assert not all(torch.equal(first[name], value) for name, value in weights_of(settings).items())
    with pytest.raises(UserError, match="tells no counts"):
        shutil.rmtree(settings["output_dir"])
        run(settings | {"class_weights": "inverse"})
