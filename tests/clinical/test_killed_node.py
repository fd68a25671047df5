"""kill -9 of the node at eleven moments, Orthanc stopped and started: every series is answered once."""

import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="pip install 'brain-tumor-mri[clinical]'")
from clinical.killed_node import MOMENTS
from clinical.orthanc import Orthanc
from clinical.synthetic_series import push, series

from brain_tumor_mri.clinical.queue import Queue

SERIES = 14
pytestmark = [
    pytest.mark.orthanc,
    pytest.mark.skipif(not shutil.which("Orthanc"), reason="apt install orthanc orthanc-dicomweb"),
]


def send_until_taken(port: int, name: str) -> None:
    """As a scanner does: again until each slice was taken."""
    for _ in range(200):
        try:
            return push(port, series(name))
        except (AssertionError, AttributeError, RuntimeError, ValueError):  # no association, or it broke off
            time.sleep(0.3)
    raise AssertionError("the node never took it")


def test_every_series_is_answered_once_whenever_the_node_or_orthanc_dies(tmp_path) -> None:
    (tmp_path / "orthanc").mkdir()
    orthanc = Orthanc(tmp_path / "orthanc").start()
    script = Path(__file__).with_name("killed_node.py")
    names = [f"killed {n}" for n in range(SERIES)]
    for name in names:
        orthanc.upload(series(name))  # as of a PACS that routes
    command = [sys.executable, str(script), str(tmp_path / "node"), str(orthanc.node), orthanc.web]
    with (tmp_path / "deaths").open("w") as deaths, (tmp_path / "log").open("w") as log:
        node = subprocess.Popen(command, stdout=deaths, stderr=log)
    sender = threading.Thread(target=lambda: [send_until_taken(orthanc.node, name) for name in names])
    queue = Queue(tmp_path / "node" / "queue.sqlite")
    try:
        sender.start()
        until(lambda: len(queue.entries()) > 4)
        orthanc.stop()
        time.sleep(3)
        orthanc.start()
        sender.join(300)
        assert not sender.is_alive()
        until(lambda: len((tmp_path / "deaths").read_text().splitlines()) == len(MOMENTS))
        until(lambda: [e.state for e in queue.entries()] == ["done"] * SERIES, queue)
        assert orthanc.rest("/statistics")["CountInstances"] == (6 + 3) * SERIES
        for name in names:
            assert orthanc.modalities(str(series(name)[0].StudyInstanceUID)) == ["OT", "SEG", "SR"]
        died = (tmp_path / "deaths").read_text().splitlines()
        assert died == [f"{-signal.SIGKILL} {name}" for name in MOMENTS]
        until(lambda: not any((tmp_path / "node" / "inbox").iterdir()))
    finally:
        node.terminate()
        node.wait(30)
        orthanc.stop()


def until(holds, queue: Queue | None = None) -> None:
    """Wait until something holds."""
    for _ in range(1200):
        if holds():
            return
        time.sleep(0.2)
    raise AssertionError([(e.state, e.reason) for e in queue.entries()] if queue else "it never held")
