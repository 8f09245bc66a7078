"""Load on any server: clients that wait for their answers, and requests that wait for no other's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from typing import Any

from benchmarks.measure.http_client import Client, Reply, Server
from benchmarks.measure.workloads import MixedWorkload

MODEL = "model"
NUM_CLIENTS = 64


def bodies_of(workload: MixedWorkload) -> list[dict[str, Any]]:
    """One request for each prompt, of its whole length: every server knows `min_tokens` or `ignore_eos`."""
    return [
        {
            "model": MODEL,
            "prompt": prompt,
            "max_tokens": length,
            "min_tokens": length,
            "ignore_eos": True,
            **workload.sampling,
        }
        for prompt, length in zip(workload.prompts, workload.lengths, strict=True)
    ]


async def closed_loop(
    server: Server, workload: MixedWorkload, ask: Callable[[Client, dict[str, Any]], Awaitable[Any]]
) -> float:
    """Return the seconds that NUM_CLIENTS clients take, each of which asks again when it is answered."""
    bodies = iter(bodies_of(workload))

    async def client() -> None:
        with closing(Client(server.host, server.port, reconnects=True)) as connection:
            for body in bodies:
                await ask(connection, body)

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(NUM_CLIENTS)))
    return time.perf_counter() - start


async def open_loop(server: Server, workload: MixedWorkload, at: Sequence[float]) -> list[Reply]:
    """Send each request `at` seconds after the start, on a connection of its own, and stream its answer.

    The seconds of a reply count from the time when its request should have been sent.
    """
    start = time.perf_counter()

    async def one(body: dict[str, Any], arrival: float) -> Reply:
        await asyncio.sleep(arrival - time.perf_counter())
        with closing(Client(server.host, server.port)) as client:
            return await client.stream(body, since=arrival)

    return await asyncio.gather(
        *(one(body, start + seconds) for body, seconds in zip(bodies_of(workload), at, strict=True))
    )
