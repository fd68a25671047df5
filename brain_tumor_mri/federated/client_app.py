"""A hospital's side in Flower: three kinds of message in, numbers and weights out.

In a simulation Flower numbers the hospitals (``partition-id``) and each takes its part of the data that the settings
name. In deployment a hospital says itself who it is and where its slices are:
``flower-supernode --node-config 'name="north" data-dir="/data/north"'``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from logging import ERROR
from time import monotonic
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import fixedclipping_mod
from flwr.common.constant import ErrorCode
from flwr.supercore import log
from safetensors.torch import load

from ..errors import UserError, first_line
from .task import Hospital, evaluate_round, own_hospital, simulated_hospitals, train_round

Handler = Callable[[Message, Context], Message]


def clip_when_asked(message: Message, context: Context, call_next: Handler) -> Message:
    """Clip the update where the server wants differential privacy; Flower's own clipping refuses other messages."""
    private = "clipping_norm" in message.content["config"]
    return fixedclipping_mod(message, context, call_next) if private else call_next(message, context)


app = ClientApp()


def _discreet(handler: Handler) -> Handler:
    """Answer an error with its kind alone: its text, which may name files, stays in the hospital's own log."""

    @wraps(handler)
    def answer(message: Message, context: Context) -> Message:
        try:
            return handler(message, context)
        except Exception as error:
            known = isinstance(error, UserError)
            log(ERROR, "this hospital cannot answer: %s", first_line(error), exc_info=None if known else error)
            reason = Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=type(error).__name__)
            return Message(reason, reply_to=message)

    return answer


def hospital_of(context: Context) -> Hospital:
    """Return the hospital that this node is."""
    node, run = context.node_config, context.run_config
    if "data-dir" in node:
        if "name" not in node:
            raise UserError('--node-config: give name="..." beside data-dir')
        return own_hospital(str(node["name"]), str(node["data-dir"]))
    if "partition-id" not in node or not run.get("settings-file"):
        raise UserError('--node-config: give name="..." data-dir="...", who this hospital is and where its slices are')
    found = simulated_hospitals(str(run["settings-file"]))
    return list(found.values())[int(node["partition-id"])]


@app.query()
@_discreet
def introduce(message: Message, context: Context) -> Message:
    """Answer with the hospital's name and, unless the federation is private, its slices of each class."""
    hospital = hospital_of(context)
    content = RecordDict({"hospital": ConfigRecord({"name": hospital.name})})
    if not message.content["config"]["private"]:
        content["counts"] = MetricRecord({"classes": hospital.counts(), "slices": len(hospital.train)})
    return Message(content, reply_to=message)


@app.train(mods=[clip_when_asked])
@_discreet
def train(message: Message, context: Context) -> Message:
    """Train on the hospital's slices for one round; answer with the new weights."""
    started = monotonic()
    config = message.content["config"]
    hospital, arguments = hospital_of(context), _arguments(message)
    weights, figures = train_round(
        hospital,
        **arguments,
        server_round=int(config["server-round"]),
        proximal_mu=float(config.get("proximal-mu", 0.0)),
    )
    # a private federation's accountant knows of the update alone: nothing else may tell of the slices
    told = {"num-examples": 1} if "clipping_norm" in config else figures | {"seconds": monotonic() - started}
    return Message(RecordDict({"arrays": ArrayRecord(weights), "metrics": MetricRecord(told)}), reply_to=message)


@app.evaluate()
@_discreet
def evaluate(message: Message, context: Context) -> Message:
    """Measure the common weights on the hospital's validation slices."""
    figures = evaluate_round(hospital_of(context), **_arguments(message))
    return Message(RecordDict({"metrics": MetricRecord(figures)}), reply_to=message)


def _arguments(message: Message) -> dict[str, Any]:
    config = message.content["config"]
    return {
        "settings": json.loads(config["settings"]),
        "network": config["network"],
        "weights": message.content["arrays"].to_torch_state_dict() | load(config["frozen"]),
        "class_weights": config.get("class-weights"),
    }
