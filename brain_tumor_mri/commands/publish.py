"""``brain-tumor-mri publish``: push a version of the model, or the Space that shows it, to the Hugging Face Hub."""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ..errors import UserError
from ..hub.plan_model import plan_model, published_facts
from ..hub.plan_space import ModelVersion, plan_space
from ..hub.push import Outcome, Plan, PublishError, push, require_token
from ..hub.try_space import check_space
from ..inference.registry import check_name, register

_REF = re.compile(r"[\w](?:[\w./-]*[\w-])?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments: a subcommand for each kind of repository."""
    parser.epilog = "brain-tumor-mri publish KIND --help tells the arguments of a kind; each has --dry_run and --json."
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    summary = "push a model folder, with its card, as a version of a model repository"
    model = kinds.add_parser("model", help=summary, description=summary[0].upper() + summary[1:] + ".")
    model.add_argument("--repo_id", required=True, metavar="USER/NAME", help="the repository; made if it is missing")
    model.add_argument("--model", default="model", help="model folder with its metrics.json (default: model)")
    model.add_argument("--revision", default="main", metavar="BRANCH", help="branch to push to (default: main)")
    model.add_argument("--tag", help="name of the version, such as v1.2.0; set on the commit")
    model.add_argument("--onnx", action="store_true", help="refuse a folder without an ONNX file; one is sent anyway")
    model.add_argument(
        "--register",
        metavar="NAME",
        help="write Hub id, commit, size and figures into the registry, so that NAME (`brain-tumor-mri models`) means "
        "this version: a file of the package, to be committed",
    )
    model.add_argument("--dry_run", action="store_true", help="check, and list files and sizes; ask and send nothing")
    model.set_defaults(publish=_run_model)
    summary = "push the app, pinned and with its model written down, as a Space, after asking it for a prediction"
    space = kinds.add_parser("space", help=summary, description=summary[0].upper() + summary[1:] + ".")
    space.add_argument("--repo_id", required=True, metavar="USER/SPACE", help="the Space; made if it is missing")
    space.add_argument(
        "--model_id", required=True, metavar="USER/NAME[@REVISION]", help="what the Space answers with, from the Hub"
    )
    space.add_argument(
        "--check",
        choices=("fresh", "here", "none"),
        help="where the app is started and asked first: in a fresh environment of its requirements.txt, with this "
        "interpreter, or nowhere (default: fresh; with --dry_run: none)",
    )
    space.add_argument("--model", metavar="DIR", help="a model folder for the check, in place of --model_id's weights")
    space.add_argument("--dry_run", action="store_true", help="list files and sizes, check if asked to; send nothing")
    space.set_defaults(publish=_run_space)
    for kind in (model, space):
        kind.add_argument("--private", action="store_true", help="make a new repository private")
        kind.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Publish; a Hub that fails in spite of all attempts is told in one line and exit status 1."""
    try:
        return int(args.publish(args))
    except PublishError as error:
        print(f"brain-tumor-mri: {error}", file=sys.stderr)
        return 1


def _run_model(args: argparse.Namespace) -> int:
    _check_refs(args.revision, args.tag)
    if args.register:
        check_name(args.register)
    plan = plan_model(args.model, args.repo_id, tag=args.tag, onnx=args.onnx)
    outcome = None
    if not args.dry_run:
        outcome = push(plan, revision=args.revision, tag=args.tag, private=args.private)
        if args.register:
            register(args.register, hub_id=args.repo_id, revision=outcome.commit, **published_facts(args.model))
    _tell(plan, outcome, args.json, {"revision": args.revision, "tag": args.tag})
    return 0


def _run_space(args: argparse.Namespace) -> int:
    model = ModelVersion.parse(args.model_id)
    plan = plan_space(args.repo_id, model)
    if not args.dry_run:
        require_token()  # minutes before push asks for it
    check = args.check or ("none" if args.dry_run else "fresh")
    if check != "none":
        check_space(plan, model, folder=args.model, fresh=check == "fresh")
    outcome = None if args.dry_run else push(plan, private=args.private)
    asked = {"model_id": model.id, "model_revision": model.revision, "check": check}
    _tell(plan, outcome, args.json, {"revision": "main", "tag": None, **asked})
    return 0


def _tell(plan: Plan, outcome: Outcome | None, as_json: bool, asked: dict[str, Any]) -> None:
    """Print what was done; ``outcome`` is None for a dry run."""
    if as_json:
        files = [{"path": file.path, "size": file.size} for file in plan.files]
        done = asdict(outcome) if outcome else dict.fromkeys(Outcome.__dataclass_fields__)
        told = {"repo_id": plan.repo_id, **asked, "dry_run": outcome is None, "message": plan.message, "files": files}
        print(json.dumps(told | done))
    elif outcome is None:
        _print_files(plan)
        print(f"{plan.repo_id}, {asked['revision']}: {plan.message}\nDry run: nothing was sent.")
    else:
        print(_sentence(outcome, asked["revision"], asked["tag"]))


def _print_files(plan: Plan) -> None:
    table = Table("file", box=box.SIMPLE_HEAD)
    table.add_column("bytes", justify="right")
    for file in plan.files:
        table.add_row(file.path, f"{file.size:,}")
    table.add_section()
    table.add_row("all", f"{sum(file.size for file in plan.files):,}")
    Console().print(table)


def _sentence(outcome: Outcome, revision: str, tag: str | None) -> str:
    if outcome.uploaded or outcome.removed:
        parts = [f"pushed {_listed(outcome.uploaded)}"] if outcome.uploaded else []
        parts += [f"removed {_listed(outcome.removed)}"] if outcome.removed else []
    else:
        parts = ["nothing changed, nothing pushed"]
    if tag:
        parts.append(f"tag {tag} {'set' if outcome.tagged else 'was set already'}")
    return f"{outcome.url}: {'; '.join(parts)} ({revision} at {outcome.commit[:8]})"


def _listed(paths: list[str]) -> str:
    return ", ".join(paths) if len(paths) <= 10 else f"{len(paths)} files"


def _check_refs(revision: str, tag: str | None) -> None:
    for flag, name in (("--revision", revision), ("--tag", tag)):
        if name is not None and not (_REF.fullmatch(name) and ".." not in name and "//" not in name):
            raise UserError(f"{flag} {name!r} is no name for a branch or tag; give one such as main or v1.2.0")
    if tag == revision:
        raise UserError(f"--tag {tag} is the branch's name too; give the version's name, such as v1.2.0")
