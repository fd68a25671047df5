"""The model on whole examinations: ``VolumeClassifier.from_pretrained().predict("scan.nii.gz")``.

The slice model answers every slice; their answers are combined to one. The bodies are not written yet (issue 19).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..images.volume import Volume
from .classifier import TumorClassifier


@dataclass(frozen=True)
class SliceAnswer:
    """What the model says of one slice.

    Attributes:
        index: of the slice along ``VolumePrediction.slice_axis`` in the input's own numbering, from 0.
        position_mm: of the slice's centre along its normal: to the right, anterior or superior (RAS) in millimetres.
        p_tumour: 1 - p(no tumour), in [0, 1].
        probabilities: class name -> probability, in the order of ``labels.LABELS``.
        used: whether it counts for the volume's answer; the skull's base and the crown do not.
        side: where the heat map of a key slice lies, ``left``, ``right`` (the patient's) or ``middle``; else None.
        sop_instance_uid: of DICOM; else None.
    """

    index: int
    position_mm: float
    p_tumour: float
    probabilities: dict[str, float]
    used: bool = True
    side: str | None = None
    sop_instance_uid: str | None = None


@dataclass(frozen=True, eq=False)
class VolumePrediction:
    """The answer for one volume, or why there is none.

    Attributes:
        name: the input as it was given; of one of several series, with the series' number.
        label: the class, one of ``labels.LABELS``; None when there is no answer.
        confidence: the probability of ``label``.
        probabilities: class name -> probability in [0, 1], summing to 1, in the order of ``labels.LABELS``.
        error: why there is no answer, one line without a patient's name; None when there is one.
        decision: one of ``decision.DECISIONS``.
        reason: of a decision that is not ``answer``, after "because"; else None.
        sequence: one of ``images.series.SEQUENCES``: t1, t1c, t2, flair, pd, dwi, adc, other, unknown.
        sequence_evidence: what told the sequence, such as ``TR 9000 ms, TI 2500 ms``.
        plane: ``axial``, ``coronal`` or ``sagittal``, of the slices that were answered.
        skull_stripped: whether the skull was removed; None when that cannot be told.
        slice_axis: axis of the input's array (0, 1, 2) that the slices were taken along; of DICOM always 2.
        slices: of every slice that holds a part of the head, by index.
        key_slices: indices of the slices that speak most for the answer, the strongest first.
        warnings: what was odd about the input and how it was taken, a line each.
        volume: the input, with its geometry and, of DICOM, ``slice_files``.
        heat_map: float32 (I, J, K) in [0, 1] in the input's geometry, what speaks for a tumour; None unless asked for.
        mask: uint8 (I, J, K) of 0 and 1 in the input's geometry, where the heat map is highest: a rough place, no
            outline; all 0 where the answer is no tumour; None unless asked for.
    """

    name: str
    label: str | None = None
    confidence: float | None = None
    probabilities: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    decision: str | None = None
    reason: str | None = None
    sequence: str = "unknown"
    sequence_evidence: str = ""
    plane: str | None = None
    skull_stripped: bool | None = None
    slice_axis: int = 2
    slices: tuple[SliceAnswer, ...] = ()
    key_slices: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    volume: Volume | None = None
    heat_map: np.ndarray | None = None
    mask: np.ndarray | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for ``json.dumps``: everything but voxels, with ``study_uid`` and ``series_uid``."""
        raise NotImplementedError

    def write_heat_map(self, path: str | Path) -> None:
        """Write the heat map as NIfTI in the input's geometry (float32).

        Raises:
            UserError: it cannot be written.
            ValueError: there is no heat map.
        """
        raise NotImplementedError

    def write_mask(self, path: str | Path) -> None:
        """Write the mask as NIfTI in the input's geometry (uint8); errors as of ``write_heat_map``."""
        raise NotImplementedError


class VolumeClassifier:
    """A slice model that answers volumes.

    Attributes:
        slice_classifier: what answers the slices.
    """

    def __init__(self, slice_classifier: TumorClassifier) -> None:
        self.slice_classifier = slice_classifier

    @classmethod
    def from_pretrained(cls, model: str | Path | list[str | Path] | None = None, **options: Any) -> VolumeClassifier:
        """Load a model; arguments as of ``TumorClassifier.from_pretrained``, None takes its default."""
        return cls(TumorClassifier.from_pretrained(**({} if model is None else {"model": model}), **options))

    def predict(self, source: str | Path | Volume, *, heat_map: bool = False) -> VolumePrediction:
        """Answer one volume.

        Args:
            source: as for ``images.volume.read_volume``, or a volume that was read.
            heat_map: also compute ``heat_map``, ``mask`` and the sides of key slices; takes three times as long.

        Raises:
            UnreadableVolumeError: it cannot be read.
        """
        raise NotImplementedError

    def predict_all(self, path: str | Path, *, heat_map: bool = False) -> Iterator[VolumePrediction]:
        """Answer every series of a file, folder or zip; a series that cannot be answered has its ``error``."""
        raise NotImplementedError
