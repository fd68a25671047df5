"""Which series a file, folder or zip holds, and what each is: ``find_series("study.zip")`` -> ``[Series, ...]``.

A series is told to be T1, FLAIR and so on by the physics in its header first (echo times cannot be misspelt), by its
description or file name second; the evidence is kept. Of a header nothing but numbers and codes goes out.
"""

from __future__ import annotations

import json
import logging
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread

from ..errors import UserError, first_line, safe_line
from .archive import EXAMINATIONS, Archive, ArchiveError, is_archive
from .find import VOLUME_SUFFIXES

SEQUENCES = ("t1", "t1c", "t2", "flair", "pd", "dwi", "adc", "other", "unknown")
"""What ``tell_sequence`` says; ``t1c`` is T1 with contrast, ``other`` a map or sequence that is none of the others."""
SEQUENCE_TITLES = {
    "t1": "T1", "t1c": "T1 with contrast", "t2": "T2", "flair": "FLAIR", "pd": "PD", "dwi": "DWI", "adc": "ADC map",
    "other": "another sequence", "unknown": "unknown sequence",
}  # fmt: skip
MAX_FILES = 20_000
"""Most files of a folder that are looked into."""

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_NOT_FILES = {"dicomdir", "thumbs.db", "desktop.ini"}

# pydicom's warnings and log quote values of the header, which names a patient
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")


class UnreadableVolumeError(UserError):
    """A volume cannot be read, or is none that can be answered; one line that says why.

    Attributes:
        name: the input as it was given.
        reason: what is wrong with it.
    """

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, safe_line(reason)
        super().__init__(f"{safe_line(name)}: {self.reason}")

    def __reduce__(self) -> tuple[type[UnreadableVolumeError], tuple[str, str]]:
        return type(self), (self.name, self.reason)  # to come back from a worker process


@dataclass(frozen=True)
class Physics:
    """What a header says of how the picture came to be; None or empty where it says nothing.

    Attributes:
        repetition_time: TR in ms.
        echo_time: TE in ms.
        inversion_time: TI in ms.
        flip_angle: degrees.
        scanning: Scanning Sequence, of SE, IR, GR, EP, RM.
        variant: Sequence Variant, such as SP (spoiled), SS (steady state), MP (magnetisation prepared).
        image_type: words of Image Type.
        contrast: whether a contrast agent is recorded.
        b_value: of diffusion, s/mm2.
        angiography: whether it is flagged as such.
    """

    repetition_time: float | None = None
    echo_time: float | None = None
    inversion_time: float | None = None
    flip_angle: float | None = None
    scanning: frozenset[str] = frozenset()
    variant: frozenset[str] = frozenset()
    image_type: frozenset[str] = frozenset()
    contrast: bool = False
    b_value: float | None = None
    angiography: bool = False


@dataclass(frozen=True)
class SequenceGuess:
    """Which sequence it is, and what told it.

    Attributes:
        name: one of ``SEQUENCES``.
        evidence: such as ``TR 9000 ms, TE 100 ms, TI 2500 ms``; empty where nothing told.
        source: ``header``, ``description``, ``file name``, ``pixels``, ``given``, or empty.
    """

    name: str = "unknown"
    evidence: str = ""
    source: str = ""


@dataclass(frozen=True)
class Frame:
    """One slice of a DICOM file, before its pixels are decoded.

    Attributes:
        file: path, or the member's name in a zip.
        number: from 0, of a multi-frame file; None of a file with one frame.
        uid: SOPInstanceUID.
        shape: (rows, columns).
        spacing: millimetres between (rows, columns).
        orientation: of rows and columns, six cosines in LPS; None where it is missing.
        position: of the first pixel in LPS millimetres; None where it is missing.
        location: Slice Location in mm.
        instance: Instance Number.
        part: what tells volumes of one series apart: echo, b-value, time, image type.
        thickness: mm from slice to slice by the header, where it says so.
    """

    file: str
    number: int | None
    uid: str
    shape: tuple[int, int]
    spacing: tuple[float, float]
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    location: float | None
    instance: int
    part: tuple[Any, ...]
    thickness: float | None


@dataclass(frozen=True, eq=False)
class Series:
    """One series, or one file that is a volume; nothing is decoded yet.

    Attributes:
        name: the input as given; of one of several series, with the series' number.
        path: of the file, folder or zip.
        sequence: what it is.
        frames: of DICOM, in no order; empty of other formats.
        members: of a zip, the numbers of its members by name.
        study_uid: StudyInstanceUID; None of other formats.
        series_uid: SeriesInstanceUID; None of other formats.
        fault: why it is nothing to answer, one line; else None.
        warnings: what was odd, a line each.
    """

    name: str
    path: Path
    sequence: SequenceGuess
    frames: tuple[Frame, ...] = ()
    members: dict[str, int] = field(default_factory=dict)
    study_uid: str | None = None
    series_uid: str | None = None
    fault: str | None = None
    warnings: tuple[str, ...] = ()


def is_volume_file(path: str | Path) -> bool:
    """Whether a file's name says that it is a volume."""
    return str(path).lower().endswith(VOLUME_SUFFIXES)


def find_series(path: str | Path) -> list[Series]:
    """List what a file, folder or zip holds: DICOM series by study and series number, then other volumes by name.

    Raises:
        UnreadableVolumeError: it is missing, damaged, or holds no volume.
    """
    path, name = Path(path), str(path)
    try:
        if path.is_dir():
            found = _of_folder(path, name)
        elif not path.exists():
            raise UnreadableVolumeError(name, "no such file or folder")
        elif is_volume_file(path):
            found = [Series(name, path, _of_file(str(path)))]
        elif is_archive(path):
            found = _of_zip(path, name)
        else:
            found = _of_dicom([(name, path)], path, name)
    except OSError as error:
        raise UnreadableVolumeError(name, first_line(error)) from error
    if not found:
        raise UnreadableVolumeError(name, "holds no volume: NIfTI, MGZ, NRRD, MHA or DICOM series")
    return found


def tell_sequence(physics: Physics, text: str = "", source: str = "description") -> SequenceGuess:
    """Say which sequence it is: by physics, else by text; text also adds contrast to a T1.

    The limits of TR, TE and TI are those of textbooks, with gaps between them: what falls into one is ``unknown``.

    Args:
        physics: of the header.
        text: description, protocol or file name.
        source: what ``text`` is.
    """
    name, evidence = _by_physics(physics)
    named, contrast = _by_text(text)
    shown = f"{source} says {SEQUENCE_TITLES[named]}" if named else ""
    if name == "t1" and contrast and named in (None, "t1", "t1c"):
        return SequenceGuess("t1c", f"{evidence}; {source} says contrast", "header")
    if name:
        if named and named != name and not (name == "t1c" and named == "t1"):
            evidence += f" (although the {shown})"
        return SequenceGuess(name, evidence, "header")
    return SequenceGuess(named, shown, source) if named else SequenceGuess()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom's log, which quotes the header, off stderr meanwhile."""
    log = logging.getLogger("pydicom")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _by_physics(physics: Physics) -> tuple[str | None, str]:
    """Sequence and evidence; None where the header leaves it open."""
    tr, te, ti = physics.repetition_time, physics.echo_time, physics.inversion_time
    flip, scan = physics.flip_angle, physics.scanning
    numbers = [f"{title} {value:g} ms" for title, value in (("TR", tr), ("TE", te), ("TI", ti)) if value]
    shown = ", ".join(numbers + (["/".join(sorted(scan))] if scan else []))
    if physics.image_type & {"ADC", "EADC", "APPARENT DIFFUSION COEFFICIENT"}:
        return "adc", "image type ADC"
    if physics.image_type & {"DIFFUSION", "TRACEW", "TRACE"} or (physics.b_value or 0) > 0:
        return "dwi", f"b-value {physics.b_value:g}" if physics.b_value else "image type diffusion"
    maps = physics.image_type & {
        "FA", "TENSOR", "PERFUSION", "CBF", "CBV", "MTT", "TTP", "SUBTRACTION", "SUBTRACT", "PHASE", "P", "T1 MAP",
        "T2 MAP", "PROJECTION IMAGE", "MIP", "MIN IP", "SWI", "PHASE MAP", "VELOCITY",
    }  # fmt: skip
    if maps or physics.angiography:
        return "other", f"image type {sorted(maps)[0]}" if maps else "flagged as angiography"
    if te is None or tr is None or "EP" in scan:
        return None, ""
    t1 = ("t1c", f"{shown}, contrast agent recorded") if physics.contrast else ("t1", shown)
    if "GR" in scan and "SE" not in scan:
        prepared = "MP" in physics.variant or bool(ti and 400 <= ti <= 1400)
        if prepared and te < 8:
            return t1
        if te > 14 and not ti:
            return "other", f"{shown}: T2*"
        # a bSSFP or time-of-flight echo looks alike but for the flip angle: what could be either stays open
        spoiled = "SP" in physics.variant
        if spoiled and te < 10 and flip and ((tr < 15 and flip >= 8) or flip >= 28):
            return t1
        return None, ""
    if ti and tr >= 4000 and 1500 <= ti <= 3200 and te >= 60:
        return "flair", shown
    if ti and 80 <= ti <= 300 and tr >= 1500:
        return "other", f"{shown}: STIR"
    if ti and 400 <= ti <= 1200 and te <= 40 and tr <= 3500:
        return t1  # inversion recovery T1, also called T1 FLAIR
    if ti or "IR" in scan or not scan:
        return None, ""
    if tr <= 1000 and te <= 30:
        return t1
    if tr >= 1800 and te <= 40:
        return "pd", shown
    if 1800 <= tr < 7000 and te >= 70:
        return "t2", shown
    return None, ""


_WORDS = (
    ("adc", r"adc|apparent"),
    ("dwi", r"dwi|diff(usion)?|trace|ep2d.?diff|b ?1000|dti"),
    ("other", r"swi|swan|t2 ?\*|t2star|gre|hemo|tof|angio|mra|mrv|perf(usion)?|asl|stir|fmri|bold|map|fa|cbv|cbf"),
    ("flair", r"t2 ?-?flair|t2f|t2w?.?tirm|dark.?fl(uid)?|flair|tirm|fl"),
    ("t1", r"t1\w*|mp.?rage|mpr|spgr|bravo|tfl|vibe|mp2rage|tfe|thrive|fspgr"),
    ("pd", r"pd\w?|dp|proton|dens\w*"),
    ("t2", r"t2\w*|tse2|t2n"),
)
_CONTRAST = re.compile(r"gd|gad\w*|post\w*|contrast\w*|c\+|\+ ?c|ce|mdc|km|t1 ?w?(c|ce|gd|post|\+c)\w*|con|kontr\w*|c")


def _by_text(text: str) -> tuple[str | None, bool]:
    """Sequence that words of a description name, None where they name none or several; and whether contrast is."""
    words = re.findall(r"[a-z0-9*+]+", re.sub(r"(?<=[a-z0-9])(?=\+)", " ", text.lower()))
    joined = " ".join(words)
    no_contrast = re.search(r"\b(pre|without|no|non|sans|ohne|senza)\b", joined)
    contrast = not no_contrast and any(_CONTRAST.fullmatch(word) for word in words)
    found = {name for name, pattern in _WORDS if any(re.fullmatch(pattern, word) for word in words)}
    if re.search(r"t2 (star|\*)", joined):
        found = {"other"}
    if found == {"t1", "flair"}:
        found = {"t1"}  # T1 FLAIR is a T1
    if found == {"t2", "flair"}:
        found = {"flair"}
    if "other" in found and re.search(r"\b(t1|mprage)\w*\b", joined) and re.search(r"\bgre\b", joined):
        found = {"t1"}
    if found == {"t1"} and contrast:
        return "t1c", True
    return (found.pop() if len(found) == 1 else None), contrast


def _of_file(path: str) -> SequenceGuess:
    """Of a volume in one file: by the BIDS sidecar beside it, else by its name."""
    stem = next(path[: -len(s)] for s in sorted(VOLUME_SUFFIXES, key=len, reverse=True) if path.lower().endswith(s))
    physics, described = Physics(), ""
    try:
        sidecar = Path(stem + ".json")
        tags = json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.stat().st_size < 2**20 else {}
        physics, described = _bids_physics(tags), f"{tags.get('SeriesDescription', '')} {tags.get('ProtocolName', '')}"
    except (OSError, ValueError, TypeError, AttributeError):
        pass
    guess = tell_sequence(physics, described)
    return guess if guess.name != "unknown" else tell_sequence(physics, Path(stem).name, "file name")


def _bids_physics(tags: dict[str, Any]) -> Physics:
    def ms(key: str) -> float | None:
        return 1000 * float(tags[key]) if isinstance(tags.get(key), int | float) else None

    return Physics(
        ms("RepetitionTime"),
        ms("EchoTime"),
        ms("InversionTime"),
        float(tags["FlipAngle"]) if isinstance(tags.get("FlipAngle"), int | float) else None,
        _codes(re.split(r"[\\_/]", str(tags.get("ScanningSequence", "")))),
        _codes(re.split(r"[\\_/]", str(tags.get("SequenceVariant", "")))),
        _codes(tags.get("ImageType") or []),
        bool(tags.get("ContrastBolusIngredient")),
    )


def _of_folder(folder: Path, name: str) -> list[Series]:
    files: list[Path] = []
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        files += [Path(where, n) for n in sorted(names) if not n.startswith(".") and n.lower() not in _NOT_FILES]
        if len(files) > MAX_FILES:
            raise UnreadableVolumeError(name, f"the folder holds over {MAX_FILES:,} files; give its studies one by one")
    volumes = [file for file in files if is_volume_file(file)]
    others = [(str(file), file) for file in files if not is_volume_file(file)]
    return [*_of_dicom(others, folder, name), *(Series(str(v), v, _of_file(str(v))) for v in volumes)]


def _of_zip(path: Path, name: str) -> list[Series]:
    members: dict[str, int] = {}
    faults: list[str] = []
    try:
        with Archive(path, limits=EXAMINATIONS) as archive:
            for number, member in enumerate(archive.members):  # names that are shown alike are still two members
                members[member if member not in members else f"{member} ({number})"] = number
            found = _of_dicom(_contents(archive, members, faults), path, name)
    except ArchiveError as error:
        raise UnreadableVolumeError(name, error.reason) from error
    volumes = [Series(f"{name}/{m}", path, _of_file(m), members={m: members[m]}) for m in members if is_volume_file(m)]
    if faults and not found and not volumes:
        raise UnreadableVolumeError(name, faults[0])
    notes = (f"{len(faults)} files of the archive were left out ({faults[0]})",) if faults else ()
    found = [
        replace(s, members={frame.file: members[frame.file] for frame in s.frames}, warnings=s.warnings + notes)
        for s in found
    ]
    return [*found, *volumes]


def _contents(archive: Archive, members: dict[str, int], faults: list[str]) -> Iterator[tuple[str, bytes]]:
    """What may be DICOM, one member at a time; why others could not be read goes to ``faults``."""
    for member, number in members.items():
        if not is_volume_file(member):
            try:
                yield member, archive.read(number)
            except ArchiveError as error:
                faults.append(error.reason)


def _of_dicom(files: Iterable[tuple[str, Path | bytes]], path: Path, name: str) -> list[Series]:
    """Group what is DICOM among the files; the rest is passed over."""
    groups: dict[tuple[str, str], list[tuple[str, Dataset]]] = defaultdict(list)
    with quiet():
        for file, content in files:
            header = _header(content)
            if header is not None:
                key = (str(header.get("StudyInstanceUID", "")), str(header.get("SeriesInstanceUID", "")))
                groups[key].append((file, header))
        found = [_one_series(members, path, name) for members in groups.values()]
    found.sort(key=lambda pair: (pair[1].study_uid or "", pair[0], pair[1].series_uid or ""))
    if len(found) == 1:
        return [found[0][1]]
    return [replace(series, name=f"{name} [{n}]") for n, (_, series) in enumerate(found, 1)]


def _header(content: Path | bytes) -> Dataset | None:
    """The header of a DICOM image; None of any other file."""
    if isinstance(content, bytes):
        head = content[:4096]
    else:
        with content.open("rb") as file:
            head = file.read(4096)
    if head[128:132] != b"DICM" and head[:2] not in (b"\x02\0", b"\x08\0"):
        return None
    if _DEFLATED in head:
        return None
    try:
        source = BytesIO(content) if isinstance(content, bytes) else content
        header = dcmread(source, stop_before_pixels=True, force=True)
        return header if header.get("Rows") and header.get("Columns") else None
    except Exception:  # damaged headers raise nearly anything
        return None


def _one_series(members: list[tuple[str, Dataset]], path: Path, name: str) -> tuple[int, Series]:
    """A series number, and the series of these files."""
    notes: list[str] = []
    seen: set[str] = set()
    frames: list[Frame] = []
    fault = None
    for file, header in members:
        uid = str(header.get("SOPInstanceUID", "")) or file
        if uid in seen:
            notes.append("files that are there twice were read once")
            continue
        seen.add(uid)
        try:
            frames += _frames(file, header, uid)
        except Exception as error:  # as in _header
            notes.append(f"a file whose header is damaged was left out ({type(error).__name__})")
            continue
    first = members[0][1]
    modality = str(first.get("Modality") or "MR").strip().upper()
    physics = _dicom_physics(first)
    text = " ".join(str(first.get(k) or "") for k in ("SeriesDescription", "ProtocolName"))
    if modality != "MR":
        fault = f"a series of modality {modality if modality.isalnum() and len(modality) < 8 else 'other'}, not MR"
    elif int(first.get("SamplesPerPixel") or 1) != 1:
        fault = "a series of colour pictures, not of slices"
    elif "LOCALIZER" in physics.image_type:
        fault = "a localiser, not an examination"
    number = first.get("SeriesNumber")
    return (
        int(number) if number not in (None, "") else 0,
        Series(
            name,
            path,
            tell_sequence(physics, text),
            tuple(frames),
            {},
            str(first.get("StudyInstanceUID") or "") or None,
            str(first.get("SeriesInstanceUID") or "") or None,
            fault,
            tuple(dict.fromkeys(notes)),
        ),
    )


def _frames(file: str, header: Dataset, uid: str) -> list[Frame]:
    count = int(header.get("NumberOfFrames") or 1)
    numbers: list[int | None] = [None] if count == 1 else list(range(count))
    return [_frame(file, header, uid, number) for number in numbers]


def _frame(file: str, header: Dataset, uid: str, number: int | None) -> Frame:
    def get(group: str, keyword: str) -> Any:
        return of_frame(header, number or 0, group, keyword)

    spacing = _numbers(get("PixelMeasuresSequence", "PixelSpacing"), 2) or (1.0, 1.0)
    content = "FrameContentSequence"
    part = tuple(
        number_of(value)
        for value in (
            get("MREchoSequence", "EffectiveEchoTime") or header.get("EchoTime"),
            get("MRDiffusionSequence", "DiffusionBValue"),
            get(content, "TemporalPositionIndex") or header.get("TemporalPositionIdentifier"),
        )
    )
    instance = get(content, "InStackPositionNumber") or header.get("InstanceNumber")
    gap = number_of(get("PixelMeasuresSequence", "SpacingBetweenSlices"))
    return Frame(
        file,
        number,
        uid,
        (int(header.Rows), int(header.Columns)),
        spacing,
        _numbers(get("PlaneOrientationSequence", "ImageOrientationPatient"), 6),
        _numbers(get("PlanePositionSequence", "ImagePositionPatient"), 3),
        number_of(header.get("SliceLocation")),
        int(number_of(instance) or 0) if number is None else int(number_of(instance) or number),
        part,
        gap or number_of(get("PixelMeasuresSequence", "SliceThickness")),
    )


def of_frame(header: Dataset, number: int, group: str, keyword: str) -> Any:
    """A value of a frame: from its functional group, the shared one, or the root, as in classic files."""
    per_frame = (header.get("PerFrameFunctionalGroupsSequence") or [])[number : number + 1]
    for holder in (*per_frame, *(header.get("SharedFunctionalGroupsSequence") or [])[:1]):
        for item in (holder.get(group) or [])[:1]:
            if item.get(keyword) not in (None, ""):
                return item[keyword].value
    return header.get(keyword)


def _dicom_physics(header: Dataset) -> Physics:
    def get(group: str, keyword: str) -> Any:
        return of_frame(header, 0, group, keyword)

    timing, modifier = "MRTimingAndRelatedParametersSequence", "MRModifierSequence"
    agent = str(header.get("ContrastBolusAgent") or "").strip().upper()
    given = agent not in ("", "NO", "NONE", "N", "0", "FALSE", "W/O", "WITHOUT")
    scanning = _codes(header.get("ScanningSequence") or [])
    if not scanning and header.get("EchoPulseSequence"):  # enhanced MR
        kind = str(header.EchoPulseSequence).upper()
        scanning = frozenset(
            ({"SE"} if "SPIN" in kind or kind == "BOTH" else set())
            | ({"GR"} if "GRADIENT" in kind or kind == "BOTH" else set())
            | ({"IR"} if str(get(modifier, "InversionRecovery")).upper() == "YES" else set())
            | ({"EP"} if str(header.get("EchoPlanarPulseSequence")).upper() == "YES" else set())
        )
    times = header.get("InversionTime") or get(modifier, "InversionTimes")
    return Physics(
        number_of(get(timing, "RepetitionTime")),
        number_of(get("MREchoSequence", "EffectiveEchoTime") or header.get("EchoTime")),
        number_of(times),
        number_of(get(timing, "FlipAngle")),
        scanning,
        _codes(header.get("SequenceVariant") or []),
        _codes(get("MRImageFrameTypeSequence", "FrameType") or header.get("ImageType") or []),
        given or bool(header.get("ContrastBolusAgentSequence")),
        number_of(get("MRDiffusionSequence", "DiffusionBValue")),
        str(header.get("AngioFlag") or "").strip().upper() == "Y",
    )


def _codes(values: Any) -> frozenset[str]:
    values = [values] if isinstance(values, str) else values
    return frozenset(str(value).strip().upper().replace("_", " ") for value in values if str(value).strip())


def number_of(value: Any) -> float | None:
    """The first of one or several decimal numbers; None where there is none."""
    try:
        number = float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)
    except (TypeError, ValueError, IndexError):
        return None
    return number if np.isfinite(number) else None


def _numbers(values: Any, count: int) -> tuple[float, ...] | None:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None
