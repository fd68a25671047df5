"""What a federation's rounds leave behind: who answered, who failed, what was sent, how long it took."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from time import monotonic, sleep
from typing import Any

import numpy as np
from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from .arguments import FederationArguments


class FederationError(Exception):
    """The federation cannot go on; ``str(error)`` is one line that says why."""


class RecordingGrid:
    """A ``Grid``, as far as strategies ask, that keeps the history: who answered, what was sent, how long it took.

    Answers come back in the order of the hospitals' names, so that sums of floats do not depend on who is faster.

    Args:
        grid: Flower's, which sends.
        names: each hospital's name by its node.
        history: of the rounds before, which is continued.
        federation: says how long to wait where nobody is there, and whether it is private: then a round needs all.

    Raises:
        FederationError: nobody is there, no hospital answered a round of training, or privacy needs one that is gone.
    """

    def __init__(
        self, grid: Grid, names: Mapping[int, str], history: list[dict[str, Any]], federation: FederationArguments
    ) -> None:
        self.grid, self.names, self.history, self.federation = grid, names, history, federation

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that introduced themselves and are there; Flower would wait for ever for the first."""
        deadline = monotonic() + self.federation.connect_timeout
        while not (found := [node for node in self.grid.get_node_ids() if node in self.names]):
            if monotonic() > deadline:
                raise FederationError(f"after round {len(self.history)}: no hospital is left")
            sleep(0.5)
        return found

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send and receive as Flower's grid does, and keep what happened."""
        messages, started = list(messages), monotonic()
        if not messages:
            return []
        training = messages[0].metadata.message_type == MessageType.TRAIN
        if training:
            self.history.append({"round": len(self.history) + 1})
        for content in {id(message.content): message.content for message in messages}.values():
            content["config"]["server-round"] = len(self.history)
        asked = {self.names[message.metadata.dst_node_id] for message in messages}
        failed = {name: "not there" for name in self.names.values() if name not in asked}
        if failed and self.federation.private:
            raise FederationError(f"round {len(self.history)}: privacy needs all hospitals{_listed(failed)}")
        down = sum(sent_bytes(message) for message in messages)
        received = list(self.grid.send_and_receive(messages, timeout=timeout))
        # where a node is gone the SuperLink answers, in its own name; such an answer says no more than its absence
        replies = [reply for reply in received if reply.metadata.src_node_id in self.names]
        replies.sort(key=lambda reply: self.names[reply.metadata.src_node_id])
        answered = {self.names[r.metadata.src_node_id]: r for r in replies if not r.has_error()}
        failed |= {self.names[r.metadata.src_node_id]: r.error.reason for r in replies if r.has_error()}
        gone = "it is gone" if len(received) > len(replies) else "no answer in time"
        failed |= {name: gone for name in asked - {*answered, *failed}}
        figures = {name: _figures(reply) for name, reply in answered.items()}
        entry = self.history[-1]
        if training:
            entry |= {"hospitals": figures, "failed": dict(sorted(failed.items())), "seconds": 0.0, "bytes": 0}
            say(f"round {entry['round']}: {len(answered)} of {len(self.names)} hospitals trained{_listed(failed)}")
        else:
            entry["evaluation"] = {"hospitals": figures, "failed": dict(sorted(failed.items()))}
        entry["seconds"] += monotonic() - started
        entry["bytes"] += down + sum(sent_bytes(reply) for reply in answered.values())
        if training and not answered:
            raise FederationError(f"round {entry['round']}: no hospital is left{_listed(failed)}")
        if training:
            return replies
        return [r for r in replies if r.has_error() or r.content["metrics"]["num-examples"]]


def sent_bytes(message: Message) -> int:
    """Return the size of a message's records as Flower counts it, without the transport's own overhead."""
    return sum(record.count_bytes() for record in message.content.values())


def _figures(reply: Message) -> dict[str, Any]:
    told = next(iter(reply.content.metric_records.values()))
    return {name: value if np.isfinite(value) else None for name, value in told.items()}


def _listed(failed: Mapping[str, str]) -> str:
    return "; failed: " + ", ".join(f"{name} ({reason})" for name, reason in sorted(failed.items())) if failed else ""


def say(line: str) -> None:
    """Print a line of the run at once."""
    print(line, flush=True)
