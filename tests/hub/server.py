"""A Hub in a folder: the part of its HTTP API that the unmodified huggingface_hub client uses, for tests.

    with LocalHub(tmp_path / "hub") as hub:
        hub.faults.append(Fault("POST", "/commit/", 503))      # the next commit is answered 503, once
        environment |= hub.environment(tmp_path / "home")      # for a process of its own

``store`` says what is on disk, ``reading`` and ``writing`` answer. There is no Xet: answers carry no Xet hash, so
downloads are plain HTTP; uploads choose LFS with HF_HUB_DISABLE_XET=1.
"""

import asyncio
import os
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from .reading import Reading
from .store import READ_TOKEN, READER, TOKEN, TYPES, USER, Refusal
from .writing import Writing

__all__ = ["READER", "READ_TOKEN", "TOKEN", "USER", "Fault", "LocalHub"]


@dataclass
class Fault:
    """What goes wrong with the next ``times`` requests of this method whose path matches.

    ``kind`` is a status code, ``"cut"`` (the connection breaks before the request is worked on) or ``"lost"`` (the
    request is carried out, then the connection breaks before the answer).
    """

    method: str
    path: str
    kind: int | str
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


class LocalHub(Reading, Writing):
    """The server, in a thread of this process; ``faults`` and ``requests`` are read and written by tests."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        """``METHOD /path`` of all requests so far."""
        # the protocol is named because asyncio else leaves Nagle's delay of 40 ms in every answer
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._app = Starlette(routes=self._routes(), exception_handlers={Refusal: lambda request, e: e.response})
        self._server = uvicorn.Server(uvicorn.Config(self, log_level="critical", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    def __enter__(self) -> "LocalHub":
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Be out of reach from now on."""
        self._server.should_exit = True
        self._thread.join(timeout=5)
        self._socket.close()

    def environment(self, home: Path) -> dict[str, str]:
        """This process's environment for one that is logged in here, online, with its caches in ``home``."""
        return {
            **os.environ,
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # `datasets` counts on a server of its own
        }

    # --- requests, and what goes wrong with them ---

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["raw_path"].decode()
        self.requests.append(f"{scope['method']} {path}")
        kind, headers = self._take_fault(scope["method"], path)
        # routes match the quoted path, so that a slash inside a revision (%2F) separates nothing
        scope = {**scope, "path": path}
        if isinstance(kind, int):
            app = JSONResponse({"error": f"fault {kind}"}, kind, headers)
            await app(scope, receive, send)
        elif kind == "cut":
            await self._break(send)
        elif kind == "lost":

            async def swallow(message: Any) -> None:
                await asyncio.sleep(0)

            await self._app(scope, receive, swallow)
            await self._break(send)
        else:
            await self._app(scope, receive, send)

    def _take_fault(self, method: str, path: str) -> tuple[int | str | None, dict[str, str]]:
        for fault in self.faults:
            if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                fault.times -= 1
                return fault.kind, fault.headers
        return None, {}

    async def _break(self, send: Send) -> None:
        # uvicorn closes the connection when an answer ends before its announced length
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
        await send({"type": "http.response.body", "body": b"", "more_body": True})

    def _routes(self) -> list[Route]:
        routes = [
            Route("/api/whoami-v2", self.whoami),
            Route("/api/validate-yaml", self.validate_yaml, methods=["POST"]),
            Route("/api/repos/create", self.create_repo, methods=["POST"]),
            Route("/_lfs/{oid}", self.lfs_put, methods=["PUT"]),
            Route("/_lfs/{oid}/verify", self.lfs_verify, methods=["POST"]),
        ]
        for kind, prefix in TYPES.items():
            api, repo = f"/api/{kind}/{{owner}}/{{name}}", f"/{prefix}{{owner}}/{{name}}"
            for path, handler, method in (
                (api, self.info, "GET"),
                (f"{api}/revision/{{rev}}", self.info, "GET"),
                (f"{api}/tree/{{rev}}", self.tree, "GET"),
                (f"{api}/tree/{{rev}}/{{path:path}}", self.tree, "GET"),
                (f"{api}/paths-info/{{rev}}", self.paths_info, "POST"),
                (f"{api}/refs", self.list_refs, "GET"),
                (f"{api}/commits/{{rev}}", self.list_commits, "GET"),
                (f"{api}/branch/{{branch}}", self.create_branch, "POST"),
                (f"{api}/tag/{{rev}}", self.create_tag, "POST"),
                (f"{api}/preupload/{{rev}}", self.preupload, "POST"),
                (f"{api}/commit/{{rev}}", self.create_commit, "POST"),
                (f"{repo}.git/info/lfs/objects/batch", self.lfs_batch, "POST"),
                (f"{repo}/resolve/{{rev}}/{{path:path}}", self.resolve, "GET"),
            ):
                routes.append(Route(path, self._with_kind(kind, handler), methods=[method]))
        return routes

    @staticmethod
    def _with_kind(kind: str, handler: Any) -> Any:
        async def handle(request: Request) -> Response:
            request.path_params["kind"] = kind
            return await handler(request)

        return handle
