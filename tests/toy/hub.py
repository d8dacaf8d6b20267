"""A stand-in of the Hugging Face hub: the part of its HTTP API that publishing and pulling use."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_stand_in"
READ_ONLY = "hf_read_only"


class Hub(ThreadingHTTPServer):
    """Repositories by name, each a dictionary of files."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, repo: str) -> str:
        """Return a commit's name, which follows from the contents."""
        files = sorted(self.repos[repo].items())
        return hashlib.sha1(repr(files).encode()).hexdigest()


class Answers(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *given: Any) -> None:
        """Print nothing."""

    def reply(self, status: int, body: Any = None, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def missing(self, code: str) -> None:
        self.reply(404, {"error": code}, X_Error_Code=code)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        self.server.asked.append(f"POST {path}")
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if path == "/api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        if token != TOKEN:
            return self.reply(403, {"error": "the token may not write"})
        if path == "/api/repos/create":
            return self.create(json.loads(data))
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path)
        assert found is not None, path
        if found[1] not in self.server.repos:
            return self.missing("RepoNotFound")
        if found[2] == "preupload":
            names = [file["path"] for file in json.loads(data)["files"]]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            return self.reply(200, {"files": [{"path": name, **modes} for name in names]})
        return self.add(found[1], data)

    def create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.server.repos:
            return self.reply(409, {"error": "exists", "url": f"{self.server.url}/{repo}"})
        self.server.repos[repo] = {}
        if asked.get("visibility") == "private" or asked.get("private"):
            self.server.private.add(repo)
        return self.reply(200, {"url": f"{self.server.url}/{repo}", "id": repo, "name": repo})

    def add(self, repo: str, data: bytes) -> None:
        for line in data.decode().splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                content = base64.b64decode(item["value"]["content"])
                self.server.repos[repo][item["value"]["path"]] = content
        oid = self.server.commit(repo)
        url = f"{self.server.url}/{repo}/commit/{oid}"
        self.reply(200, {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self.describe(found[1], found[2])
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if found is None:  # the client asks for more, and does without
            return self.missing("EntryNotFound")
        repo, revision, name = found.groups()
        if repo not in self.server.repos:
            return self.missing("RepoNotFound")
        if name not in self.server.repos[repo]:
            return self.missing("EntryNotFound")
        content = self.server.repos[repo][name]
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        return self.reply(200, content, ETag=etag, X_Repo_Commit=revision)

    do_HEAD = do_GET

    def describe(self, repo: str, revision: str | None) -> None:
        if repo not in self.server.repos:
            return self.missing("RepoNotFound")
        oid = self.server.commit(repo)
        if revision not in (None, "main", oid):
            return self.missing("RevisionNotFound")
        siblings = [{"rfilename": name} for name in sorted(self.server.repos[repo])]
        return self.reply(200, {"id": repo, "sha": oid, "siblings": siblings, "private": False})


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve an empty hub on a free port."""
    hub = Hub()
    thread = Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
