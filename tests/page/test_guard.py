"""What the page refuses before Gradio sees it, and where uploads lie and for how long; with a small app behind it."""

import asyncio
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from brain_tumor_mri.page import guard
from brain_tumor_mri.page.guard import Guard, own_upload_folder, sweep, used_bytes

API = "http://page/gradio_api"


@pytest.fixture
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "uploads"
    (folder / "ab").mkdir(parents=True)
    (folder / "ab" / "slice.png").write_bytes(b"x")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    return folder


def behind() -> Starlette:
    """The guard before an app that says what it got."""

    async def echo(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"got {len(await request.body())}")

    routes = [Route("/{path:path}", echo, methods=["GET", "POST"])]
    return Starlette(routes=routes, middleware=[Middleware(Guard)])


def ask(work: Callable[[httpx.AsyncClient], Awaitable[httpx.Response]]) -> httpx.Response:
    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=behind())) as client:
            return await work(client)

    return asyncio.run(run())


def file_data(path: str) -> dict:
    return {"data": [{"path": path, "url": "http://page/x", "meta": {"_type": "gradio.FileData"}}]}


@pytest.mark.parametrize("route", ["call/predict", "queue/join", "run/predict", "api/predict", "call/v2/batch", "new"])
@pytest.mark.parametrize(
    "path", ["http://127.0.0.1:9/x.png", "https://host/x", "/etc/passwd", "{up}/../secret", "a\0b"]
)
def test_a_file_by_url_or_of_the_server_is_refused_in_every_endpoint(
    uploads: Path, route: str, path: str, caplog: pytest.LogCaptureFixture
):
    for body in (file_data(path), {"data": [[{"deep": file_data(path)}]]}):
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            text = json.dumps(body).replace("{up}", str(uploads))
            answer = ask(lambda client, text=text: client.post(f"{API}/{route}", content=text))
        assert answer.status_code == 403 and "\n" not in answer.text
        assert len(caplog.records) == 1 and caplog.records[0].exc_info is None
        assert "passwd" not in caplog.text and "\n" not in caplog.records[0].getMessage()


def test_an_upload_may_be_named_and_the_request_arrives_whole(uploads: Path):
    text = json.dumps(file_data(str(uploads / "ab" / "slice.png")))
    answer = ask(lambda client: client.post(f"{API}/queue/join", content=text))
    assert answer.status_code == 200 and answer.text == f"got {len(text)}"


@pytest.mark.parametrize(
    "path", ["file=http://host/x", "file=https:/host/x", "file=/etc/passwd", "proxy=http://host/x"]
)
def test_files_that_are_no_uploads_are_not_served(uploads: Path, path: str):
    assert ask(lambda client: client.get(f"{API}/{path}")).status_code == 403


def test_an_upload_is_served_with_headers_that_keep_it_harmless(uploads: Path):
    answer = ask(lambda client: client.get(f"{API}/file={uploads}/ab/slice.png"))
    assert answer.status_code == 200 and answer.headers["X-Content-Type-Options"] == "nosniff"
    policy = answer.headers["Content-Security-Policy"]
    assert "frame-ancestors 'self' https://huggingface.co" in policy and "object-src 'none'" in policy
    assert "X-Frame-Options" not in answer.headers, "it would keep a Space from being shown on the Hub"
    refused = ask(lambda client: client.get(f"{API}/file=/etc/passwd"))
    assert refused.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("body", "status"), [(b"x", 400), (b"[" * 200_000, 400), (b'"' + b"x" * (2**20) + b'"', 413), (b"", 200)]
)
def test_what_is_no_json_or_too_long_is_refused(uploads: Path, body: bytes, status: int):
    assert ask(lambda client: client.post(f"{API}/queue/join", content=body)).status_code == status


def test_a_link_out_of_the_folder_is_no_upload(uploads: Path, tmp_path: Path):
    (tmp_path / "secret").write_text("s")
    (uploads / "ab" / "link").symlink_to(tmp_path / "secret")
    text = json.dumps(file_data(str(uploads / "ab" / "link")))
    assert ask(lambda client: client.post(f"{API}/queue/join", content=text)).status_code == 403


def test_uploads_together_have_a_quota_also_without_a_length(uploads: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(guard, "MAX_UPLOADS_BYTES", 100_000)

    def post(size: int) -> int:
        return ask(lambda client: client.post(f"{API}/upload?id=1", content=bytes(size))).status_code

    assert post(80_000) == 200 and post(80_000) == 200, "what has been sent and lies nowhere counts no longer"
    assert post(100_000) == 507
    (uploads / "other").write_bytes(bytes(50_000))
    assert post(80_000) == 507 and post(20_000) == 200

    monkeypatch.setattr(guard, "MAX_UNANNOUNCED_BYTES", 30_000)

    async def pieces(number: int):
        for _ in range(number):
            yield bytes(10_000)

    for number, status in ((3, 200), (4, 413)):
        assert ask(lambda client, n=number: client.post(f"{API}/upload", content=pieces(n))).status_code == status


def test_two_uploads_at_once_share_the_quota(uploads: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(guard, "MAX_UPLOADS_BYTES", 100_000)

    async def both() -> list[int]:
        go = asyncio.Event()

        async def slow(scope, receive, send) -> None:
            await go.wait()
            await PlainTextResponse("ok")(scope, receive, send)

        guarded = Guard(slow)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=guarded)) as client:
            first = asyncio.create_task(client.post(f"{API}/upload", content=bytes(60_000)))
            await asyncio.sleep(0.3)
            second = await client.post(f"{API}/upload", content=bytes(60_000))
            go.set()
            return [(await first).status_code, second.status_code]

    assert asyncio.run(both()) == [200, 507]


def test_a_request_that_stands_still_is_ended_and_a_long_answer_is_not(
    uploads: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(guard, "IDLE_SECONDS", 0.2)
    sent: list[dict] = []

    async def run(first: dict) -> None:
        messages = [first]

        async def receive() -> dict:
            if messages:
                return messages.pop()
            await asyncio.sleep(60)
            return {"type": "http.disconnect"}

        async def send(message: dict) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "query_string": b""}
        scope["headers"] = [(b"content-length", b"10")]
        await asyncio.wait_for(behind()(scope, receive, send), 5)

    asyncio.run(run({"type": "http.request", "body": b"x", "more_body": True}))
    assert sent[0]["status"] == 408 and "too slowly" in caplog.text
    sent.clear()
    asyncio.run(run({"type": "http.request", "body": b"x", "more_body": False}))
    assert sent[0]["status"] == 200


def test_connections_without_a_request_are_closed_and_working_ones_are_not(monkeypatch: pytest.MonkeyPatch):
    closed: list[str] = []

    class Connection:
        def __init__(self, name: str, cycle: object) -> None:
            self.cycle = cycle
            self.transport = SimpleNamespace(close=lambda: closed.append(name))

    idle, busy = Connection("idle", None), Connection("busy", SimpleNamespace(response_complete=False))
    moving = Connection("moving", SimpleNamespace(response_complete=True))
    now = [100.0]
    monkeypatch.setattr(guard.time, "monotonic", lambda: now[0])
    guarded = Guard(Starlette())
    for _ in range(6):
        guarded._end_idle([idle, busy, moving])
        moving.cycle = SimpleNamespace(response_complete=True)
        now[0] += 5
    assert set(closed) == {"idle"}


def test_the_sweep_takes_what_is_old_whoever_made_it_and_nothing_else(uploads: Path, tmp_path: Path):
    names = ("tmp1234", "cd/of-a-page-that-was-killed.png", "ef/kept.png", "gh/new.png")
    for name in names:
        (uploads / name).parent.mkdir(exist_ok=True)
        (uploads / name).write_bytes(b"x")
    (tmp_path / "outside").write_text("x")
    (uploads / "link").symlink_to(tmp_path / "outside")
    long_ago = time.time() - 700
    for path in (*uploads.rglob("*"), tmp_path / "outside"):
        if "new" not in path.name:
            os.utime(path, (long_ago, long_ago), follow_symlinks=False)
    sweep(uploads, [str(uploads / "ef" / "kept.png")])
    left = {path.relative_to(uploads).as_posix() for path in uploads.rglob("*") if path.is_file()}
    assert left == {"ef/kept.png", "gh/new.png"} and (tmp_path / "outside").exists()
    assert used_bytes(uploads) == guard.BLOCK * len(list(uploads.rglob("*")))


def test_the_sweep_runs_at_the_start_and_again(uploads: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(guard, "SWEEP_SECONDS", 0.1)
    old = uploads / "left-by-another"
    blocks = SimpleNamespace(blocks={})

    async def run() -> list[bool]:
        async with Guard(Starlette())._watch(SimpleNamespace(get_blocks=lambda: blocks)):
            found = []
            for _ in range(2):
                old.write_bytes(b"x")
                os.utime(old, (1, 1))
                for _ in range(100):
                    await asyncio.sleep(0.02)
                    if not old.exists():
                        break
                found.append(old.exists())
            return found

    assert asyncio.run(run()) == [False, False]


def test_uploads_lie_in_a_folder_of_their_own_that_others_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(guard.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    monkeypatch.setenv("PATH", os.environ["PATH"])
    own_upload_folder()
    folder = Path(os.environ.pop("GRADIO_TEMP_DIR"))
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o077 == 0
    monkeypatch.setenv("GRADIO_TEMP_DIR", "chosen")
    own_upload_folder()
    assert os.environ["GRADIO_TEMP_DIR"] == "chosen"
