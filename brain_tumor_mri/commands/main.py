"""The command ``brain-tumor-mri``: one subcommand a module, imported only when it is chosen.

A module of ``COMMANDS`` has ``add_arguments(parser)`` and ``run(args) -> int`` (the exit status), and keeps heavy
imports inside functions. Exit status: 0 done, 2 the input is wrong, 130 stopped by Ctrl-C, 1 anything else.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from .. import __version__
from ..errors import UserError

COMMANDS: dict[str, tuple[str, str]] = {
    "predict": ("predict", "classify images, folders or patterns; as a table, CSV or JSON"),
    "evaluate": ("evaluate", "measure a model on a labelled data set"),
    "stress": ("stress", "measure what disturbed images (motion, noise, JPEG, ...) cost a model"),
    "explain": ("explain", "show where the model looked, as heat maps"),
    "calibrate": ("calibrate", "fit calibration, prediction sets and the check for foreign pictures to a model"),
    "export": ("export", "write a model as ONNX, LiteRT or TensorRT, checked against PyTorch"),
    "audit": ("audit", "look for leaks between a data set's parts"),
    "card": ("card", "write the model card from the recorded figures, or check that it agrees with them"),
    "publish": ("publish", "push a version of the model, or the Space that shows it, to the Hugging Face Hub"),
    "info": ("info", "say which model and versions are here, without loading them"),
}
"""Name -> module of this folder, and one line of help."""


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
    for name, (module, summary) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == chosen:
            home = import_module(f"{__package__}.{module}")
            home.add_arguments(subparser)
            subparser.set_defaults(run=home.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors meant for people become one line on stderr.

    Args:
        argv: the arguments; None takes the process's own.

    Returns:
        The exit status.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)
    try:
        args = build_parser(chosen).parse_args(arguments)
        status = int(args.run(args))
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"brain-tumor-mri: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"brain-tumor-mri: {str(stop) or 'stopped'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader (`| head`) has gone; without this Python complains once more when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
