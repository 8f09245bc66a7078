"""A server with the upload routes of the Hugging Face hub, for tests without a network."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

from support.local_server import serving

TOKEN = "hf_a_secret_token"
LARGE = re.compile(r"\.(safetensors|data|png)$")


class Hub:
    """Keeps what was uploaded.

    Attributes:
        endpoint: the value for HF_ENDPOINT.
        requests: method and path of each request, in order.
        repositories: the files of each, by path.
        num_commits: of all repositories.
        failures: what to answer, by a part of the path: (status, X-Error-Code or None).
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.requests: list[tuple[str, str]] = []
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}
        self.num_commits = 0
        self.failures: dict[str, tuple[int, str | None]] = {}


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a hub on a free local port until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer()

        def do_PUT(self) -> None:
            self.answer()

        def log_message(self, format: str, *args: object) -> None:
            pass

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.partition("?")[0]
            hub.requests.append((self.command, path))
            for part, (status, code) in hub.failures.items():
                if part in path:
                    self.send(status, {"error": f"no: {status}"}, {"X-Error-Code": code} if code else {})
                    return
            if self.command == "PUT":
                digest = path.rpartition("/")[2]
                assert hashlib.sha256(body).hexdigest() == digest
                hub.large[digest] = body
                self.send(200, {})
                return
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.send(401, {"error": "Invalid credentials"})
                return
            self.route(path, body)

        def route(self, path: str, body: bytes) -> None:
            if path == "/api/repos/create":
                request = json.loads(body)
                name = "/".join(part for part in (request.get("organization"), request["name"]) if part)
                if name in hub.repositories:
                    self.send(409, {"error": "You have it", "url": f"{hub.endpoint}/{name}"})
                    return
                hub.repositories[name] = {}
                hub.private[name] = request.get("private") or request.get("visibility") == "private"
                self.send(200, {"url": f"{hub.endpoint}/{name}"})
            elif path == "/api/validate-yaml":
                self.send(200, {"errors": [], "warnings": []})
            elif path.endswith("/preupload/main"):
                files = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if LARGE.search(file["path"]) else "regular",
                        "shouldIgnore": False,
                        "oid": None,
                    }
                    for file in json.loads(body)["files"]
                ]
                self.send(200, {"files": files})
            elif path.endswith(".git/info/lfs/objects/batch"):
                objects = [
                    wanted | {"actions": {"upload": {"href": f"{hub.endpoint}/lfs/{wanted['oid']}"}}}
                    for wanted in json.loads(body)["objects"]
                ]
                self.send(200, {"transfer": "basic", "objects": objects})
            elif commit := re.fullmatch(r"/api/models/(.+)/commit/main", path):
                files_of = hub.repositories[commit[1]]
                for line in body.splitlines():
                    entry = json.loads(line)
                    value = entry["value"]
                    if entry["key"] == "file":
                        files_of[value["path"]] = base64.b64decode(value["content"])
                    elif entry["key"] == "lfsFile":
                        files_of[value["path"]] = hub.large[value["oid"]]
                    elif entry["key"] == "deletedFile":
                        del files_of[value["path"]]
                hub.num_commits += 1
                url = f"{hub.endpoint}/{commit[1]}/commit/{'1' * 40}"
                self.send(200, {"commitUrl": url, "commitOid": "1" * 40, "success": True})
            elif (tree := re.fullmatch(r"/api/models/(.+)/tree/main", path)) and tree[1] in hub.repositories:
                files = hub.repositories[tree[1]]
                self.send(200, [{"type": "file", "path": p, "size": 1, "oid": "1"} for p in files])
            elif (info := re.fullmatch(r"/api/models/(.+)", path)) and info[1] in hub.repositories:
                self.send(200, {"id": info[1], "private": hub.private[info[1]]})
            else:
                self.send(404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})

        def send(self, status: int, answer: object, headers: dict[str, str] | None = None) -> None:
            content = json.dumps(answer).encode()
            self.send_response(status)
            fields = {"Content-Type": "application/json", "Content-Length": str(len(content))}
            for name, value in (fields | (headers or {})).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    with serving(Handler) as endpoint:
        hub = Hub(endpoint)
        yield hub
