"""Requests that arrive at their own times, open loop: nobody waits for an answer before the next one is sent.

A backend with a queue of its own takes each request when it arrives and streams it; one that is a service has
a `serve` of its own. Of one that has no queue, all that wait are taken as a static batch, up to its size, and
nothing is seen of it before it ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.measure.workloads import MixedWorkload


class Served(NamedTuple):
    """Seconds from a request's arrival to its first token, and to its last."""

    first_token_s: float
    end_s: float


def serve(backend: Any, workload: MixedWorkload, at: Sequence[float], *, batch_size: int) -> list[Served]:
    """Serve every request, each of which arrives `at` seconds after the start."""
    if hasattr(backend, "serve"):
        served: list[Served] = backend.serve(workload, at)
        return served
    if hasattr(backend, "generate_padded"):
        return _in_batches(backend, workload, at, batch_size)
    return _streamed(backend.generator, workload, at)


def _streamed(generator: Any, workload: MixedWorkload, at: Sequence[float]) -> list[Served]:
    from hgt_infer import SamplingParams

    served: list[Served | None] = [None] * len(at)

    def follow(number: int, arrival: float, deltas: Any) -> None:
        times = [time.perf_counter() for _ in deltas]
        served[number] = Served(times[0] - arrival, times[-1] - arrival)

    threads = []
    start = time.perf_counter()
    for number, (prompt, length) in enumerate(zip(workload.prompts, workload.lengths, strict=True)):
        time.sleep(max(0.0, start + at[number] - time.perf_counter()))
        params = SamplingParams(max_tokens=length, min_tokens=length, **workload.sampling)
        # From the time it should have been sent at: a sender that is late is not the request's luck.
        thread = threading.Thread(
            target=follow, args=(number, start + at[number], generator.stream(prompt, params))
        )
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join()
    return [times for times in served if times is not None]


def _in_batches(backend: Any, workload: MixedWorkload, at: Sequence[float], batch_size: int) -> list[Served]:
    served: list[Served] = []
    start = time.perf_counter()
    while len(served) < len(at):
        first = len(served)
        time.sleep(max(0.0, start + at[first] - time.perf_counter()))
        now = time.perf_counter() - start
        waiting = sum(arrival <= now for arrival in at[first : first + batch_size])
        stop = first + max(1, waiting)
        backend.generate_padded(workload.part(first, stop))
        end = time.perf_counter() - start
        served += [Served(end - arrival, end - arrival) for arrival in at[first:stop]]
    return served
