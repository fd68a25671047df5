"""What stands between strangers and the page's server: limits on what is sent, where uploads lie and for how long.

``Guard`` is ASGI middleware around Gradio's app. What it refuses gets one line of answer and one in the log, without
names of files.
"""

import asyncio
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import anyio.to_thread
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse

logger = logging.getLogger(__name__)

KEPT_SECONDS = 600
"""How long an upload stays; looked at every ``SWEEP_SECONDS``."""
SWEEP_SECONDS = 60
MAX_UPLOADS_BYTES = 2 * 2**30
"""Of all uploads together, those on their way included."""
MAX_UNANNOUNCED_BYTES = 200 * 2**20
"""Of an upload that does not say its length."""
MAX_REQUEST_BYTES = 2**20
"""Of a request that is no upload: names of files and settings."""
IDLE_SECONDS = 20
"""How long a client may send nothing while a request is incomplete."""
REQUEST_SECONDS = KEPT_SECONDS
"""How long a request may take to arrive: an upload must not be swept while it comes."""
BLOCK = 4096
"""A file takes at least this much of a disk."""

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'self'",
            # Gradio writes its settings into the page, and makes functions of the text of js=
            "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "font-src 'self' data:",
            "connect-src 'self' data: blob:",
            "worker-src 'self' blob:",
            "object-src 'none'",
            "base-uri 'self'",
            "form-action 'self'",
            # no X-Frame-Options, which knows no list: huggingface.co shows a Space in a frame
            "frame-ancestors 'self' https://huggingface.co https://*.huggingface.co https://*.hf.space",
        )
    ),
}

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_FILE_ROUTE = re.compile(r"/gradio_api/(?:file[=/](.+)|proxy=)")


class RefusedError(Exception):
    """A request is refused.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        super().__init__(reason)


def own_upload_folder() -> None:
    """Give Gradio a folder of this project's for uploads, unless GRADIO_TEMP_DIR names one; others cannot look in.

    Gradio's own, ``gradio`` among the temporary files, is that of every Gradio app of a machine.
    """
    if os.environ.get("GRADIO_TEMP_DIR"):
        return
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"brain-tumor-mri-uploads-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and folder.lstat().st_uid != user:  # another user's trap
        folder = Path(tempfile.mkdtemp(prefix="brain-tumor-mri-uploads-"))
    os.environ["GRADIO_TEMP_DIR"] = str(folder)


def upload_folder() -> Path:
    """Where Gradio puts uploads."""
    return Path(os.environ["GRADIO_TEMP_DIR"])


def sweep(folder: Path, kept: Iterable[str] = (), age: float = KEPT_SECONDS) -> None:
    """Remove what lies in the folder for too long, whoever put it there.

    Args:
        folder: of uploads.
        kept: files of the page itself; they are marked as new, for other pages that share the folder.
        age: seconds.
    """
    for file in kept:
        with suppress(OSError):
            os.utime(file)
    oldest = time.time() - age
    for path, folders, files in os.walk(folder, topdown=False):
        for name in files:
            with suppress(OSError):
                if os.lstat(file := os.path.join(path, name)).st_mtime < oldest:
                    os.unlink(file)
        for name in folders:
            with suppress(OSError):  # not empty
                if os.lstat(inner := os.path.join(path, name)).st_mtime < oldest:
                    os.rmdir(inner)


def used_bytes(folder: Path) -> int:
    """What the files of a folder take of the disk."""
    used = 0
    for path, folders, files in os.walk(folder):
        used += BLOCK * len(folders)
        for name in files:
            with suppress(OSError):
                used += max(BLOCK, os.lstat(os.path.join(path, name)).st_size)
    return used


class Guard:
    """The middleware; see the module.

    Args:
        app: what is guarded.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app
        self._arriving = 0
        self._waiting: WeakKeyDictionary[Any, tuple[int, float]] = WeakKeyDictionary()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            async with self._watch(scope["app"]):
                await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        try:
            await self._passed(scope, _impatient(receive), answer)
        except (RefusedError, ClientDisconnect) as error:
            reason = str(error) or "the client went away before it had sent everything"
            route = re.split(r"[=?]|/call/|/run/|/api/", str(scope["path"]))[0]
            logger.warning("refused: %s %s: %s", scope["method"], route, reason)
            if not begun:
                status = error.status if isinstance(error, RefusedError) else 400
                response = PlainTextResponse(reason, status, headers={"Connection": "close"})
                await response(scope, receive, answer)  # type: ignore[arg-type]

    async def _passed(self, scope: Message, receive: Receive, send: Send) -> None:
        method, path, folder = scope["method"], str(scope["path"]), upload_folder()
        if found := _FILE_ROUTE.search(path):
            _check_upload(found[1] or "", folder)
        if method in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
        elif path.rstrip("/").endswith("/upload"):
            length = Headers(scope=scope).get("content-length", "")
            size = int(length) if length.isdecimal() else MAX_UNANNOUNCED_BYTES  # a proxy may leave the length out
            async with self._room_for(size, folder):
                await self._app(scope, _bounded(receive, size), send)
        else:
            body = await _json_body(receive)
            _check_paths(body, folder)
            messages = [{"type": "http.request", "body": body, "more_body": False}]

            async def again() -> Message:
                return messages.pop() if messages else await receive()

            await self._app(scope, again, send)

    @asynccontextmanager
    async def _room_for(self, size: int, folder: Path) -> AsyncIterator[None]:
        """Keep place for an upload while it arrives."""
        self._arriving += size
        try:
            used = await anyio.to_thread.run_sync(used_bytes, folder)
            free = shutil.disk_usage(folder).free if folder.exists() else size
            if used + self._arriving > MAX_UPLOADS_BYTES or self._arriving > free:
                raise RefusedError(507, "there is no place for more uploads now; try again in ten minutes")
            yield
        finally:
            self._arriving -= size

    @asynccontextmanager
    async def _watch(self, app: Any) -> AsyncIterator[None]:
        """Sweep uploads, and end connections on which nothing comes, while the server runs."""

        async def uploads() -> None:
            while True:
                kept = {file for block in app.get_blocks().blocks.values() for file in block.keep_in_cache}
                await anyio.to_thread.run_sync(sweep, upload_folder(), kept)
                await asyncio.sleep(SWEEP_SECONDS)

        async def connections() -> None:
            while True:
                await asyncio.sleep(IDLE_SECONDS / 4)
                server = getattr(app.get_blocks(), "server", None)
                self._end_idle(getattr(getattr(server, "server_state", None), "connections", ()))

        tasks = [asyncio.create_task(uploads()), asyncio.create_task(connections())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _end_idle(self, connections: Iterable[Any]) -> None:
        """Close uvicorn's connections that have been between requests for too long; its own limit ends with a byte."""
        now = time.monotonic()
        for connection in list(connections):
            cycle = getattr(connection, "cycle", None)
            if cycle is not None and not cycle.response_complete:
                self._waiting.pop(connection, None)
                continue
            last, since = self._waiting.get(connection, (None, now))
            self._waiting[connection] = (id(cycle), since if last == id(cycle) else now)
            if now - self._waiting[connection][1] > IDLE_SECONDS:
                logger.warning("refused: a connection on which no request came for %d s", IDLE_SECONDS)
                connection.transport.close()


def _impatient(receive: Receive) -> Receive:
    """Limit how long a request's content may take; once it is whole, what comes is that the client leaves."""
    deadline, whole = time.monotonic() + REQUEST_SECONDS, False

    async def limited() -> Message:
        nonlocal whole
        if whole:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, min(IDLE_SECONDS, deadline - time.monotonic())))
        except asyncio.TimeoutError:  # of Python 3.10 a kind of its own
            raise RefusedError(408, "the request came too slowly") from None
        whole = not message.get("more_body", False)
        return message

    return limited


def _bounded(receive: Receive, size: int) -> Receive:
    """Refuse what comes over ``size`` bytes."""
    left = size

    async def bounded() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise RefusedError(413, f"an upload without its length may hold {MAX_UNANNOUNCED_BYTES // 2**20} MB")
        return message

    return bounded


async def _json_body(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > MAX_REQUEST_BYTES:
            raise RefusedError(413, f"a request that is no upload may hold {MAX_REQUEST_BYTES // 2**20} MB")
        if not message.get("more_body", False):
            return body


def _check_paths(body: bytes, folder: Path) -> None:
    """Let a file be named only if it is an upload; Gradio would fetch a URL for the visitor, and serve it again."""
    try:
        left = [json.loads(body or b"null")]
    except (ValueError, RecursionError):
        raise RefusedError(400, "the request is no JSON") from None
    while left:
        value = left.pop()
        if isinstance(value, list):
            left += value
        elif isinstance(value, dict):
            left += value.values()
            if isinstance(path := value.get("path"), str):
                _check_upload(path, folder)


def _check_upload(path: str, folder: Path) -> None:
    if path.startswith(("http:", "https:")):
        raise RefusedError(403, "a file by its URL; send the file itself")
    try:
        inside = Path(path).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, links in a circle
        inside = False
    if not inside:
        raise RefusedError(403, "a file that is no upload")
