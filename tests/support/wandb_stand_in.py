"""A server on 127.0.0.1 that takes what runs and `wandb sync` upload, in place of Weights & Biases."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from support.local_server import serving


@dataclass
class Uploads:
    """What arrived.

    Attributes:
        files: content of artifacts' files, by name.
        artifacts: type of each artifact, by its id.
        used: (run, artifact id) of each artifact that a run uses.
        history: lines of curves.
        num_requests: of any kind.
    """

    url: str = ""
    num_requests: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    used: list[tuple[str, str]] = field(default_factory=list)
    history: list[str] = field(default_factory=list)


@contextmanager
def wandb_stand_in() -> Iterator[Uploads]:
    """Serve while the block runs."""
    uploads = Uploads()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_PUT(self) -> None:
            kind, _, name = self.path[1:].partition("/")
            body = self._body()
            if kind == "artifact":
                uploads.files[name] = body
            self._answer({})

        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            body = self._body()
            if self.path.endswith("/file_stream"):
                files = json.loads(body).get("files", {})
                uploads.history += files.get("wandb-history.jsonl", {}).get("content", [])
            if self.path != "/graphql":
                self._answer({})
                return
            query = json.loads(body)
            self._answer({"data": answer(uploads, query.get("operationName"), query.get("variables", {}))})

        def _body(self) -> bytes:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

        def _answer(self, record: dict[str, Any]) -> None:
            uploads.num_requests += 1
            body = json.dumps(record).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with serving(Handler) as endpoint:
        uploads.url = endpoint
        yield uploads


def answer(uploads: Uploads, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
    given = variables.get("input", variables)
    if operation == "UpsertBucket":
        project = {"id": "project", "name": given["project"], "entity": {"id": "entity", "name": "someone"}}
        bucket = {"id": "bucket", "name": given["name"], "displayName": "", "description": "", "config": "{}"}
        bucket |= {"sweepName": None, "historyLineCount": 0, "project": project}
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}
    if operation == "Viewer":
        return {"viewer": {"id": "1", "entity": "someone", "username": "someone", "flags": "{}"}}
    if operation == "RunResumeStatus":
        return {"model": None}
    if operation == "CreateArtifact":
        artifact_id = f"{given['artifactTypeName']} {given['digest']}"
        uploads.artifacts[artifact_id] = given["artifactTypeName"]
        sequence = {"id": "sequence", "latestArtifact": None}
        artifact = {"id": artifact_id, "state": "PENDING", "artifactSequence": sequence}
        return {"createArtifact": {"artifact": artifact}}
    if operation == "CreateArtifactManifest":
        file = upload(f"{uploads.url}/manifest/x", "wandb_manifest.json")
        return {"createArtifactManifest": {"artifactManifest": {"id": "manifest", "file": file}}}
    if operation == "CreateArtifactFiles":
        nodes = [
            upload(f"{uploads.url}/artifact/{file['name']}", file["name"])
            | {"uploadMultipartUrls": None, "storagePath": "", "artifact": {"id": file["artifactID"]}}
            for file in given["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
    if operation == "CommitArtifact":
        return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": ""}}}
    if operation == "UseArtifact":
        uploads.used.append((given["runName"], given["artifactID"]))
        return {"useArtifact": {"artifact": {"id": given["artifactID"], "digest": ""}}}
    if operation == "CreateRunFiles":
        files = [upload(f"{uploads.url}/run/{name}", name) for name in given["files"]]
        return {"createRunFiles": {"runID": "bucket", "uploadHeaders": [], "files": files}}
    return {"project": None}


def upload(url: str, name: str) -> dict[str, Any]:
    return {"id": name, "name": name, "displayName": name, "uploadUrl": url, "uploadHeaders": []}
