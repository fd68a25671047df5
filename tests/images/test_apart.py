"""Files of strangers in a process of their own: the same pictures, and limits that no decoder can pass."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from brain_tumor_mri import UnreadableImageError
from brain_tumor_mri.images import apart
from brain_tumor_mri.images.apart import ReaderApart
from brain_tumor_mri.images.facts import slice_facts
from brain_tumor_mri.images.read import load_image


@pytest.fixture(scope="module")
def reader() -> Iterator[ReaderApart]:
    reader = ReaderApart()
    yield reader
    reader.close()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def ending(monkeypatch: pytest.MonkeyPatch, code: str) -> ReaderApart:
    """A reader whose child runs ``code`` in place of reading a file."""
    start = apart.subprocess.Popen
    child = f"from brain_tumor_mri.images import apart\ndef hostile(*_, **__):\n    {code}\napart.load_image = hostile"
    monkeypatch.setattr(
        apart.subprocess,
        "Popen",
        lambda command, **options: start([*command[:2], f"{child}\napart.serve()"], **options),
    )
    return ReaderApart()


@pytest.mark.parametrize("way", [str, lambda path: Path(path).read_bytes()])
def test_a_picture_and_its_header_are_those_of_this_process(reader: ReaderApart, picture: Path, way):
    for path in (str(picture), get_testdata_file("MR_small.dcm")):
        image, facts = reader.read(way(path), "x")
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), np.asarray(load_image(path)))
        assert facts == slice_facts(way(path))


def test_errors_name_the_file_and_the_child_lives_on(reader: ReaderApart, picture: Path, tmp_path: Path):
    reader.read(str(picture), "x")
    child = reader._child
    (tmp_path / "bad.png").write_text("no image")
    for source in (str(tmp_path / "bad.png"), str(tmp_path / "missing.png"), b"no image"):
        with pytest.raises(UnreadableImageError, match=r"^shown: ") as caught:
            reader.read(source, "shown")
        assert str(tmp_path) not in str(caught.value)
    reader.read(str(picture), "x")
    assert reader._child is child


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no such limits")
@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("while True: pass", "over 5 s of computing"),
        ("bytearray(2 * 2**30)", "more memory"),
        ("import os; os._exit(3)", "ended the reader"),
        ("import ctypes; ctypes.string_at(0)", "ended the reader"),
    ],
)
def test_a_file_that_computes_for_ever_takes_all_memory_or_kills_costs_one_line(
    monkeypatch: pytest.MonkeyPatch, picture: Path, code: str, words: str
):
    if "computing" in words:  # a test need not wait for the whole of it
        code = "import signal; signal.setitimer(signal.ITIMER_PROF, 0.2)\n    " + code
    reader = ending(monkeypatch, code)
    with pytest.raises(UnreadableImageError, match=words):
        reader.read(str(picture), "hostile.png")
    monkeypatch.undo()
    reader.close()
    assert reader.read(str(picture), "next.png")[0].size == (40, 30)
    reader.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no such limits")
def test_the_child_sets_itself_a_limit_of_computing_for_each_file(monkeypatch: pytest.MonkeyPatch, picture: Path):
    reader = ending(monkeypatch, "import signal; assert 4 < signal.getitimer(signal.ITIMER_PROF)[0] < 5.1; 1 / 0")
    with pytest.raises(UnreadableImageError, match="division by zero"):
        reader.read(str(picture), "x")
    reader.close()


def test_a_child_that_waits_is_ended_by_the_clock(monkeypatch: pytest.MonkeyPatch, picture: Path):
    monkeypatch.setattr(ReaderApart, "wall_seconds", 0.5)
    reader = ending(monkeypatch, "import time; time.sleep(60)")
    with pytest.raises(UnreadableImageError, match="computing"):
        reader.read(str(picture), "x")
    reader.close()


def test_no_two_files_are_read_at_once_and_close_leaves_no_process(picture: Path):
    reader = ReaderApart()
    found: list[tuple[int, int]] = []
    threads = [threading.Thread(target=lambda: found.append(reader.read(str(picture), "x")[0].size)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [(40, 30)] * 8
    child = psutil.Process(reader._child.pid)
    reader.close()
    assert not child.is_running()
