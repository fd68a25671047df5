"""A Hub in a folder: the part of its HTTP API that the unmodified huggingface_hub client uses, for tests.

    with LocalHub(tmp_path / "hub") as hub:
        hub.faults.append(Fault("POST", "/commit/", 503))      # the next commit is answered 503, once
        environment |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}

On disk: ``objects/`` holds every file once, by its sha256; ``repos/TYPE/OWNER/NAME/COMMIT.json`` is one commit, never
changed, and ``refs.json`` beside it is replaced in one step, so that a commit is seen whole or not at all. There is no
Xet: answers carry no Xet hash, so downloads are plain HTTP; uploads choose LFS with HF_HUB_DISABLE_XET=1.
"""

import asyncio
import base64
import hashlib
import json
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

USER, TOKEN = "someone", "hf_localHubOwnerToken000000000000000"
READER, READ_TOKEN = "reader", "hf_localHubReaderToken00000000000000"
LFS_SUFFIXES = {".safetensors", ".bin", ".onnx", ".parquet", ".arrow", ".zip"}
LFS_SIZE = 10 * 2**20  # bytes; larger files of any name are LFS too
TYPES = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}


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


class Refusal(Exception):
    """An answer with an error, as the Hub words it: in the body and in two headers."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        self.response = JSONResponse(
            {"error": message},
            status,
            {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers},
        )


class Repo:
    """One repository: immutable commits and the refs that point at them."""

    def __init__(self, hub: "LocalHub", kind: str, repo_id: str) -> None:
        self.hub, self.kind, self.id = hub, kind, repo_id
        self.folder = hub.folder / "repos" / kind / repo_id
        self.url = f"{hub.url}/{TYPES[kind]}{repo_id}"

    @property
    def refs(self) -> dict[str, Any]:
        """``{"private": bool, "branches": {name: commit}, "tags": {name: commit}}``."""
        return json.loads((self.folder / "refs.json").read_text())

    def write_refs(self, refs: dict[str, Any]) -> None:
        beside = self.folder / "refs.json.part"
        beside.write_text(json.dumps(refs))
        beside.replace(self.folder / "refs.json")

    def resolve(self, revision: str) -> str:
        """The commit of a branch, tag or (whole) commit id."""
        refs = self.refs
        commit = refs["branches"].get(revision) or refs["tags"].get(revision)
        if commit is None and re.fullmatch("[0-9a-f]{40}", revision) and (self.folder / f"{revision}.json").is_file():
            commit = revision
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def commit(self, revision: str) -> dict[str, Any]:
        """``id``, ``parent``, ``title``, ``message``, ``date`` and ``files`` (path -> sha256, oid, size, lfs)."""
        commit = self.resolve(revision)
        return {"id": commit, **json.loads((self.folder / f"{commit}.json").read_text())}

    def add_commit(self, branch: str, files: dict[str, Any], title: str, message: str = "") -> str:
        refs = self.refs if (self.folder / "refs.json").is_file() else {"private": False, "branches": {}, "tags": {}}
        date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        parent = refs["branches"].get(branch)
        text = json.dumps({"parent": parent, "title": title, "message": message, "date": date, "files": files})
        commit = hashlib.sha1(text.encode()).hexdigest()
        (self.folder / f"{commit}.json").write_text(text)
        refs["branches"][branch] = commit
        self.write_refs(refs)
        return commit


class LocalHub:
    """The server, in a thread of this process; ``faults`` and ``requests`` are read and written by tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokens = {TOKEN: USER, READ_TOKEN: READER}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        """``METHOD /path`` of all requests so far."""
        (folder / "objects").mkdir(parents=True, exist_ok=True)
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
        self._server.should_exit = True
        self._thread.join(timeout=5)
        self._socket.close()

    def repo(self, repo_id: str, kind: str = "models") -> Repo:
        return Repo(self, kind, repo_id)

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

    # --- who asks, for which repository ---

    def _user(self, request: Request) -> str | None:
        header = request.headers.get("authorization")
        if header is None:
            return None
        if (user := self.tokens.get(header.removeprefix("Bearer "))) is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return user

    def _repo(self, request: Request, write: bool = False) -> Repo:
        params, user = request.path_params, self._user(request)
        repo = self.repo(f"{unquote(params['owner'])}/{unquote(params['name'])}", params["kind"])
        owner = params["owner"] == user
        if not (repo.folder / "refs.json").is_file() or (repo.refs["private"] and not owner):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user is None:
            raise Refusal(401, "Invalid username or password.")
        if write and not owner:
            raise Refusal(403, f"Forbidden: you don't have write access to {repo.id}")
        return repo

    @staticmethod
    def _revision(request: Request) -> str:
        return unquote(request.path_params.get("rev", "main"))

    async def whoami(self, request: Request) -> Response:
        if (user := self._user(request)) is None:
            raise Refusal(401, "Invalid username or password.")
        return JSONResponse({"type": "user", "name": user, "orgs": [], "auth": {"type": "access_token"}})

    # --- repositories, branches, tags ---

    async def create_repo(self, request: Request) -> Response:
        asked, user = await request.json(), self._user(request)
        owner = asked.get("organization") or user
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        if owner != user:
            raise Refusal(403, f"Forbidden: you don't have the rights to create a repository under {owner}")
        repo = self.repo(f"{owner}/{asked['name']}", f"{asked.get('type') or 'model'}s")
        if (repo.folder / "refs.json").is_file():
            return JSONResponse({"error": "You already created this repo", "url": repo.url}, 409)
        repo.folder.mkdir(parents=True)
        rules = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in sorted(LFS_SUFFIXES))
        repo.add_commit("main", {".gitattributes": self._store(rules.encode())}, "initial commit")
        repo.write_refs(repo.refs | {"private": asked.get("visibility") == "private"})
        return JSONResponse({"url": repo.url, "id": repo.id, "name": repo.id})

    async def list_refs(self, request: Request) -> Response:
        refs = self._repo(request).refs
        rows = {
            kind: [
                {"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": commit}
                for name, commit in refs[kind].items()
            ]
            for kind, folder in (("branches", "heads"), ("tags", "tags"))
        }
        return JSONResponse({**rows, "converts": [], "pullRequests": []})

    async def create_branch(self, request: Request) -> Response:
        repo, branch = self._repo(request, write=True), unquote(request.path_params["branch"])
        start = json.loads(await request.body() or b"{}").get("startingPoint") or "main"
        return self._add_ref(repo, "branches", branch, repo.resolve(start))

    async def create_tag(self, request: Request) -> Response:
        repo, tag = self._repo(request, write=True), (await request.json())["tag"]
        return self._add_ref(repo, "tags", tag, repo.resolve(self._revision(request)))

    @staticmethod
    def _add_ref(repo: Repo, kind: str, name: str, commit: str) -> Response:
        refs = repo.refs
        if name in refs[kind]:
            raise Refusal(409, f"Reference already exists: {name}")
        refs[kind][name] = commit
        repo.write_refs(refs)
        return JSONResponse({})

    async def list_commits(self, request: Request) -> Response:
        repo, rows, at = self._repo(request), [], self._revision(request)
        while at:
            commit = repo.commit(at)
            rows.append({**commit, "files": None, "authors": [{"user": repo.id.split("/")[0]}]})
            at = commit["parent"]
        return JSONResponse(rows)

    # --- reading ---

    @staticmethod
    def _entry(path: str, file: dict[str, Any]) -> dict[str, Any]:
        lfs = {"oid": file["sha256"], "size": file["size"], "pointerSize": 134}
        entry = {"type": "file", "path": path, "oid": file["oid"], "size": file["size"]}
        return entry | ({"lfs": lfs} if file["lfs"] else {})

    async def info(self, request: Request) -> Response:
        repo = self._repo(request)
        commit = repo.commit(self._revision(request))
        siblings = [{"rfilename": path} for path in commit["files"]]
        if request.query_params.get("blobs"):
            siblings = [
                {"rfilename": path, "size": file["size"], "blobId": file["oid"]}
                | ({"lfs": {"sha256": file["sha256"], "size": file["size"], "pointerSize": 134}} if file["lfs"] else {})
                for path, file in commit["files"].items()
            ]
        facts = {"id": repo.id, "author": repo.id.split("/")[0], "sha": commit["id"], "private": repo.refs["private"]}
        more = {"gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings}
        return JSONResponse(facts | more | {"lastModified": commit["date"], "createdAt": commit["date"]})

    async def tree(self, request: Request) -> Response:
        files = self._repo(request).commit(self._revision(request))["files"]
        under = unquote(request.path_params.get("path", ""))
        start = f"{under}/" if under else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, file in sorted(files.items()):
            if path.startswith(start):
                folders = path[len(start) :].split("/")[:-1]
                for depth in range(1, len(folders) + 1):
                    folder = start + "/".join(folders[:depth])
                    entries[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
                entries[path] = self._entry(path, file)
        if under and not entries:
            raise Refusal(404, f"{under} does not exist", "EntryNotFound")
        if request.query_params.get("recursive", "").lower() not in ("true", "1"):
            entries = {path: entry for path, entry in entries.items() if "/" not in path[len(start) :]}
        return JSONResponse(list(entries.values()))

    async def paths_info(self, request: Request) -> Response:
        files = self._repo(request).commit(self._revision(request))["files"]
        wanted = [str(path).strip("/") for path in (await request.form()).getlist("paths")]
        found = [self._entry(path, files[path]) for path in wanted if path in files]
        folders = [path for path in wanted if any(name.startswith(f"{path}/") for name in files)]
        return JSONResponse(found + [{"type": "directory", "path": p, "oid": "0" * 40, "size": 0} for p in folders])

    async def resolve(self, request: Request) -> Response:
        commit = self._repo(request).commit(self._revision(request))
        path = unquote(request.path_params["path"])
        if (file := commit["files"].get(path)) is None:
            raise Refusal(404, f"Entry not found: {path}", "EntryNotFound", **{"X-Repo-Commit": commit["id"]})
        headers = {"X-Repo-Commit": commit["id"], "ETag": f'"{file["sha256"] if file["lfs"] else file["oid"]}"'}
        if file["lfs"]:
            headers |= {"X-Linked-Size": str(file["size"]), "X-Linked-ETag": headers["ETag"]}
        # answers HEAD and Range, too
        return FileResponse(self._object(file["sha256"]), headers=headers, media_type="application/octet-stream")

    # --- writing ---

    def _object(self, sha256: str) -> Path:
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise Refusal(400, f"not a sha256: {sha256}")
        return self.folder / "objects" / sha256

    def _store(self, content: bytes) -> dict[str, Any]:
        sha256 = hashlib.sha256(content).hexdigest()
        self._object(sha256).write_bytes(content)
        return {"sha256": sha256, "oid": git_oid(content), "size": len(content), "lfs": False}

    async def validate_yaml(self, request: Request) -> Response:
        asked = await request.json()
        header = re.match(r"---\n(.*?)\n---\n", asked["content"], re.DOTALL)
        try:
            data = yaml.safe_load(header[1]) if header else None
        except yaml.YAMLError as error:
            return JSONResponse({"errors": [{"message": f"Invalid YAML: {error}"}], "warnings": []}, 400)
        warnings = [] if data else [{"message": "empty or missing yaml metadata in repo card"}]
        return JSONResponse({"errors": [], "warnings": warnings})

    async def preupload(self, request: Request) -> Response:
        repo = self._repo(request, write=True)
        known = repo.commit(self._revision(request))["files"]
        rows = []
        for file in (await request.json())["files"]:
            lfs = Path(file["path"]).suffix in LFS_SUFFIXES or file["size"] > LFS_SIZE
            old = known.get(file["path"])
            oid = old and (old["sha256"] if old["lfs"] else old["oid"])
            mode = "lfs" if lfs else "regular"
            rows.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return JSONResponse({"files": rows, "commitOid": repo.resolve(self._revision(request))})

    async def lfs_batch(self, request: Request) -> Response:
        self._repo(request, write=True)
        rows = []
        for file in (await request.json())["objects"]:
            row = {"oid": file["oid"], "size": file["size"]}
            if not self._object(file["oid"]).is_file():
                href = f"{self.url}/_lfs/{file['oid']}"
                row["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            rows.append(row)
        return JSONResponse({"transfer": "basic", "objects": rows})

    async def lfs_put(self, request: Request) -> Response:
        target, digest = self._object(request.path_params["oid"]), hashlib.sha256()
        part = target.with_suffix(".part")
        with part.open("wb") as stream:
            async for block in request.stream():
                digest.update(block)
                stream.write(block)
        if digest.hexdigest() != target.name:
            raise Refusal(400, "the content is not the one announced")
        part.replace(target)
        return Response()

    async def lfs_verify(self, request: Request) -> Response:
        target, asked = self._object(request.path_params["oid"]), await request.json()
        if not target.is_file() or target.stat().st_size != asked["size"]:
            raise Refusal(404, "the object was not uploaded")
        return JSONResponse({})

    async def create_commit(self, request: Request) -> Response:
        repo, branch = self._repo(request, write=True), self._revision(request)
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        # from here on nothing waits, so no other request sees or makes a commit in between
        if branch not in repo.refs["branches"]:
            raise Refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        header, files = lines[0]["value"], dict(repo.commit(branch)["files"])
        if header.get("parentCommit") not in (None, repo.resolve(branch)):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = self._store(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                target = self._object(value["oid"])
                if not target.is_file():
                    raise Refusal(400, f"LFS object {value['oid']} was not uploaded")
                size = target.stat().st_size
                pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{value['oid']}\nsize {size}\n"
                oid = git_oid(pointer.encode())
                files[value["path"]] = {"sha256": value["oid"], "oid": oid, "size": size, "lfs": True}
            else:
                start = value["path"].rstrip("/") + "/" if key == "deletedFolder" else value["path"]
                gone = [path for path in files if path == start or (start.endswith("/") and path.startswith(start))]
                if not gone:
                    raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
                for path in gone:
                    del files[path]
        commit = repo.add_commit(branch, files, header["summary"], header.get("description", ""))
        answer = {"success": True, "commitOid": commit, "commitUrl": f"{repo.url}/commit/{commit}", "hookOutput": ""}
        return JSONResponse(answer)


def git_oid(content: bytes) -> str:
    """What ``git hash-object`` prints for these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
