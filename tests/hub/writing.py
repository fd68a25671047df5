"""The local Hub's side of a push: repositories and refs are made, LFS objects stored, commits put together."""

import base64
import hashlib
import json
import re
from pathlib import Path
from urllib.parse import unquote

import yaml
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .store import Refusal, Repo, Store, git_oid

LFS_SUFFIXES = {".safetensors", ".bin", ".onnx", ".parquet", ".arrow", ".zip"}
LFS_SIZE = 10 * 2**20  # bytes; larger files of any name are LFS too
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
SPACE_RULES = {
    "sdk": {"gradio", "docker", "static"}.__contains__,
    "sdk_version": lambda value: isinstance(value, str) and value.count(".") == 2,
    "python_version": lambda value: isinstance(value, str) and re.fullmatch(r"3\.\d+", value),
    "emoji": lambda value: isinstance(value, str) and len(value) < 5 and not value.isascii(),
    "colorFrom": COLOURS.__contains__,
    "colorTo": COLOURS.__contains__,
    "app_file": lambda value: isinstance(value, str),
    "license": lambda value: isinstance(value, str) and value == value.lower(),
    "models": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    "tags": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    "short_description": lambda value: isinstance(value, str) and len(value) <= 60,
}
"""Of the front matter of a Space; here all of them have to be there, while the Hub needs ``sdk`` alone."""


class Writing(Store):
    """Requests of a push."""

    async def create_repo(self, request: Request) -> Response:
        asked, user = await request.json(), self._user(request)
        owner = asked.get("organization") or user
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        if owner != user:
            raise Refusal(403, f"Forbidden: you don't have the rights to create a repository under {owner}")
        repo = self.repo(f"{owner}/{asked['name']}", f"{asked.get('type') or 'model'}s")
        if repo.kind == "spaces" and not SPACE_RULES["sdk"](asked.get("sdk")):
            raise Refusal(400, "a Space needs an sdk")
        if (repo.folder / "refs.json").is_file():
            return JSONResponse({"error": "You already created this repo", "url": repo.url}, 409)
        repo.folder.mkdir(parents=True)
        rules = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in sorted(LFS_SUFFIXES))
        repo.add_commit("main", {".gitattributes": self._store(rules.encode())}, "initial commit")
        repo.write_refs(repo.refs | {"private": asked.get("visibility") == "private"})
        return JSONResponse({"url": repo.url, "id": repo.id, "name": repo.id})

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

    async def validate_yaml(self, request: Request) -> Response:
        asked = await request.json()
        errors = []
        header = re.match(r"---\n(.*?)\n---\n", asked["content"], re.DOTALL)
        try:
            data = yaml.safe_load(header[1]) if header else None
        except yaml.YAMLError as error:
            data, errors = None, [f"Invalid YAML: {error}"]
        if data and asked.get("repoType") == "space":
            errors = [f'"{key}" is wrong' for key, fits in SPACE_RULES.items() if not fits(data.get(key))]
        if errors:
            return JSONResponse({"errors": [{"message": error} for error in errors], "warnings": []}, 400)
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
