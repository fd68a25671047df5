"""The server's side in Flower: rounds of a strategy, a checkpoint after each, a result folder like any other.

``[tool.flwr.app.config] settings-file`` names the YAML file. What stops the run is left as one line in ``failed.json``
of the output folder, as Flower's own exit status tells nothing of it.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import datasets
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import (
    Grid,
    NeighboringRelation,
    PrivacyConfig,
    RdpAccountant,
    SamplingMethod,
    ServerApp,
)
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    FedAdam,
    FedAvg,
    FedProx,
    Strategy,
)
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from safetensors.torch import save
from transformers import PreTrainedModel, set_seed
from transformers.utils import logging as transformers_logging

from ..data.collections import load_collections
from ..data.slices import resolve_class_weights
from ..errors import UserError
from ..evaluation.record import describe_data, describe_model, run_record
from ..evaluation.split import evaluate_collections, evaluate_split
from ..files import read_json, write_json
from ..inference.classifier import TumorClassifier
from ..training.arguments import RunArguments, run_settings
from ..training.backbone import build_model, save_release
from ..training.parts import run_slices
from ..training.run import write_run
from .arguments import FEDERATION, FederationArguments, for_clients, parse_settings, read_settings
from .checkpoint import Checkpoint, plain
from .recording import FederationError, RecordingGrid, say
from .task import describe_network, frozen_tensors, is_statistic, load_weights, travelling

CHECKPOINT, FAILED, RUN_FILE = "checkpoint.safetensors", "failed.json", "run.json"
FREE = ("connect_timeout", "round_timeout", "output_dir")
"""Settings that a run that goes on may change."""


class AveragedStatisticsFedAdam(FedAdam):
    """FedAdam whose running means and variances are averaged: Adam's steps would make variances negative."""

    rounds_before = 0

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take Adam's step with the weights and the average of the statistics, all in float32."""
        replies = list(replies)
        stepped, metrics = super().aggregate_train(server_round + self.rounds_before, replies)
        if stepped is None:
            return stepped, metrics
        average = aggregate_arrayrecords([r.content for r in replies if r.has_content()], self.weighted_by_key)
        joined = {name: (average if is_statistic(name) else stepped)[name].numpy() for name in stepped}
        return ArrayRecord({k: Array(v.astype(np.float32)) for k, v in joined.items()}), metrics


class SecretNoise(DifferentialPrivacyClientSideFixedClipping):
    """Flower's noise comes from NumPy's global generator, whose seed the hospitals know: here it is nobody's."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average and add noise."""
        np.random.seed(np.frombuffer(os.urandom(64), np.uint32))
        return super().aggregate_train(server_round, replies)


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that ``settings-file`` describes."""
    settings = read_settings(str(context.run_config["settings-file"]))
    folder = Path(settings.get("output_dir", "runs/federated"))
    try:
        federate(grid, settings)
    except (UserError, FederationError) as error:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FAILED, {"error": str(error), "status": 2 if isinstance(error, UserError) else 1})
        raise


def federate(grid: Grid, settings: dict[str, Any]) -> dict[str, Any]:
    """Train together, and write the result folder.

    Args:
        grid: reaches the hospitals.
        settings: of ``arguments.read_settings``.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        UserError: a setting or the server's data cannot be used, or the folder holds another run.
        FederationError: too few hospitals came, or none is left.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    federation, args = parse_settings(settings)
    folder = Path(args.training.output_dir)
    prepare_folder(folder, settings)
    started = monotonic()
    hospitals = _wait_for_hospitals(grid, federation)
    set_seed(args.training.seed)
    random.seed(args.training.seed)
    model = build_model(
        args.model.model_name_or_path,
        revision=args.model.model_revision,
        from_scratch=args.model.from_scratch,
        image_size=args.model.image_size,
    )
    class_weights = _class_weights(args, hospitals, federation.private)
    checkpoint = Checkpoint(folder / CHECKPOINT)
    strategy = build_strategy(federation, len(hospitals))
    weights = checkpoint.restore(strategy) or travelling(model, federation.batch_norm)
    names = {node: told["name"] for node, told in hospitals.items()}
    recording = RecordingGrid(grid, names, checkpoint.history, federation)
    done, before = len(checkpoint.history), checkpoint.seconds
    if done:
        say(f"going on after round {done} of {federation.rounds}")
    if isinstance(adam := plain(strategy), AveragedStatisticsFedAdam):
        adam.rounds_before = done

    def keep(server_round: int, arrays: ArrayRecord) -> None:
        if server_round:
            checkpoint.seconds = before + monotonic() - started
            checkpoint.store(strategy, arrays.to_torch_state_dict())

    config = {"settings": json.dumps(for_clients(settings)), "network": describe_network(model)}
    config["frozen"] = save(frozen_tensors(model, federation.batch_norm))
    if class_weights:
        config["class-weights"] = class_weights
    if done < federation.rounds:
        result = strategy.start(
            recording,
            ArrayRecord(weights),
            num_rounds=federation.rounds - done,
            timeout=federation.round_timeout,
            train_config=ConfigRecord(config),
            evaluate_config=ConfigRecord(config),
            evaluate_fn=keep,
        )
        weights = result.arrays.to_torch_state_dict()
    load_weights(model, weights)
    return _write_result(folder, model, federation, args, hospitals, checkpoint, class_weights, strategy)


def prepare_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make the output folder, or find the begun run in it that goes on."""
    if (folder / "metrics.json").is_file():
        raise UserError(f"{folder}: holds a finished run; choose another output_dir, or remove it to train anew")
    decisive = {name: value for name, value in settings.items() if name not in FREE}
    decisive = json.loads(json.dumps(decisive, default=str))
    record = folder / RUN_FILE
    if record.is_file() and (folder / CHECKPOINT).is_file():  # without a round there is nothing to go on from
        before = read_json(record)
        if changed := sorted(k for k in {*decisive, *before} if before.get(k) != decisive.get(k)):
            what = ", ".join(f"{key} {before.get(key)} -> {decisive.get(key)}" for key in changed[:5])
            raise UserError(f"{folder}: holds a run with other settings ({what}); choose another output_dir")
    else:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another output_dir") from error
        write_json(record, decisive)
    (folder / FAILED).unlink(missing_ok=True)


def build_strategy(federation: FederationArguments, hospitals: int) -> Strategy:
    """Return the strategy of a federation, with clipping, noise and an accountant where it is private."""
    # all hospitals take part; one that is gone is missed by its answer, not waited for
    common = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
    if not federation.evaluate_clients or federation.private:
        common["fraction_evaluate"] = 0.0
    if federation.strategy == "fedadam":
        return AveragedStatisticsFedAdam(**common, eta=federation.server_learning_rate)
    mu = {"proximal_mu": federation.proximal_mu} if federation.strategy == "fedprox" else {}
    strategy = (FedProx if mu else FedAvg)(**common, **mu)
    if not federation.private:
        return strategy
    accountant = RdpAccountant(
        PrivacyConfig(
            target_delta=federation.delta,
            population_size=hospitals,
            neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
            sampling_method=SamplingMethod.NO_AMPLIFICATION,  # every hospital is in every round
        )
    )
    return SecretNoise(
        strategy, federation.noise_multiplier, federation.clipping_norm, hospitals, accountant=accountant
    )


def _wait_for_hospitals(grid: Grid, federation: FederationArguments) -> dict[int, dict[str, Any]]:
    """Wait until all are there and ask who they are: by node ``name`` and, if told, ``classes`` and ``slices``."""
    wanted, deadline = federation.wanted, monotonic() + federation.connect_timeout
    while len(nodes := sorted(grid.get_node_ids())) < wanted:
        if monotonic() > deadline:
            raise FederationError(f"{len(nodes)} of {wanted} hospitals came within {federation.connect_timeout:g} s")
        sleep(0.5)
    question = RecordDict({"config": ConfigRecord({"private": federation.private})})
    messages = [Message(question, node, MessageType.QUERY) for node in nodes]
    told = {}
    for reply in grid.send_and_receive(messages, timeout=federation.round_timeout):
        if reply.has_error():
            say(f"a hospital cannot take part ({reply.error.reason}); its own log says why")
        else:
            counts = reply.content.metric_records.get("counts", {})
            told[reply.metadata.src_node_id] = {"name": reply.content["hospital"]["name"], **counts}
    if len(told) < wanted:
        raise FederationError(
            f"{len(told)} of {len(nodes)} hospitals can take part and {wanted} are wanted; their logs say why"
        )
    if twice := [name for name, n in Counter(h["name"] for h in told.values()).items() if n > 1]:
        raise UserError(f"{twice[0]}: two hospitals have this name; give each its own")
    say("hospitals: " + ", ".join(sorted(f"{h['name']} ({h.get('slices', '?')} slices)" for h in told.values())))
    return told


def _class_weights(args: RunArguments, hospitals: Mapping[int, dict[str, Any]], private: bool) -> list[float] | None:
    """The weights that all hospitals share, from the sum of their counts."""
    setting = args.data.class_weights
    if private and setting == "inverse":
        raise UserError("class_weights: inverse: a private federation tells no counts; give none, or four numbers")
    counts = [1] * 4 if private else np.sum([told["classes"] for told in hospitals.values()], 0)
    return resolve_class_weights(setting, np.repeat(np.arange(4), counts).tolist())


def _write_result(
    folder: Path, model: PreTrainedModel, federation: FederationArguments, args: RunArguments,
    hospitals: Mapping[int, dict[str, Any]], checkpoint: Checkpoint, class_weights: list[float] | None,
    strategy: Strategy,
) -> dict[str, Any]:  # fmt: skip
    """Write the model in the released layout and its record, which comes last."""
    save_release(model, folder, half=args.model.half_weights)
    classifier = TumorClassifier.from_pretrained(folder, device=args.training.device)
    data: dict[str, Any] = {"name": None, "counts": None}
    splits, collections = {}, None
    if federation.server_test:
        slices = run_slices(args, parts=("test",))
        data = describe_data(args.data.data_dir, slices)
        splits = {"test": evaluate_split(classifier, slices.splits["test"])}
        if args.collections.collections_dir:
            further = load_collections(args.collections.collections_dir, args.protocol.collection)["test"]
            collections = evaluate_collections([(classifier, further)], args.collections.collections_dir)
    spent = strategy.privacy_spent() if federation.private else None
    record = run_record(
        protocol=args.protocol,
        model=describe_model(str(folder), classifier),
        data=data,
        splits=splits,
        config=run_settings(args),
        training={"seconds": checkpoint.seconds, "class_weights": class_weights},
    )
    record["collections"] = collections
    record["federation"] = {
        "settings": {name: getattr(federation, name) for name in FEDERATION},
        "hospitals": {
            told["name"]: {k: told[k] for k in ("slices", "classes") if k in told}
            for told in sorted(hospitals.values(), key=lambda told: told["name"])
        },
        "rounds": checkpoint.history,
        "bytes_sent": sum(entry["bytes"] for entry in checkpoint.history),
        "privacy": spent
        and {
            "epsilon": spent.epsilon, "delta": spent.delta, "accountant": "RDP", "releases": spent.num_releases,
            "unit": "a hospital with all of its slices", "noise_multiplier": federation.noise_multiplier,
            "clipping_norm": federation.clipping_norm, "noise_added_by": "the server, to the average",
        },
    }  # fmt: skip
    if spent:
        say(f"privacy: epsilon {spent.epsilon:.2f} at delta {spent.delta:g} for a whole hospital")
    if splits:
        write_run(folder, record, [])
    else:
        write_json(folder / "metrics.json", record)
    return record
