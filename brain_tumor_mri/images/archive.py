"""Zip files of strangers, read without writing: ``Archive("slices.zip")`` lists members, ``read`` gives their bytes.

Nothing is extracted: a member's name is a label to show and never a path, so that none can leave a folder. What a small
file could cost (members, bytes, overlapping or endlessly repeated data) has a limit that is checked while unpacking, as
the sizes that an archive declares may be lies. Everything wrong becomes :class:`ArchiveError`, one line.
"""

import os
import stat
import zipfile
import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType

from ..errors import UserError

MAX_ARCHIVE_BYTES = 200 * 2**20
"""Largest archive that is opened: ``MAX_MEMBERS`` slices of 400 kB."""
MAX_MEMBERS = 500
MAX_MEMBER_BYTES = 20 * 2**20
"""Largest member, unpacked."""
MAX_TOTAL_BYTES = 512 * 2**20
"""Most that all members may unpack to."""
MAX_RATIO = 200
"""Most that a member of over a megabyte may grow; deflate reaches 1,032 on zeros, image files hardly grow at all."""
_SMALL = 2**20


@dataclass(frozen=True)
class Limits:
    """What an archive may cost: bytes as packed, members, bytes of a member and of all of them unpacked."""

    archive_bytes: int
    members: int
    member_bytes: int
    total_bytes: int


EXAMINATIONS = Limits(2 * 2**30, 20_000, 2**30, 4 * 2**30)
"""Of zips of whole examinations, whose members are read one at a time; others keep to the limits above."""

_CENTRAL_ENTRY = b"PK\x01\x02"
_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
_LOCAL_HEADER = 30  # bytes before a member's name
_SKIPPED_FOLDERS = {"__MACOSX"}
_SKIPPED_FILES = {"thumbs.db", "desktop.ini", "dicomdir"}


class ArchiveError(UserError):
    """An archive or a member cannot be read; ``reason`` is the line without the name.

    Attributes:
        reason: what is wrong, for a person.
    """

    def __init__(self, name: str, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{name}: {reason}")


class Archive:
    """The members of one zip file that may be images.

    Folders, hidden files and what operating systems add are left out.

    Attributes:
        name: the archive, as errors call it.
        members: the members' names as text to show, in the archive's order; at least one.
    """

    def __init__(self, path: str | Path, name: str | None = None, limits: Limits | None = None) -> None:
        """Read the archive's table of contents.

        Args:
            path: of the zip file.
            name: what errors call it; by default the file's name.
            limits: what it may cost; by default that of a batch of slices.

        Raises:
            ArchiveError: no zip file, damaged, too large, too many members, members that overlap, or none.
        """
        self.name = shown_name(name if name is not None else Path(path).name)
        self._unpacked = 0
        allowed = limits or Limits(MAX_ARCHIVE_BYTES, MAX_MEMBERS, MAX_MEMBER_BYTES, MAX_TOTAL_BYTES)
        self._limits = allowed
        try:
            if os.path.getsize(path) > allowed.archive_bytes:
                raise ArchiveError(
                    self.name, f"the archive is over {allowed.archive_bytes // 2**20} MB; send it in parts"
                )
            # Each entry starts with this mark, whatever the counts in the archive claim; counted before zipfile makes
            # an object of each. A mark within packed data is one in 2**32, so twice as many are let through here.
            if _count(path, _CENTRAL_ENTRY) > 2 * allowed.members + 1000:
                raise ArchiveError(self.name, f"the archive holds over {allowed.members} files; send it in parts")
            self._zip = zipfile.ZipFile(path)
        except OSError as error:
            raise ArchiveError(self.name, error.strerror or "the archive cannot be read") from error
        except (zipfile.BadZipFile, ValueError, NotImplementedError, UnicodeError) as error:
            raise ArchiveError(self.name, "the zip archive is damaged; make or download it again") from error
        try:
            self._infos = [info for info in self._zip.infolist() if _may_be_image(info)]
            if len(self._infos) > allowed.members:
                raise ArchiveError(self.name, f"the archive holds over {allowed.members} files; send it in parts")
            if not self._infos:
                raise ArchiveError(self.name, "the archive holds no files")
            if _overlap(self._zip.infolist()):
                raise ArchiveError(self.name, "files overlap in the archive, as in a decompression bomb")
        except ArchiveError:
            self.close()
            raise
        self.members: list[str] = [shown_name(info.filename) for info in self._infos]

    def read(self, number: int) -> bytes:
        """Return the content of ``members[number]``.

        Raises:
            ArchiveError: the member is damaged, encrypted, a link, another archive, too large, packed too tightly, or
                all members together exceed their limit.
        """
        info, name = self._infos[number], self.members[number]
        if info.flag_bits & 0x1:
            raise ArchiveError(name, "encrypted in the archive; pack it without a password")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ArchiveError(name, "a link, not a file; pack the file itself")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ArchiveError(name, "packed by a method other than deflate; pack it in the usual way")
        left = self._limits.total_bytes - self._unpacked
        limit = min(self._limits.member_bytes, max(MAX_RATIO * info.compress_size, _SMALL), left)
        try:
            with self._zip.open(info) as stream:
                content = stream.read(limit + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError):
            raise ArchiveError(name, "damaged in the archive; pack it again") from None
        self._unpacked += len(content)
        if len(content) > limit:
            raise ArchiveError(name, self._too_much(limit, left))
        if content.startswith(_STARTS):
            raise ArchiveError(name, "an archive within the archive is not opened; unpack it first")
        if not content:
            raise ArchiveError(name, "the file is empty")
        return content

    def _too_much(self, limit: int, left: int) -> str:
        if limit == left:
            return f"the archive unpacks to over {self._limits.total_bytes // 2**20} MB; send it in parts"
        if limit == self._limits.member_bytes:
            return f"over {limit // 2**20} MB when unpacked"
        return f"unpacks to over {MAX_RATIO} times its packed size, as a decompression bomb does"

    def close(self) -> None:
        """Close the file."""
        self._zip.close()

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def is_archive(path: str | Path) -> bool:
    """Whether a file starts as a zip archive does; False where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(4) in _STARTS
    except (OSError, ValueError):
        return False


def shown_name(name: str) -> str:
    """A name as text on one line: no control characters, no undecodable bytes, 1 to 200 characters."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name) or "(no name)"
    return text if len(text) <= 200 else f"...{text[-197:]}"


def _count(path: str | Path, mark: bytes) -> int:
    """How often ``mark`` stands in a file, which is read in pieces."""
    count, tail = 0, b""
    with open(path, "rb") as file:
        while piece := file.read(_SMALL):
            count += (tail + piece).count(mark)
            tail = piece[1 - len(mark) :]  # too short to hold a mark, so that none is counted twice
    return count


def _may_be_image(info: zipfile.ZipInfo) -> bool:
    parts = info.filename.replace("\\", "/").split("/")
    hidden = any(part.startswith(".") and part not in (".", "..") for part in parts)
    foreign = parts[0] in _SKIPPED_FOLDERS or parts[-1].lower() in _SKIPPED_FILES
    return not ((parts[-1] == "" and info.filename) or hidden or foreign)  # is_dir() fails where there is no name


def _overlap(infos: list[zipfile.ZipInfo]) -> bool:
    """Whether two members share bytes: one packed stream under many names (D. Fifield, A better zip bomb, 2019)."""
    spans = sorted((i.header_offset, i.header_offset + _LOCAL_HEADER + i.compress_size) for i in infos)
    return any(start < end for (_, end), (start, _) in pairwise(spans))
