"""The flags by which commands choose a data set and a protocol, and the arguments that they mean."""

import argparse
from dataclasses import fields

from ..data.protocols import ProtocolArguments


def add_protocol_arguments(parser: argparse.ArgumentParser) -> None:
    """Define ``--data_dir``, ``--seed`` and a flag for every field of ``ProtocolArguments``."""
    parser.add_argument("--data_dir", default="data/brain-tumor-mri-dataset", help="holds Training/ and Testing/")
    for setting in fields(ProtocolArguments):
        kind = str if setting.default is None else type(setting.default)
        options = {"action": "store_true"} if kind is bool else {"type": kind}
        parser.add_argument(f"--{setting.name}", default=setting.default, help=setting.metadata["help"], **options)
    parser.add_argument("--seed", type=int, default=42, help="of the validation draw, as in training")


def protocol_of(args: argparse.Namespace) -> ProtocolArguments:
    """Return the protocol that the flags mean."""
    return ProtocolArguments(**{setting.name: getattr(args, setting.name) for setting in fields(ProtocolArguments)})
