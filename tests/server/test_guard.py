"""Keys, limits, disconnections, health, metrics and logs of the service."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.local_service import served, wait_until

from hgt_infer import Generator, ParameterError
from hgt_infer.server import Limits, create_app

MODEL = "goose"

LONG = {"model": MODEL, "prompt": "a", "max_tokens": 1000, "min_tokens": 1000, "n": 8}


@pytest.fixture
def limited(two_slots: Generator) -> Iterator[httpx.Client]:
    limits = Limits(
        max_body_bytes=2_000, body_timeout_s=0.3, max_concurrent_requests=2, max_prompts=2, retry_after_s=7
    )
    with (
        served({MODEL: two_slots}, limits=limits, api_keys=["first", "second"]) as url,
        httpx.Client(base_url=url, timeout=30, headers={"Authorization": "Bearer second"}) as client,
    ):
        yield client


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    return error


@pytest.mark.parametrize(
    ("path", "status"),
    [("/v1/models", 401), ("/", 401), ("/metrics", 401), ("/openapi.json", 401), ("/v1/nothing", 401),
     ("/health", 200), ("/health/live", 200), ("/health/ready", 200)],
)  # fmt: skip
def test_every_route_but_health_needs_a_key(limited: httpx.Client, path: str, status: int) -> None:
    for wrong in ("", "Bearer", "Bearer wrong", "Bearer firs", "Basic !", "Basic //8=", "second"):
        answer = limited.get(path, headers={"Authorization": wrong})
        assert answer.status_code == status
        if status == 401:
            assert error_of(answer)["code"] == "invalid_api_key"
            assert "Basic" in answer.headers["www-authenticate"]
    if path != "/v1/nothing":
        assert limited.get(path).status_code == 200
        assert limited.get(path, headers={"Authorization": "bearer first"}).status_code == 200
        assert limited.get(path, auth=("anyone", "first"), headers={"Authorization": ""}).status_code == 200


def test_a_large_or_slow_body_is_refused(limited: httpx.Client) -> None:
    answer = limited.post("/v1/completions", content=b"x" * 2_001)
    assert (answer.status_code, error_of(answer)["code"]) == (413, "body_too_large")
    answer = limited.post("/v1/completions", content=iter([b"x" * 1_500] * 2))  # of no length told
    assert (answer.status_code, error_of(answer)["code"]) == (413, "body_too_large")

    def slowly() -> Iterator[bytes]:
        yield b"{"
        time.sleep(0.5)
        yield b"}"

    answer = limited.post("/v1/completions", content=slowly())
    assert (answer.status_code, error_of(answer)["code"]) == (408, "body_timeout")


def test_too_many_requests_are_told_when_to_come_again(limited: httpx.Client) -> None:
    short = LONG | {"n": 1, "max_tokens": 1, "min_tokens": 1}
    with ExitStack() as streams:
        for _ in range(2):
            stream = limited.stream("POST", "/v1/completions", json=LONG | {"stream": True})
            streams.enter_context(stream)
        answer = limited.post("/v1/completions", json=short)
        assert (answer.status_code, error_of(answer)["code"]) == (429, "too_many_requests")
        assert answer.headers["retry-after"] == "7"
    wait_until(lambda: limited.post("/v1/completions", json=short).status_code == 200)
    for _ in range(3):  # one that has ended is counted no more
        assert limited.post("/v1/completions", json=short).status_code == 200


def test_a_full_queue_is_told(artifact: Path) -> None:
    with (
        Generator(artifact, device="cpu", num_slots=1, max_queued_sequences=2) as generator,
        served({MODEL: generator}) as url,
    ):
        for more in ({}, {"stream": True}):
            answer = httpx.post(f"{url}/v1/completions", json=LONG | more)
            assert (answer.status_code, error_of(answer)["code"]) == (429, "queue_full")
            assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_that_goes_away_frees_its_slots(
    limited: httpx.Client, two_slots: Generator, is_stream: bool
) -> None:
    cancelled = two_slots.stats().cancelled
    body = json.dumps(LONG | {"stream": is_stream})
    host, port = limited.base_url.host, limited.base_url.port
    assert port is not None
    with socket.create_connection((host, port)) as connection:
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer first\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(f"{head}{body}".encode())
        if is_stream:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        else:
            wait_until(lambda: two_slots.stats().running > 0)
    wait_until(lambda: two_slots.stats().running + two_slots.stats().waiting == 0)
    assert two_slots.stats().cancelled > cancelled


def test_metrics_count_requests_and_tokens(limited: httpx.Client, two_slots: Generator) -> None:
    def values() -> dict[str, float]:
        lines = limited.get("/metrics").text.splitlines()
        return {
            name: float(value)
            for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        }

    before = values()
    body = {"model": MODEL, "prompt": "a", "max_tokens": 6, "ignore_eos": True, "n": 2}
    assert limited.post("/v1/completions", json=body).status_code == 200
    assert limited.get("/v1/models/x" + "y" * 50).status_code == 404
    after = values()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown('hgt_infer_generated_tokens_total{model="goose"}') == 12
    assert grown('hgt_infer_finished_total{model="goose"}') == 2
    assert grown('hgt_infer_http_requests_total{path="/v1/completions",status="200"}') == 1
    assert grown('hgt_infer_http_requests_total{path="other",status="404"}') == 1
    assert after['hgt_infer_slots{model="goose"}'] == 2
    assert grown('hgt_infer_time_to_first_token_seconds_count{model="goose"}') == 2
    assert grown('hgt_infer_inter_token_seconds_bucket{le="+Inf",model="goose"}') == 10
    assert grown('hgt_infer_inter_token_seconds_sum{model="goose"}') > 0
    assert not re.search("yyy", limited.get("/metrics").text)


def test_a_request_has_an_id_and_a_line_in_the_log(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "hgt_infer.server.access"):
        body = {"model": MODEL, "prompt": "a", "max_tokens": 3, "ignore_eos": True}
        own = client.post("/v1/completions", json=body, headers={"X-Request-ID": "mine-1"})
        made = client.get("/health", headers={"X-Request-ID": "not\tmine {}"})
        wait_until(lambda: len(caplog.messages) >= 2)
    assert own.headers["x-request-id"] == "mine-1"
    assert re.fullmatch("[0-9a-f]{24}", made.headers["x-request-id"])
    first, second = map(json.loads, caplog.messages[:2])
    assert first["request_id"] == "mine-1"
    assert (first["method"], first["path"], first["status"]) == ("POST", "/v1/completions", 200)
    assert (first["completion_tokens"], second["path"]) == (3, "/health")
    assert first["ms"] > 0


def test_an_engine_that_died_is_not_ready(artifact: Path) -> None:
    with Generator(artifact, device="cpu", num_slots=1) as generator, served({MODEL: generator}) as url:
        assert httpx.get(f"{url}/health/ready").json() == {"status": "ready"}
        generator.close()
        answer = httpx.get(f"{url}/health/ready")
        assert (answer.status_code, answer.json()) == (503, {"status": "not ready"})
        assert httpx.get(f"{url}/health/live").status_code == 200
        for more in ({}, {"stream": True}):
            answer = httpx.post(f"{url}/v1/completions", json=LONG | more)
            assert (answer.status_code, error_of(answer)["code"]) == (503, "engine_stopped")
        assert httpx.get(f"{url}/metrics").status_code == 200


def test_an_engine_that_dies_ends_a_stream_with_an_error(artifact: Path) -> None:
    with (
        Generator(artifact, device="cpu", num_slots=1) as generator,
        served({MODEL: generator}) as url,
        httpx.stream("POST", f"{url}/v1/completions", json=LONG | {"stream": True}) as answer,
    ):
        lines = answer.iter_lines()
        assert "choices" in next(lines)
        generator.close()
        events = [line for line in lines if line]
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "engine_stopped"


def test_several_models_have_an_engine_each(artifact: Path, generator: Generator) -> None:
    with (
        Generator(artifact, device="cpu", num_slots=1) as other,
        served({"a/goose": generator, "b": other}) as url,
    ):
        ids = [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]]
        assert ids == ["a/goose", "b"]
        assert httpx.get(f"{url}/v1/models/a/goose").json()["id"] == "a/goose"
        before = other.stats().finished
        body = {"model": "b", "prompt": "a", "max_tokens": 1}
        assert httpx.post(f"{url}/v1/completions", json=body).status_code == 200
        assert other.stats().finished == before + 1


def test_what_a_service_cannot_be_made_of_is_refused(generator: Generator) -> None:
    with pytest.raises(ParameterError, match="at least one model"):
        create_app({})
    with pytest.raises(ParameterError, match="key must not be empty"):
        create_app({MODEL: generator}, api_keys=[""])
    with pytest.raises(ParameterError, match="max_body_bytes must be a finite number > 0; got 0"):
        Limits(max_body_bytes=0)


def test_an_unforeseen_error_tells_nothing(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(*_: object) -> None:
        raise RuntimeError("the secret of /etc/passwd")

    app = create_app({MODEL: generator})
    monkeypatch.setattr(generator, "agenerate", break_down)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.post("/v1/completions", json=LONG)

    answer = asyncio.run(ask())
    assert (answer.status_code, error_of(answer)["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert "the secret of /etc/passwd" in caplog.text
