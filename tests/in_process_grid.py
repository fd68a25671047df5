"""A Flower ``Grid`` whose nodes are calls of the client app in this process; it keeps all that is sent."""

from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from brain_tumor_mri.federated.client_app import app


class InProcessGrid(Grid):
    """Nodes 11, 12, ...; ``fails(kind, node, round)`` says whose answer is an error."""

    def __init__(self, settings_file: str, nodes: int, fails: Callable[[str, int, int], bool] | None = None) -> None:
        self.settings_file = settings_file
        self.nodes = {11 + i: {"partition-id": i, "num-partitions": nodes} for i in range(nodes)}
        self.fails = fails or (lambda *_: False)
        self.wire: list[tuple[Message, bytes]] = []
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any: ...

    def create_message(self, *args: Any, **kwargs: Any) -> Message: ...

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]: ...

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]: ...

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies = []
        for message in reversed(list(messages)):  # the last asked is the first to answer
            node, kind = message.metadata.dst_node_id, message.metadata.message_type
            message.metadata.__dict__["_message_id"] = f"{node}-{len(self.wire)}"
            context = Context(
                run_id=1, node_id=node, node_config=self.nodes[node], state=RecordDict(),
                run_config={"settings-file": self.settings_file},
            )  # fmt: skip
            if self.fails(kind, node, int(message.content["config"].get("server-round", 0))):
                reply = Message(Error(code=0, reason="killed"), reply_to=message)
            else:
                reply = app(message, context)
            self.wire += [(m, message_to_proto(m).SerializeToString()) for m in (message, reply)]
            replies.append(reply)
        return replies
