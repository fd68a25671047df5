"""Answers whole volumes whose diagnosis is known: ``python benchmarks/accuracy/volumes.py --volumes_dir DIR``.

The rule that combines slices was fitted to none of these. One series a person, so everybody counts once.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from brain_tumor_mri.errors import UserError
from brain_tumor_mri.files import write_json
from brain_tumor_mri.inference.model_folder import DEFAULT_MODEL
from brain_tumor_mri.inference.volume import VolumeClassifier
from brain_tumor_mri.labels import NO_TUMOR
from brain_tumor_mri.machine import hardware, versions

CASES = {
    "lgg/*/t1c*": "glioma", "tcga-fg-6692/*t1c*": "glioma", "gui-meningioma/M013-t1c": "meningioma",
    "brats-case/*t1c*": "glioma", "brats-met/*t1c*": "tumour", "pyradiomics/brain?_image.nrrd": "tumour",
    "brainix/dicom-flair": "tumour", "papaya-dicom": NO_TUMOR, "fnndsc-eun/*": NO_TUMOR, "spm/*": NO_TUMOR,
    "imn708/*": NO_TUMOR, "open-ms/patient07/t1post*": NO_TUMOR, "voxelmorph-oasis/*": NO_TUMOR,
    "not-a-brain-phantom": "no brain",
}  # fmt: skip
"""Pattern under the folder -> what it shows; ``tumour``: of a kind that is not among the classes, or not stated."""


def main() -> int:
    """Answer the cases and write what was said of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--volumes_dir", required=True, type=Path)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--output", default=Path("results/volumes/metrics.json"), type=Path)
    args = parser.parse_args()
    cases = [(path, truth) for pattern, truth in CASES.items() for path in sorted(args.volumes_dir.glob(pattern))]
    if not cases:
        print(f"{args.volumes_dir}: none of the volumes is there; give --volumes_dir another folder", file=sys.stderr)
        return 2
    classifier, said = VolumeClassifier.from_pretrained(args.model), []
    for path, truth in track(cases, "Answering", console=Console(stderr=True)):
        row: dict[str, Any] = {"volume": str(path.relative_to(args.volumes_dir)), "truth": truth}
        started = time.perf_counter()
        try:
            answer = classifier.predict(path)
        except UserError as error:
            said.append(row | {"error": str(error).replace(str(args.volumes_dir), "")})
            continue
        row |= {name: getattr(answer, name) for name in ("label", "decision", "sequence", "plane")}
        row |= {"p_tumour": 1 - answer.probabilities[NO_TUMOR], "seconds": time.perf_counter() - started}
        said.append(row)
    model = {key: value for key, value in classifier.slice_classifier.describe().items() if key != "source"}
    write_json(args.output, {"model": model, "volumes": said, "versions": versions(), "hardware": hardware()})
    for row in said:
        print(row["volume"], row["truth"], row.get("label", row.get("error")), row.get("decision"), row.get("p_tumour"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
