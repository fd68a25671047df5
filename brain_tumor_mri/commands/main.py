"""The command ``brain-tumor-mri``: one subcommand a module, imported only when it is chosen.

A module of ``COMMANDS`` has ``add_arguments(parser)`` and ``run(args) -> int`` (the exit status), and keeps heavy
imports inside functions. Exit status: 0 done, 2 the input is wrong, 130 stopped by Ctrl-C, 1 anything else.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from .. import __version__
from ..images.quiet import quiet_decoders
from .script import exit_status

COMMANDS = {
    "predict": "classify images, folders or patterns; as a table, CSV or JSON",
    "evaluate": "measure a model on a labelled data set",
    "stress": "measure what disturbed images (motion, noise, JPEG, ...) cost a model",
    "explain": "show where the model looked, as heat maps",
    "calibrate": "fit calibration, prediction sets and the check for foreign pictures to a model",
    "appearance": "fit what tells sequence and skull from the pixels of a volume",
    "average": "average the weights of two trainings, one begun with the other",
    "decoder": "fit the heat maps of a model to outlined tumours",
    "federate": "train one model with hospitals that keep their images, simulated on this machine",
    "export": "write a model as ONNX, LiteRT or TensorRT, checked against PyTorch",
    "audit": "look for leaks between a data set's parts",
    "card": "write the model card from the recorded figures, or check that it agrees with them",
    "publish": "push a version of the model, or the Space that shows it, to the Hugging Face Hub",
    "app": "serve the page on this machine",
    "train": "fine-tune a network; the flags are those of train.py",
    "node": "answer the series that a PACS sends, as DICOM and FHIR; research use only",
    "ping": "try what the node needs of the PACS, a line each",
    "models": "list the released models by name: where they are, size and figures",
    "info": "say which model and versions are here, without loading them",
}
"""Name of a command and of its module in this folder -> one line of help."""


def build_parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """The parser, with the arguments of the chosen subcommand only: the other modules are not imported.

    Args:
        chosen: a key of ``COMMANDS``, or None for the bare list.
    """
    parser = argparse.ArgumentParser(
        prog="brain-tumor-mri",
        description="Brain MRI slices classified as glioma, meningioma, pituitary tumour or no tumour.",
        epilog="brain-tumor-mri COMMAND --help tells the arguments of a command.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == chosen:
            home = import_module(f"{__package__}.{name}")
            home.add_arguments(subparser)
            subparser.set_defaults(run=home.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; errors meant for people become one line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)

    def work() -> int:
        if chosen != "info":  # which opens no image, and waits for no library that does
            quiet_decoders()
        args = build_parser(chosen).parse_args(arguments)
        return args.run(args)

    return exit_status("brain-tumor-mri", work)


if __name__ == "__main__":
    sys.exit(main())
