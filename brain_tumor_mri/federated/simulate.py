"""A federation on one machine: Flower's server and the hospitals in this process, one hospital after another.

``simulate(settings)`` trains and writes the result. No network, no port and no other process: Flower's own simulation
needs Ray, whose processes have 30 seconds to start, which they do not make on two cores that are busy.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from flwr.app import Context, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.supercore.task_identity import TaskIdentity

from ..errors import UserError
from ..files import write_text
from .arguments import parse_settings, read_settings
from .client_app import app as client_app
from .recording import FederationError
from .server_app import federate, prepare_folder
from .task import simulated_hospitals

__all__ = ["FederationError", "OneProcessGrid", "read_settings", "simulate"]

PATHS = ("model_name_or_path", "data_dir", "external_dir", "collections_dir", "output_dir")
SETTINGS_FILE, LOG_FILE = "federation.yaml", "federation.log"


class OneProcessGrid:
    """A ``Grid``, as far as strategies ask, whose nodes are calls of the client app, one after the other.

    Every message goes through the bytes that a network would carry.

    Args:
        settings_file: of ``task.simulated_hospitals``.
        hospitals: how many there are; nodes are numbered from 2, as 1 is the server.
    """

    def __init__(self, settings_file: str, hospitals: int) -> None:
        self.settings_file = settings_file
        self.nodes = {i + 2: {"partition-id": i, "num-partitions": hospitals} for i in range(hospitals)}
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1

    def get_node_ids(self) -> Iterable[int]:
        """Return all nodes: nobody is ever away."""
        return list(self.nodes)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Return each node's answer."""
        return [self.ask(_carried(message)) for message in messages]

    def ask(self, message: Message) -> Message:
        """Return the answer of the node that a message is for."""
        node = message.metadata.dst_node_id
        context = Context(
            run_id=1, node_id=node, node_config=self.nodes[node], state=RecordDict(),
            run_config={"settings-file": self.settings_file},
        )  # fmt: skip
        return _carried(client_app(message, context))


def _carried(message: Message) -> Message:
    return message_from_proto(message_to_proto(message))


def simulate(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Run a federation on this machine; its lines are printed, Flower's own go to ``federation.log`` of the folder.

    Args:
        settings: of ``arguments.read_settings``.

    Returns:
        What ``metrics.json`` of the output folder holds.

    Raises:
        UserError: a setting or the data cannot be used.
        FederationError: no hospital is left.
    """
    settings = {
        name: os.path.abspath(value) if name in PATHS and (name == "output_dir" or os.path.exists(value)) else value
        for name, value in settings.items()
    }
    federation, args = parse_settings(settings)
    folder = Path(os.path.abspath(args.training.output_dir))
    settings["output_dir"] = str(folder)
    prepare_folder(folder, settings)
    file = folder / SETTINGS_FILE
    write_text(file, yaml.safe_dump(settings, sort_keys=False))
    names = simulated_hospitals(str(file))
    if federation.wanted > len(names):
        raise UserError(f"clients: {federation.clients}: there are {len(names)} hospitals: {', '.join(names)}")
    with _log_of_flower(folder / LOG_FILE):
        return federate(OneProcessGrid(str(file), len(names)), settings)


@contextmanager
def _log_of_flower(file: Path) -> Iterator[None]:
    logger, handler = logging.getLogger("flwr"), logging.FileHandler(file, encoding="utf-8")
    before, logger.handlers = logger.handlers, [handler]
    try:
        yield
    finally:
        logger.handlers = before
        handler.close()
