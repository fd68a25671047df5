"""files.py: JSON and text files, as they are written and as their errors read."""

import os
import stat
import threading
from pathlib import Path

import pytest

from brain_tumor_mri import machine
from brain_tumor_mri.errors import UserError, first_line
from brain_tumor_mri.files import check_writable, read_json, write_json, write_text
from brain_tumor_mri.machine import cpu_count


def test_writing_through_a_link_keeps_the_link_and_the_mode(tmp_path: Path) -> None:
    real = tmp_path / "real.json"
    real.write_text("{}")
    real.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to(real)
    write_json(link, {"a": 1})
    assert link.is_symlink()
    assert read_json(real) == {"a": 1}
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.json", "real.json"]


def test_a_pipe_and_a_device_are_written_into_and_stay(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "through")
    reader.join(10)
    assert read == ["through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    write_text("/dev/null", "gone")
    assert not Path("/dev/null").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^/dev/full cannot be written: No space left on device$"):
        write_text("/dev/full", "x")


def test_a_failed_write_leaves_the_old_file_and_nothing_beside(tmp_path: Path) -> None:
    target = tmp_path / "kept.json"
    target.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(target, "\udcff")
    assert [p.name for p in tmp_path.iterdir()] == ["kept.json"]
    assert target.read_text() == "old"


def test_what_is_wrong_with_a_json_file_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    for content, said in [
        (None, "is missing"), (b"{", "no valid JSON"), (b"\xff", "no valid JSON"), (b"[]", "holds no JSON object"),
        (b"[" * 100_000, "no valid JSON"),
    ]:  # fmt: skip
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(UserError, match=said) as caught:
            read_json(file, "write it again")
        assert str(caught.value).startswith(str(file)) and str(caught.value).endswith("; write it again")
        assert "\n" not in str(caught.value)


def test_an_unwritable_place_is_found_before_the_work(tmp_path: Path) -> None:
    check_writable(tmp_path / "new.json")
    check_writable("/dev/null")
    with pytest.raises(UserError, match=r"--csv .* there is no folder"):
        check_writable(tmp_path / "missing" / "x.csv", "--csv")
    with pytest.raises(UserError, match="is a folder"):
        check_writable(tmp_path)


def test_an_error_becomes_its_first_line() -> None:
    assert first_line(ValueError("one.\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
    assert first_line(OSError(28, "No space left on device", "x")) == "No space left on device"


def test_processors_are_those_that_the_process_may_use() -> None:
    assert 1 <= cpu_count() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize("limit", ["cpu.max", "cpu.cfs_quota_us"])
def test_a_containers_limit_counts_as_its_processors(
    limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_control_groups", lambda: [tmp_path])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(os, "process_cpu_count", lambda: 64, raising=False)
    (tmp_path / limit).write_text("250000 100000" if limit == "cpu.max" else "250000")
    (tmp_path / "cpu.cfs_period_us").write_text("100000")
    assert machine.cpu_count.__wrapped__() == 3
