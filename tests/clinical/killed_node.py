"""A node that kills itself at each of ``MOMENTS`` in turn and is started again: ``killed_node.py FOLDER PORT URL``.

Each life is a fork, so that libraries are imported once. Prints a line a death; the last life serves until SIGTERM.
"""

import os
import signal
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from clinical.synthetic_series import FakeClassifier

from brain_tumor_mri.clinical import node as node_module
from brain_tumor_mri.clinical import queue
from brain_tumor_mri.clinical.config import NodeConfig
from brain_tumor_mri.clinical.node import Node
from brain_tumor_mri.clinical.results import ModelId

MOMENTS = {
    "a slice lies in the inbox, unknown to the queue": ("queue.received", "before", 4),
    "the third slice is noted": ("queue.received", "after", 3),
    "all slices came, the association is open": ("queue.ended", "before", 1),
    "a series is taken": ("queue.claim", "after", 1),
    "the model answers": ("classifier.predict", "before", 1),
    "the model has answered": ("classifier.predict", "after", 1),
    "one result is written": ("write_json", "before", 1),
    "the outbox is whole": ("pacs.store", "before", 1),
    "one result is sent": ("pacs.store", "after", 1),
    "all are sent, which is not noted": ("queue.finish", "before", 1),
    "the answer is noted, the inbox not cleared": ("_clear", "before", 1),
}


def die_at(node: Node, moment: tuple[str, str, int]) -> None:
    """Kill this process before or after the n-th call of a function, which gave something."""
    (*path, name), when, count = moment[0].split("."), moment[1], moment[2]
    owner = node_module if name == "write_json" else node
    for part in path:
        owner = getattr(owner, part)
    real = getattr(owner, name)

    def deadly(*args, **kwargs):
        nonlocal count
        result = real(*args, **kwargs) if when == "after" else True
        count -= bool(result) or name == "store" or name == "received"
        if count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result if when == "after" else real(*args, **kwargs)

    setattr(owner, name, deadly)


def live(config: NodeConfig, moment: tuple[str, str, int] | None) -> None:
    """One life of the node."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    node = Node(config, FakeClassifier(), ModelId("model", "1.0", "ab" * 32))
    if moment:
        die_at(node, moment)
    node.serve(stop)


if __name__ == "__main__":
    queue.FIRST_WAIT = queue.LONGEST_WAIT = 0.3
    config = NodeConfig(
        Path(sys.argv[1]), port=int(sys.argv[2]), stable_seconds=0.2, send={"dicomweb": sys.argv[3]}, max_attempts=99
    )
    for name, moment in MOMENTS.items():
        if not (pid := os.fork()):
            live(config, moment)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        print(f"{os.waitstatus_to_exitcode(status)} {name}", flush=True)
    live(config, None)
