"""Answers whole volumes whose diagnosis is known: ``python benchmarks/accuracy/volumes.py --volumes_dir DIR``.

The rule that combines slices was fitted to none of these. One series a person, so everybody counts once.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from rich.console import Console
from rich.progress import track
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness import run
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.images.volume import read_volume
from brain_tumor_mri.inference.model_folder import DEFAULT_MODEL
from brain_tumor_mri.inference.study import combine_study
from brain_tumor_mri.inference.upright import Upright
from brain_tumor_mri.inference.volume import VolumeClassifier, VolumePrediction
from brain_tumor_mri.labels import NO_TUMOR

NO_BRAIN, FLAIR_TRUTH = "no brain", "glioma, FLAIR"
PROTOCOL = (
    "whole volumes, one a person; other patients of TCGA-LGG, BraTS and Pretreat-MetsToBrain trained, "
    "and whether the BraTS case did is not known"
)
CASES = {
    "lgg/*/t1c*": "glioma", "tcga-fg-6692/*t1c*": "glioma", "gui-meningioma/M013-t1c": "meningioma",
    "brats-case/*t1c*": "glioma", "brats-met/*t1c*": "tumour", "pyradiomics/brain?_image.nrrd": "tumour",
    "brainix/dicom-flair": "tumour", "papaya-dicom": NO_TUMOR, "fnndsc-eun/*": NO_TUMOR, "spm/*": NO_TUMOR,
    "imn708/*": NO_TUMOR, "open-ms/patient07/t1post*": NO_TUMOR, "voxelmorph-oasis/*": NO_TUMOR,
    "not-a-brain-phantom": NO_BRAIN,
}  # fmt: skip
"""Pattern under the folder -> what it shows; ``tumour``: of a kind that is not among the classes, or not stated."""
TRUTHS = frozenset(CASES.values())
FLAIR = ("lgg/*/flair*", "tcga-fg-6692/flair*", "brats-case/t2f*")
"""FLAIR of patients of ``CASES``, all gliomas: measured apart, and with their T1 with contrast as one patient."""
MASKS = {"lgg/": "mask.nii.gz", "brats-": "seg.nii.gz"}
"""Start of a volume's path -> the file beside it with the tumour's outline, in the same voxels."""
SEQUENCES = {
    "pyradiomics": "t1c", "gui-meningioma": "t1c", "brainix": "flair", "papaya": "pd", "fnndsc-eun": "t1", "spm": "t1",
    "open-ms": "t1c", "voxelmorph": "t1", "imn708": "flair",
}  # fmt: skip
"""Start of a path -> its sequence, where the file's name does not say it."""
STRIPPED = ("brats-", "open-ms", "voxelmorph")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--volumes_dir", required=True, type=Path, help="holds the folders that CASES names")
    parser.add_argument("--model", default=DEFAULT_MODEL)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Answer every case that is there."""
    cases = [(path, truth) for pattern, truth in CASES.items() for path in sorted(args.volumes_dir.glob(pattern))]
    if not cases:
        raise UserError(f"{args.volumes_dir}: none of the volumes is there; give --volumes_dir another folder")
    more = [(path, FLAIR_TRUTH) for pattern in FLAIR for path in sorted(args.volumes_dir.glob(pattern))]
    classifier, said, of_patient = VolumeClassifier.from_pretrained(args.model), [], defaultdict(list)
    for path, truth in track(cases + more, "Answering", console=Console(stderr=True)):
        row: dict[str, Any] = {"volume": str(path.relative_to(args.volumes_dir)), "truth": truth}
        try:
            volume = read_volume(path)
            answer, seen = classifier.predict(volume), classifier.look(Upright(volume))
        except UserError as error:
            said.append(row | {"error": str(error).replace(f"{args.volumes_dir}/", "")})
            continue
        row |= {name: getattr(answer, name) for name in ("label", "decision", "sequence", "plane")}
        row |= {"p_tumour": 1 - answer.probabilities[NO_TUMOR], "skull_stripped": answer.skull_stripped}
        row |= {"sequence_by_pixels": seen.sequence, "true_sequence": _sequence(row["volume"], answer)} if seen else {}
        said.append(row | _in_mask(path, row["volume"], answer))
        of_patient[path.parent].append(answer)
    model = {key: value for key, value in classifier.slice_classifier.describe().items() if key != "source"}
    cells = [[row["volume"], row["truth"], *_answer_cells(row)] for row in said]
    called = {truth: [r["label"] != NO_TUMOR for r in said if r["truth"] == truth and "label" in r] for truth in TRUTHS}
    tumours = [hit for truth, hits in called.items() if truth not in (NO_TUMOR, NO_BRAIN) for hit in hits]
    studies = [
        combine_study(folder.name, answers)
        for folder, answers in of_patient.items()
        if {answer.sequence for answer in answers} == {"t1c", "flair"}
    ]
    brains = [r for r in said if r["truth"] != NO_BRAIN and "label" in r]
    told = [r["sequence_by_pixels"] == r["true_sequence"] for r in brains if r.get("sequence_by_pixels")]
    lists = {
        "tumours_found": tumours,
        "healthy_called_tumour": called[NO_TUMOR],
        "flair_found": [r["label"] != NO_TUMOR for r in said if r["truth"] == FLAIR_TRUTH and "label" in r],
        "patients_named_glioma": [study.label == "glioma" for study in studies],
        "key_slice_in_mask": [r["key_slice_in_mask"] for r in said if "key_slice_in_mask" in r],
        "sequence_told_by_pixels": [bool(r.get("sequence_by_pixels")) for r in brains],
        "sequence_right_when_told": told,
        "skull_right_when_told": [
            r["skull_stripped"] == r["volume"].startswith(STRIPPED) for r in brains if r["skull_stripped"] is not None
        ],
    }
    shares = {name: _share(hits) for name, hits in lists.items() if hits}
    cells += [[name, f"{share['hits']} of {share['n']}"] for name, share in shares.items()]
    return {
        "benchmark": "volumes", "protocol": PROTOCOL, "model": model, **shares, "volumes": said,
        "summary": cells,
    }  # fmt: skip


def _sequence(name: str, answer: VolumePrediction) -> str:
    return next((sequence for start, sequence in SEQUENCES.items() if name.startswith(start)), answer.sequence)


def _in_mask(path: Path, name: str, answer: VolumePrediction) -> dict[str, bool]:
    """Whether the strongest key slice holds a part of the tumour; empty without an outline in the same voxels."""
    mask = next((path.with_name(file) for start, file in MASKS.items() if name.startswith(start)), None)
    if mask is None or not mask.is_file():
        return {}
    outline = np.asarray(nibabel.load(mask).dataobj) > 0
    if outline.shape != answer.volume.array.shape:
        return {}
    return {"key_slice_in_mask": bool(np.take(outline, answer.key_slices[0], answer.slice_axis).any())}


def _share(hits: Sequence[bool]) -> dict[str, float]:
    """The share with its 95 % interval, exact binomial (Clopper & Pearson 1934)."""
    found = binomtest(sum(hits), len(hits))
    low, high = found.proportion_ci(method="exact")
    return {"hits": sum(hits), "n": len(hits), "value": found.statistic, "low": low, "high": high}


def _answer_cells(row: dict[str, Any]) -> list[str]:
    if "error" in row:
        return ["not answered", "-", row["error"]]
    return [row["label"], f"{row['p_tumour']:.2f}", f"{row['decision']} ({row['sequence']})"]


def main(argv: Sequence[str] | None = None) -> int:
    return run(__doc__, add_arguments, measure, argv, output="results/volumes/metrics.json")


if __name__ == "__main__":
    raise SystemExit(main())
