"""The driver reads what servers answer, the service's own streams and llama-server's among them."""

from __future__ import annotations

import asyncio
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.fake_backend import MIXED
from support.local_server import serving
from support.local_service import served
from support.paths import ROOT

from benchmarks.cases.service import WAYS, compare_servers
from benchmarks.measure import http_load
from benchmarks.measure.http_client import Client
from benchmarks.measure.http_load import bodies_of, closed_loop, open_loop
from benchmarks.measure.server_process import ServerProcess
from benchmarks.measure.workloads import tweets
from benchmarks.peers import environments
from hgt_infer import Generator

EVENTS = [
    b'data: {"choices":[{"text":"a","index":0,"logprobs":null,"finish_reason":null}],"model":"m"}\n\n',
    b": a comment\n\n",
    'data: {"choices":[{"text":"é","index":0,"finish_reason":"length"}],"timings":{}}\n\n'.encode(),
    b'data: {"choices":[],"usage":{"completion_tokens":2}}\n\ndata: [DONE]\n\n',
]


@dataclass
class At:
    """A server, by its address."""

    host: str
    port: int
    name: str = "server"

    def close(self) -> None:
        pass


def at(url: str) -> At:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return At(parts.hostname, parts.port)


class LikeLlamaServer(BaseHTTPRequestHandler):
    """Answers every prompt with é behind a; it cuts events anywhere, and ends a connection without a word."""

    protocol_version = "HTTP/1.1"
    events: bytes | None = b"".join(EVENTS)
    end = b"0\r\n\r\n"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200 if self.events is not None else 503)
        self.close_connection = True
        if body.get("stream") and self.events is not None:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for start in range(0, len(self.events), 50):
                chunk = self.events[start : start + 50]
                self.wfile.write(f"{len(chunk):X}\r\n".encode() + chunk + b"\r\n")
            self.wfile.write(self.end)
        else:
            answer = {"choices": [{"text": "aé"}], "usage": {"completion_tokens": 2}, "path": self.path}
            content = json.dumps(answer).encode()
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def service(generator: Generator) -> Iterator[At]:
    with served({http_load.MODEL: generator}) as url:
        yield at(url)


def test_streams_of_llama_server_are_read_whatever_a_chunk_holds() -> None:
    async def ask(server: At) -> None:
        with closing(Client(server.host, server.port, reconnects=True)) as client:
            for _ in range(2):  # the second on a connection of its own: the server has ended the first
                reply = await client.stream({"prompt": "x"})
                assert reply.text == "aé"
                assert 0 < reply.first_token_s <= reply.end_s
            assert (await client.complete({"prompt": "x"}, path="/completion"))["path"] == "/completion"

    with serving(LikeLlamaServer) as url:
        asyncio.run(ask(at(url)))


def test_a_connection_that_a_server_ended_is_an_error_unless_the_client_may_reconnect() -> None:
    async def ask(server: At) -> None:
        with closing(Client(server.host, server.port)) as client:
            await client.stream({"prompt": "x"})
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await client.stream({"prompt": "x"})

    with serving(LikeLlamaServer) as url:
        asyncio.run(ask(at(url)))


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (None, "the service answered HTTP/1.1 503"),
        (b'data: {"error": {"code": 500}}\n\n', "answered.*500"),
        (EVENTS[0], "a stream ended with the finish reason None, not length"),
        (b"", "a stream ended with the finish reason None, not length"),
    ],
)
def test_errors_of_a_server_are_told(events: bytes | None, message: str) -> None:
    class Failing(LikeLlamaServer):
        pass

    Failing.events = events

    async def ask(server: At) -> None:
        with closing(Client(server.host, server.port)) as client:
            await client.stream({"prompt": "x"})

    with serving(Failing) as url, pytest.raises(RuntimeError, match=message):
        asyncio.run(ask(at(url)))


def test_a_stream_that_is_cut_off_is_a_lost_connection() -> None:
    class Cut(LikeLlamaServer):
        end = b""

    async def ask(server: At) -> None:
        with closing(Client(server.host, server.port)) as client:
            await client.stream({"prompt": "x"})

    with serving(Cut) as url, pytest.raises(ConnectionError, match="in the middle of a stream"):
        asyncio.run(ask(at(url)))


@pytest.mark.parametrize("way", WAYS)
def test_clients_that_wait_send_every_request_once(
    service: At, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_load, "NUM_CLIENTS", 3)
    workload = tweets().head(8, max_tokens=4)
    prompts: list[str] = []

    async def ask(client: Client, body: dict[str, Any]) -> None:
        await WAYS[way](client, body)
        prompts.append(body["prompt"])

    assert asyncio.run(closed_loop(service, workload, ask)) > 0
    assert sorted(prompts) == sorted(workload.prompts)


def test_a_whole_answer_has_all_of_its_tokens() -> None:
    async def ask(server: At) -> None:
        with closing(Client(server.host, server.port, reconnects=True)) as client:
            await WAYS["whole"](client, {"prompt": "x", "max_tokens": 2})
            with pytest.raises(RuntimeError, match="2 tokens came, not 3"):
                await WAYS["whole"](client, {"prompt": "x", "max_tokens": 3})

    with serving(LikeLlamaServer) as url:
        asyncio.run(ask(at(url)))


def test_requests_arrive_at_their_times_and_count_from_then(service: At) -> None:
    times = (0.0, 0.01, 0.05)
    replies = asyncio.run(open_loop(service, MIXED, times))
    assert len(replies) == len(times)
    assert all(0 < reply.first_token_s <= reply.end_s for reply in replies)
    late = asyncio.run(open_loop(service, MIXED, (-5.0, -5.0, -5.0)))
    assert all(reply.first_token_s > 5 for reply in late)


def test_servers_take_turns_and_get_the_same_rates(
    service: At, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "PEERS", tmp_path / "none")
    workload = tweets().head(8, max_tokens=4)
    servers = [replace(service, name=name) for name in ("a", "b")]
    results = compare_servers(servers, workload, tmp_path, num_rounds=2)
    assert [*results] == ["a", "b"]
    slowest = min(result["closed_loop"]["streams"]["requests_per_s"] for result in results.values())
    for result in results.values():
        assert [len(loop["seconds"]) for loop in result["closed_loop"].values()] == [2, 2]
        assert [load["requests_per_s"] for load in result["open_loop"]] == [0.5 * slowest, 0.9 * slowest]
        assert {load["num_requests"] for load in result["open_loop"]} == {16}
        assert result["guidellm"] == []


def test_requests_say_the_whole_length() -> None:
    [first, *_] = bodies_of(MIXED)
    assert (first["prompt"], first["max_tokens"], first["min_tokens"]) == ("a", 1, 1)
    assert first["ignore_eos"]
    assert (first["temperature"], first["top_k"], first["top_p"]) == (1.0, 50, 0.95)


def test_a_server_s_process_is_found_by_the_address_that_it_prints() -> None:
    code = "import sys, time; print('on http://127.0.0.1:1234/', file=sys.stderr, flush=True); time.sleep(60)"
    server = ServerProcess("one", [sys.executable, "-c", code])
    assert (server.name, server.host, server.port) == ("one", "127.0.0.1", 1234)
    assert server.memory_mb() > 1
    assert server.num_files() >= 3
    server.close()
    with pytest.raises(RuntimeError, match=r"^two did not start: no port$"):
        ServerProcess("two", [sys.executable, "-c", "import sys; sys.exit('no port')"])


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends a child with its parent")
def test_a_server_ends_when_the_process_that_started_it_is_killed() -> None:
    sleeps = "import time; print('http://127.0.0.1:1', flush=True); time.sleep(60)"
    starts = (
        "import sys, time; from benchmarks.measure.server_process import ServerProcess; "
        f"print(ServerProcess('one', [sys.executable, '-c', {sleeps!r}]).pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", starts], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent, closing(parent.stdout):
        server = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
        with closing(os.fdopen(server)):
            assert select.select([server], [], [], 30)[0]  # readable when it has ended
