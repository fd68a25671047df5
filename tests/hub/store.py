"""What the local Hub keeps: files by their sha256, commits that never change, refs; and whose they are.

``objects/`` holds every file once, by its sha256; ``repos/TYPE/OWNER/NAME/COMMIT.json`` is one commit, never changed,
and ``refs.json`` beside it is replaced in one step, so that a commit is seen whole or not at all.
"""

import hashlib
import json
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import JSONResponse

USER, TOKEN = "someone", "hf_localHubOwnerToken000000000000000"
READER, READ_TOKEN = "reader", "hf_localHubReaderToken00000000000000"
TYPES = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}


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

    def __init__(self, hub: "Store", kind: str, repo_id: str) -> None:
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


class Store:
    """The folder of all repositories; ``tokens`` says who may write under which name."""

    url: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokens = {TOKEN: USER, READ_TOKEN: READER}
        (folder / "objects").mkdir(parents=True, exist_ok=True)

    def repo(self, repo_id: str, kind: str = "models") -> Repo:
        return Repo(self, kind, repo_id)

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

    def _object(self, sha256: str) -> Path:
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise Refusal(400, f"not a sha256: {sha256}")
        return self.folder / "objects" / sha256

    def _store(self, content: bytes) -> dict[str, Any]:
        sha256 = hashlib.sha256(content).hexdigest()
        self._object(sha256).write_bytes(content)
        return {"sha256": sha256, "oid": git_oid(content), "size": len(content), "lfs": False}


def git_oid(content: bytes) -> str:
    """What ``git hash-object`` prints for these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
