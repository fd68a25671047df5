"""``brain-tumor-mri calibrate --model DIR``: writes ``trust.json`` beside the weights, and what was measured with it.

The parts are those that the training used, as the folder's ``metrics.json`` says: fitted is on its validation part,
measured on its test part and, with ``--external_dir``, on Br35H tumours that trained nothing. ``--report FILE`` fits
nothing and only measures the ``trust.json`` that is there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.protocols import ProtocolArguments
from ..errors import UserError
from ..images.find import find_images
from ..inference.model_folder import DEFAULT_MODEL, find_model
from ..labels import RESEARCH_NOTICE
from ..reports.plots import plot_reliability
from ..trust.decision import DECISIONS, DEFAULT_COVERAGE

if TYPE_CHECKING:
    import datasets

    from ..data.slices import SliceData
    from ..inference.classifier import TumorClassifier
    from ..trust.calibration import Outputs
    from ..trust.trust_file import Trust


KNOWN_SLICES = 1500
"""Training slices, drawn at random, that the in-distribution check is fitted to."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"folder of a trained model (default: {DEFAULT_MODEL})")
    parser.add_argument("--data_dir", default="data/brain-tumor-mri-dataset", help="what the model was trained on")
    parser.add_argument(
        "--external_dir", help="the Br35H tumours (images/), where they were used or are to be measured"
    )
    parser.add_argument(
        "--foreign", metavar="DIR", help="pictures that are no brain MRI, a folder a kind: measures their refusal"
    )
    parser.add_argument(
        "--familiar",
        metavar="DIR",
        help="brain MRI slices of other collections, a folder a collection: measures how many are refused in error",
    )
    parser.add_argument(
        "--report", metavar="FILE", type=Path, help="fit nothing: measure the trust.json that is there, figures to FILE"
    )
    parser.add_argument("--batch_size", type=int, default=16, help="images per forward pass (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best one here)")
    parser.add_argument("--json", action="store_true", help="print what was measured as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Fit, measure, write, and print a summary.

    Raises:
        UserError: the folder is no trained model's, there is no trust.json to measure, or the data cannot be used.
    """
    from ..data.br35h import load_external
    from ..data.slices import load_slices
    from ..evaluation.trust import familiar_figures, foreign_figures, trust_figures
    from ..files import write_json
    from ..inference.classifier import TumorClassifier
    from ..inference.run_pytorch import stage_of
    from ..machine import versions
    from ..trust.trust_file import FILE_NAME, load_trust

    folder = find_model(Path(args.model))
    fitted = load_trust(folder.path, folder.sha256) if args.report else None
    if args.report and fitted is None:
        raise UserError(f"{folder.path} has no {FILE_NAME} to measure; leave --report out to write one")
    protocol, seed, external_repeats = training_settings(folder.path, folder.sha256())
    foreign, familiar = (find_images([flag]) if flag else [] for flag in (args.foreign, args.familiar))
    data = load_slices(args.data_dir, protocol, seed=seed, skip_unreadable=True, progress=not args.json)
    tumours = load_external(args.external_dir) if args.external_dir else None
    if external_repeats and tumours is None:
        raise UserError(f"{args.model} was trained with external tumours; give --external_dir, their folder")

    classifier = TumorClassifier.from_pretrained(
        args.model, device=args.device, batch_size=args.batch_size, use_trust=False
    )
    stage = stage_of(getattr(classifier.model, "timm_model", classifier.model))
    gather = _Gatherer(classifier, fitted.in_distribution.stage if fitted else stage, progress=not args.json)
    if fitted:
        trust, fitted_on = fitted, fitted.record.get("fitted_on")
    else:
        trust, fitted_on = _fit(
            gather, stage, folder.sha256(), data, tumours, seed=seed, external_repeats=external_repeats
        )
    parts = {"test": gather(data.splits["test"], "test slices")}
    if tumours:
        parts["external"] = gather(tumours["test"], "external test slices")
    measured: dict[str, Any] = {
        name: {
            "single": trust_figures(trust, outputs),
            "mirrored": trust_figures(trust, outputs, mirror=True),
        }
        for name, outputs in parts.items()
    }
    if foreign:
        outputs, kinds, unreadable = gather.files(foreign, Path(args.foreign), "foreign pictures")
        measured["foreign"] = foreign_figures(trust, outputs, list(parts.values()), kinds)
        measured["foreign"]["unreadable"] = unreadable
    if familiar:
        outputs, kinds, unreadable = gather.files(familiar, Path(args.familiar), "slices of other collections")
        measured["familiar"] = familiar_figures(trust, outputs, kinds) | {"unreadable": unreadable}
    record = {
        "protocol": protocol.title,
        "fitted_on": fitted_on,
        "measured": measured,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
    }
    written = args.report or folder.path / FILE_NAME
    if args.report:
        args.report.parent.mkdir(parents=True, exist_ok=True)
        measured_with = {"weights_sha256": folder.sha256(), "trust": trust.fingerprint()}
        write_json(args.report, {"architecture": folder.architecture, **measured_with, **record})
    else:
        plot_reliability(
            measured["test"]["single"], folder.path / "reliability.png", f"{folder.architecture}, {protocol.title}"
        )
        write_json(written, replace(trust, record=record).to_dict())
    if args.json:
        json.dump(record | {"temperature": trust.single.temperature}, sys.stdout, indent=2)
        print()
    else:
        print(summary(trust.single.temperature, measured))
        print(f"Written to {written}\n{RESEARCH_NOTICE}")
    return 0


def _fit(
    gather: _Gatherer,
    stage: str,
    weights_sha256: str,
    data: SliceData,
    tumours: datasets.DatasetDict | None,
    *,
    seed: int,
    external_repeats: int,
) -> tuple[Trust, dict[str, Any]]:
    """Return the trust that the validation parts give, and what it was fitted on."""
    from ..trust import calibration, in_distribution

    known = gather(_sample(data.splits["train"], KNOWN_SLICES, seed), "training slices").features
    validation = gather(data.splits["validation"], "validation slices")
    other = None
    if tumours:
        trained = gather(tumours["train"], "external training slices") if external_repeats else None
        held_out = gather(tumours["validation"], "external validation slices")
        other = in_distribution.OtherCollection(trained, held_out, max(external_repeats, 1))
    trust = calibration.fit_trust(weights_sha256, stage, validation=validation, known=known, other=other)
    return trust, {
        "data": data.fingerprint,
        "validation": len(validation),
        "external_validation": len(other.validation) if other else 0,
        "external_train": len(other.train) if other and other.train else 0,
        "external_repeats": external_repeats,
        "known": len(known),
    }


def training_settings(folder: Path, sha256: str) -> tuple[ProtocolArguments, int, int]:
    """Read from ``metrics.json`` how the weights were trained: protocol, seed, draws of external tumours an epoch.

    Raises:
        UserError: there is no such file, it is of other weights or not of a training, or nothing was held out.
    """
    file = folder / "metrics.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        config, weights = record["config"], record["model"]["weights_sha256"]
        protocol = ProtocolArguments(**{setting.name: config[setting.name] for setting in fields(ProtocolArguments)})
        seed, external_train = int(config["seed"]), bool(config["external_dir"] and config["external_train"])
        external_repeats = int(config["external_repeats"]) if external_train else 0
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
    return protocol, seed, external_repeats


def _sample(split: datasets.Dataset, count: int, seed: int) -> datasets.Dataset:
    import numpy as np

    chosen = np.random.default_rng(seed).permutation(len(split))[:count]
    return split.select(np.sort(chosen))


class _Gatherer:
    """Runs the network over parts and folders, with a bar for people."""

    def __init__(self, classifier: TumorClassifier, stage: str, *, progress: bool) -> None:
        self.classifier, self.stage, self.progress = classifier, stage, progress

    def __call__(self, split: datasets.Dataset, title: str) -> Outputs:
        """Run over a part, its images in order."""
        import datasets

        images = split.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
        sources = (row["image"]["bytes"] or row["image"]["path"] for row in images)
        return self._run(sources, split["label"][:], split["group"][:], title)

    def files(self, files: Sequence[Path], base: Path, title: str) -> tuple[Outputs, list[str], list[str]]:
        """Run over pictures; also return the kind of each (its folder's name) and the unreadable files."""
        from ..images.read import UnreadableImageError, load_image

        images, unreadable = [], []
        for file in files:
            try:
                load_image(file)
                images.append(file)
            except UnreadableImageError as error:
                unreadable.append(f"{file.relative_to(base)}: {error.reason}")
        if not images:
            raise UserError(f"{base}: no picture there can be read; give another folder")
        names = [str(image.relative_to(base)) for image in images]
        outputs = self._run(images, [-1] * len(images), names, title, names)
        return outputs, [image.parent.name for image in images], unreadable

    def _run(self, sources: Any, labels: Any, groups: Any, title: str, names: Sequence[str] = ()) -> Outputs:
        from rich.console import Console
        from rich.progress import track

        from ..evaluation.trust import network_outputs

        console = Console(stderr=True)
        shown = track(
            sources,
            title.capitalize(),
            total=len(labels),
            disable=not self.progress,
            console=console,
            transient=True,
        )
        return network_outputs(self.classifier, shown, labels, groups, stage=self.stage, names=names)


def summary(temperature: float, measured: dict[str, Any]) -> str:
    """A few lines for people on what was measured."""
    from ..reports.tables import percent

    lines = [f"temperature {temperature:.2f}"]
    for part, both in measured.items():
        if part == "foreign":
            refused, auroc = both["refused"], both["auroc"]
            lines.append(f"foreign: {refused:.1%} of {both['n']} pictures refused, AUROC {auroc:.2%}")
            continue
        if part == "familiar":
            lines.append(f"familiar: {both['refused']:.1%} of {both['n']} brain MRI slices refused, all in error")
            continue
        figures = both["single"]
        sets = figures["coverage"][str(DEFAULT_COVERAGE)]
        lines.append(f"{part}: {figures['n']} slices")
        if "after" in figures:
            before, after = (percent(figures[when]["ece"]) for when in ("before", "after"))
            lines.append(f"  calibration error {before} before, {after} after")
        covered, size = percent(sets["covered"]), sets["size"]["value"]
        lines.append(f"  {DEFAULT_COVERAGE} % prediction sets cover {covered}, {size:.2f} classes")
        shares = ", ".join(f"{title} {percent(figures['decisions'][name])}" for name, title in DECISIONS.items())
        lines.append(f"  {shares}; right when answered {percent(figures['correct']['answer'])}")
    return "\n".join(lines)
