"""``brain-tumor-mri node --config node.yaml``: answer what a PACS sends or has; ``status`` and ``retry`` beside it."""

import argparse
import json
import logging
import shutil
import signal
import tempfile
import threading
import warnings
from dataclasses import asdict
from pathlib import Path

from .. import __version__
from ..errors import UserError
from ..inference.volume import VolumeClassifier

try:
    from ..clinical.config import read_config
    from ..clinical.node import Node, Queue, take_up
    from ..clinical.results import ModelId
except ModuleNotFoundError as error:
    raise UserError(f"{error.name} is missing; pip install 'brain-tumor-mri[clinical]'") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.add_argument("action", nargs="?", choices=["run", "status", "retry"], default="run", help="default: run")
    parser.add_argument("series", nargs="?", help="of retry: SeriesInstanceUID as status prints it")
    parser.add_argument("--config", required=True, help="node.yaml, see docs/clinical.md")
    parser.add_argument("--model", help="model folder or Hub id")
    parser.add_argument("--json", action="store_true", help="status as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C, print the queue, or take up a series anew."""
    config = read_config(args.config)
    if args.action == "status":
        entries = Queue(config.folder / "queue.sqlite").entries()
        if args.json:
            print(json.dumps({"series": [asdict(entry) for entry in entries]}))
        else:
            for e in entries:
                print(f"{e.state}\t{e.uid}\t{e.instances} slices\t{e.reason}")
        return 0
    if args.action == "retry":
        if not take_up(config, args.series or ""):
            raise UserError(f"{args.series}: no series that failed, was discarded or waits; see node status")
        return 0
    _guard_patient_data(config.folder / "incoming")
    classifier = VolumeClassifier.from_pretrained(args.model)
    facts = classifier.slice_classifier.describe()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    node = Node(config, classifier, ModelId("brain-tumor-mri", __version__, facts["sha256"]))
    node.listen()
    print(f"listens as {config.ae_title} on {config.host}:{config.port}; not for clinical use", flush=True)
    node.serve(stop)
    return 0


def _guard_patient_data(incoming: Path) -> None:
    """Only our own log is shown, as others quote headers; half a slice of a killed run does not stay in /tmp."""
    logging.basicConfig(level=logging.CRITICAL + 1, format="%(asctime)s %(message)s")
    logging.getLogger("brain_tumor_mri").setLevel(logging.INFO)
    warnings.simplefilter("ignore")
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir(parents=True)
    tempfile.tempdir = str(incoming)
