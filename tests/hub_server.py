"""A Hugging Face Hub on 127.0.0.1: model repositories in memory, as far as push and pull need one.

Spoken to by the real ``huggingface_hub`` client. As on the Hub, safetensors go to large file
storage before the commit that names them; by LFS, since Xet has no server of its own to run here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

Files = dict[str, bytes]
Fault = Literal["drop", "drop the answer"] | int
READ, WRITE = "hf_read", "hf_write"
"""The two tokens the server knows."""
PATIENCE_S = 3600
"""How long a client waits for this server, which answers at once unless the machine is busy."""


@dataclass
class Repo:
    """One model repository."""

    private: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    """Commit to all its files."""
    branches: dict[str, str] = field(default_factory=dict)
    """Branch to commit."""

    def commit(self, branch: str, files: Files) -> str:
        """Add a commit on top of a branch."""
        sha = hashlib.sha1(f"{branch} {len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def files(self, revision: str = "main") -> Files:
        """Files at a branch or commit."""
        return self.commits[self.branches.get(revision, revision)]


class HubServer:
    """The server; a context manager that stops by itself."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: Files = {}
        """The large file storage, by sha256."""
        self.requests: list[str] = []
        """``METHOD /path`` of every request, in order."""
        self.faults: list[tuple[str, Fault]] = []
        """Pattern of a request and what befalls the next that matches: a status, or silence."""
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> HubServer:
        self._thread = Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def add(self, name: str, files: Files, *, private: bool = False) -> Repo:
        """A repository that exists already, with one commit."""
        repo = self.repos[name] = Repo(private)
        repo.commit("main", files)
        return repo

    def fault_for(self, request: str) -> Fault | None:
        """Take the first fault that is meant for this request."""
        for index, (pattern, fault) in enumerate(self.faults):
            if re.search(pattern, request):
                del self.faults[index]
                return fault
        return None


@contextmanager
def local_hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[HubServer]:
    """A running server, and a client in this process that has no token and an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        monkeypatch.setattr(constants, name, PATIENCE_S)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with HubServer() as server:
        yield server
        huggingface_hub.close_session()


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def handle_request(self) -> None:
            path = unquote(urlsplit(self.path).path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.requests.append(f"{self.command} {path}")
            fault = hub.fault_for(hub.requests[-1])
            if isinstance(fault, int):
                self.reply(fault, b"{}")
            elif fault == "drop":
                self.close_connection = True
            else:
                token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
                answer = _Answer(hub, self.command, path, body, token).make()
                if fault is None:
                    self.reply(*answer)
                else:
                    self.close_connection = True

        do_GET = do_HEAD = do_POST = do_PUT = handle_request  # noqa: N815  # the base class calls these

        def reply(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    return Handler


Reply = tuple[int, bytes, dict[str, str]]


@dataclass
class _Answer:
    """What the Hub says to one request."""

    hub: HubServer
    method: str
    path: str
    body: bytes
    token: str

    def make(self) -> Reply:
        if self.token not in ("", READ, WRITE):
            return _error(401, "", "Invalid username or password.")
        reads = self.method != "POST" or "/paths-info/" in self.path
        if not reads and self.token != WRITE:
            return _error(403 if self.token else 401, "", "You may not do this.")
        if self.method == "PUT":  # to an address that batch() gave, so no token is needed
            self.hub.large[self.path.rpartition("/")[2]] = self.body
            return _json({})
        if self.path.endswith(".git/info/lfs/objects/batch"):
            return self.batch()
        if self.path == "/api/validate-yaml":
            card = json.loads(self.body)["content"]
            bad = re.search(r"^license: (nonsense)$", card, re.MULTILINE)
            return _json({"errors": [{"message": "license unknown"}]}, 400) if bad else _json({})
        if self.path == "/api/whoami-v2":
            return self.whoami()
        if self.path == "/api/repos/create":
            return self.create(json.loads(self.body))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/([a-z-]+)/(.+))?", self.path):
            name, verb, rest = found[1], found[2] or "revision", found[3] or "main"
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/(resolve)/(.+)", self.path):
            name, verb, rest = found[1], found[2], found[3]
        else:
            return _error(404, "", "no such page")
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self.token):
            return _error(404 if self.token else 401, "RepoNotFound", "Repository not found")
        if verb == "branch":
            return self.branch(repo, rest)
        if verb == "resolve":
            revision, _, file = rest.partition("/")
        else:
            revision, file = rest, ""
        if repo.branches.get(revision, revision) not in repo.commits:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        match verb:
            case "tree":
                return _json(_tree(repo.files(revision)))
            case "paths-info":
                return self.paths_info(repo.files(revision))
            case "preupload":
                return self.preupload(repo.files(revision))
            case "commit":
                return self.commit(name, repo, revision)
            case "resolve":
                return self.resolve(repo, revision, file)
            case _:
                return _json(_info(name, repo, revision))

    def whoami(self) -> Reply:
        if not self.token:
            return _error(401, "", "Invalid username or password.")
        role = {READ: "read", WRITE: "write"}[self.token]
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        return _json({"type": "user", "name": "ann", "auth": auth})

    def create(self, asked: dict[str, Any]) -> Reply:
        name = f"{asked.get('organization') or 'ann'}/{asked['name']}"
        url = {"url": f"{self.hub.endpoint}/{name}"}
        if name in self.hub.repos:
            return _json(url, 409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.add(name, {".gitattributes": b""}, private=private)
        return _json(url)

    def branch(self, repo: Repo, name: str) -> Reply:
        if name in repo.branches:
            return _error(409, "", "Reference already exists")
        repo.branches[name] = repo.branches["main"]
        return _json({})

    def paths_info(self, files: Files) -> Reply:
        asked = parse_qs(self.body.decode())["paths"]
        return _json([entry for entry in _tree(files) if entry["path"] in asked])

    def preupload(self, files: Files) -> Reply:
        asked = [entry["path"] for entry in json.loads(self.body)["files"]]
        modes = [
            {
                "path": path,
                "uploadMode": "lfs" if _is_large(path) else "regular",
                "shouldIgnore": False,
                "oid": _oid(path, files[path]) if path in files else None,
            }
            for path in asked
        ]
        return _json({"files": modes})

    def batch(self) -> Reply:
        def place(oid: str) -> dict[str, Any]:
            return {"actions": {"upload": {"href": f"{self.hub.endpoint}/large/{oid}"}}}

        objects = [
            asked | ({} if asked["oid"] in self.hub.large else place(asked["oid"]))
            for asked in json.loads(self.body)["objects"]
        ]
        return _json({"transfer": "basic", "objects": objects})

    def commit(self, name: str, repo: Repo, branch: str) -> Reply:
        header, *operations = map(json.loads, self.body.splitlines())
        if header["value"].get("parentCommit", repo.branches[branch]) != repo.branches[branch]:
            return _error(412, "", "A commit has happened since.")
        files = dict(repo.files(branch))
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
            else:
                return _error(400, "", f"no {operation['key']} here")
        sha = repo.commit(branch, files)
        url = f"{self.hub.endpoint}/{name}/commit/{sha}"
        return _json({"success": True, "commitOid": sha, "commitUrl": url})

    def resolve(self, repo: Repo, revision: str, path: str) -> Reply:
        data = repo.files(revision).get(path)
        if data is None:
            return _error(404, "EntryNotFound", "Entry not found")
        sha = repo.branches.get(revision, revision)
        return 200, data, {"ETag": f'"{_oid(path, data)}"', "X-Repo-Commit": sha}


def _info(name: str, repo: Repo, revision: str) -> dict[str, Any]:
    siblings = [{"rfilename": path} for path in sorted(repo.files(revision))]
    sha = repo.branches.get(revision, revision)
    return {"id": name, "sha": sha, "private": repo.private, "siblings": siblings, "tags": []}


def _tree(files: Files) -> list[dict[str, Any]]:
    return [
        {"type": "file", "path": path, "size": len(data), "oid": _oid(path, data)}
        for path, data in files.items()
    ]


def _is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def _oid(path: str, data: bytes) -> str:
    if _is_large(path):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _json(value: Any, status: int = 200) -> Reply:
    return status, json.dumps(value).encode(), {"Content-Type": "application/json"}


def _error(status: int, code: str, text: str) -> Reply:
    headers = {"X-Error-Message": text} | ({"X-Error-Code": code} if code else {})
    return status, json.dumps({"error": text}).encode(), headers
