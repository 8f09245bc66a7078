"""The HTTP service under load: what it costs beside the library, how late first tokens are, what abuse does.

`python -m benchmarks service` starts `hgt-infer serve` as a process of its own; its clients run here, on the
same machine, and take their share of it. Other servers beside it are driven in turns, by the same clients and
by GuideLLM.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.measure.checkpoints import write_model
from benchmarks.measure.comparison import Spread, percentiles, take_turns
from benchmarks.measure.environment import capture_environment
from benchmarks.measure.http_client import Client, Reply, Server, post
from benchmarks.measure.http_load import MODEL, closed_loop, open_loop
from benchmarks.measure.quiet import wait_for_quiet
from benchmarks.measure.server_process import ServerProcess
from benchmarks.measure.workloads import MixedWorkload, arrivals, tweets
from benchmarks.peers import guidellm
from benchmarks.peers.environments import is_installed
from benchmarks.peers.registry import BACKENDS, MAX_SLOTS
from benchmarks.peers.worker import Remote, prepare

LOADS = (0.5, 0.9)
SERVERS = ("llama_server_q8_0", "llama_server_q8_0_unified")
"""Backends that are services."""


async def _ask_whole(client: Client, body: dict[str, Any]) -> None:
    answer = await client.complete(body)
    if answer["usage"]["completion_tokens"] != body["max_tokens"]:
        raise RuntimeError(f"{answer['usage']['completion_tokens']} tokens came, not {body['max_tokens']}")


WAYS: dict[str, Callable[[Client, dict[str, Any]], Awaitable[Any]]] = {
    "whole": _ask_whole,
    "streams": Client.stream,
}
"""How a client may ask for its answer."""


class Service(ServerProcess):
    """`hgt-infer serve` in a process of its own."""

    def __init__(self, model: Path, precision: str, *, name: str = "hgt_infer") -> None:
        super().__init__(
            name,
            [sys.executable, "-m", "hgt_infer", "serve", f"{MODEL}={model}", "--port", "0", "--device", "cpu",
             "--precision", precision, "--num-slots", str(MAX_SLOTS)],
        )  # fmt: skip


def measure_overhead(
    service: Server, library: Callable[[], float], workload: MixedWorkload, *, num_rounds: int
) -> dict[str, Any]:
    """Tokens a second of NUM_CLIENTS clients, each of which sends a request when its last one is answered.

    Args:
        service: where they send them.
        library: runs the same workload without a service, and returns the seconds.
        workload: all of their requests.
        num_rounds: of all three, in turns, after one that is not counted.
    """
    sides = {
        "library": library,
        "service": _closed_loop(service, workload, "whole"),
        "service, streams": _closed_loop(service, workload, "streams"),
    }
    take_turns(sides, num_rounds=1)
    seconds = take_turns(sides, num_rounds=num_rounds)
    return {
        name: {
            "seconds": durations,
            "tokens_per_s": workload.num_tokens / statistics.median(durations),
            "of_library": vars(
                Spread.of([a / b for a, b in zip(seconds["library"], durations, strict=True)])
            ),
        }
        for name, durations in seconds.items()
    }


def _closed_loop(server: Server, workload: MixedWorkload, way: str) -> Callable[[], float]:
    return lambda: asyncio.run(closed_loop(server, workload, WAYS[way]))


def measure_load(service: Server, workload: MixedWorkload, requests_per_s: float) -> dict[str, Any]:
    """First tokens and whole texts of requests that arrive as a Poisson process, each on a connection."""
    return _load(_arrive(service, workload, requests_per_s), requests_per_s)


def _arrive(server: Server, workload: MixedWorkload, requests_per_s: float) -> list[Reply]:
    return asyncio.run(open_loop(server, workload, arrivals(workload, rate=requests_per_s)))


def _load(replies: Sequence[Reply], requests_per_s: float) -> dict[str, Any]:
    return {
        "requests_per_s": requests_per_s,
        "num_requests": len(replies),
        "first_token_s": percentiles([reply.first_token_s for reply in replies]),
        "end_s": percentiles([reply.end_s for reply in replies]),
    }


def compare_servers(
    servers: Sequence[Server],
    workload: MixedWorkload,
    folder: Path,
    *,
    num_rounds: int,
    rates: Sequence[float] = (),
) -> dict[str, dict[str, Any]]:
    """Drive every server alike, in turns; by GuideLLM too, where it is installed.

    Args:
        servers: with names that differ.
        workload: all of the requests of a round.
        folder: for GuideLLM's files.
        num_rounds: of everything; before them comes one closed loop of each that is not counted.
        rates: of requests a second; empty is LOADS of what the slowest server takes as streams.

    Returns:
        By name of the server: `closed_loop`, by way of asking; `open_loop`, for each rate, of all rounds'
        requests; `guidellm`, the rounds of NUM_CLIENTS clients (its requests_per_s is None) and of each rate.
    """
    results: dict[str, dict[str, Any]] = {
        server.name: {"closed_loop": {}, "open_loop": [], "guidellm": []} for server in servers
    }
    for way in WAYS:
        sides = {server.name: _closed_loop(server, workload, way) for server in servers}
        take_turns(sides, num_rounds=1)
        for name, seconds in take_turns(sides, num_rounds=num_rounds).items():
            results[name]["closed_loop"][way] = {
                "seconds": seconds,
                "requests_per_s": len(workload.prompts) / statistics.median(seconds),
                "tokens_per_s": workload.num_tokens / statistics.median(seconds),
            }
    if not rates:
        capacity = min(result["closed_loop"]["streams"]["requests_per_s"] for result in results.values())
        rates = [load * capacity for load in LOADS]
    for rate in rates:
        arriving = {server.name: partial(_arrive, server, workload, rate) for server in servers}
        for name, rounds in take_turns(arriving, num_rounds=num_rounds).items():
            results[name]["open_loop"].append(_load([*chain(*rounds)], rate))
    for maybe_rate in (None, *rates) if is_installed(guidellm.ENVIRONMENT, ()) else ():
        asked = {
            server.name: partial(
                guidellm.run_guidellm, server, workload, folder / server.name, requests_per_s=maybe_rate
            )
            for server in servers
        }
        for name, reports in take_turns(asked, num_rounds=num_rounds).items():
            results[name]["guidellm"].append({"requests_per_s": maybe_rate, "rounds": reports})
    return results


def abuse(service: ServerProcess, *, num_clients: int, seconds: float) -> dict[str, Any]:
    """Clients that connect, send rubbish, hang up in the middle, or leave; among them some that mean well.

    Returns:
        What the good ones saw (every text has to be the one that the service gave before), and the
        service's memory and descriptors before and after.
    """
    return asyncio.run(_abuse(service, num_clients, seconds))


async def _abuse(service: ServerProcess, num_clients: int, seconds: float) -> dict[str, Any]:
    rng = random.Random(0)
    body = {"model": MODEL, "prompt": "abcd", "max_tokens": 8, "ignore_eos": True, "seed": 1}

    async def ask_once() -> str:
        with closing(Client(service.host, service.port)) as client:
            return (await client.stream(body)).text

    expected = await ask_once()
    before = {"memory_mb": service.memory_mb(), "num_files": service.num_files()}
    end = time.perf_counter() + seconds
    counts = {"good": 0, "wrong": 0, "bad": 0}
    whole = post({**body, "max_tokens": 200, "n": 4, "stream": True})
    rubbish = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 3_000 + b"\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{",
        post({**body, "max_tokens": -1}),
        whole,
        whole[:-3],
        b"",
    ]

    async def mean_well() -> None:
        client = Client(service.host, service.port)
        while time.perf_counter() < end:
            try:
                is_right = (await client.stream(body)).text == expected
            except (OSError, RuntimeError, asyncio.IncompleteReadError):
                is_right = False
                client.close()
            counts["good" if is_right else "wrong"] += 1
            await asyncio.sleep(0.2)
        client.close()

    async def misbehave() -> None:
        await asyncio.sleep(rng.random() * min(2.0, seconds))
        while time.perf_counter() < end:
            client = Client(service.host, service.port)
            try:
                await client.send(rng.choice(rubbish))
                await asyncio.sleep(rng.random())
            except OSError:
                pass
            client.close()
            counts["bad"] += 1
            await asyncio.sleep(rng.random() * min(4.0, seconds))

    await asyncio.gather(*(mean_well() for _ in range(8)), *(misbehave() for _ in range(num_clients - 8)))
    await asyncio.sleep(2.0)
    again = await ask_once()
    after = {"memory_mb": service.memory_mb(), "num_files": service.num_files()}
    return {**counts, "is_same_text_after": again == expected, "before": before, "after": after}


def run_service(
    folder: Path,
    *,
    name: str,
    num_rounds: int,
    abuse_s: float,
    num_abusers: int = 1_000,
    config: Any = None,
    beside: Sequence[str] = (),
    rates: Sequence[float] = (),
    wait: Callable[[], dict[str, Any]] = wait_for_quiet,
    keep: Callable[[dict[str, Any]], object] = lambda _: None,
) -> dict[str, Any]:
    """Measure everything of one backend, on GPT-2 124M of random weights or the config's model.

    Args:
        folder: for checkpoints and what backends make of them.
        name: of `BACKENDS`, one of hgt_infer.
        num_rounds: of what runs in turns.
        abuse_s, num_abusers: see `abuse`.
        config: see `write_model`.
        beside: names of SERVERS: `servers` of the result compares them with this one.
        rates: see `compare_servers`.
        wait: waits until the machine is quiet, and returns what it found.
        keep: is given what there is of the result after each part.
    """
    environment = capture_environment()
    checkpoint = write_model(folder, config)
    workload = tweets()
    prepare(name, checkpoint, folder / name)
    with ExitStack() as stack:
        side = stack.enter_context(closing(Remote(name, checkpoint, folder / name)))
        service = stack.enter_context(
            closing(Service(folder / name / "model", BACKENDS[name].precision, name=name))
        )
        quiet = wait()
        overhead = measure_overhead(service, lambda: side.seconds(workload), workload, num_rounds=num_rounds)
        capacity = len(workload.prompts) / statistics.median(overhead["service, streams"]["seconds"])
        result = {
            "environment": environment,
            "quiet": quiet,
            "backend": name,
            "overhead": overhead,
            "loads": {f"{load:.0%}": measure_load(service, workload, load * capacity) for load in LOADS},
        }
        keep(result)
        if beside:
            others = [
                stack.enter_context(closing(Remote(other, checkpoint, folder / other))) for other in beside
            ]
            result["servers"] = compare_servers(
                [service, *others], workload, folder / "guidellm", num_rounds=num_rounds, rates=rates
            )
            keep(result)
        result["abuse"] = abuse(service, num_clients=num_abusers, seconds=abuse_s)
        keep(result)
        return result
