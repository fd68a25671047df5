"""Pushes a version of a repository to the Hugging Face Hub: compare, one commit, a tag; retried where that helps.

``push(Plan(...))`` sends what differs from what the Hub has. A commit is one request, so the Hub shows the old version
or the new one, and a push may be repeated at any point. Errors are one line, without the token.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path
from time import sleep
from typing import Any

import httpx
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import disable_progress_bars, parse_ratelimit_headers
from huggingface_hub.utils import logging as client_logging
from huggingface_hub.utils.sha import git_hash

from ..errors import UserError, without_credentials

ATTEMPTS = 5
LONGEST_WAIT = 330.0  # seconds; the Hub counts requests in windows of five minutes
_LOGIN = (
    "run `hf auth login`, or set HF_TOKEN to a token with write permission (https://huggingface.co/settings/tokens)"
)
_TRANSIENT = {408, 409, 412, 429, 500, 502, 503, 504}
"""Statuses after which another attempt may end well; 409 and 412 say that someone else wrote meanwhile."""


class PublishError(Exception):
    """The Hub did not do what was asked, and the input is not to blame; ``str(error)`` is one readable line."""


@dataclass(frozen=True)
class Upload:
    """One file to be on the Hub.

    Attributes:
        path: its place in the repository.
        content: the file here, or its bytes.
    """

    path: str
    content: Path | bytes

    @property
    def size(self) -> int:
        """Size in bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def is_at(self, remote: RepoFile | None) -> bool:
        """Tell whether the Hub has these bytes: by SHA-256 where it stores them as LFS or Xet, else by git's SHA-1."""
        if remote is None or remote.size != self.size:
            return False
        content = self.content if isinstance(self.content, bytes) else self.content.read_bytes()
        return sha256(content).hexdigest() == remote.lfs.sha256 if remote.lfs else git_hash(content) == remote.blob_id


@dataclass(frozen=True)
class Plan:
    """A version of a repository, checked and ready to be pushed.

    Attributes:
        repo_id: ``owner/name``.
        files: all files of this version.
        message: first line of the commit.
        description: its further lines.
        stale: patterns of paths that are removed when this version does not have them; one without a folder means
            files at the top.
        repo_type: ``model`` or ``space``.
        space_sdk: what a Space is made with; None for a model.
    """

    repo_id: str
    files: tuple[Upload, ...]
    message: str
    description: str = ""
    stale: tuple[str, ...] = ()
    repo_type: str = "model"
    space_sdk: str | None = None


@dataclass
class Outcome:
    """What a push did.

    Attributes:
        url: the repository's page.
        commit: the commit that now holds this version, 40 hex digits.
        uploaded: paths that were new or different; empty when nothing changed.
        removed: paths of the earlier version that are gone.
        tagged: whether this push set the tag; False where it was set already or none was asked for.
    """

    url: str = ""
    commit: str = ""
    uploaded: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    tagged: bool = False


def push(
    plan: Plan, *, revision: str = "main", tag: str | None = None, private: bool = False, token: str | None = None
) -> Outcome:
    """Make a branch of the Hub's repository hold this version, in one commit, and tag it.

    The server is ``HF_ENDPOINT``, the Hub where that is not set; the token is ``HF_TOKEN``'s or the login's. Requests
    that fail for a passing reason are repeated with growing pauses.
    """
    token = require_token(token)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token, library_name="brain-tumor-mri")
    outcome = Outcome()

    def attempt() -> None:
        _push_once(api, plan, revision, tag, private, outcome)

    quiet_client()
    _repeat(attempt, f"{plan.repo_id} on {without_credentials(api.endpoint)}", token)
    return outcome


def _push_once(api: HfApi, plan: Plan, revision: str, tag: str | None, private: bool, outcome: Outcome) -> None:
    """Do what is still to be done, judged by what the Hub has now; so repeating it is always right."""
    repo: dict[str, Any] = {"repo_id": plan.repo_id, "repo_type": plan.repo_type}
    spaces = "spaces/" if plan.repo_type == "space" else ""
    outcome.url = f"{without_credentials(api.endpoint)}/{spaces}{plan.repo_id}"
    try:
        if not api.repo_info(**repo).private and private:
            raise UserError(f"{plan.repo_id} exists and is public; make it private in its settings, or omit --private")
    except RepositoryNotFoundError:
        # None, not False: an organisation may have private as its default
        api.create_repo(**repo, private=private or None, space_sdk=plan.space_sdk, exist_ok=True)
    refs = api.list_repo_refs(**repo)
    heads = {branch.name: branch.target_commit for branch in refs.branches}
    tags = {ref.name for ref in refs.tags}
    tagged = str(api.repo_info(**repo, revision=tag).sha) if tag and tag in tags else None
    if tag in heads:
        raise UserError(f"{plan.repo_id} has a branch called {tag}; give the tag another name")
    if revision in tags:
        raise UserError(f"{plan.repo_id} has a tag called {revision}; --revision takes a branch")
    if tagged and tagged != heads.get(revision):
        raise UserError(_tag_taken(plan.repo_id, tag, tagged))
    if revision not in heads:
        api.create_branch(**repo, branch=revision, exist_ok=True)
        heads[revision] = str(api.repo_info(**repo, revision=revision).sha)

    wanted = {file.path for file in plan.files}
    tree = api.list_repo_tree(
        **repo, revision=heads[revision], recursive=any("/" in path for path in (*wanted, *plan.stale))
    )
    there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    changed = [file for file in plan.files if not file.is_at(there.get(file.path))]
    stale = [path for path in there if path not in wanted and any(_matches(path, p) for p in plan.stale)]
    outcome.commit = heads[revision]
    if changed or stale:
        if tagged:
            raise UserError(_tag_taken(plan.repo_id, tag, tagged))
        # noted before the request: its answer may be lost, and the next attempt then finds nothing to do
        outcome.uploaded, outcome.removed = [file.path for file in changed], stale
        # made anew in each attempt, as the client stores in them what it learned about the Hub
        additions = [CommitOperationAdd(file.path, file.content) for file in changed]
        outcome.commit = api.create_commit(
            **repo,
            operations=[*additions, *(CommitOperationDelete(path) for path in stale)],
            commit_message=plan.message,
            commit_description=plan.description,
            revision=revision,
            parent_commit=heads[revision],
        ).oid
    if tag and not tagged:
        outcome.tagged = True
        api.create_tag(**repo, tag=tag, revision=outcome.commit)


def _matches(path: str, pattern: str) -> bool:
    return fnmatch(path, pattern) and ("/" in path) <= ("/" in pattern)


def _tag_taken(repo_id: str, tag: str | None, commit: str) -> str:
    return f"{repo_id} has a tag {tag} already, on another version ({commit[:8]}); give this version another --tag"


def require_token(given: str | None = None) -> str:
    """Return the token to publish with: the given one, ``HF_TOKEN``'s or the login's."""
    try:
        token = given or get_token()
    except Exception:  # its text may quote the token or what it is exchanged for
        raise UserError(f"the stored login cannot be read; {_LOGIN}") from None
    if not token:
        raise UserError(f"publishing needs a token of the Hub, and there is none; {_LOGIN}")
    if not re.fullmatch("[!-~]+", token):  # an HTTP library's complaint would quote it
        raise UserError(f"the token has characters that no token has; {_LOGIN}")
    return token


def quiet_client() -> None:
    """Keep the client's log lines and, where nobody watches, its bars off stderr: this module tells what happens."""
    client_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()


def _repeat(attempt: Callable[[], None], what: str, token: str) -> None:
    """Call ``attempt`` until it succeeds; errors are one line, without the token and the errors that led to it."""
    for count in range(1, ATTEMPTS + 1):
        try:
            return attempt()
        except Exception as error:
            cause = _cause(error)
            if isinstance(cause, UserError):
                raise
            wait = _wait(cause, count)
            described = _describe(cause).replace(token, "***")
            final = _refusal(cause, what, described)
        if wait is None:
            raise final
        if count < ATTEMPTS:
            print(f"{described}; trying again in {wait:g} s", file=sys.stderr)
            sleep(wait)
    again = "run the same command again: it does what is still to be done"
    raise PublishError(f"{what}: {described}, after {ATTEMPTS} attempts; {again}")


def _cause(error: Exception) -> BaseException:
    """Return what happened, out of the RuntimeError in which the client wraps a failed upload."""
    cause: BaseException = error
    while isinstance(cause, RuntimeError) and cause.__cause__:
        cause = cause.__cause__
    return cause


def _wait(error: BaseException, count: int) -> float | None:
    """Return the seconds to wait before the next attempt; None where none would help."""
    passing = (
        httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError,
        ConnectionError, TimeoutError, RuntimeError,  # of hf_xet
        json.JSONDecodeError,  # the client reads some answers before it looks at their status
    )  # fmt: skip
    pause = 2.0 ** (count - 1)
    if isinstance(error, HfHubHTTPError):
        if error.response.status_code not in _TRANSIENT:
            return None
        headers = error.response.headers
        limit = parse_ratelimit_headers(headers)
        asked = headers.get("Retry-After", "")
        if limit is not None and limit.remaining == 0:
            pause = max(pause, limit.reset_in_seconds + 1.0)
        elif asked.isdecimal():
            pause = max(pause, float(asked))
        return min(pause, LONGEST_WAIT)
    return pause if isinstance(error, passing) and not isinstance(error, OfflineModeIsEnabled) else None


def _describe(error: BaseException) -> str:
    if isinstance(error, HfHubHTTPError):
        said = f" ({one_line(error.server_message)})" if error.server_message else ""
        return f"the Hub answered {error.response.status_code}{said}"
    if isinstance(error, json.JSONDecodeError):
        return "the Hub's answer could not be read"
    if isinstance(error, ValueError | OSError) and not isinstance(error, ConnectionError | TimeoutError):
        return one_line(error)  # the client's own checks: names, metadata, LFS answers; files that are gone
    return f"the Hub could not be asked ({one_line(error)})"


def _refusal(error: BaseException, what: str, described: str) -> BaseException:
    """Return the exception for what no further attempt can help; a bug of ours is returned as it is."""
    if isinstance(error, OfflineModeIsEnabled):
        return UserError("HF_HUB_OFFLINE is set, so nothing can be published; unset it")
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return UserError(f"{what}: the Hub does not accept the token; {_LOGIN}")
        if status == 403:
            return UserError(f"{what}: {described}; {_LOGIN}")
        return PublishError(f"{what}: {described}")
    if isinstance(error, httpx.HTTPError | httpx.InvalidURL):
        return UserError(f"{what}: {described}; check HF_ENDPOINT")
    if isinstance(error, ValueError | OSError):
        return UserError(f"{what}: {described}")
    return error


def one_line(error: object, limit: int = 160) -> str:
    """Return what an error says, on one line of at most ``limit`` characters."""
    text = without_credentials(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
