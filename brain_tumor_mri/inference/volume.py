"""The slice model on whole volumes: ``VolumeClassifier.from_pretrained().predict("scan.nii.gz")``.

Every slice of the head is answered; the answers are combined by a fixed rule, ``combine``, that was fitted to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image
from scipy.ndimage import affine_transform

from ..errors import UserError
from ..images.sequence import SEQUENCE_TITLES, SequenceGuess
from ..images.series import Series, UnreadableVolumeError, find_series
from ..images.volume import Volume, nifti_of, read_volume
from ..labels import LABELS, NO_TUMOR, require_project_classes
from ..trust.decision import ANSWER, NOT_A_BRAIN_MRI, UNCERTAIN, UNFAMILIAR
from .appearance import Appearance, load_appearance
from .classifier import TumorClassifier
from .prediction import Prediction

MEASURED_SEQUENCES = ("t1c",)
"""Sequences on which the kinds of tumour were measured; on others the decision is ``unfamiliar``."""
SEEN_SEQUENCES = ("t1", "t1c", "t2", "flair")
"""Those that pixels may contradict."""
BAND = {"axial": (0.3, 0.9), "coronal": (0.15, 0.85), "sagittal": (0.15, 0.85)}
"""Shares of the head's extent, from the lowest, rearmost or rightmost slice, between which slices count: at the base of
the skull and at the crown the slice model calls tumours where there are none."""
WINDOW_MM = 20.0
"""A tumour shows on neighbouring slices: the volume is as suspicious as its most suspicious stretch of this length."""
HEAD_LEVEL = 25
"""Of 255, the volume's 99.5th percentile, above which a voxel is head."""
OBLIQUE_DEGREES = 15.0
"""A volume of nearly cubic voxels whose axes lie further from the patient's is turned upright by resampling. Thick
slices are answered in their own plane, as they are read: resampling would blur them."""
LOOKED_AT = 12
"""Slices whose pixels tell sequence and skull; one pass of the network."""
SHORT_SIDE = 8
"""Voxels; a volume with a shorter side in the slice's plane shows no head."""
_ORIENTATIONS = {"axial": "SPL", "coronal": "PIL", "sagittal": "LIP"}
"""Plane -> where slices, rows and columns run to, so that slices stand upright, the patient's left on the right."""
_DIRECTIONS = {"S": (0, 0, 1), "I": (0, 0, -1), "P": (0, -1, 0), "L": (-1, 0, 0)}
"""In RAS."""


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
        appearance: the model folder's ``appearance.json``, which tells sequence, plane and skull from pixels; None
            without one, without a ``trust.json``, and for an ensemble.
    """

    def __init__(self, slice_classifier: TumorClassifier) -> None:
        require_project_classes(getattr(slice_classifier, "labels", LABELS), "answers to volumes")
        self.slice_classifier = slice_classifier
        folder = getattr(slice_classifier, "folder", None)
        self.appearance = load_appearance(folder) if folder and slice_classifier.trust else None

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
        combined = combine(upright, answers, self.look(upright))
        if not heat_map:
            return combined
        maps = np.zeros(upright.array.shape, np.float32)
        by_index = {upright.input_index(k): k for k in places}
        key = [by_index[index] for index in combined.key_slices]
        target = combined.label if combined.label != NO_TUMOR else None
        for k in key if target else ():
            heat = self.slice_classifier.explain(upright.picture(k), target).heat_map
            maps[k] = upright.uncropped(heat) * (1 - answers[k].probabilities[NO_TUMOR])
        return replace(
            combined,
            slices=tuple(
                replace(s, side=upright.side(maps[by_index[s.index]])) if s.index in combined.key_slices else s
                for s in combined.slices
            ),
            heat_map=upright.back(maps),
            mask=upright.back((maps > 0.5).astype(np.uint8)),
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


class Upright:
    """A volume turned by its affine so that slices stand upright, cropped to the head, and the way back.

    Axes are only swapped and flipped, so what is found lies exactly where the input has it. Of a volume of nearly cubic
    voxels that lies oblique, each slice is resampled in the upright plane through the centre of the input's slice.

    Attributes:
        plane: ``axial``, ``coronal`` or ``sagittal``: across the largest voxel spacing; axial where all are alike.
        array: uint8 (slices, rows, columns), grey values.
        resampled: whether it was turned by resampling.
    """

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        ours = nibabel.orientations.io_orientation(volume.affine)
        if np.isnan(ours).any():
            raise UnreadableVolumeError(volume.name, "its geometry is broken: an axis has no direction")
        by_world = [volume.spacing[int(np.flatnonzero(ours[:, 0] == axis)[0])] for axis in range(3)]
        cubic = max(by_world) <= 1.5 * min(by_world)
        self.plane = ("sagittal", "coronal", "axial")[2 if cubic else int(np.argmax(by_world))]
        wanted = nibabel.orientations.axcodes2ornt(_ORIENTATIONS[self.plane])
        self._turn = nibabel.orientations.ornt_transform(ours, wanted)
        self._turn_back = nibabel.orientations.ornt_transform(wanted, ours)
        self.slice_axis = int(np.flatnonzero(self._turn[:, 0] == 0)[0])
        self._steps = [volume.spacing[int(np.flatnonzero(self._turn[:, 0] == axis)[0])] for axis in range(3)]
        cosines = np.abs(volume.affine[:3, :3] / volume.spacing).max(0)
        self.resampled = bool(cubic and np.degrees(np.arccos(cosines.min())) > OBLIQUE_DEGREES)
        values = volume.array if np.isfinite(volume.array.sum()) else np.nan_to_num(volume.array)
        low, high = np.percentile(values, (0.5, 99.5))
        low = max(low, 0)
        if not high > low:
            raise UnreadableVolumeError(volume.name, "it is blank")
        turned = (
            self._resample(values) if self.resampled else nibabel.orientations.apply_orientation(values, self._turn)
        )
        # slice by slice: a copy of all of it as float would cost as much memory as the volume
        self.array = np.stack([np.uint8(255 * np.clip((each - low) / (high - low), 0, 1)) for each in turned])
        head = self.array > HEAD_LEVEL
        rows, columns = (np.flatnonzero(head.any((0, axis))) for axis in (2, 1))
        if min(len(rows), len(columns)) < SHORT_SIDE:
            raise UnreadableVolumeError(volume.name, "it shows no head")
        self._crop = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        self._areas = head.sum((1, 2))

    def _resample(self, values: np.ndarray) -> np.ndarray:
        """Upright slices (S, rows, columns) through the centres of the input's slices; ``_to_input`` leads back."""
        affine, shape = self.volume.affine, values.shape
        directions = np.array([_DIRECTIONS[code] for code in _ORIENTATIONS[self.plane]])
        ends = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)
        corners = directions @ (affine[:3, :3] @ ends + affine[:3, 3:])
        pixel = min(self.volume.spacing)
        first = (np.array(shape) - 1) / 2
        first[self.slice_axis] = 0 if self._turn[self.slice_axis, 1] > 0 else shape[self.slice_axis] - 1
        origin = corners.min(1)
        origin[0] = (directions @ (affine @ [*first, 1])[:3])[0]
        self._steps = [abs(float(directions[0] @ affine[:3, self.slice_axis])), pixel, pixel]
        upright = np.eye(4)
        upright[:3, :3] = directions.T * self._steps
        upright[:3, 3] = directions.T @ origin
        size = np.ceil(np.ptp(corners, axis=1)[1:] / pixel).astype(int) + 1
        self._to_input = np.linalg.inv(affine) @ upright
        return affine_transform(
            values,
            self._to_input[:3, :3],
            self._to_input[:3, 3],
            (shape[self.slice_axis], *size),
            order=1,
            cval=float(values.min()),
        )

    def head_slices(self) -> list[int]:
        """Slices of which a good part is head."""
        return np.flatnonzero(self._areas > 0.2 * self._areas.max()).tolist()

    def picture(self, k: int) -> Image.Image:
        """Slice k, cropped to the head and padded to a square of square pixels, as the slice model was trained."""
        cropped = Image.fromarray(self.array[k][self._crop])
        size = self._size_in_pixels()
        square = Image.new("L", (max(size), max(size)))
        square.paste(cropped.resize(size, Image.Resampling.BILINEAR), self._offset(size))
        return square.convert("RGB")

    def uncropped(self, heat: np.ndarray) -> np.ndarray:
        """Put a map (h, w) of a ``picture`` of any size back into the slice's rows and columns; 0 outside."""
        size = self._size_in_pixels()
        (left, top), side = self._offset(size), max(size)
        whole = Image.fromarray(heat.astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR)
        rows, columns = self._crop
        shape = columns.stop - columns.start, rows.stop - rows.start
        part = whole.crop((left, top, left + size[0], top + size[1])).resize(shape, Image.Resampling.BILINEAR)
        slice_ = np.zeros(self.array.shape[1:], np.float32)
        slice_[self._crop] = np.asarray(part)
        return slice_

    def back(self, array: np.ndarray) -> np.ndarray:
        """Turn an array like ``self.array`` back to the input's axes, or its grid; a mask stays one."""
        if self.resampled:
            back = np.linalg.inv(self._to_input)
            order = 1 if np.issubdtype(array.dtype, np.floating) else 0
            return affine_transform(array, back[:3, :3], back[:3, 3], self.volume.array.shape, order=order)
        return np.ascontiguousarray(nibabel.orientations.apply_orientation(array, self._turn_back))

    def input_index(self, k: int) -> int:
        """The index of slice k along ``slice_axis`` of the input."""
        return k if self._turn[self.slice_axis, 1] > 0 else len(self.array) - 1 - k

    def position(self, k: int) -> float:
        """Millimetres of the slice's centre along the plane's axis, to the right, anterior or superior."""
        index = (np.array(self.volume.array.shape) - 1) / 2
        index[self.slice_axis] = self.input_index(k)
        world = self.volume.affine @ np.append(index, 1)
        return float(world[("sagittal", "coronal", "axial").index(self.plane)])

    def side(self, heat: np.ndarray) -> str | None:
        """On which side of the head (the patient's) the map's weight lies: ``left``, ``right`` or ``middle``."""
        if self.plane == "sagittal" or not heat.any():
            return None
        columns = self._crop[1]
        centre = (heat.sum(0) @ np.arange(heat.shape[1]) / heat.sum() - columns.start) / (columns.stop - columns.start)
        return "middle" if abs(centre - 0.5) < 0.05 else "left" if centre > 0.5 else "right"

    @property
    def step(self) -> float:
        """Millimetres from slice to slice."""
        return self._steps[0]

    def _size_in_pixels(self) -> tuple[int, int]:
        """Width and height of the cropped slice in square pixels."""
        rows, columns = self._crop
        pixel = min(self._steps[1:])
        sides = (columns.stop - columns.start) * self._steps[2], (rows.stop - rows.start) * self._steps[1]
        return round(sides[0] / pixel), round(sides[1] / pixel)

    @staticmethod
    def _offset(size: tuple[int, int]) -> tuple[int, int]:
        return (max(size) - size[0]) // 2, (max(size) - size[1]) // 2


def key_images(answer: VolumePrediction, count: int = 3) -> dict[int, Image.Image]:
    """Return the strongest key slices as the model saw them, upright and cropped to the head, by index in the input."""
    upright = Upright(answer.volume)
    places = {upright.input_index(k): k for k in upright.head_slices()}
    return {index: upright.picture(places[index]) for index in answer.key_slices[:count]}


def combine(upright: Upright, answers: dict[int, Prediction], appearance: Appearance | None = None) -> VolumePrediction:
    """Combine the answers to slices, by their place in ``upright``, to one for the volume.

    P(tumour) is the highest mean over ``WINDOW_MM`` of neighbouring slices (three at least) within ``BAND``; the kinds
    of tumour share it as in that stretch.
    """
    volume, places = upright.volume, sorted(answers)
    low, high = (places[0] + share * (places[-1] - places[0]) for share in BAND[upright.plane])
    used = [k for k in places if low <= k <= high] or places
    tumours = [name for name in LABELS if name != NO_TUMOR]
    suspicion = np.array([1 - answers[k].probabilities[NO_TUMOR] for k in used])
    length = min(max(3, round(WINDOW_MM / upright.step)), len(used))
    means = np.convolve(suspicion, np.ones(length) / length, "valid")
    first = int(means.argmax())
    stretch = used[first : first + length]
    shares = np.array([np.mean([answers[k].probabilities[name] for k in stretch]) for name in tumours])
    p_tumour = float(means[first])
    kinds = dict(zip(tumours, (p_tumour * shares / max(shares.sum(), 1e-12)).tolist(), strict=True))
    probabilities = {name: 1 - p_tumour if name == NO_TUMOR else kinds[name] for name in LABELS}
    label = max(probabilities, key=probabilities.__getitem__)
    sequence, warnings = _sequence(volume, appearance)
    if appearance and appearance.plane and appearance.plane != upright.plane:
        warnings += (f"the slices look {appearance.plane}, although by the geometry they are {upright.plane}",)
    decision, reason = _decide(volume, sequence, label, [answers[k] for k in stretch], [answers[k] for k in used])
    files = volume.slice_files
    slices = sorted(
        (
            SliceAnswer(
                index := upright.input_index(k),
                upright.position(k),
                1 - answers[k].probabilities[NO_TUMOR],
                dict(answers[k].probabilities),
                used=k in used,
                sop_instance_uid=files[index].sop_instance_uid
                if files and upright.slice_axis == 2 and files[index]
                else None,
            )
            for k in places
        ),
        key=lambda slice_: slice_.index,
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
        slices=tuple(slices),
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
    if sequence.name not in MEASURED_SEQUENCES:
        return UNFAMILIAR, f"the kinds of tumour were not measured on this sequence ({SEQUENCE_TITLES[sequence.name]})"
    if sequence.source == "pixels":
        return UNCERTAIN, "that it is T1 with contrast is told by its pixels alone"
    agreeing = sum(answer.decision == ANSWER and answer.label == label for answer in stretch)
    if agreeing > len(stretch) / 2:
        return ANSWER, None
    return UNCERTAIN, "its most suspicious slices are not sure, or not of one mind"
