"""A server with the file routes of the Hugging Face hub, for tests without a network."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from support.local_server import serving


class Hub:
    """Serves `repositories`, folders by id, and keeps what was asked of it.

    Attributes:
        endpoint: the value for HF_ENDPOINT.
        requests: method and path of each request, in order.
        gated: ids that answer 403 with the hub's GatedRepo code.
    """

    def __init__(self, repositories: dict[str, Path], endpoint: str) -> None:
        self.repositories = repositories
        self.endpoint = endpoint
        self.requests: list[tuple[str, str]] = []
        self.gated: set[str] = set()

    def downloads(self) -> list[str]:
        """Names of the files whose content was sent."""
        return [
            path.rpartition("/")[2]
            for method, path in self.requests
            if method == "GET" and "/resolve/" in path
        ]


def commit_of(folder: Path) -> str:
    """A commit id that follows the content of the folder."""
    digest = hashlib.sha1()
    for name in files_of(folder):
        digest.update(name.encode() + (folder / name).read_bytes())
    return digest.hexdigest()


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@contextmanager
def serve(repositories: dict[str, Path]) -> Iterator[Hub]:
    """Run a hub on a free local port until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def log_message(self, format: str, *args: object) -> None:
            pass

        def answer(self) -> None:
            path = self.path.partition("?")[0]
            hub.requests.append((self.command, path))
            info = re.fullmatch(r"/api/models/(.+?)(?:/revision/[^/]+)?", path)
            tree = re.fullmatch(r"/api/models/(.+?)/tree/[^/]+", path)
            file = re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", path)
            match = tree or info or file
            name = match[1] if match else ""
            if name in hub.gated:
                self.send(403, b"{}", {"X-Error-Code": "GatedRepo"})
            elif name not in repositories:
                self.send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
            elif tree:
                entries = [
                    {
                        "type": "file",
                        "path": path,
                        "size": (repositories[name] / path).stat().st_size,
                        "oid": "0" * 40,
                    }
                    for path in files_of(repositories[name])
                ]
                self.send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
            elif info:
                folder = repositories[name]
                siblings = [{"rfilename": path} for path in files_of(folder)]
                body = {"id": name, "modelId": name, "sha": commit_of(folder), "siblings": siblings}
                self.send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
            else:
                assert file is not None
                self.send_file(repositories[name], file[3])

        def send_file(self, folder: Path, name: str) -> None:
            if name not in files_of(folder):
                self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
                return
            content = (folder / name).read_bytes()
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit_of(folder)}
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if not wanted:
                self.send(200, content, {**headers, "Accept-Ranges": "bytes"})
                return
            first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            span = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
            self.send(206, content[first : last + 1], headers | span)

        def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    with serving(Handler) as endpoint:
        hub = Hub(repositories, endpoint)
        yield hub
