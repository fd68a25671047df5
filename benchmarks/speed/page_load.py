"""The page under load: start, single answers, 30 users at once, memory over 1,000 answers, files left behind.

    python benchmarks/speed/page_load.py --model model --output results/benchmarks/page.json

Starts the real ``app.py`` with folders of its own for uploads and temporary files, and asks it over HTTP: one visitor
after the other, then many gradio clients at once, which share the machine with the server. The slices are synthetic
512 px JPEGs. At last it waits until the uploads are gone, which the page promises after ten minutes.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness import ROOT, run, write_slices

START_LIMIT_S = 180
ANSWER_LIMIT_S = 180
UPLOADS_GONE_S = 14 * 60  # the page looks every minute for uploads older than ten


class Server:
    """``app.py`` in a process of its own; a context manager that ends it."""

    def __init__(self, model: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.uploads, self.temporary, self.log = folder / "uploads", folder / "tmp", folder / "log"
        self.temporary.mkdir(exist_ok=True)
        self._own: set[Path] = set()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        settings = {
            "MODEL_ID": str(Path(model).resolve()),
            "GRADIO_SERVER_NAME": "127.0.0.1",
            "GRADIO_SERVER_PORT": str(port),
            "GRADIO_TEMP_DIR": str(self.uploads),
            "TMPDIR": str(self.temporary),
            "HF_HUB_OFFLINE": "1",
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "app.py"], cwd=ROOT, env=os.environ | settings, stdout=log, stderr=subprocess.STDOUT
            )

    def wait(self) -> None:
        """Return when the page is served."""
        end = time.monotonic() + START_LIMIT_S
        # The address is plain HTTP; to load certificates for each question would take a core from the server.
        client = httpx.Client(timeout=10, verify=False)
        while time.monotonic() < end and self.process.poll() is None:
            try:
                client.get(self.url).raise_for_status()
                self._own = set(self.uploads.rglob("*"))
                return
            except httpx.HTTPError:
                time.sleep(0.05)
        raise SystemExit(f"app.py does not answer:\n{self.log.read_text()[-2000:]}")

    def memory_mb(self) -> float:
        """Resident memory of the app and its children."""
        parent = psutil.Process(self.process.pid)
        return sum(p.memory_info().rss for p in (parent, *parent.children(recursive=True))) / 1e6

    def files(self) -> dict[str, int]:
        """How many files lie in its folders that were not there when the page was first served."""
        folders = {"uploads": self.uploads, "temporary": self.temporary}
        new = {name: set(folder.rglob("*")) - self._own for name, folder in folders.items()}
        return {name: sum(path.is_file() for path in paths) for name, paths in new.items()}

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Visitor:
    """A program that asks the page's ``/predict``, each time as a new visitor.

    It speaks the page's own protocol, which tells what the server measured.
    """

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=120, verify=False)
        functions = self._http.get("/config").json()["dependencies"]
        self._function = next(f["id"] for f in functions if f["api_name"] == "predict")

    def ask(self, path: Path) -> tuple[float, float]:
        """Send one slice and wait for its answer."""
        start = time.perf_counter()
        with path.open("rb") as file:
            (uploaded,) = self._http.post("/gradio_api/upload", files={"files": (path.name, file)}).json()
        session = uuid.uuid4().hex
        data = [{"path": uploaded, "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}]
        question = {"data": data, "fn_index": self._function, "session_hash": session}
        self._http.post("/gradio_api/queue/join", json=question).raise_for_status()
        with self._http.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
            for line in stream.iter_lines():
                message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if message.get("msg") == "process_completed":
                    if not message["success"]:
                        raise RuntimeError(f"no answer: {message['output']}")
                    return message["output"]["duration"], time.perf_counter() - start
        raise RuntimeError("the stream ended without an answer")


def measure_start(model: str, folder: Path, slice_: Path) -> dict[str, float]:
    """Return seconds from the start of the process to the page and to the first answer."""
    start = time.perf_counter()
    with Server(model, folder) as server:
        server.wait()
        page = time.perf_counter() - start
        Visitor(server.url).ask(slice_)
        return {"to_page_s": page, "to_first_answer_s": time.perf_counter() - start}


def measure_single(server: Server, slices: list[Path], marks: list[int]) -> dict[str, Any]:
    """Ask one by one; return times of an answer, and the server's memory after as many answers as ``marks`` say."""
    visitor = Visitor(server.url)
    for path in slices[:5]:
        visitor.ask(path)
    times, memory = [], {}
    for number in range(1, marks[-1] + 1):
        times.append(visitor.ask(slices[number % len(slices)]))
        if number in marks:
            memory[str(number)] = server.memory_mb()
    on_server, seen = zip(*times, strict=True)
    return {"server_s": quantiles(on_server), "client_s": quantiles(seen), "memory_mb_by_answers": memory}


def measure_users(url: str, slices: list[Path], users: int, each: int) -> dict[str, Any]:
    """Let many gradio clients ask at once, each one slice after the other."""
    from gradio_client import Client, handle_file

    def connect(_: int) -> Client:
        # The address is plain HTTP; to load certificates for each request would take a core from the server.
        return Client(url, verbose=False, analytics_enabled=False, ssl_verify=False)

    with ThreadPoolExecutor(users) as pool:
        clients = list(pool.map(connect, range(users)))
        together = threading.Barrier(users)

        def visit(user: int) -> list[float | str]:
            found: list[float | str] = []
            together.wait()
            for number in range(each):
                start = time.perf_counter()
                try:
                    path = slices[(user * each + number) % len(slices)]
                    asked = clients[user].submit(handle_file(str(path)), api_name="/predict")
                    answer = asked.result(ANSWER_LIMIT_S)
                    found.append(time.perf_counter() - start if answer["label"] else "an answer without a label")
                except Exception as error:  # whatever a visitor may meet counts as a failure
                    found.append(f"{type(error).__name__}: {error}"[:200])
            return found

        start = time.perf_counter()
        results = [result for found in pool.map(visit, range(users)) for result in found]
        seconds = time.perf_counter() - start
    times = [result for result in results if isinstance(result, float)]
    failures = [result for result in results if isinstance(result, str)]
    return {
        "users": users,
        "slices_each": each,
        "failures": len(failures),
        "first_failures": failures[:3],
        "client_s": quantiles(times) if times else None,
        "answers_per_second": len(times) / seconds,
    }


def cpu_seconds(server: Server) -> dict[str, float]:
    """Return the processor time that the server and this program have taken so far."""
    processes = {"server": psutil.Process(server.process.pid), "clients": psutil.Process()}
    return {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}


def measure_files(server: Server, wait: bool) -> dict[str, Any]:
    """Return how many files lie there now and, if waited for, when the last upload went and what stayed."""
    now, start = server.files(), time.monotonic()
    found: dict[str, Any] = {"after_load": now, "at_end": None, "waited_s": None}
    if wait:
        while (left := server.files())["uploads"] and time.monotonic() - start < UPLOADS_GONE_S:
            time.sleep(5)
        found |= {"at_end": left, "waited_s": time.monotonic() - start}
    return found


def quantiles(seconds: tuple[float, ...] | list[float]) -> dict[str, float]:
    """Return median, 95th percentile and the largest of at least one value."""
    ordered = sorted(seconds)
    p95 = statistics.quantiles(ordered, n=20, method="inclusive")[-1] if len(ordered) > 1 else ordered[0]
    return {"n": len(ordered), "p50": statistics.median(ordered), "p95": p95, "max": ordered[-1]}


def judge(record: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """Return what was measured, the figure, the target, and whether it is met."""
    single, users, memory = record["single"], record["users"], record["single"]["memory_mb_by_answers"]
    values = list(memory.values())
    of_users = users["client_s"] or {"p50": float("inf"), "p95": float("inf")}
    files = record["files"]
    left = files["at_end"] or {"temporary": files["after_load"]["temporary"]}
    besides = "besides uploads" if files["at_end"] is None else f"{files['waited_s'] / 60:.0f} minutes after the last"
    many = "1,000" if "1000" in memory else max(memory, key=int)
    return [
        ("start to the first answer", f"{record['start']['to_first_answer_s']:.1f} s", "-", True),
        (
            "one answer without heat maps, by the server's clock",
            f"median {1000 * single['server_s']['p50']:.0f} ms, p95 {1000 * single['server_s']['p95']:.0f} ms",
            "median < 150 ms",
            single["server_s"]["p50"] < 0.15,
        ),
        (
            f"{users['users']} users at once, {users['slices_each']} slices each",
            f"{users['failures']} failures, p50 {of_users['p50']:.1f} s, p95 {of_users['p95']:.1f} s",
            "none fails, p95 < 5 s",
            users["failures"] == 0 and of_users["p95"] < 5,
        ),
        (
            f"memory of the server after {', '.join(list(memory)[:-1])} and {many} answers",
            f"{', '.join(f'{value:.0f}' for value in values[:-1])} and {values[-1]:.0f} MB",
            "flat (+5 %)",
            values[-1] < 1.05 * values[0],
        ),
        (
            f"temporary files left, {besides}",
            f"{sum(left.values())}",
            "0",
            sum(left.values()) == 0,
        ),
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=str(ROOT / "model"), help="folder of the weights")
    parser.add_argument("--users", type=int, default=30)
    parser.add_argument("--slices_each", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a rehearsal: 60 answers, 5 users, no wait for uploads")
    parser.add_argument("--no_wait", action="store_true", help="do not wait ten minutes for the uploads to go")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    users, each = (5, 2) if args.quick else (args.users, args.slices_each)
    marks = [20, 40, 60] if args.quick else [100, 500, 1000]
    architecture = json.loads((Path(args.model) / "config.json").read_text())["architecture"]
    setting = {"model": Path(args.model).name, "architecture": architecture, "quick": args.quick}
    record: dict[str, Any] = {
        "benchmark": "page_load",
        "setting": setting | {"slices": "synthetic JPEGs, 512 px"},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slices = write_slices(folder / "slices", 200)
        measure_start(args.model, folder / "cold", slices[0])  # fills the system's file cache
        record["start"] = measure_start(args.model, folder / "warm", slices[0])
        with Server(args.model, folder / "load") as server:
            server.wait()
            record["single"] = measure_single(server, slices, marks)
            before = cpu_seconds(server)
            record["users"] = measure_users(server.url, slices, users, each)
            spent = {name: value - before[name] for name, value in cpu_seconds(server).items()}
            record["users"]["cpu_s"] = spent  # the clients take theirs from the machine that the server runs on
            record["memory_mb_after_users"] = server.memory_mb()
            wait = not (args.quick or args.no_wait)
            print("measured" + wait * "; waiting until the uploads are gone, up to 14 minutes", flush=True)
            record["files"] = measure_files(server, wait)
            record["tracebacks_in_log"] = server.log.read_text(errors="replace").count("Traceback")
    rows = judge(record)
    record["targets_met"] = {what: met for what, _, target, met in rows if target != "-"}
    record["summary"] = [[f"the page with {architecture}: {what}", "-", measured] for what, measured, *_ in rows]
    return record


def show(record: dict[str, Any], _: argparse.Namespace) -> None:
    for what, measured, target, met in judge(record):
        print(f"{what:62} {measured:38} {target:22} {'' if target == '-' else 'met' if met else 'MISSED'}")


if __name__ == "__main__":
    raise SystemExit(run(__doc__, add_arguments, measure, show=show))
