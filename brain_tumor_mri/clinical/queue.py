"""The node's memory on disk: ``Queue(path)`` knows of every series whether it waits, was answered, or why not.

SQLite, each change one transaction: after kill -9 the next start goes on where this one was.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, first_line

RECEIVING, INCOMPLETE, WORKING, DONE, FAILED, DISCARDED = (
    "receiving", "incomplete", "working", "done", "failed", "discarded",
)  # fmt: skip
FIRST_WAIT = 5.0
"""Seconds to the second try; doubles each time."""
LONGEST_WAIT = 600.0
_TABLE = """create table if not exists series (
    uid text primary key, study text not null, state text not null, source text not null, instances integer not null,
    changed real not null, attempts integer not null default 0, next_try real not null default 0,
    reason text not null default '')"""


@dataclass(frozen=True)
class Entry:
    """One series: its UIDs, state, where it comes from (``dimse``, ``dicomweb``), slices, tries, times and reason."""

    uid: str
    study: str
    state: str
    source: str
    instances: int
    changed: float
    attempts: int
    next_try: float
    reason: str


class Queue:
    """Series and their states; safe to use from several threads and processes.

    Args:
        path: of the SQLite file; made where it is missing.
        max_attempts: tries until a series has failed.

    Raises:
        UserError: the file cannot be made or is none of SQLite.
    """

    def __init__(self, path: str | Path, max_attempts: int = 8) -> None:
        self.path, self.max_attempts = Path(path), max_attempts
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as db:
                db.execute(_TABLE)
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"{self.path} cannot be opened ({first_line(error)}); give folder another place") from None

    def received(self, uid: str, study: str, source: str, instances: int) -> None:
        """Note that a series has so many instances and more may come; one that was answered or refused stays so.

        One that failed is taken up anew.
        """
        with self._open() as db:
            db.execute(
                "insert into series (uid, study, state, source, instances, changed, reason) "
                "values (?, ?, ?, ?, ?, ?, 'arriving, or the sender broke off') on conflict (uid) do update set "
                "state = excluded.state, source = excluded.source, instances = excluded.instances, "
                "changed = excluded.changed, attempts = 0, next_try = 0, reason = excluded.reason "
                "where state in (?, ?, ?)",
                (uid, study, INCOMPLETE, source, instances, time.time(), RECEIVING, INCOMPLETE, FAILED),
            )

    def ended(self, uid: str, whole: bool) -> None:
        """Note how the association that sent the series ended: with a release (whole) or broken off."""
        with self._open() as db:
            db.execute(
                "update series set state = ?, reason = ?, changed = ?, next_try = 0 where uid = ? and state in (?, ?)",
                (RECEIVING if whole else INCOMPLETE, "" if whole else "the sender broke off; waits for the rest",
                 time.time(), uid, RECEIVING, INCOMPLETE),
            )  # fmt: skip

    def noticed(self, uid: str, study: str, instances: int) -> None:
        """Note how many instances a PACS has of a series; its time to be stable starts anew where that changed.

        One of which the sender broke off is fetched from there instead.
        """
        with self._open() as db:
            db.execute(
                "insert into series (uid, study, state, source, instances, changed) values (?, ?, ?, ?, ?, ?) "
                "on conflict (uid) do update set state = excluded.state, source = excluded.source, "
                "instances = excluded.instances, changed = excluded.changed, attempts = 0, next_try = 0, reason = '' "
                "where state = ? or (state in (?, ?) and source = excluded.source and instances != excluded.instances)",
                (uid, study, RECEIVING, "dicomweb", instances, time.time(), INCOMPLETE, RECEIVING, FAILED),
            )

    def claim(self, stable_seconds: float) -> Entry | None:
        """Take the next series that is complete and due, or None; what a killed process had taken comes first.

        One that was taken ``max_attempts`` times without an end has failed: it may be what kills the process.
        """
        now = time.time()
        with self._open() as db:
            db.execute(
                "update series set state = ?, changed = ?, reason = ? where state = ? and attempts >= ?",
                (FAILED, now, "the node ended each time in the midst of it", WORKING, self.max_attempts),
            )
            row = db.execute(
                "select * from series where next_try <= ? and (state = ? or (state = ? and changed <= ?)) "
                "order by state = ? desc, changed limit 1",
                (now, WORKING, RECEIVING, now - stable_seconds, WORKING),
            ).fetchone()
            if row is None:
                return None
            db.execute("update series set state = ?, attempts = attempts + 1 where uid = ?", (WORKING, row["uid"]))
            return Entry(**{**dict(row), "state": WORKING, "attempts": row["attempts"] + 1})

    def broken_off(self, stable_seconds: float) -> list[Entry]:
        """Series whose sender broke off and has been silent since; each is told again a minute later."""
        now = time.time()
        with self._open() as db:
            rows = db.execute(
                "select * from series where state = ? and changed <= ? and next_try <= ?",
                (INCOMPLETE, now - stable_seconds, now),
            ).fetchall()
            db.execute(
                "update series set next_try = ? where state = ? and changed <= ? and next_try <= ?",
                (now + 60, INCOMPLETE, now - stable_seconds, now),
            )
            return [Entry(**dict(row)) for row in rows]

    def state(self, uid: str) -> str | None:
        """The state of a series, or None of one never heard of."""
        with self._open() as db:
            row = db.execute("select state from series where uid = ?", (uid,)).fetchone()
            return row["state"] if row else None

    def wait_again(self, uid: str, instances: int) -> None:
        """Wait until a series that was taken is stable: there are more instances of it by now."""
        with self._open() as db:
            db.execute(
                "update series set state = ?, instances = ?, changed = ?, attempts = 0 where uid = ?",
                (RECEIVING, instances, time.time(), uid),
            )

    def again(self, uid: str) -> bool:
        """Take up anew a series that failed, was discarded or waits for its rest; whether it is one of these."""
        with self._open() as db:
            changed = db.execute(
                "update series set state = ?, changed = ?, attempts = 0, next_try = 0, reason = 'taken up anew' "
                "where uid = ? and state in (?, ?, ?)",
                (RECEIVING, time.time(), uid, FAILED, DISCARDED, INCOMPLETE),
            )
            return changed.rowcount == 1

    def finish(self, uid: str, state: str, reason: str = "") -> None:
        """End a series: ``DONE``, ``DISCARDED`` or ``FAILED``."""
        with self._open() as db:
            db.execute("update series set state = ?, reason = ?, changed = ? where uid = ?",
                       (state, reason, time.time(), uid))  # fmt: skip

    def retry(self, entry: Entry, reason: str, *, for_ever: bool = False) -> None:
        """Try a series again later, later each time, or let it fail after the last try unless it is tried for ever."""
        if entry.attempts >= self.max_attempts and not for_ever:
            return self.finish(entry.uid, FAILED, reason)
        wait = min(FIRST_WAIT * 2 ** (entry.attempts - 1), LONGEST_WAIT)
        with self._open() as db:
            db.execute("update series set next_try = ?, reason = ?, attempts = ? where uid = ?",
                       (time.time() + wait, reason, min(entry.attempts, self.max_attempts - 1), entry.uid))  # fmt: skip
        return None

    def entries(self) -> list[Entry]:
        """All series, the latest change last."""
        with self._open() as db:
            return [Entry(**dict(row)) for row in db.execute("select * from series order by changed")]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        db.row_factory = sqlite3.Row
        try:
            db.execute("begin immediate")
            yield db
            if db.in_transaction:
                db.execute("commit")
        finally:
            db.close()
