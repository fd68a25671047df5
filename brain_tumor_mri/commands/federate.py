"""``brain-tumor-mri federate --config configs/federated.yaml``: hospitals train together, simulated on this machine."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from importlib.util import find_spec

from ..errors import UserError
from ..labels import RESEARCH_NOTICE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML, as configs/federated.yaml")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings that override those of the file"
    )
    parser.add_argument("--output_dir", metavar="DIR", help="where the model and its record go; the same goes on")
    parser.add_argument("--json", action="store_true", help="print the record of the run as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Simulate the federation and print how it went."""
    if missing := [name for name in ("flwr", "dp_accounting") if find_spec(name) is None]:
        raise UserError(
            f"federate needs {missing[0]}, which is not installed here; `make federated` makes .venv-federated with it "
            "(or: pip install 'brain-tumor-mri[federated]' in an environment of its own)"
        )
    from ..federated import simulate  # Flower: optional

    chosen = [*args.set, *([f"output_dir={json.dumps(args.output_dir)}"] if args.output_dir else [])]
    try:
        with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
            record = simulate.simulate(simulate.read_settings(args.config, chosen))
    except simulate.FederationError as error:
        print(f"brain-tumor-mri: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(record, indent=2))
        return 0
    federation = record["federation"]
    print(f"{record['protocol']}: {len(federation['rounds'])} rounds, {len(federation['hospitals'])} hospitals")
    if test := record["splits"].get("test"):
        accuracy = test["accuracy"]
        interval = f"{accuracy['low']:.1%} to {accuracy['high']:.1%}"
        print(f"test accuracy {accuracy['value']:.1%} ({interval}), {test['n']} slices")
    print(f"{federation['bytes_sent'] / 1e6:.1f} MB sent, {record['training']['seconds']:.0f} s\n{RESEARCH_NOTICE}")
    return 0
