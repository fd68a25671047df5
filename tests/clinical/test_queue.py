"""The queue on disk: each series is answered once, whatever is killed when."""

import os
import signal
import subprocess
import sys

from brain_tumor_mri.clinical import queue as q
from brain_tumor_mri.clinical.queue import Queue


def test_a_series_is_claimed_when_it_is_stable_and_only_once(tmp_path) -> None:
    queue = Queue(tmp_path / "q.sqlite")
    queue.received("1.2", "1", "dimse", 3)
    queue.ended("1.2", whole=True)
    assert queue.claim(stable_seconds=60) is None
    assert queue.claim(stable_seconds=0).uid == "1.2"
    queue.finish("1.2", q.DONE)
    queue.received("1.2", "1", "dimse", 4)
    assert queue.claim(stable_seconds=0) is None


def test_half_a_series_waits_until_the_rest_came(tmp_path) -> None:
    queue = Queue(tmp_path / "q.sqlite")
    queue.received("1.2", "1", "dimse", 3)
    queue.ended("1.2", whole=False)
    assert queue.claim(0) is None and "broke off" in queue.entries()[0].reason
    queue.received("1.2", "1", "dimse", 6)
    assert queue.claim(0) is None
    queue.ended("1.2", whole=True)
    assert queue.claim(0).instances == 6


def test_a_failing_series_is_tried_again_later_and_then_fails_with_its_reason(tmp_path, monkeypatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(q.time, "time", lambda: now[0])
    queue = Queue(tmp_path / "q.sqlite", max_attempts=2)
    queue.received("1.2", "1", "dimse", 3)
    queue.ended("1.2", whole=True)
    queue.retry(queue.claim(0), "no route")
    assert queue.claim(0) is None
    now[0] += q.FIRST_WAIT
    queue.retry(queue.claim(0), "no route")
    assert [(e.state, e.reason) for e in queue.entries()] == [(q.FAILED, "no route")]


def test_what_a_killed_process_had_taken_is_taken_again(tmp_path) -> None:
    Queue(tmp_path / "q.sqlite").received("1.2", "1", "dimse", 3)
    Queue(tmp_path / "q.sqlite").ended("1.2", whole=True)
    code = f"""
import os, signal
from brain_tumor_mri.clinical.queue import Queue
assert Queue({str(tmp_path / "q.sqlite")!r}).claim(0)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, timeout=60).returncode == -signal.SIGKILL
    assert Queue(tmp_path / "q.sqlite").claim(0).attempts == 2


def test_what_kills_the_process_each_time_fails_at_last(tmp_path) -> None:
    queue = Queue(tmp_path / "q.sqlite", max_attempts=2)
    queue.received("1.2", "1", "dimse", 3)
    queue.ended("1.2", whole=True)
    assert queue.claim(0) and queue.claim(0) and queue.claim(0) is None
    assert queue.state("1.2") == q.FAILED


def test_a_pacs_that_is_off_is_waited_for_without_end(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(q, "FIRST_WAIT", 0.0)
    queue = Queue(tmp_path / "q.sqlite", max_attempts=2)
    queue.received("1.2", "1", "dimse", 3)
    queue.ended("1.2", whole=True)
    for _ in range(5):
        queue.retry(queue.claim(0), "off", for_ever=True)
    assert queue.state("1.2") == q.WORKING


def test_a_series_of_the_pacs_is_stable_when_its_count_no_longer_changes(tmp_path, monkeypatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(q.time, "time", lambda: now[0])
    queue = Queue(tmp_path / "q.sqlite")
    queue.noticed("1.2", "1", 3)
    now[0] += 40
    queue.noticed("1.2", "1", 4)
    assert queue.claim(30) is None
    now[0] += 40
    queue.noticed("1.2", "1", 4)
    assert queue.claim(30).instances == 4


def test_what_failed_is_taken_up_anew_when_it_is_sent_again_or_asked_for(tmp_path) -> None:
    queue = Queue(tmp_path / "q.sqlite")
    queue.received("1.2", "1", "dimse", 3)
    queue.finish("1.2", q.FAILED, "damaged")
    queue.received("1.2", "1", "dimse", 3)
    queue.ended("1.2", whole=True)
    assert queue.claim(0).attempts == 1
    queue.finish("1.2", q.DONE)
    assert not queue.again("1.2")
    queue.finish("1.2", q.DISCARDED)
    assert queue.again("1.2") and queue.claim(0)
