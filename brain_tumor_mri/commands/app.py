"""``brain-tumor-mri app``: the page, as ``python app.py`` serves it from a clone."""

import argparse
from pathlib import Path

from ..errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.add_argument("--model", default="model-lite", help="folder, name or Hub id (default: %(default)s)")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    from ..page import ModelHandle, build_page, launch  # gradio: seconds

    demo = build_page(ModelHandle(args.model, args.revision), Path("examples"))
    try:
        launch(demo, server_name=args.host, server_port=args.port)
    except OSError as error:
        raise UserError(f"--port {args.port} is not free; choose another") from error
    return 0
