"""Requests that arrive at their own times, open loop: nobody waits for an answer before the next one is sent.

A backend that refills takes each request when it arrives. Of one that has static batches alone, all that wait
are taken as a batch, up to its size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from benchmarks.measure.workloads import MixedWorkload, TokenIds


class Served(NamedTuple):
    """Seconds from a request's arrival to its first token, and to its last."""

    first_token_s: float
    end_s: float


class Engine(Protocol):
    """A backend whose caller runs its steps."""

    @property
    def num_unfinished(self) -> int:
        """Requests that were added and have not ended."""

    def add_request(
        self, number: int, prompt_token_ids: Sequence[int], num_new_tokens: int, sampling: Mapping[str, Any]
    ) -> None:
        """Let a request take part from the next step on."""

    def step(self) -> Mapping[int, int]:
        """Run a step, and return how many tokens each request has that got one, by its number."""


def serve(backend: Any, workload: MixedWorkload, at: Sequence[float], *, batch_size: int) -> list[Served]:
    """Serve every request, each of which arrives `at` seconds after the start.

    Raises:
        ValueError: a request did not get all of its tokens.
    """
    if hasattr(backend, "serve"):
        served: list[Served] = backend.serve(workload, at)
        return served
    if hasattr(backend, "time_tokens"):
        return serve_in_batches(backend.time_tokens, workload, at, batch_size)
    if hasattr(backend, "generate_padded"):
        return serve_in_batches(partial(_time_whole, backend.generate_padded), workload, at, batch_size)
    return serve_by_steps(backend, workload, at)


def serve_by_steps(engine: Engine, workload: MixedWorkload, at: Sequence[float]) -> list[Served]:
    """Serve requests with an engine whose steps run here: one that arrives in a step waits for its end."""
    first, end = [0.0] * len(at), [0.0] * len(at)
    start = time.perf_counter()
    next_number = 0
    while next_number < len(at) or engine.num_unfinished:
        if not engine.num_unfinished:
            time.sleep(max(0.0, start + at[next_number] - time.perf_counter()))
        while next_number < len(at) and at[next_number] <= time.perf_counter() - start:
            engine.add_request(
                next_number,
                workload.prompt_token_ids[next_number],
                workload.lengths[next_number],
                workload.sampling,
            )
            next_number += 1
        counts = engine.step()
        now = time.perf_counter() - start
        for number, count in counts.items():
            first[number] = first[number] or now
            if count == workload.lengths[number]:
                end[number] = now
    if unfinished := [number for number, seconds in enumerate(end) if not seconds]:
        raise ValueError(f"requests that did not get all of their tokens: {unfinished}")
    return [Served(first[number] - at[number], end[number] - at[number]) for number in range(len(at))]


def serve_in_batches(
    time_tokens: Callable[[MixedWorkload], Sequence[tuple[float, float]]],
    workload: MixedWorkload,
    at: Sequence[float],
    batch_size: int,
) -> list[Served]:
    """Serve requests in static batches of those that wait, batch_size at most.

    Args:
        time_tokens: generates a batch, and returns the times of `time.perf_counter` at which the first token
            of each request was there, and its last.
    """
    served: list[Served] = []
    start = time.perf_counter()
    while len(served) < len(at):
        first = len(served)
        time.sleep(max(0.0, start + at[first] - time.perf_counter()))
        now = time.perf_counter() - start
        waiting = sum(arrival <= now for arrival in at[first : first + batch_size])
        stop = first + max(1, waiting)
        times = time_tokens(workload.part(first, stop))
        served += [
            Served(first_token - start - arrival, end - start - arrival)
            for (first_token, end), arrival in zip(times, at[first:stop], strict=True)
        ]
    return served


def _time_whole(
    generate_padded: Callable[[MixedWorkload], TokenIds], batch: MixedWorkload
) -> list[tuple[float, float]]:
    """Nothing is seen of a batch before it ends."""
    lengths = [*map(len, generate_padded(batch))]
    if len(lengths) != len(batch.lengths) or min(lengths) < max(batch.lengths):
        raise ValueError(f"a batch of {len(batch.lengths)} requests gave rows of {lengths} tokens")
    now = time.perf_counter()
    return [(now, now)] * len(lengths)
