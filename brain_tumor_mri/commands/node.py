"""``brain-tumor-mri node --config node.yaml``: answer what a PACS sends; ``node status`` lists the series."""

import argparse
import logging
import signal
import threading

from .. import __version__
from ..errors import UserError
from ..inference.volume import VolumeClassifier

try:
    from ..clinical.node import Node, Queue, read_config
    from ..clinical.results import ModelId
except ModuleNotFoundError as error:
    raise UserError(f"{error.name} is missing; pip install 'brain-tumor-mri[clinical]'") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.add_argument("action", nargs="?", choices=["run", "status"], default="run", help="default: run")
    parser.add_argument("--config", required=True, help="node.yaml, see docs/clinical.md")
    parser.add_argument("--model", help="model folder or Hub id")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C, or print the queue."""
    config = read_config(args.config)
    if args.action == "status":
        for e in Queue(config.folder / "queue.sqlite").entries():
            print(f"{e.state}\t{e.uid}\t{e.instances} slices\t{e.reason}")
        return 0
    classifier = VolumeClassifier.from_pretrained(args.model)
    facts = classifier.slice_classifier.describe()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    print(f"listens as {config.ae_title} on {config.host}:{config.port}; not for clinical use", flush=True)
    Node(config, classifier, ModelId("brain-tumor-mri", __version__, facts["sha256"])).serve(stop)
    return 0
