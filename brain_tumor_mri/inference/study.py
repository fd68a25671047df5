"""Several sequences of one patient: ``predict_studies(classifier, "study_folder")`` answers each, then all together.

The rule is fixed and was fitted to nothing: whether there is a tumour is the mean of T1 with contrast and FLAIR, which
show it best; which kind, by the sequences on which the kinds were measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..images.sequence import SEQUENCE_TITLES, SequenceGuess
from ..images.series import Series, UnreadableVolumeError, find_series
from ..labels import LABELS, NO_TUMOR
from ..trust.decision import ANSWER, NOT_A_BRAIN_MRI, UNCERTAIN, UNFAMILIAR
from .prediction import MEASURED_SEQUENCES
from .volume import VolumeClassifier, VolumePrediction

EXPECTED = ("t1", "t1c", "t2", "flair")
"""Sequences of a usual examination for a tumour; what is not there is said."""
SHOW_TUMOUR = ("t1c", "flair")
"""Sequences that say whether there is a tumour, where one of them is there."""
NOT_COMBINED = ("dwi", "adc", "other")


@dataclass(frozen=True, eq=False)
class StudyPrediction:
    """The answer for one patient's examination.

    Attributes:
        name: the folder, file or zip as it was given.
        volumes: the answer to each series, or its error.
        label: the class, one of ``labels.LABELS``; None when no series has an answer.
        confidence: the probability of ``label``.
        probabilities: class name -> probability in [0, 1], in the order of ``labels.LABELS``.
        decision: one of ``decision.DECISIONS``; None of a model without ``trust.json``, and where there is no answer.
        reason: of a decision that is not ``answer``, after "because"; else None.
        error: why there is no answer, one line; else None.
        used: names of the volumes that the answer was made of.
        missing: sequences of ``EXPECTED`` that are not there, or could not be answered.
        study_uid: StudyInstanceUID; None of other formats.
    """

    name: str
    volumes: tuple[VolumePrediction, ...]
    label: str | None = None
    confidence: float | None = None
    probabilities: dict[str, float] = field(default_factory=dict)
    decision: str | None = None
    reason: str | None = None
    error: str | None = None
    used: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    study_uid: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for ``json.dumps``; of the volumes their names, as each has a ``to_dict``."""
        return {**self.__dict__, "volumes": [volume.name for volume in self.volumes]}


def predict_studies(
    classifier: VolumeClassifier,
    source: str | Path | Mapping[str, str | Path],
    *,
    heat_map: bool = False,
    on_slice: Callable[[int, int], None] | None = None,
) -> Iterator[StudyPrediction]:
    """Answer each examination that a file, folder or zip holds.

    DICOM series of one study are one examination; other volumes are one with those of the same folder.

    Args:
        classifier: answers the series.
        source: path; or sequence, as of ``images.series.SEQUENCES``, -> path of its volume, all of one patient.
        heat_map: as of ``VolumeClassifier.predict``.
        on_slice: as of ``VolumeClassifier.predict``.

    Raises:
        UnreadableVolumeError: there is no volume.
    """
    if isinstance(source, Mapping):
        name = ", ".join(f"{sequence}={path}" for sequence, path in source.items())
        groups: dict[Any, list[Series]] = {(name, None): [_named(*given) for given in source.items()]}
    else:
        groups = defaultdict(list)
        for series in find_series(source):
            folder = str(Path(series.name).parent)
            groups[(str(source), series.study_uid) if series.frames else (folder, None)].append(series)
    for number, ((name, uid), members) in enumerate(groups.items(), 1):
        volumes = tuple(classifier.predict_all(members, heat_map=heat_map, on_slice=on_slice))
        if len(members) == 1:
            name = members[0].name
        elif uid and len(groups) > 1:
            name = f"{name} [study {number}]"
        yield combine_study(name, volumes, uid)


def combine_study(name: str, volumes: Sequence[VolumePrediction], study_uid: str | None = None) -> StudyPrediction:
    """Combine the answers to the series of one patient.

    A sequence that is there several times counts once, by the mean. Where T1 with contrast and FLAIR disagree on
    whether there is a tumour, the decision is ``uncertain``; without a measured sequence it is ``unfamiliar``.
    """
    answered = [v for v in volumes if v.error is None and v.sequence not in NOT_COMBINED]
    brains = [v for v in answered if v.decision != NOT_A_BRAIN_MRI]
    missing = tuple(name for name in EXPECTED if name not in {v.sequence for v in brains})
    whole = StudyPrediction(name, tuple(volumes), missing=missing, study_uid=study_uid)
    if not answered:
        errors = [v.error for v in volumes if v.error]
        return replace(whole, error=errors[0] if len(errors) == 1 else "none of its series can be answered")
    if not brains:
        return replace(whole, decision=NOT_A_BRAIN_MRI, reason="its series do not look like brain MRI")
    by_sequence = {
        sequence: np.mean([[v.probabilities[c] for c in LABELS] for v in brains if v.sequence == sequence], axis=0)
        for sequence in dict.fromkeys(v.sequence for v in brains)
    }
    none = LABELS.index(NO_TUMOR)
    showing = [s for s in by_sequence if s in SHOW_TUMOUR] or list(by_sequence)
    measured = [s for s in by_sequence if s in MEASURED_SEQUENCES]
    p_tumour = float(np.mean([1 - by_sequence[s][none] for s in showing]))
    kinds = np.mean([by_sequence[s] for s in measured or showing], axis=0)
    kinds[none] = 0
    values = p_tumour * kinds / max(kinds.sum(), 1e-12)
    values[none] = 1 - p_tumour
    probabilities = dict(zip(LABELS, values.tolist(), strict=True))
    label = max(probabilities, key=probabilities.__getitem__)
    decision, reason = _decide(brains, measured, label, [by_sequence[s][none] < 0.5 for s in showing])
    return replace(
        whole,
        label=label,
        confidence=probabilities[label],
        probabilities=probabilities,
        decision=decision,
        reason=reason,
        used=tuple(v.name for v in brains if v.sequence in {*showing, *measured}),
    )


def _decide(
    brains: Sequence[VolumePrediction], measured: Sequence[str], label: str, tumours: Sequence[bool]
) -> tuple[str | None, str | None]:
    if any(v.decision is None for v in brains):
        return None, None
    if not measured:
        there = ", ".join(SEQUENCE_TITLES[s] for s in dict.fromkeys(v.sequence for v in brains))
        return UNFAMILIAR, f"there is no T1 with contrast, on which the kinds of tumour were measured, but {there}"
    deciding = [v for v in brains if v.sequence in measured]
    if len(set(tumours)) > 1:
        return UNCERTAIN, "T1 with contrast and FLAIR disagree on whether there is a tumour"
    # the decision of the measured series that is of the same mind, the surest first
    for decision in (ANSWER, UNCERTAIN, UNFAMILIAR):
        for volume in deciding:
            if volume.decision == decision and (volume.label == label or decision != ANSWER):
                return decision, volume.reason
    return UNCERTAIN, "its series are not of one mind"


def _named(sequence: str, path: str | Path) -> Series:
    """The one series of a path, whose sequence is given."""
    guess = SequenceGuess(sequence, "given", "given")
    try:
        found = find_series(path)
    except UnreadableVolumeError as error:
        return Series(str(path), Path(path), guess, fault=error.reason)
    usable = [series for series in found if not series.fault] or found
    if len(usable) > 1:
        return Series(str(path), Path(path), guess, fault=f"holds {len(usable)} series; give the folder of one")
    return replace(usable[0], sequence=guess)
