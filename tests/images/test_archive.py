"""Zip files that strangers send: what is read, what is refused, and that nothing is written or takes for ever."""

import io
import stat
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from brain_tumor_mri.images import archive as module
from brain_tumor_mri.images.archive import Archive, ArchiveError, is_archive, shown_name


def packed(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as target:
        for name, content in members.items():
            target.writestr(name, content)
    return path


def contents(path: Path) -> dict[str, bytes]:
    with Archive(path) as archive:
        return {name: archive.read(number) for number, name in enumerate(archive.members)}


def test_members_come_back_as_they_were_packed(tmp_path: Path):
    members = {"a.png": b"one", "folder/b.png": bytes(range(256)) * 40, "ü.png": b"three"}
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        assert contents(packed(tmp_path / "a.zip", members, compression)) == members


def test_folders_hidden_files_and_what_systems_add_are_left_out(tmp_path: Path):
    foreign = ["__MACOSX/._a.png", ".DS_Store", "x/.hidden", ".git/config", "x/Thumbs.db", "DICOMDIR"]
    path = packed(tmp_path / "a.zip", {"x/": b"", "x/a.png": b"one", **dict.fromkeys(foreign, b"no")})
    assert contents(path) == {"x/a.png": b"one"}


def test_a_member_without_a_name_is_one_like_others(tmp_path: Path):
    path = packed(tmp_path / "a.zip", {"a.png": b"one", "QQQ": b"two"})
    path.write_bytes(path.read_bytes().replace(b"QQQ", b"\0QQ"))  # what follows a zero byte is no part of a name
    assert contents(path) == {"a.png": b"one", "(no name)": b"two"}


def test_a_name_that_climbs_out_of_the_folder_writes_nothing(tmp_path: Path):
    inner = tmp_path / "deep" / "down"
    inner.mkdir(parents=True)
    names = ["../../evil.png", "/tmp/evil-absolute.png", "..\\evil.png", "C:\\evil.png", "a/../../evil.png"]
    path = packed(inner / "a.zip", dict.fromkeys(names, b"content"))
    before = sorted(tmp_path.rglob("*"))
    assert list(contents(path).values()) == [b"content"] * len(names)
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/evil-absolute.png").exists()


def test_links_are_not_followed(tmp_path: Path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as target:
        link = zipfile.ZipInfo("passwords.png")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        target.writestr(link, "/etc/passwd")
    with pytest.raises(ArchiveError, match=r"^passwords.png: a link"):
        contents(path)


def test_an_archive_in_an_archive_is_not_opened(tmp_path: Path):
    inner = packed(tmp_path / "inner.zip", {"a.png": b"one"}).read_bytes()
    with pytest.raises(ArchiveError, match=r"^renamed.png: an archive within the archive"):
        contents(packed(tmp_path / "outer.zip", {"renamed.png": inner}))


def test_a_member_that_grows_a_thousandfold_stops_early_and_in_little_memory(tmp_path: Path):
    path = packed(tmp_path / "bomb.zip", {"zeros.png": bytes(60 * 2**20)})
    tracemalloc.start()
    with Archive(path) as archive, pytest.raises(ArchiveError, match=r"zeros.png: .*decompression bomb"):
        archive.read(0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * 2**20


def test_a_declared_size_that_lies_does_not_lift_the_limit(tmp_path: Path):
    path = packed(tmp_path / "bomb.zip", {"zeros.png": bytes(30 * 2**20)})
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<L", content, content.index(mark) + offset, 1000)
    path.write_bytes(content)
    with Archive(path) as archive:
        try:
            assert len(archive.read(0)) <= 1000  # zipfile stops at the declared size
        except ArchiveError as error:
            assert "damaged" in str(error)


def test_many_members_together_have_a_limit(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "MAX_TOTAL_BYTES", 2500)
    path = packed(tmp_path / "a.zip", {f"{n}.png": bytes(1000) for n in range(4)})
    with Archive(path) as archive:
        assert len(archive.read(0)) == len(archive.read(1)) == 1000
        with pytest.raises(ArchiveError, match="send it in parts"):
            archive.read(2)


def test_too_many_members_are_refused_before_they_are_listed(tmp_path: Path):
    for count in (module.MAX_MEMBERS + 1, 100_000):
        path = tmp_path / f"{count}.zip"
        if count < 1000:
            packed(path, {f"{n}.png": b"x" for n in range(count)})
        else:  # entries alone, 46 bytes each; written by hand, as zipfile would need a minute
            entry = b"PK\x01\x02" + bytes(42)
            end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, count * len(entry), 0, 0)
            path.write_bytes(entry * count + end)
        started = time.monotonic()
        with pytest.raises(ArchiveError, match="over 500 files"):
            Archive(path)
        assert time.monotonic() - started < 2


def test_entries_are_counted_across_the_pieces_that_a_file_is_read_in(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "_SMALL", 10)
    for before in range(12):
        (tmp_path / "entries").write_bytes(b"x" * before + b"PK\x01\x02PK\x01\x02..PK\x01\x02")
        assert module._count(tmp_path / "entries", b"PK\x01\x02") == 3


def test_an_archive_and_a_member_over_their_limits_are_refused(tmp_path: Path, monkeypatch):
    path = packed(tmp_path / "a.zip", {"large.png": bytes(5000), "small.png": bytes(100)}, zipfile.ZIP_STORED)
    monkeypatch.setattr(module, "MAX_MEMBER_BYTES", 4000)
    with Archive(path) as archive:
        with pytest.raises(ArchiveError, match=r"^large.png: over"):
            archive.read(0)
        assert len(archive.read(1)) == 100
    monkeypatch.setattr(module, "MAX_ARCHIVE_BYTES", 5000)
    with pytest.raises(ArchiveError, match="send it in parts"):
        Archive(path)


def test_members_that_share_one_packed_stream_are_refused(tmp_path: Path):
    path = packed(tmp_path / "a.zip", {"a.png": bytes(1000), "b.png": bytes(1000)}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    second = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
    struct.pack_into("<L", content, second + 42, 0)  # its local header is the first one's
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match="overlap"):
        Archive(path)


def test_a_password_or_an_odd_method_is_told(tmp_path: Path):
    path = packed(tmp_path / "a.zip", {"a.png": b"one"})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match="without a password"):
        contents(path)
    with pytest.raises(ArchiveError, match="other than deflate"):
        contents(packed(tmp_path / "b.zip", {"a.png": b"one" * 100}, zipfile.ZIP_LZMA))


def test_damage_of_any_kind_is_one_line_of_this_project(tmp_path: Path):
    import random

    good = packed(tmp_path / "good.zip", {f"{n}.png": bytes([n]) * 300 for n in range(6)}).read_bytes()
    chance = random.Random(0)
    refused = 0
    for number in range(150):
        content = bytearray(good)
        if number % 3 == 0:
            content = content[: chance.randrange(1, len(content))]
        else:
            for _ in range(chance.randrange(1, 12)):
                content[chance.randrange(len(content))] = chance.randrange(256)
        path = tmp_path / "bad.zip"
        path.write_bytes(content)
        try:
            with Archive(path) as archive:
                for place in range(len(archive.members)):
                    try:
                        archive.read(place)
                    except ArchiveError as error:
                        refused += 1
                        assert "\n" not in str(error)
        except ArchiveError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50


def test_an_archive_without_files_and_one_that_is_missing_are_told(tmp_path: Path):
    with pytest.raises(ArchiveError, match="no files"):
        Archive(packed(tmp_path / "empty.zip", {}))
    with pytest.raises(ArchiveError, match=r"^gone.zip: "):
        Archive(tmp_path / "gone.zip")
    with pytest.raises(ArchiveError, match=r"^x.png: the file is empty"):
        contents(packed(tmp_path / "a.zip", {"x.png": b""}))


def test_an_archive_is_known_by_its_content_not_its_name(tmp_path: Path):
    assert is_archive(packed(tmp_path / "renamed.png", {"a": b"1"})) and is_archive(packed(tmp_path / "none", {}))
    (tmp_path / "text.zip").write_text("no archive")
    assert not is_archive(tmp_path / "text.zip") and not is_archive(tmp_path / "gone")


def test_a_name_is_shown_on_one_line_without_control_characters():
    assert shown_name("a\nb\x1b[31m\udcff.png") == "a\ufffdb\ufffd[31m\ufffd.png"
    assert len(shown_name("x" * 5000)) == 200


def test_prepended_data_is_no_way_around_the_checks(tmp_path: Path):
    buffer = io.BytesIO(b"x" * 100)
    buffer.seek(0, io.SEEK_END)
    with zipfile.ZipFile(buffer, "a") as target:
        target.writestr("a.png", b"one")
    (tmp_path / "a.zip").write_bytes(buffer.getvalue())
    assert contents(tmp_path / "a.zip") == {"a.png": b"one"}
