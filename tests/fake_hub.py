"""A hub on loopback: repositories with commits, branches and gates, and uploads, as far as its client asks."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

FILE = re.compile(r"/(?P<data>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)(/(?P<what>[^/]+)(/(?P<revision>[^/]+).*)?)?")
BATCH = re.compile(r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch")


@dataclass
class Repo:
    """Commits by hash, each with its files; branches and tags by name."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    broken: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """A commit that has these files only; its hash."""
        commit = hashlib.sha1(repr((sorted(files), branch, len(self.commits))).encode()).hexdigest()
        self.commits[commit] = files
        self.refs[branch] = commit
        return commit


class FakeHub(ThreadingHTTPServer):
    """Serves `models` and `datasets`; keeps what was asked for in `asked`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: dict[str, Repo] = {}
        self.datasets: dict[str, Repo] = {}
        self.asked: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.read_only = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, repo: str, directory: Path, branch: str = "main", **facts: Any) -> str:
        """A commit of a directory's files."""
        files = {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}
        return self.models.setdefault(repo, Repo(**facts)).commit(files, branch)


class Handler(BaseHTTPRequestHandler):
    """Answers the client."""

    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        path = path if "%2F" not in url.path else url.path.replace("%2F", "\0")  # a revision such as refs/pr/1
        self.server.asked.append(f"{self.command} {path}")
        self.body = self._body()
        if self.command == "PUT":
            self.server.objects[path.rpartition("/")[2]] = self.body
            self._send(b"")
        elif match := FILE.fullmatch(path):
            self._file(self._repos("datasets" if match["data"] else "models"), match)
        elif match := BATCH.fullmatch(path):
            self._batch()
        elif path == "/api/repos/create" and self.server.read_only:
            self._refuse(403, "", "You don't have the rights to create a model under the namespace")
        elif path == "/api/repos/create":
            self._create()
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path in ("/api/models", "/api/datasets"):
            word = self.query.get("search", [""])[0]
            self._json([{"id": name} for name in self._repos(path[5:]) if word in name])
        elif match := API.fullmatch(path):
            self._api(self._repos(match["kind"]), match)
        else:
            self._refuse(404, "", f"no {path}")

    def _body(self) -> bytes:
        """What was sent, at once or in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _repos(self, kind: str) -> dict[str, Repo]:
        return self.server.models if kind == "models" else self.server.datasets

    def _commit(self, repo: Repo, revision: str | None) -> str | None:
        name = (revision or "main").replace("\0", "/")
        return name if name in repo.commits else repo.refs.get(name)

    def _opened(self, repos: dict[str, Repo], match: re.Match[str]) -> tuple[Repo, str] | None:
        """The repository and the commit; None after a refusal."""
        repo = repos.get(match["repo"])
        known = self.headers.get("Authorization") is not None
        if self.headers.get("Authorization") == "Bearer hf_expired":
            self._refuse(401, "", "Invalid credentials in Authorization header")
            return None
        if repo is None or (repo.private and not known):
            self._refuse(404 if known else 401, "RepoNotFound", "Repository not found")
        elif repo.broken:
            self._refuse(500, "", "Internal Error - We're working hard to fix this")
        elif (commit := self._commit(repo, match["revision"])) is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {match['revision']}")
        else:
            return repo, commit
        return None

    def _file(self, repos: dict[str, Repo], match: re.Match[str]) -> None:
        if (opened := self._opened(repos, match)) is None:
            return
        repo, commit = opened
        files = repo.commits[commit]
        if repo.gated:
            text = f"Access to model {match['repo']} is restricted and you are not in the authorized list."
            self._refuse(403, "GatedRepo", text)
        elif match["path"] not in files:
            self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        else:
            content = files[match["path"]]
            self._send(content, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    def _api(self, repos: dict[str, Repo], match: re.Match[str]) -> None:
        if match["what"] == "branch":
            repo = repos[match["repo"]]
            repo.refs[match["revision"]] = repo.refs["main"]
            return self._json({})
        if (opened := self._opened(repos, match)) is None:
            return None
        repo, commit = opened
        files = repo.commits[commit]
        if match["what"] in (None, "revision"):
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
            self._json({"id": match["repo"], "sha": commit, "siblings": siblings, "private": False, "tags": []})
        elif match["what"] == "tree":
            entries = [(name, len(c), hashlib.sha1(c).hexdigest()) for name, c in files.items()]
            self._json([{"type": "file", "path": name, "size": size, "oid": oid} for name, size, oid in entries])
        elif match["what"] == "refs":
            refs = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repo.refs.items()]
            self._json({"branches": refs, "tags": [], "converts": []})
        elif match["what"] == "preupload":
            asked = json.loads(self.body)["files"]
            modes = [("lfs" if f["path"].endswith(".safetensors") else "regular", f["path"]) for f in asked]
            self._json({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for m, p in modes]})
        elif match["what"] == "commit":
            self._committed(repo, commit, match["revision"].replace("\0", "/"), match["repo"])
        else:
            self._refuse(404, "", "unknown")

    def _committed(self, repo: Repo, parent: str, branch: str, name: str) -> None:
        files = dict(repo.commits[parent])
        for line in map(json.loads, self.body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            else:
                assert line["key"] == "header", line["key"]  # nothing is ever deleted
        commit = repo.commit(files, branch)
        place = f"{self.server.url}/{name}/commit/{commit}"
        self._json({"commitUrl": place, "commitOid": commit, "pullRequestUrl": None, "hookOutput": ""})

    def _create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        url = {"url": f"{self.server.url}/{name}"}
        if name in self.server.models:
            return self._json({**url, "error": "You already created this model repo"}, 409)
        repo = self.server.models[name] = Repo(private=bool(asked.get("private") or asked.get("visibility")))
        repo.commit({".gitattributes": b""})
        return self._json({**url, "id": name})

    def _batch(self) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.server.url}/upload/{one['oid']}", "header": {}}}}
            for one in json.loads(self.body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _refuse(self, status: int, code: str, text: str, headers: dict[str, str] | None = None) -> None:
        self._send(b"", {"X-Error-Code": code, "X-Error-Message": text, **(headers or {})}, status)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"}, status)

    def _send(self, content: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            if value:
                self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that runs while the block does."""
    with FakeHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


def use_hub(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch, *, offline: bool = False) -> None:
    """Have this process's client of the hub ask `url`, and keep its files in `cache`."""
    from huggingface_hub import constants

    for name, value in {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": offline,
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", url)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", offline)
    monkeypatch.setenv("HF_TOKEN_PATH", str(cache / "no-token"))
