"""Which series a file, folder or zip holds, and what each is: ``find_series("study.zip")`` -> ``[Series, ...]``.

Of a header nothing but numbers and codes goes out.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError, first_line, safe_line
from .archive import EXAMINATIONS, Archive, ArchiveError, is_archive
from .find import VOLUME_SUFFIXES
from .frames import Frame, frames_of, header_of
from .header import number_of
from .quiet import quiet_pydicom
from .sequence import SequenceGuess, dicom_physics, sequence_of_file, tell_sequence

if TYPE_CHECKING:
    from pydicom import Dataset

MAX_FILES = 20_000
"""Most files of a folder that are looked into."""

_DAMAGED = "damaged: the headers of its files cannot be read"
_NOT_FILES = {"dicomdir", "thumbs.db", "desktop.ini"}


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
            found = [Series(name, path, sequence_of_file(str(path)))]
        elif is_archive(path):
            found = _of_zip(path, name)
        else:
            found = _of_dicom([(name, path)], path, name)
    except OSError as error:
        raise UnreadableVolumeError(name, first_line(error)) from error
    if not found:
        raise UnreadableVolumeError(name, "holds no volume: NIfTI, MGZ, NRRD, MHA or DICOM series")
    return found


def _of_folder(folder: Path, name: str) -> list[Series]:
    files: list[Path] = []
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        own = (Path(where, n) for n in sorted(names) if not n.startswith(".") and n.lower() not in _NOT_FILES)
        files += filter(Path.is_file, own)  # no link to nowhere, no pipe that waits for ever
        if len(files) > MAX_FILES:
            raise UnreadableVolumeError(name, f"the folder holds over {MAX_FILES:,} files; give its studies one by one")
    volumes = [file for file in files if is_volume_file(file)]
    others = [(str(file), file) for file in files if not is_volume_file(file)]
    return [*_of_dicom(others, folder, name), *(Series(str(v), v, sequence_of_file(str(v))) for v in volumes)]


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
    volumes = [
        Series(f"{name}/{m}", path, sequence_of_file(m), members={m: members[m]}) for m in members if is_volume_file(m)
    ]
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
    with quiet_pydicom():
        for file, content in files:
            header = header_of(content)
            if header is not None:
                key = (str(header.get("StudyInstanceUID", "")), str(header.get("SeriesInstanceUID", "")))
                groups[key].append((file, header))
        found = [_numbered_series(members, path, name) for members in groups.values()]
    found.sort(key=lambda pair: (pair[1].study_uid or "", pair[0], pair[1].series_uid or ""))
    if len(found) == 1:
        return [found[0][1]]
    return [replace(series, name=f"{name} [{n}]") for n, (_, series) in enumerate(found, 1)]


def _numbered_series(members: list[tuple[str, Dataset]], path: Path, name: str) -> tuple[int, Series]:
    """A series number, and the series of these files."""
    try:
        return int(number_of(members[0][1].get("SeriesNumber")) or 0), _one_series(members, path, name)
    except Exception:  # as in header_of
        return 0, Series(name, path, SequenceGuess(), fault=_DAMAGED)


def _one_series(members: list[tuple[str, Dataset]], path: Path, name: str) -> Series:
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
            frames += frames_of(file, header, uid)
        except Exception as error:  # as in header_of
            notes.append(f"a file whose header is damaged was left out ({type(error).__name__})")
            continue
    first = members[0][1]
    modality = str(first.get("Modality") or "MR").strip().upper()
    physics = dicom_physics(first)
    text = " ".join(str(first.get(k) or "") for k in ("SeriesDescription", "ProtocolName"))
    if modality != "MR":
        fault = f"a series of modality {modality if modality.isalnum() and len(modality) < 8 else 'other'}, not MR"
    elif int(first.get("SamplesPerPixel") or 1) != 1:
        fault = "a series of colour pictures, not of slices"
    elif "LOCALIZER" in physics.image_type:
        fault = "a localiser, not an examination"
    elif not frames:
        fault = _DAMAGED
    return Series(
        name,
        path,
        tell_sequence(physics, text),
        tuple(frames),
        {},
        str(first.get("StudyInstanceUID") or "") or None,
        str(first.get("SeriesInstanceUID") or "") or None,
        fault,
        tuple(dict.fromkeys(notes)),
    )
