"""The HTTP service under load: what it costs beside the library, how late first tokens are, what abuse does.

`python -m benchmarks service` starts `hgt-infer serve` as a process of its own; its clients run here, on the
same machine, and take their share of it.
"""

from __future__ import annotations

import asyncio
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.measure.checkpoints import write_model
from benchmarks.measure.comparison import Spread, percentiles, take_turns
from benchmarks.measure.environment import capture_environment
from benchmarks.measure.http_client import Client, Reply, post
from benchmarks.measure.memory import memory_bytes
from benchmarks.measure.paths import REPOSITORY
from benchmarks.measure.workloads import MixedWorkload, arrivals, tweets
from benchmarks.peers.registry import BACKENDS, MAX_SLOTS
from benchmarks.peers.worker import Remote

NUM_CLIENTS = 64
LOADS = (0.5, 0.9)
MODEL = "model"


class Service:
    """`hgt-infer serve` in a process of its own."""

    def __init__(self, model: Path, precision: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hgt_infer", "serve", f"{MODEL}={model}", "--port", "0", "--device", "cpu",
             "--precision", precision, "--num-slots", str(MAX_SLOTS)],
            cwd=REPOSITORY, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if found := re.search(r"http://([\d.]+):(\d+)/", line):
                self.host, self.port = found[1], int(found[2])
                break
        else:
            raise RuntimeError("the service did not start")
        # Its log has to go somewhere: a full pipe would stop it.
        self._drain = subprocess.Popen(["cat"], stdin=self._process.stderr, stdout=subprocess.DEVNULL)
        self._process.stderr.close()

    def memory_mb(self) -> float:
        """Resident."""
        return memory_bytes(self._process.pid)["resident"] / 1e6

    def num_files(self) -> int:
        """Descriptors that are open."""
        return len([*Path(f"/proc/{self._process.pid}/fd").iterdir()])

    def close(self) -> None:
        """End it as an operator does."""
        self._process.terminate()
        self._process.wait(timeout=60)
        self._drain.wait(timeout=60)


def measure_overhead(
    service: Service, library: Callable[[], float], workload: MixedWorkload, *, num_rounds: int
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
        "service": lambda: asyncio.run(_closed_loop(service, workload, Client.complete)),
        "service, streams": lambda: asyncio.run(_closed_loop(service, workload, Client.stream)),
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


async def _closed_loop(
    service: Service, workload: MixedWorkload, ask: Callable[[Client, dict[str, Any]], Awaitable[Any]]
) -> float:
    bodies = iter(_bodies(workload))

    async def client() -> None:
        with closing(Client(service.host, service.port)) as connection:
            for body in bodies:
                await ask(connection, body)

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(NUM_CLIENTS)))
    return time.perf_counter() - start


def measure_load(service: Service, workload: MixedWorkload, requests_per_s: float) -> dict[str, Any]:
    """First tokens and whole texts of requests that arrive as a Poisson process, each on a connection."""

    async def one(body: dict[str, Any], at: float, start: float) -> Reply:
        await asyncio.sleep(start + at - time.perf_counter())
        with closing(Client(service.host, service.port)) as client:
            return await client.stream(body)

    async def run() -> list[Reply]:
        start = time.perf_counter()
        times = arrivals(workload, rate=requests_per_s)
        return await asyncio.gather(
            *(one(body, at, start) for body, at in zip(_bodies(workload), times, strict=True))
        )

    replies = asyncio.run(run())
    return {
        "requests_per_s": requests_per_s,
        "num_requests": len(replies),
        "first_token_s": percentiles([reply.first_token_s for reply in replies]),
        "end_s": percentiles([reply.end_s for reply in replies]),
    }


def abuse(service: Service, *, num_clients: int, seconds: float) -> dict[str, Any]:
    """Clients that connect, send rubbish, hang up in the middle, or leave; among them some that mean well.

    Returns:
        What the good ones saw (every text has to be the one that the service gave before), and the
        service's memory and descriptors before and after.
    """
    return asyncio.run(_abuse(service, num_clients, seconds))


async def _abuse(service: Service, num_clients: int, seconds: float) -> dict[str, Any]:
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


def _bodies(workload: MixedWorkload) -> Sequence[dict[str, Any]]:
    return [
        {"model": MODEL, "prompt": prompt, "max_tokens": length, "min_tokens": length, **workload.sampling}
        for prompt, length in zip(workload.prompts, workload.lengths, strict=True)
    ]


def run_service(
    folder: Path,
    *,
    name: str,
    num_rounds: int,
    abuse_s: float,
    num_abusers: int = 1_000,
    config: Any = None,
) -> dict[str, Any]:
    """Measure everything of one backend, on GPT-2 124M of random weights or the config's model."""
    environment = capture_environment()
    checkpoint = write_model(folder, config)
    workload = tweets()
    with (
        closing(Remote(name, checkpoint, folder / name)) as side,
        closing(Service(folder / name / "model", BACKENDS[name].precision)) as service,
    ):
        overhead = measure_overhead(service, lambda: side.seconds(workload), workload, num_rounds=num_rounds)
        capacity = len(workload.prompts) / statistics.median(overhead["service, streams"]["seconds"])
        return {
            "environment": environment,
            "backend": name,
            "overhead": overhead,
            "loads": {f"{load:.0%}": measure_load(service, workload, load * capacity) for load in LOADS},
            "abuse": abuse(service, num_clients=num_abusers, seconds=abuse_s),
        }
