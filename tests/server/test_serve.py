"""The hgt-infer serve command, as a process: how it starts, ends, and with which status."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from support.local_service import wait_until

from hgt_infer import Generator
from hgt_infer.cli import main
from hgt_infer.server import serve

MODEL = "goose"

LONG = {"prompt": "a", "max_tokens": 1000, "min_tokens": 1000}


@contextmanager
def running(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A service, and its address out of its own log."""
    process = subprocess.Popen(
        [sys.executable, "-m", "hgt_infer", "serve", *arguments, "--port", "0", "--device", "cpu"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            raise AssertionError(f"it ended with {process.wait()}")
        yield process, found[0]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.integration
def test_it_serves_several_models_and_ends_with_a_signal(artifact: Path) -> None:
    with running(f"me/goose={artifact}", str(artifact), HGT_INFER_API_KEYS="one,two") as (process, url):
        answer = httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer two"})
        assert [model["id"] for model in answer.json()["data"]] == ["me/goose", artifact.name]
        assert httpx.get(f"{url}/v1/models").status_code == 401
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


@pytest.mark.integration
@pytest.mark.parametrize(("grace", "n", "is_finished"), [("30", 2, True), ("0", 16, False)])
def test_what_runs_has_the_grace_to_end(artifact: Path, grace: str, n: int, is_finished: bool) -> None:
    with running(str(artifact), "--grace", grace) as (process, url):
        body = LONG | {"model": artifact.name, "stream": True, "n": n}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
            lines = filter(None, answer.iter_lines())
            next(lines)
            process.send_signal(signal.SIGTERM)
            try:
                last = [*lines][-1]
            except httpx.HTTPError:
                last = "cut"
        assert (last == "data: [DONE]") == is_finished
        assert process.wait(timeout=30) == 0


def test_it_ends_with_status_1_when_an_engine_dies(artifact: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Generator(artifact, device="cpu", num_slots=1) as generator:
        statuses: list[int] = []
        thread = threading.Thread(target=lambda: statuses.append(serve({"goose": generator}, port=0)))
        with caplog.at_level("INFO", "hgt_infer"):
            thread.start()
            wait_until(lambda: "serving goose on http://127.0.0.1:" in caplog.text)
            generator.close()
            thread.join(timeout=20)
    assert statuses == [1]
    assert "the engine of goose has died" in caplog.text


def test_a_port_in_use_is_status_1(artifact: Path, generator: Generator) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert serve({"goose": generator}, port=taken.getsockname()[1]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "nowhere"], "nowhere"),
        (["serve", "a=x", "a=y"], "a"),
        (["serve"], "MODEL"),
        (["serve", "x", "--port", "70000"], "65535"),
    ],
)
def test_a_wrong_use_is_told_before_anything_starts(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "hgt_infer.server", None)
    assert main(["serve", str(artifact)]) == 2
    assert "pip install 'hgt-infer[serve]'" in capsys.readouterr().err


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")
def test_rubbish_and_clients_that_leave_do_no_harm(artifact: Path) -> None:
    """Broken heads, bodies that never come, answers that nobody waits for: the good ones are all right."""
    with running(str(artifact)) as (process, url):
        host, _, port = url.removeprefix("http://").partition(":")
        body = json.dumps(LONG | {"model": artifact.name, "stream": True}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        rubbish = [
            b"\x00\xff\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
            head + b"Content-Length: 999\r\n\r\n{",
            head + b"Content-Length: -5\r\n\r\n{",
            head + b"Content-Length: 99999999999999999999\r\n\r\n{",
            head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body),
            b"",
        ]
        folder = Path(f"/proc/{process.pid}/fd")
        ask = {"model": artifact.name, "prompt": "a", "max_tokens": 3, "ignore_eos": True}
        with httpx.Client(base_url=url, timeout=30) as client:
            assert client.post("/v1/completions", json=ask).status_code == 200
            num_files = len([*folder.iterdir()])
            for number in range(70):
                # Some are told to go before they have said everything.
                with suppress(ConnectionError), socket.create_connection((host, int(port))) as connection:
                    connection.sendall(rubbish[number % len(rubbish)])
                if number % 10 == 0:
                    assert client.post("/v1/completions", json=ask).status_code == 200
            wait_until(lambda: 'hgt_infer_running{model="fp32"} 0.0' in client.get("/metrics").text)
            wait_until(lambda: len([*folder.iterdir()]) <= num_files)
        assert process.poll() is None
