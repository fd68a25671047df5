"""The slice model on whole volumes: ``VolumeClassifier.from_pretrained().predict("scan.nii.gz")``.

Every slice of the head is answered; the answers are combined by a fixed rule, ``combine``. How sure an answer must be
was fitted to patients, none of them of a whole volume: ``patients``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image

from ..errors import UserError
from ..images.sequence import SEQUENCE_TITLES, SequenceGuess
from ..images.series import Series, UnreadableVolumeError, find_series
from ..images.volume import Volume, nifti_of, read_volume
from ..labels import LABELS, NO_TUMOR, TITLES, require_project_classes
from ..trust.decision import ANSWER, NOT_A_BRAIN_MRI, UNCERTAIN, UNFAMILIAR
from .appearance import Appearance, load_appearance
from .classifier import TumorClassifier
from .patients import PatientLimit, load_patient_limit, log_mean
from .prediction import Prediction, unmeasured
from .upright import Upright

UNKNOWN_SEQUENCE = (
    "neither header nor name nor pixels tell its sequence; if it is T1 with contrast, say so, as in t1c=FILE on the "
    "command line or by the name t1c.nii.gz"
)
"""Why the decision is ``unfamiliar`` then."""
SEEN_SEQUENCES = ("t1", "t1c", "t2", "flair")
"""Those that pixels may contradict."""
BAND = {"axial": (0.3, 0.9), "coronal": (0.15, 0.85), "sagittal": (0.15, 0.85)}
"""Shares of the head's extent, from the lowest, rearmost or rightmost slice, between which slices count: at the base of
the skull and at the crown the slice model calls tumours where there are none."""
WINDOW_MM = 20.0
"""A tumour shows on neighbouring slices: the volume is as suspicious as its most suspicious stretch of this length."""
LOOKED_AT = 12
"""Slices whose pixels tell sequence and skull; one pass of the network."""


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
        frame: of a multi-frame DICOM file, from 0; else None.
    """

    index: int
    position_mm: float
    p_tumour: float
    probabilities: dict[str, float]
    used: bool = True
    side: str | None = None
    sop_instance_uid: str | None = None
    frame: int | None = None


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
        skull_stripped: whether the skull was removed, by the pixels; None when that cannot be told.
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
        """Plain types only, ready for ``json.dumps``: everything but voxels, with ``study_uid`` and ``series_uid``.

        As of a slice, ``label`` is None where it is no brain MRI, so that no count takes it; ``top_class`` has it.
        """
        left_out = {"volume", "heat_map", "mask", "slices"}
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}
        uids = {name: getattr(self.volume, name, None) for name in ("study_uid", "series_uid")}
        plain |= {"label": None if self.decision == NOT_A_BRAIN_MRI else self.label, "top_class": self.label}
        return {**plain, **uids, "slices": [asdict(slice_) for slice_ in self.slices]}

    def write_heat_map(self, path: str | Path) -> None:
        """Write the heat map as NIfTI in the input's geometry (float32).

        Raises:
            UserError: it cannot be written.
            ValueError: there is no heat map.
        """
        self._write(path, self.heat_map)

    def write_mask(self, path: str | Path) -> None:
        """Write the mask as NIfTI in the input's geometry (uint8); errors as of ``write_heat_map``."""
        self._write(path, self.mask)

    def _write(self, path: str | Path, array: np.ndarray | None) -> None:
        if array is None or self.volume is None:
            raise ValueError("there is no heat map: predict with heat_map=True")
        try:
            nibabel.save(nifti_of(array, self.volume.affine), str(path))
        except (OSError, nibabel.filebasedimages.ImageFileError) as error:
            raise UserError(f"{path} cannot be written ({error}); give a name that ends in .nii or .nii.gz") from error


class VolumeClassifier:
    """A slice model that answers volumes.

    Attributes:
        slice_classifier: what answers the slices.
        appearance: the model folder's ``appearance.json``, which tells sequence and skull from pixels; None
            without one, without a ``trust.json``, and for an ensemble.
        limit: of its ``patients.json``, how sure an answer for a patient must be; None as above.
    """

    def __init__(self, slice_classifier: TumorClassifier) -> None:
        require_project_classes(getattr(slice_classifier, "labels", LABELS), "answers to volumes")
        self.slice_classifier = slice_classifier
        folder = getattr(slice_classifier, "folder", None)
        self.appearance = load_appearance(folder) if folder and slice_classifier.trust else None
        self.limit = (
            load_patient_limit(folder, slice_classifier.coverage) if folder and slice_classifier.trust else None
        )

    @classmethod
    def from_pretrained(cls, model: str | Path | list[str | Path] | None = None, **options: Any) -> VolumeClassifier:
        """Load a model; arguments as of ``TumorClassifier.from_pretrained``, None takes its default."""
        return cls(TumorClassifier.from_pretrained(**({} if model is None else {"model": model}), **options))

    def predict(
        self,
        source: str | Path | Volume,
        *,
        heat_map: bool = False,
        on_slice: Callable[[int, int], None] | None = None,
    ) -> VolumePrediction:
        """Answer one volume.

        Args:
            source: as for ``images.volume.read_volume``, or a volume that was read.
            heat_map: also compute ``heat_map``, ``mask`` and the sides of key slices, for the key slices only.
            on_slice: told after each slice how many are answered, and of how many.

        Raises:
            UnreadableVolumeError: it cannot be read, or shows no head.
        """
        volume = source if isinstance(source, Volume) else read_volume(source)
        upright = Upright(volume)
        places = upright.head_slices()
        answers: dict[int, Prediction] = {}
        stream = self.slice_classifier.predict_stream(map(upright.picture, places))
        for k, answer in zip(places, stream, strict=True):
            answers[k] = answer
            if on_slice:
                on_slice(len(answers), len(places))
        combined = combine(upright, answers, self.look(upright), self.limit)
        if not heat_map:
            return combined
        # zeros take memory only where something is written: the maps of some slices cost little, of however many
        maps, masks = np.zeros(upright.array.shape, np.float32), np.zeros(upright.array.shape, np.uint8)
        by_index = {upright.input_index(k): k for k in places}
        key = [by_index[index] for index in combined.key_slices]
        target = combined.label if combined.label != NO_TUMOR else None
        for k in key if target else ():
            heat = self.slice_classifier.explain(upright.picture(k), target).heat_map
            maps[k] = upright.uncropped(heat) * (1 - answers[k].probabilities[NO_TUMOR])
            masks[k] = maps[k] > 0.5
        return replace(
            combined,
            slices=tuple(
                replace(s, side=upright.side(k := by_index[s.index], maps[k])) if s.index in combined.key_slices else s
                for s in combined.slices
            ),
            heat_map=upright.back(maps),
            mask=upright.back(masks),
        )

    def look(self, upright: Upright) -> Appearance | None:
        """What the pixels alone of some slices from the middle of the head say; None without ``appearance``."""
        if self.appearance is None:
            return None
        places = upright.head_slices()
        chosen = np.linspace(places[0], places[-1], LOOKED_AT + 4)[2:-2].round().astype(int)
        pictures = [upright.picture(k) for k in dict.fromkeys(chosen.tolist())]
        pixels = np.stack([self.slice_classifier.preprocess(picture) for picture in pictures])
        return self.appearance.tell(self.slice_classifier.network(pixels)[1], pictures)

    def predict_all(
        self, path: str | Path | Iterable[Series], *, heat_map: bool = False,
        on_slice: Callable[[int, int], None] | None = None,
    ) -> Iterator[VolumePrediction]:  # fmt: skip
        """Answer every series of a file, folder or zip; a series that cannot be answered has its ``error``.

        Args:
            path: of the file, folder or zip; or series of ``images.series.find_series``.
            heat_map: as of ``predict``.
            on_slice: as of ``predict``.
        """
        for series in find_series(path) if isinstance(path, str | Path) else path:
            try:
                yield self.predict(read_volume(series), heat_map=heat_map, on_slice=on_slice)
            except UnreadableVolumeError as error:
                yield VolumePrediction(series.name, error=error.reason, sequence=series.sequence.name)


def key_images(answer: VolumePrediction, count: int = 3) -> dict[int, Image.Image]:
    """Return the strongest key slices as the model saw them, upright and cropped to the head, by index in the input."""
    upright = Upright(answer.volume)
    places = {upright.input_index(k): k for k in upright.head_slices()}
    return {index: upright.picture(places[index]) for index in answer.key_slices[:count]}


def combine(
    upright: Upright,
    answers: dict[int, Prediction],
    appearance: Appearance | None = None,
    limit: PatientLimit | None = None,
) -> VolumePrediction:
    """Combine the answers to slices, by their place in ``upright``, to one for the volume.

    It is that of the most suspicious ``WINDOW_MM`` of neighbouring slices (three at least) within ``BAND``, their
    ``log_mean``.

    Args:
        upright: the volume.
        answers: to slices.
        appearance: what the pixels say.
        limit: how sure an answer must be; a class beside it that is possible makes it uncertain.
    """
    volume, places = upright.volume, sorted(answers)
    low, high = (places[0] + share * (places[-1] - places[0]) for share in BAND[upright.plane])
    used = [k for k in places if low <= k <= high] or places
    rows = np.array([[answers[k].probabilities[name] for name in LABELS] for k in used])
    length = min(max(3, round(WINDOW_MM / upright.step)), len(used))
    stretches = log_mean(np.stack([rows[i : i + length] for i in range(len(used) - length + 1)]))
    first = int(stretches[:, LABELS.index(NO_TUMOR)].argmin())
    stretch = used[first : first + length]
    probabilities = dict(zip(LABELS, stretches[first].tolist(), strict=True))
    label = max(probabilities, key=probabilities.__getitem__)
    sequence, warnings = _sequence(volume, appearance)
    decision, reason = _decide(volume, sequence, label, [answers[k] for k in stretch], [answers[k] for k in used])
    possible = limit.possible(probabilities) if limit else ()
    if limit and decision == ANSWER and len(possible) > 1:
        others = ", ".join(TITLES[name].lower() for name in possible if name != label)
        decision = UNCERTAIN
        reason = f"of one patient in {round(100 / (100 - limit.coverage))}, ruling out {others} here would be wrong"
    files = volume.slice_files if upright.slice_axis == 2 else ()
    slices = []
    for k in places:
        file = files[upright.input_index(k)] if files else None
        slices.append(
            SliceAnswer(
                upright.input_index(k),
                upright.position(k),
                1 - answers[k].probabilities[NO_TUMOR],
                dict(answers[k].probabilities),
                used=k in used,
                sop_instance_uid=file.sop_instance_uid if file else None,
                frame=file.frame if file else None,
            )
        )
    strongest = sorted(stretch, key=lambda k: answers[k].probabilities[label], reverse=True)
    return VolumePrediction(
        name=volume.name,
        label=label,
        confidence=probabilities[label],
        probabilities=probabilities,
        decision=decision,
        reason=reason,
        sequence=sequence.name,
        sequence_evidence=sequence.evidence,
        plane=upright.plane,
        skull_stripped=appearance.skull_stripped if appearance else None,
        slice_axis=upright.slice_axis,
        slices=tuple(sorted(slices, key=lambda slice_: slice_.index)),
        key_slices=tuple(upright.input_index(k) for k in strongest),
        warnings=volume.warnings + warnings,
        volume=volume,
    )


def _sequence(volume: Volume, appearance: Appearance | None) -> tuple[SequenceGuess, tuple[str, ...]]:
    """What the header or a name says; where they say nothing, the pixels. And a warning where these say otherwise."""
    if appearance is None or appearance.sequence is None:
        return volume.sequence, ()
    seen = SEQUENCE_TITLES[appearance.sequence]
    looks = f"the pixels of {appearance.slices} slices look like {seen} ({appearance.sequence_probability:.0%})"
    if volume.sequence.name == "unknown":
        return SequenceGuess(appearance.sequence, looks, "pixels"), ()
    named_only = volume.sequence.source in ("description", "file name")
    if named_only and volume.sequence.name in SEEN_SEQUENCES and volume.sequence.name != appearance.sequence:
        return volume.sequence, (f"{volume.sequence.evidence}, but {looks}",)
    return volume.sequence, ()


def _decide(
    volume: Volume, sequence: SequenceGuess, label: str, stretch: list[Prediction], used: list[Prediction]
) -> tuple[str | None, str | None]:
    if used[0].decision is None:  # a model without trust.json
        return None, None
    if sum(answer.decision == NOT_A_BRAIN_MRI for answer in used) > len(used) / 2:
        return NOT_A_BRAIN_MRI, "most of its slices do not look like a brain MRI"
    if volume.doubt:
        return UNFAMILIAR, volume.doubt
    if sequence.name == "unknown":
        return UNFAMILIAR, UNKNOWN_SEQUENCE
    if reason := unmeasured(sequence.name):
        return UNFAMILIAR, reason
    if sequence.source == "pixels":
        return UNCERTAIN, "that it is T1 with contrast is told by its pixels alone"
    agreeing = sum(answer.decision == ANSWER and answer.label == label for answer in stretch)
    if agreeing > len(stretch) / 2:
        return ANSWER, None
    if sum(answer.decision == UNFAMILIAR for answer in stretch) > len(stretch) / 2:
        return UNCERTAIN, "its most suspicious slices are unlike the brain MRI that the model knows"
    return UNCERTAIN, "its most suspicious slices are not sure, or not of one mind"
