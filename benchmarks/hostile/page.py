"""Visit the running page as one who means harm: costly files, paths, URLs, slow and broken connections, kills; Linux.

    python benchmarks/hostile/page.py --model model-lite --output results/hostile/page.json

Starts the real ``app.py`` with a folder of its own and asks it over HTTP, on the loopback alone. A port listens to hear
whether the page calls where a visitor names it. At last the page is killed, and started again, to see what becomes of
its uploads. Each part has its time; one that does not end in it is recorded as such, and the next begins.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness import run, write_slices
from benchmarks.hostile.samples import costly_files, mutations, whole_files
from benchmarks.hostile.visitor import META, Connections, Listener, Page, upload_head
from benchmarks.speed.page_load import Server, measure_users

CLOSED_S = 90
"""Seconds by which a connection that sends nothing, or too little, must be gone; the page's limit is 20."""
SWEPT_S = 90
PART_LIMIT_S = 300
"""Seconds by which old uploads must be gone after a start."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="model-lite", help="folder of the weights")
    parser.add_argument("--files", type=int, default=200, help="spoiled files, besides the costliest")
    parser.add_argument(
        "--seconds", type=float, default=240, help="no further files, and no further paths, after so long"
    )
    parser.add_argument("--connections", type=int, default=60, help="of each kind that is slow")
    parser.add_argument("--users", type=int, default=60, help="asking at once, beside slow connections")
    parser.add_argument("--seed", type=int, default=0)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    record: dict[str, Any] = {"model": Path(args.model).name, "seed": args.seed}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        slices = write_slices(folder / "slices", 40)
        with Server(args.model, folder / "first") as server:
            server.wait()
            page = Page(server.url)
            assert page.ask("PNG", whole_files(np.random.default_rng(0))["PNG"])[0] == "answer"  # the model is there
            with Memory(server.process.pid) as memory:
                record["files"] = within(PART_LIMIT_S + args.seconds, lambda: files(page, args, memory))
            record["names"] = within(PART_LIMIT_S + args.seconds, lambda: names(page, args))
            record["uploads"] = within(PART_LIMIT_S, lambda: uploads(page))
            users = partial(measure_users, page.url, slices, args.users, 1)
            record["slow"] = within(PART_LIMIT_S, lambda: slow(page, args.connections, users))
            log = server.log.read_text(errors="replace")
            record["log"] = {"tracebacks": log.count("Traceback"), "names_of_files": log.count("surname")}
            server.process.kill()
            server.process.wait()
        record["kill"] = within(PART_LIMIT_S, lambda: after_a_kill(args.model, folder / "first", slices[0]))
    return record | {"summary": summary(record)}


def within(seconds: float, part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a part found; where it does not end in time, how long it got."""

    def stop(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return part()
    except TimeoutError:
        return {"did_not_end_in_s": seconds}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class Memory:
    """Watches the page and its children; ``peak_mb`` holds the most of each, page and reader."""

    def __init__(self, pid: int) -> None:
        self._parent = psutil.Process(pid)
        self.peak_mb = {"page": 0.0, "reader": 0.0}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def readers_cpu_s(self) -> dict[int, float]:
        """Processor seconds of each child."""
        found = {}
        for child in self._parent.children(recursive=True):
            with suppress(psutil.Error):
                found[child.pid] = sum(child.cpu_times()[:2])
        return found

    def _watch(self) -> None:
        while not self._end.wait(0.02):
            with suppress(psutil.Error):
                children = self._parent.children(recursive=True)
                for name, processes in (("page", [self._parent]), ("reader", children)):
                    used = sum(process.memory_info().rss for process in processes) / 1e6
                    self.peak_mb[name] = max(self.peak_mb[name], used)


def files(page: Page, args: argparse.Namespace, memory: Memory) -> dict[str, Any]:
    """Spoiled and costly files, one after the other."""
    end = time.monotonic() + args.seconds
    outcomes: Counter[str] = Counter()
    slowest: list[tuple[float, str]] = []
    costly = []

    def asked(kind: str, content: bytes) -> tuple[str, float, float]:
        before = memory.readers_cpu_s()
        outcome, seconds = page.ask(kind, content)
        spent = [used - before.get(pid, 0.0) for pid, used in memory.readers_cpu_s().items()]
        outcomes[outcome] += 1
        slowest.append((seconds, kind))
        return outcome, seconds, max(spent, default=0.0)

    for kind, content in costly_files():
        outcome, seconds, spent = asked(kind, content)
        costly.append({"kind": kind, "bytes": len(content), "outcome": outcome, "seconds": round(seconds, 2)})
        costly[-1]["reader_cpu_s"] = round(spent, 2)
    source: Iterable[tuple[str, bytes]] = islice(mutations(args.seed), args.files)
    for kind, content in source:
        if time.monotonic() > end:
            break
        asked(kind, content)
    worst, kind = max(slowest)
    return {
        "files": len(slowest),
        "outcomes": dict(outcomes),
        "crashes_and_hangs": sum(count for name, count in outcomes.items() if name not in ("answer", "line")),
        "worst_seconds": {"seconds": round(worst, 2), "kind": kind},
        "peak_mb": {name: round(value) for name, value in memory.peak_mb.items()},
        "costliest_cpu_s": max(one["reader_cpu_s"] for one in costly),
        "costly": costly,
    }


def names(page: Page, args: argparse.Namespace) -> dict[str, Any]:
    """Files by URL and by path, in every endpoint that there is; in an order by the seed, as many as time allows."""
    statuses: Counter[int] = Counter()
    with closing(Listener()) as listener:
        requests = list(_naming(page, f"http://127.0.0.1:{listener.port}/x.png"))
        random.Random(args.seed).shuffle(requests)
        end = time.monotonic() + args.seconds
        for send in requests:
            if time.monotonic() > end:
                break
            statuses[send().status_code] += 1
        time.sleep(1)
        visits = listener.visits
    refused = sum(count for status, count in statuses.items() if 400 <= status < 500)
    return {
        "there_are": len(requests),
        "requests": statuses.total(),
        "refused": refused,
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "calls_of_the_page_to_a_url": visits,
        "answers_after": page.ask("PNG", whole_files(np.random.default_rng(1))["PNG"])[0],
    }


def _naming(page: Page, url: str) -> Iterator[Callable[[], httpx.Response]]:
    """Requests that name a file of the server, or one elsewhere, in each way that the page's own requests do."""
    functions = page._http.get("/config").json()["dependencies"]
    public = [function["api_name"] for function in functions if function["api_visibility"] == "public"]
    for path in (url, "/etc/passwd", "../../../../etc/passwd", "/proc/self/environ", "a\0b", f"{os.getcwd()}/app.py"):
        file = {"path": path, "url": url, "meta": META}
        for data in ([file], [[file]], [{"deep": [file]}]):
            for name in public:
                for route in (f"call/{name}", f"run/{name}", f"api/{name}"):
                    yield partial(page.post, route, {"data": data})
                yield partial(page.post, f"call/v2/{name}", {"file": file, "files": data})
            for function in functions:
                body = {"data": data, "fn_index": function["id"], "session_hash": "hostile"}
                yield partial(page.post, "queue/join", body)
        for route in ("file=", "file/", "proxy="):
            yield partial(page.get, route + path.replace("\0", "%00"))


def uploads(page: Page) -> dict[str, Any]:
    """Uploads that are announced together and do not come: the place for all of them is bounded."""
    size = 190 * 2**20
    statuses = []
    with closing(Connections()) as connections:
        for _ in range(20):
            connections.open(page.port, upload_head(size) + b"x")
            time.sleep(0.2)
        time.sleep(1)
        statuses = [connections.status(number) for number in range(20)]
    json_status = page._http.post("/gradio_api/queue/join", content=b'"' + bytes(2 * 2**20) + b'"').status_code
    return {
        "announced_mb": 20 * size // 2**20,
        "let_in_mb": statuses.count(0) * size // 2**20,
        "refused": statuses.count(507),
        "status_of_2_mb_of_json": json_status,
    }


def slow(page: Page, number: int, visit: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Connections that send nothing, half a head, a head byte by byte, or half an upload, while others ask."""
    kinds = {
        "nothing": b"",
        "half_a_head": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        "a_head_byte_by_byte": b"GET / HTTP/1.1\r\nX: ",
        "half_an_upload": upload_head(1000),
    }
    opened: dict[str, Connections] = {name: Connections() for name in kinds}
    began = time.monotonic()
    for name, sent in kinds.items():
        for _ in range(number):
            opened[name].open(page.port, sent)
    users = visit()
    closed: dict[str, float] = {}
    while len(closed) < len(kinds) and time.monotonic() - began < CLOSED_S:
        opened["a_head_byte_by_byte"].dribble()
        for name, connections in opened.items():
            if name not in closed and not connections.left():
                closed[name] = round(time.monotonic() - began, 1)
        time.sleep(1)
    left = {name: connections.left() for name, connections in opened.items() if name not in closed}
    for connections in opened.values():
        connections.close()
    return {
        "connections": number * len(kinds),
        "closed_after_s": closed,
        "left": left,
        "not_closed": sum(left.values()),
        "users": users,
    }


def after_a_kill(model: str, folder: Path, slice_: Path) -> dict[str, Any]:
    """Kill the page with uploads whole, broken off and empty; they look eleven minutes old when it is started again."""
    with Server(model, folder.with_name("second")) as server:
        server.wait()
        page = Page(server.url)
        page.ask("JPEG", slice_.read_bytes())
        with closing(Connections()) as connections:
            for _ in range(5):
                connections.open(page.port, upload_head(100_000) + bytes(5_000))
            time.sleep(2)
            own = server._own
            server.process.kill()
            server.process.wait()
        left = [path for path in server.uploads.rglob("*") if path.is_file() and path not in own]
        (server.uploads / "tmpempty12").touch()
        old = time.time() - 11 * 60
        for path in server.uploads.rglob("*"):
            os.utime(path, (old, old))
        began = time.monotonic()
        with Server("no-such-model", folder.with_name("second")) as second:  # nobody asks it
            while (stay := [path for path in left if path.exists()]) and time.monotonic() - began < SWEPT_S:
                time.sleep(0.5)
            alive = second.process.poll() is None
    return {
        "left_by_the_kill": len(left) + 1,
        "left_after_the_next_start": len(stay) + (server.uploads / "tmpempty12").exists(),
        "seconds": round(time.monotonic() - began, 1),
        "page_runs": alive,
    }


ROWS = {
    "files": (
        ["files", "{files}", "crashes and hangs: {crashes_and_hangs}"],
        ["costliest file", "{costliest_cpu_s} s of its reader", "reader {peak_mb[reader]} MB, page {peak_mb[page]} MB"],
    ),
    "names": (["paths and URLs", "{refused} of {requests} refused", "{calls_of_the_page_to_a_url} calls"],),
    "uploads": (["uploads announced", "{announced_mb} MB", "let in: {let_in_mb} MB"],),
    "slow": (
        ["slow connections", "{connections}", "not closed: {not_closed}"],
        ["users beside them", "{users[users]}", "failed: {users[failures]}"],
    ),
    "kill": (["uploads left by a kill", "{left_by_the_kill}", "after a start: {left_after_the_next_start}"],),
    "log": (["log", "{tracebacks} tracebacks", "{names_of_files} names of files"],),
}
"""Part of the record -> rows to print: what was tried, what came of it."""


def summary(record: dict[str, Any]) -> list[list[str]]:
    """The rows of each part, or that it did not end."""
    rows = []
    for name, shown in ROWS.items():
        if "did_not_end_in_s" in record[name]:
            rows.append([name, f"did not end in {record[name]['did_not_end_in_s']:g} s", "-"])
        else:
            rows += [[text.format(**record[name]) for text in row] for row in shown]
    return rows


if __name__ == "__main__":
    raise SystemExit(run(__doc__, add_arguments, measure, output="results/hostile/page.json"))
