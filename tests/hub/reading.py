"""The local Hub's answers about what is there: repositories, refs, trees, and the files themselves."""

from typing import Any
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from .store import Refusal, Store


class Reading(Store):
    """Requests that change nothing."""

    async def whoami(self, request: Request) -> Response:
        if (user := self._user(request)) is None:
            raise Refusal(401, "Invalid username or password.")
        return JSONResponse({"type": "user", "name": user, "orgs": [], "auth": {"type": "access_token"}})

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

    async def list_commits(self, request: Request) -> Response:
        repo, rows, at = self._repo(request), [], self._revision(request)
        while at:
            commit = repo.commit(at)
            rows.append({**commit, "files": None, "authors": [{"user": repo.id.split("/")[0]}]})
            at = commit["parent"]
        return JSONResponse(rows)

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
