"""Answers whole volumes whose diagnosis is known: ``python benchmarks/accuracy/volumes.py --volumes_dir DIR``.

The rule that combines slices was fitted to none of these. One series a person, so everybody counts once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness import run
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.inference.model_folder import DEFAULT_MODEL
from brain_tumor_mri.inference.volume import VolumeClassifier
from brain_tumor_mri.labels import NO_TUMOR

NO_BRAIN = "no brain"
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--volumes_dir", required=True, type=Path, help="holds the folders that CASES names")
    parser.add_argument("--model", default=DEFAULT_MODEL)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Answer every case that is there."""
    cases = [(path, truth) for pattern, truth in CASES.items() for path in sorted(args.volumes_dir.glob(pattern))]
    if not cases:
        raise UserError(f"{args.volumes_dir}: none of the volumes is there; give --volumes_dir another folder")
    classifier, said = VolumeClassifier.from_pretrained(args.model), []
    for path, truth in track(cases, "Answering", console=Console(stderr=True)):
        row: dict[str, Any] = {"volume": str(path.relative_to(args.volumes_dir)), "truth": truth}
        try:
            answer = classifier.predict(path)
        except UserError as error:
            said.append(row | {"error": str(error).replace(f"{args.volumes_dir}/", "")})
            continue
        row |= {name: getattr(answer, name) for name in ("label", "decision", "sequence", "plane")}
        said.append(row | {"p_tumour": 1 - answer.probabilities[NO_TUMOR]})
    model = {key: value for key, value in classifier.slice_classifier.describe().items() if key != "source"}
    cells = [[row["volume"], row["truth"], *_answer_cells(row)] for row in said]
    called = {truth: [r["label"] != NO_TUMOR for r in said if r["truth"] == truth and "label" in r] for truth in TRUTHS}
    tumours = [hit for truth, hits in called.items() if truth not in (NO_TUMOR, NO_BRAIN) for hit in hits]
    shares = {"tumours_found": _share(tumours), "healthy_called_tumour": _share(called[NO_TUMOR])}
    cells += [[name, f"{share['hits']} of {share['n']}"] for name, share in shares.items()]
    return {"benchmark": "volumes", "protocol": PROTOCOL, "model": model, **shares, "volumes": said, "summary": cells}


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
