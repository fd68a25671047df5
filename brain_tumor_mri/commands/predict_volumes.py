"""``brain-tumor-mri predict scan.nii.gz``: volumes, DICOM series and zips of them; one answer each, and one a patient.

``t1c=a.nii.gz flair=b.nii.gz`` names the sequences of one patient.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import UserError, first_line
from ..files import check_writable
from ..images.find import SEQUENCE_PATH
from ..images.sequence import SEQUENCE_TITLES
from ..images.series import UnreadableVolumeError
from ..inference.study import StudyPrediction, predict_studies
from ..inference.volume import VolumeClassifier, VolumePrediction, key_images
from ..labels import NO_TUMOR, RESEARCH_NOTICE, TITLES
from ..trust.decision import DECISIONS, NOT_A_BRAIN_MRI
from .model_flags import load_classifier
from .progress import ProgressBar


def run(args: argparse.Namespace) -> int:
    """Answer each volume; 0 when one was answered, else 2.

    Raises:
        KeyboardInterrupt: Ctrl-C, after what was answered is printed.
    """
    if args.csv:
        raise UserError("--csv is for slices; give --json for volumes")
    sources = _sources(args.paths)
    if args.heat_map and len(args.paths) > 1:
        raise UserError("--heat_map is the file of one volume; give one path")
    if args.heat_map:
        check_writable(args.heat_map, "--heat_map")
        if not args.heat_map.name.endswith((".nii", ".nii.gz")):
            raise UserError(f"--heat_map {args.heat_map}: give a name that ends in .nii or .nii.gz")
    if args.key_images:
        _make_folder(args.key_images)
    classifier = VolumeClassifier(load_classifier(args))
    studies: list[StudyPrediction] = []
    interrupted = False
    try:
        for study in _answers(classifier, sources, args.heat_map is not None):
            if args.key_images:
                _write_key_images(study, sum(len(done.volumes) for done in studies), args.key_images)
            studies.append(study)
    except KeyboardInterrupt:
        interrupted = True
    predictions = [volume for study in studies for volume in study.volumes]
    answered = [prediction for prediction in predictions if prediction.error is None]
    several = [study for study in studies if len(study.volumes) > 1]
    if args.json:
        said = {
            "model": classifier.slice_classifier.describe(),
            "volumes": [prediction.to_dict() for prediction in predictions],
            "studies": [study.to_dict() for study in several],
            "complete": not interrupted,
        }
        json.dump(said, sys.stdout, indent=2)
        print()
    else:
        _print(predictions, several)
    if interrupted:
        raise KeyboardInterrupt(f"stopped after {len(predictions)} volumes")
    if args.heat_map and answered:
        _only(answered, args.heat_map).write_heat_map(args.heat_map)
    return 0 if answered else 2


def _sources(paths: list[str]) -> list[str | dict[str, str]]:
    """The paths; or, where sequences are named, one examination."""
    named = [match for match in map(SEQUENCE_PATH.fullmatch, paths) if match]
    if not named:
        if odd := next((path for path in paths if "=" in path and not Path(path).exists()), None):
            raise UserError(
                f"{odd}: there is no such file, and only t1, t1c, t2, flair and pd can be named, as t1c=FILE"
            )
        return list(paths)
    given = {match["sequence"].lower(): match["path"] for match in named}
    if len(given) < len(paths):
        raise UserError("t1c=FILE names the sequences of one patient: name each path, and each sequence once")
    return [given]


def _answers(
    classifier: VolumeClassifier, sources: list[str | dict[str, str]], heat_map: bool
) -> Iterator[StudyPrediction]:
    """One examination after the other, with a bar where stderr is a terminal."""
    for number, source in enumerate(sources, 1):
        try:
            with ProgressBar() if sys.stderr.isatty() else nullcontext() as bar:
                show = partial(bar, f"{number} of {len(sources)}: slices") if bar else None
                yield from predict_studies(classifier, source, heat_map=heat_map, on_slice=show)
        except UnreadableVolumeError as error:
            yield StudyPrediction(error.name, (VolumePrediction(error.name, error=error.reason),), error=error.reason)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--key_images {folder}: {first_line(error)}; name a folder") from error


def _write_key_images(study: StudyPrediction, before: int, folder: Path) -> None:
    """By the volume's number, as its name may be a patient's."""
    for number, volume in enumerate(study.volumes, before + 1):
        for index, picture in (key_images(volume) if volume.error is None else {}).items():
            try:
                picture.save(folder / f"volume-{number}-slice-{index}.png")
            except OSError as error:
                raise UserError(f"--key_images {folder}: {first_line(error)}; name another folder") from error


def _only(answered: list[VolumePrediction], file: Path) -> VolumePrediction:
    if len(answered) > 1:
        raise UserError(f"--heat_map {file}: there are {len(answered)} series; give one of them")
    return answered[0]


def _print(predictions: list[VolumePrediction], studies: list[StudyPrediction]) -> None:
    # where output is piped there is no width to keep to, and a path cut in two helps nobody
    console = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("volume", "class", "P(tumour)", "sequence", "plane", "key slices, from 0", "decision"):
        table.add_column(title)
    for prediction in predictions:
        if prediction.error is not None:
            table.add_row(Text(prediction.name), "Not answered", "", "", "", "", Text(prediction.error))
            continue
        stripped = ", skull removed" if prediction.skull_stripped else ""
        table.add_row(
            Text(prediction.name),
            "Not a brain MRI" if prediction.decision == NOT_A_BRAIN_MRI else TITLES[prediction.label],
            _p_tumour(prediction),
            prediction.sequence,
            f"{prediction.plane}{stripped}",
            ", ".join(map(str, prediction.key_slices[:3])),
            _decision(prediction),
        )
    console.print(table)
    for study in studies:
        title = TITLES[study.label] if study.label else "No answer"
        missing = ", ".join(SEQUENCE_TITLES[name] for name in study.missing)
        line = Text(f"{study.name}: {title}")
        if study.label:
            line.append(f", P(tumour) {_p_tumour(study)}, ")
            line.append_text(_decision(study))
        line.append(f"; missing: {missing}" if missing else "")
        console.print(line, soft_wrap=True)
    for prediction in predictions:
        for warning in prediction.warnings:
            console.print(Text(f"{prediction.name}: {warning}"))
    print(RESEARCH_NOTICE)


def _p_tumour(answer: VolumePrediction | StudyPrediction) -> str:
    return f"{100 * (1 - answer.probabilities[NO_TUMOR]):.1f}%"


def _decision(answer: VolumePrediction | StudyPrediction) -> Text:
    decision = DECISIONS.get(answer.decision, "")
    return Text(f"{decision}: {answer.reason}" if answer.reason else decision)
