"""``brain-tumor-mri publish``: a model folder, or the app as a Space, becomes a version on the Hub, in one commit.

``plan_model`` checks the folder and lists what would be sent (for a Space ``space.plan_space`` and
``space_check.check_space``); ``hub.push`` compares it with the Hub and sends it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from . import __version__
from .card import render_card
from .errors import UserError
from .hub import Outcome, Plan, PublishError, Upload, one_line, push, require_token
from .report import model_title, percent
from .weights import DEFAULT_MODEL, find_model

REQUIRED_METADATA = ("license", "library_name", "pipeline_tag", "metrics", "tags", "model-index")
_MODEL_FILES = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "metrics.json",
    "trust.json",
    "stress.json",
    "explain.json",
    "*.png",
)
_MODEL_STALE = (
    *_MODEL_FILES[1:7], "confusion_matrix.png", "training_curves.png", "reliability.png", "stress.png",
)  # fmt: skip
"""What of an earlier version goes when this one does not have it: it would be taken for this one's."""
_REF = re.compile(r"[\w](?:[\w./-]*[\w-])?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments: a subcommand for each kind of repository."""
    parser.epilog = "brain-tumor-mri publish KIND --help tells the arguments of a kind; each has --dry_run and --json."
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    summary = "push a model folder, with its card, as a version of a model repository"
    model = kinds.add_parser("model", help=summary, description=summary[0].upper() + summary[1:] + ".")
    model.add_argument("--repo_id", required=True, metavar="USER/NAME", help="the repository; made if it is missing")
    model.add_argument("--model", default=DEFAULT_MODEL, help="model folder with its metrics.json (default: model)")
    model.add_argument("--revision", default="main", metavar="BRANCH", help="branch to push to (default: main)")
    model.add_argument("--tag", help="name of the version, such as v1.2.0; set on the commit")
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
    """Publish; a Hub that fails in spite of all attempts is told in one line and exit status 1.

    Raises:
        UserError: what is to be published, the token or an argument is wrong.
    """
    try:
        return int(args.publish(args))
    except PublishError as error:
        print(f"brain-tumor-mri: {error}", file=sys.stderr)
        return 1


def _run_model(args: argparse.Namespace) -> int:
    _check_refs(args.revision, args.tag)
    plan = plan_model(args.model, args.repo_id, tag=args.tag)
    outcome = None
    if not args.dry_run:
        outcome = push(plan, revision=args.revision, tag=args.tag, private=args.private)
    _tell(plan, outcome, args.json, {"revision": args.revision, "tag": args.tag})
    return 0


def _run_space(args: argparse.Namespace) -> int:
    from .space import ModelVersion, plan_space
    from .space_check import check_space

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
    from rich import box
    from rich.console import Console
    from rich.table import Table

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


def plan_model(folder: str | Path, repo_id: str, *, tag: str | None = None) -> Plan:
    """Check a model folder and list its files as they are to be on the Hub.

    Args:
        folder: holds config.json, safetensors and metrics.json, as train.py saved them; perhaps trust.json, plots.
        repo_id: the Hub id ``owner/name``, for the card.
        tag: name of the version, for the commit's message.

    Raises:
        UserError: no such folder; a file is missing or damaged; metrics.json or trust.json are of other weights; other
            classes than this project's; a card that lacks metadata; no licence to send along.
    """
    model = find_model(Path(folder))
    model.require_project_labels()
    _ = model.tensors  # refuses weights that are cut off
    record = _read_json(model.path / "metrics.json")
    card = render_card(model.path, repo_id=repo_id)
    weights = model.sha256()
    measured = record.get("model") or {}
    _require_same_weights(model.path / "metrics.json", "model.weights_sha256", measured.get("weights_sha256"), weights)
    trust = model.path / "trust.json"
    if trust.is_file():
        _require_same_weights(trust, "weights_sha256", _read_json(trust).get("weights_sha256"), weights)
    for measured_file in (model.path / "stress.json", model.path / "explain.json"):
        if measured_file.is_file():
            of = (_read_json(measured_file).get("model") or {}).get("weights_sha256")
            _require_same_weights(measured_file, "model.weights_sha256", of, weights)
    require_metadata(card)
    names = sorted({file.name for pattern in _MODEL_FILES for file in model.path.glob(pattern)})
    files = [Upload("LICENSE", _licence(model.path)), Upload("README.md", card.encode())]
    return Plan(
        repo_id,
        tuple(files + [Upload(name, model.path / name) for name in names]),
        message=f"{tag or 'Update'}: {headline(record)}",
        description=f"weights sha256 {weights}\npublished by brain-tumor-mri {__version__}",
        stale=_MODEL_STALE,
    )


def publish_run(folder: str | Path, repo_id: str, *, token: str | None = None) -> Outcome:
    """Push a finished training run's folder, as ``train.py --push_to_hub`` ends.

    Args:
        folder: what train.py saved.
        repo_id: the Hub id ``owner/name``.
        token: in place of ``HF_TOKEN``'s or the login's.

    Raises:
        UserError: it cannot be pushed; the run is complete all the same, and the text says how to push it later.
    """
    try:
        return push(plan_model(folder, repo_id), token=token)
    except (UserError, PublishError) as error:
        later = f"brain-tumor-mri publish model --model {folder} --repo_id {repo_id}"
        raise UserError(f"the run is complete, but not on the Hub: {error}; later: {later}") from None


def headline(record: dict[str, Any]) -> str:
    """Return a record's main figures, each with protocol and interval, on one line."""
    parts = [model_title(record)]
    if test := record["splits"].get("test"):
        parts.append(f"{record['protocol']} accuracy {percent(test['accuracy'])}")
    if external := record.get("external"):
        found = percent(external["sensitivity_at_95_specificity"])
        parts.append(f"external sensitivity at 95 % specificity {found}")
    return "; ".join(parts)


def require_metadata(card: str) -> None:
    """Refuse a card whose YAML header lacks what the Hub needs to list and measure a model.

    Raises:
        UserError: names the missing fields.
    """
    from huggingface_hub import ModelCard

    data = ModelCard(card).data
    present = data.to_dict() | {"model-index": data.eval_results}  # the model-index is there without results, too
    missing = [key for key in REQUIRED_METADATA if not present.get(key)]
    if missing:
        raise UserError(
            f"the card's metadata has no {', '.join(missing)}; complete metrics.json "
            "(`brain-tumor-mri card` shows the card) or brain_tumor_mri/card.py"
        )


def _require_same_weights(file: Path, key: str, recorded: object, weights: str) -> None:
    if recorded != weights:
        whose = f"belongs to other weights ({recorded[:12]}...)" if isinstance(recorded, str) else f"has no {key}"
        raise UserError(f"{file} {whose}; those here are {weights[:12]}...: measure them, and publish that record")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError("no JSON object")
    except FileNotFoundError:
        raise UserError(f"{file} is missing; a version needs its figures: train or evaluate the model first") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({one_line(error)}); write it again") from error
    return record


def _licence(folder: Path) -> Path | bytes:
    """Find LICENSE in the model folder, the source tree, or the installed package's metadata."""
    for file in (folder / "LICENSE", Path(__file__).parents[1] / "LICENSE"):
        if file.is_file():
            return file
    try:
        text = metadata.distribution("brain-tumor-mri").read_text("licenses/LICENSE")
    except metadata.PackageNotFoundError:
        text = None
    if not text:
        raise UserError(f"there is no LICENSE to send along; put one into {folder}")
    return text.encode()


def _check_refs(revision: str, tag: str | None) -> None:
    for flag, name in (("--revision", revision), ("--tag", tag)):
        if name is not None and not (_REF.fullmatch(name) and ".." not in name and "//" not in name):
            raise UserError(f"{flag} {name!r} is no name for a branch or tag; give one such as main or v1.2.0")
    if tag == revision:
        raise UserError(f"--tag {tag} is the branch's name too; give the version's name, such as v1.2.0")
