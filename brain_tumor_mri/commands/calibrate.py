"""``brain-tumor-mri calibrate --model DIR``: writes ``trust.json`` beside the weights, and what was measured with it.

The parts are those that the training used, as the folder's ``metrics.json`` says: fitted is on validation parts (and,
for the two checks, on training slices), measured on test parts. ``--report FILE`` fits nothing and only measures the
``trust.json`` that is there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from rich.console import Console
from rich.progress import track

from ..data.br35h import load_external
from ..data.collections import TRAINING_LABELS, load_collections, load_label, read_collections
from ..data.protocols import ProtocolArguments, draw_seed
from ..data.slices import load_slices
from ..errors import UserError
from ..evaluation.disturbances import DISTURBANCES, disturb
from ..evaluation.trust import (
    familiar_figures,
    foreign_figures,
    left_out_figures,
    network_outputs,
    trust_figures,
    unseen_figures,
)
from ..files import write_json
from ..images.find import find_images
from ..images.read import UnreadableImageError, load_image
from ..inference.classifier import TumorClassifier
from ..inference.load import pytorch
from ..inference.model_folder import DEFAULT_MODEL, ModelFolder, find_model
from ..labels import ANY_TUMOR, RESEARCH_NOTICE, require_project_classes
from ..machine import versions
from ..reports.plots import plot_reliability, plot_unseen
from ..reports.tables import percent
from ..trust.calibration import Outputs, fit_familiar, fit_trust
from ..trust.decision import DECISIONS, DEFAULT_COVERAGE
from ..trust.trust_file import FILE_NAME, load_trust

KNOWN_SLICES = 300
"""Training slices of a collection, drawn at random, that the checks are fitted to."""
DISTURBED_SLICES = 40
"""Slices, drawn at random, that get each of the disturbances of `stress`, at its strengths 1 to 3."""
KAGGLE, BR35H, CT = "kaggle", "br35h", "ct"
"""Kinds: the main collection, Br35H's tumours, and the label of head CT in a table of collections."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"folder of a trained model (default: {DEFAULT_MODEL})")
    parser.add_argument("--data_dir", default="data/brain-tumor-mri-dataset", help="what the model was trained on")
    parser.add_argument("--external_dir", help="the Br35H tumours (images/), where they trained or are to be measured")
    parser.add_argument("--collections_dir", help="further collections, where they trained or are to be measured")
    parser.add_argument(
        "--foreign",
        metavar="DIR",
        nargs="+",
        help="pictures that are no brain MRI, a folder a kind (head-ct... for head CT): fit the check that refuses",
    )
    parser.add_argument(
        "--foreign_test",
        metavar="DIR",
        nargs="+",
        help="the same of other kinds, that measure only: how many are refused",
    )
    parser.add_argument(
        "--familiar",
        metavar="DIR",
        nargs="+",
        help="brain MRI slices, a folder a collection: how many are refused in error",
    )
    parser.add_argument(
        "--unseen",
        metavar="MODEL",
        help="models that had a family of --collections_dir left out, {collection} standing for the family: their "
        "answers to it widen the prediction sets to what a scanner never seen needs",
    )
    parser.add_argument(
        "--report", metavar="FILE", type=Path, help="fit nothing: measure the trust.json that is there, figures to FILE"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best one here)")
    parser.add_argument("--json", action="store_true", help="print what was measured as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Fit, measure, write, and print a summary."""
    folder = find_model(Path(args.model))
    trust = load_trust(folder.path, folder.sha256, folder.labels) if args.report else None
    if args.report and trust is None:
        raise UserError(f"{folder.path} has no {FILE_NAME} to measure; leave --report out to write one")
    protocol, seed, trained_on = training_settings(folder.path, folder.sha256())
    if missing := [name for name in trained_on if not getattr(args, name)]:
        raise UserError(f"{args.model} was trained with --{missing[0]}; give it here too")
    pictures = {name: find_images(getattr(args, name) or []) for name in _PICTURES}
    if args.external_dir or args.collections_dir:
        require_project_classes(folder.labels, "--external_dir and --collections_dir")
    without = _models_without(args)
    parts, head_ct = _load_parts(args, protocol, seed, folder.labels)

    classifier = TumorClassifier.from_pretrained(args.model, device=args.device, use_trust=False)
    network = getattr(classifier.model, "timm_model", classifier.model)
    stage = trust.in_distribution.stage if trust else pytorch().stage_of(network)
    gather = _Gatherer(classifier, stage, seed, progress=not args.json)
    left_out, measured_unseen, fitted_on = None, None, trust.record.get("fitted_on") if trust else None
    if trust is None:
        known = _joined([gather(p["train"], k, "training", KNOWN_SLICES) for k, p in parts.items() if "train" in p])
        validation = _joined([gather(p["validation"], k, "validation") for k, p in parts.items() if "validation" in p])
        disturbed, foreign = None, None
        if pictures["foreign"]:
            scans = [p for name, p in head_ct.items() if name != "test" and len(p)]
            seen = [gather(scan, None, "head CT", KNOWN_SLICES) for scan in scans]
            pictures_seen, files = gather.files(pictures["foreign"], "foreign pictures")
            seen.append(pictures_seen)
            ct = [pair for scan in scans for pair in zip(_sources(scan), scan["collection"][:], strict=True)]
            others = list(zip(files, pictures_seen.kinds, strict=True))
            seen += [gather.disturbed(each, "foreign pictures") for each in (ct, others) if each]
            foreign = _joined(seen)
            training = [(source, k) for k, p in parts.items() if "train" in p for source in _sources(p["train"])]
            disturbed = gather.disturbed(training, "slices")
        unseen, unlike = _answers_of_others(args, without, parts, seed) if without else (None, None)
        given = {"known": known, "validation": validation, "unseen": unseen, "disturbed": disturbed, "foreign": foreign}
        trust, scores = fit_trust(folder.sha256(), stage, **given, unseen_unlikeness=unlike, labels=folder.labels)
        # of another architecture their answers widen the sets, but are no measure of this model
        if unseen and {other.architecture for other in without.values()} == {folder.architecture}:
            measured_unseen = unseen_figures(
                validation, unseen, trust.in_distribution.unlikeness(validation.features), unlike
            )
        fitted_on = {name: _counts(part.kinds) for name, part in given.items() if part}
        if foreign:
            plain = replace(validation, logits=validation.views(mirror=False))
            brain = _joined([known, plain, disturbed])
            left_out = left_out_figures({"brain": (brain, scores[0]), "foreign": (foreign, scores[1])})

    tested = {kind: gather(part["test"], kind, "test") for kind, part in parts.items() if "test" in part}
    brain = list(tested.values())
    measured: dict[str, Any] = {
        name: {how: trust_figures(trust, outputs, mirror=how == "mirrored") for how in ("single", "mirrored")}
        for name, outputs in (("test", tested.pop(KAGGLE)), ("external", tested.pop(BR35H, None)))
        if outputs
    }
    if tested:
        measured["collections"] = {kind: trust_figures(trust, outputs) for kind, outputs in sorted(tested.items())}
    strangers = [gather(head_ct["test"], None, "head CT", KNOWN_SLICES)] if head_ct and len(head_ct["test"]) else []
    if pictures["foreign_test"]:
        strangers.append(gather.files(pictures["foreign_test"], "other foreign pictures")[0])
    if strangers and trust.brain_mri:
        measured["foreign"] = foreign_figures(trust, _joined(strangers), brain)
    if pictures["familiar"]:
        outputs, _ = gather.files(pictures["familiar"], "slices of other collections")
        measured["familiar"] = familiar_figures(trust, outputs)
    measured |= {"left_out": left_out} if left_out else {}
    measured |= {"unseen": measured_unseen} if measured_unseen else {}
    record = {
        "protocol": protocol.title,
        "fitted_on": fitted_on,
        "measured": measured,
        "unreadable": gather.unreadable,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
    }
    if args.report:
        args.report.parent.mkdir(parents=True, exist_ok=True)
        measured_with = {"weights_sha256": folder.sha256(), "trust": trust.fingerprint()}
        write_json(args.report, {"architecture": folder.architecture, **measured_with, **record})
    else:
        title = f"{folder.architecture}, {protocol.title}"
        plot_reliability(measured["test"]["single"], folder.path / "reliability.png", title)
        if measured_unseen:
            plot_unseen(
                measured_unseen["collections"], folder.path / "unseen.png", f"{title}: collections that it never saw"
            )
        write_json(folder.path / FILE_NAME, replace(trust, record=record).to_dict())
    if args.json:
        json.dump(record | {"temperature": trust.single.to_dict()["temperature"]}, sys.stdout, indent=2)
        print()
    else:
        print(summary(trust.single.temperatures.tolist(), measured))
        print(f"Written to {args.report or folder.path / FILE_NAME}\n{RESEARCH_NOTICE}")
    return 0


_PICTURES = ("foreign", "foreign_test", "familiar")


def training_settings(folder: Path, sha256: str) -> tuple[ProtocolArguments, int, list[str]]:
    """Read from ``metrics.json`` how the weights were trained: protocol, seed of its draw, flags of further slices."""
    file = folder / "metrics.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        config, weights = record["config"], record["model"]["weights_sha256"]
        protocol = ProtocolArguments(
            **{setting.name: config[setting.name] for setting in fields(ProtocolArguments) if setting.name in config}
        )
        seed = draw_seed(config)
        trained_on = ["external_dir"] if config["external_dir"] and config["external_train"] else []
        trained_on += ["collections_dir"] if config.get("collections_dir") else []
    except FileNotFoundError as error:
        raise UserError(
            f"{file} is missing: it says which slices validated; give the folder that train.py wrote"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} does not say how the model was trained ({error}); give what train.py wrote") from error
    if weights != sha256:
        raise UserError(f"{file} belongs to other weights; give the folder that train.py wrote")
    if protocol.train_on_validation:
        raise UserError(f"{folder} was trained on its validation part; nothing is left to calibrate on")
    return protocol, seed, trained_on


def _load_parts(
    args: argparse.Namespace, protocol: ProtocolArguments, seed: int, labels: Sequence[str]
) -> tuple[dict[str, dict[str, datasets.Dataset]], dict[str, datasets.Dataset]]:
    """Return each collection's parts, and the parts of the head CT in the table of collections."""
    options = {"seed": seed, "skip_unreadable": True, "progress": not args.json}
    data = load_slices(args.data_dir, protocol, labels=labels, **options)
    parts: dict[str, dict[str, datasets.Dataset]] = {KAGGLE: dict(data.splits)}
    if args.external_dir:
        parts[BR35H] = dict(load_external(args.external_dir))
    if not args.collections_dir:
        return parts, {}
    for part, slices in load_collections(args.collections_dir, protocol.collection).items():
        names = np.array(slices["collection"][:])
        for name in np.unique(names).tolist():
            parts.setdefault(name, {})[part] = slices.select(np.flatnonzero(names == name))
    return parts, load_label(args.collections_dir, CT)


def _families(args: argparse.Namespace) -> dict[str, str]:
    """Family by collection."""
    rows = read_collections(args.collections_dir)
    return {row.collection: row.family for row in rows if row.label in TRAINING_LABELS}


def _models_without(args: argparse.Namespace) -> dict[str, ModelFolder]:
    """The models of ``--unseen`` by the family that each had left out; asked before hours of work."""
    if not args.unseen:
        return {}
    if not args.collections_dir or "{collection}" not in args.unseen:
        raise UserError("--unseen: give --collections_dir too, and a name with {collection} in it: runs/{collection}")
    families = sorted(set(_families(args).values()))
    return {family: find_model(Path(args.unseen.replace("{collection}", family))) for family in families}


def _answers_of_others(
    args: argparse.Namespace,
    others: Mapping[str, ModelFolder],
    parts: Mapping[str, Mapping[str, datasets.Dataset]],
    seed: int,
) -> tuple[Outputs, np.ndarray]:
    """What the models say of the families that they never saw, and the unlikeness of these slices."""
    family_of, answers, scores, checks = _families(args), [], [], {}
    for family, folder in others.items():
        classifier = TumorClassifier.from_pretrained(folder.path, device=args.device, use_trust=False)
        stage = pytorch().stage_of(getattr(classifier.model, "timm_model", classifier.model))
        gather = _Gatherer(classifier, stage, seed, progress=not args.json)
        if folder.sha256() not in checks:  # one model may have had several families left out
            without = (training_settings(folder.path, folder.sha256())[0].collection or "").split(",")
            saw = {kind: part for kind, part in parts.items() if family_of.get(kind) not in without}
            title = f"of the model without {family}"
            known = _joined([gather(p["train"], k, title, KNOWN_SLICES) for k, p in saw.items() if "train" in p])
            held = [gather(p["validation"], k, title, KNOWN_SLICES) for k, p in saw.items() if "validation" in p]
            checks[folder.sha256()] = fit_familiar(known, _joined(held), stage)
        answers.append(gather(load_collections(args.collections_dir, family)["test"], None, f"{family}, never seen"))
        scores.append(checks[folder.sha256()].unlikeness(answers[-1].features))
    return _joined(answers), np.concatenate(scores)


class _Gatherer:
    """Runs the network over parts and folders, with a bar for people; ``unreadable`` lists files left out."""

    def __init__(self, classifier: TumorClassifier, stage: str, seed: int, *, progress: bool) -> None:
        self.classifier, self.stage, self.progress = classifier, stage, progress
        self.random = np.random.default_rng(seed)
        self.unreadable: list[str] = []

    def __call__(self, split: datasets.Dataset, kind: str | None, title: str, most: int | None = None) -> Outputs:
        """Run over a part, or over the features of ``most`` slices of it; without a kind each has its collection's."""
        if most and len(split) > most:
            split = split.select(np.sort(self.random.permutation(len(split))[:most]))
        kinds = [kind] * len(split) if kind else split["collection"][:]
        columns = split["label"][:], split["group"][:], kinds
        return self._run(_sources(split), *columns, f"{kind}: {title}" if kind else title, mirror=most is None)

    def files(self, files: Sequence[Path], title: str) -> tuple[Outputs, list[Path]]:
        """Run over the pictures that can be read, and list the others; a picture's kind is its folder's name."""
        names = {file: f"{file.parent.name}/{file.name}" for file in files}
        images = []
        for file in files:
            try:
                load_image(file)
                images.append(file)
            except UnreadableImageError as error:
                self.unreadable.append(f"{names[file]}: {error.reason}")
        if not images:
            raise UserError(f"{files[0].parent.parent}: no picture there can be read; give another folder")
        given = {"names": [names[image] for image in images], "mirror": False}
        kinds = [image.parent.name for image in images]
        return self._run(images, [ANY_TUMOR] * len(images), given["names"], kinds, title, **given), images

    def disturbed(self, sources: Sequence[tuple[Any, str]], title: str) -> Outputs:
        """Run over pictures with artefacts: of every disturbance, some of the (source, kind) at strengths 1 to 3."""
        chosen = [
            (name, 1 + place % 3, *sources[i])
            for name in DISTURBANCES
            for place, i in enumerate(self.random.permutation(len(sources))[:DISTURBED_SLICES].tolist())
        ]
        pictures = (
            disturb(np.asarray(load_image(source).convert("L")), name, strength, str(place))
            for place, (name, strength, source, _) in enumerate(chosen)
        )
        kinds = [kind for *_, kind in chosen]
        groups = [str(place) for place in range(len(chosen))]
        return self._run(pictures, [ANY_TUMOR] * len(chosen), groups, kinds, f"disturbed {title}", mirror=False)

    def _run(self, sources: Any, labels: Any, groups: Any, kinds: Any, title: str, **options: Any) -> Outputs:

        bar = {"total": len(labels), "disable": not self.progress, "transient": True}
        shown = track(sources, title.capitalize(), console=Console(stderr=True), **bar)
        return network_outputs(self.classifier, shown, labels, groups, kinds, stage=self.stage, **options)


def _sources(split: datasets.Dataset) -> Iterable[Any]:

    images = split.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    return (row["image"]["bytes"] or row["image"]["path"] for row in images)


def _joined(parts: Sequence[Outputs]) -> Outputs:

    present = [part for part in parts if part is not None]
    columns = {}
    for column in fields(Outputs):
        values = [getattr(part, column.name) for part in present]
        is_array = isinstance(values[0], np.ndarray)
        columns[column.name] = np.concatenate(values) if is_array else [item for value in values for item in value]
    if len(columns["names"]) != len(columns["labels"]):
        columns["names"] = [n for part in present for n in (part.names or part.groups)]
    return Outputs(**columns)


def _counts(kinds: Sequence[str]) -> dict[str, int]:
    return {str(kind): int(count) for kind, count in zip(*np.unique(np.array(kinds), return_counts=True), strict=True)}


def summary(temperatures: Sequence[float], measured: dict[str, Any]) -> str:
    """A few lines for people on what was measured."""
    lines = ["temperature {:.2f}, of unfamiliar slices {:.2f}".format(*temperatures)]
    for part in ("test", "external"):
        if part in measured:
            lines += _part_lines(part, measured[part]["single"])
    for name, figures in measured.get("collections", {}).items():
        lines += _part_lines(name, figures)
    if "foreign" in measured:
        figures = measured["foreign"]
        lines.append(
            f"foreign: {figures['refused']:.1%} of {figures['n']} pictures refused, AUROC {figures['auroc']:.2%}"
        )
    if "familiar" in measured:
        figures = measured["familiar"]
        lines.append(f"familiar: {figures['refused']:.1%} of {figures['n']} brain MRI slices refused, all in error")
    return "\n".join(lines)


def _part_lines(title: str, figures: dict[str, Any]) -> list[str]:
    sets = figures["coverage"][str(DEFAULT_COVERAGE)]
    lines = [f"{title}: {figures['n']} slices"]
    if "after" in figures:
        before, after = (percent(figures[when]["ece"]) for when in ("before", "after"))
        lines.append(f"  calibration error {before} before, {after} after")
    lines.append(
        f"  {DEFAULT_COVERAGE} % prediction sets cover {percent(sets['covered'])}, {sets['size']['value']:.2f} classes"
    )
    shares = ", ".join(f"{title} {percent(figures['decisions'][name])}" for name, title in DECISIONS.items())
    return [*lines, f"  {shares}; right when answered {percent(figures['correct']['answer'])}"]
