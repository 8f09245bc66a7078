"""Requests as long as tweets: how fast they are, by steps_per_sync too, and what the host does meanwhile."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.gpu_check.report import Result, Skipped, measured
from benchmarks.gpu_check.subject import Subject, fixed_length, token_ids
from benchmarks.gpu_check.timings import SETTINGS
from benchmarks.measure.comparison import Spread, seconds_of
from hgt_infer import SamplingParams
from hgt_infer.cuda.stream import CudaEvent

TWEETS_SLOTS = 256


def time_tweets(subject: Subject) -> Iterator[Result]:
    """The tweets workload, with what the engine's thread does meanwhile."""
    workload = subject.tweets_workload(subject.scale.num_tweets)
    num_slots = TWEETS_SLOTS if subject.is_cuda else 16
    prompts, params = list(workload.prompts), tweet_params(workload.lengths)
    with subject.generator(num_slots=num_slots) as generator:
        generator.generate(prompts[: 2 * num_slots], params[: 2 * num_slots])
        seconds = seconds_of(lambda: generator.generate(prompts, params), 2)
        before = generator.stats()
        with waiting_for_events() as waited, EngineClock() as clock:
            start_s = time.perf_counter()
            outputs = generator.generate(prompts, params)
            seconds.append(time.perf_counter() - start_s)
        stats = generator.stats()
    num_tokens = sum(map(len, token_ids(outputs)))
    if num_tokens != workload.num_tokens:
        raise ValueError(f"{num_tokens} tokens came, not {workload.num_tokens}")
    rates = [num_tokens / s for s in seconds]
    num_steps = stats.steps - before.steps
    busy_s = max(0.0, clock.seconds - sum(waited))
    yield measured(
        "tweets",
        f"{Spread.of(rates).shown(0)} tok/s",
        f"{len(prompts):,} requests as long as tweets, {num_slots} slots, text to text; "
        f"{stats.occupancy_while_waiting or 0:.1%} of the slots in use while requests waited",
        seconds=seconds,
        tokens_per_s=rates,
        num_tokens=num_tokens,
        num_steps=num_steps,
        occupancy=stats.occupancy_while_waiting,
        wasted_rows=stats.wasted_rows - before.wasted_rows,
    )
    yield measured(
        "host work",
        f"{1e6 * busy_s / num_tokens:.2f} µs a token",
        f"processor time of the engine's thread without waiting: {busy_s / seconds[-1]:.0%} of the time; "
        f"{1e6 * busy_s / max(1, num_steps):.0f} µs a step of {num_slots}",
        thread_s=clock.seconds,
        waited_s=sum(waited),
        wall_s=seconds[-1],
    )
    device_s = subject.step_s(num_slots)
    if device_s is not None:
        idle = max(0.0, 1 - num_steps * device_s / seconds[-1])
        says = (
            f"{num_steps:,} steps of {1e6 * device_s:.0f} µs, replayed by themselves, in {seconds[-1]:.2f} s"
        )
        yield measured("GPU idle", f"{idle:.0%}", says, idle_share=idle, step_s=device_s)


def time_steps_per_sync(subject: Subject) -> Result:
    """Tweets at several steps_per_sync: more hide more of the host's work and waste more rows."""
    num_slots = subject.scale.sweep_slots
    found = {steps: _tweets_at(subject, num_slots, steps) for steps in subject.scale.sweep_steps}
    rates = {steps: [values["num_tokens"] / s for s in values["seconds"]] for steps, values in found.items()}
    best = max(rates, key=lambda steps: statistics.median(rates[steps]))
    says = ", ".join(
        f"{steps}: {Spread.of(rates[steps]).shown(0)} ({values['wasted_share']:.1%} wasted)"
        for steps, values in found.items()
    )
    figure = f"best {best}: {Spread.of(rates[best]).shown(0)} tok/s"
    values = {str(steps): values for steps, values in found.items()}
    return measured(f"steps_per_sync, {num_slots}", figure, says, **values)


def _tweets_at(subject: Subject, num_slots: int, steps_per_sync: int) -> dict[str, Any]:
    workload = subject.tweets_workload(8 * num_slots)
    prompts, params = list(workload.prompts), tweet_params(workload.lengths)
    num_rounds = 3
    with subject.generator(num_slots=num_slots, steps_per_sync=steps_per_sync) as generator:
        generator.generate(prompts, params)
        before = generator.stats()
        seconds = seconds_of(lambda: generator.generate(prompts, params), num_rounds)
        after = generator.stats()
    num_wasted = after.wasted_rows - before.wasted_rows
    return {
        "seconds": seconds,
        "num_tokens": workload.num_tokens,
        "wasted_rows": num_wasted,
        "wasted_share": num_wasted / (num_wasted + num_rounds * workload.num_tokens),
    }


def tweet_params(lengths: Sequence[int]) -> list[SamplingParams]:
    """Settings of each request of the tweets workload."""
    return [fixed_length(length, seed=number, **SETTINGS) for number, length in enumerate(lengths)]


@contextmanager
def waiting_for_events() -> Iterator[list[float]]:
    """Seconds of each wait for a device's event meanwhile: they spin, and count as processor time."""
    waits: list[float] = []
    wait = CudaEvent.wait

    def timed_wait(event: CudaEvent) -> None:
        start_s = time.thread_time()
        wait(event)
        waits.append(time.thread_time() - start_s)

    CudaEvent.wait = timed_wait  # type: ignore[method-assign,assignment]
    try:
        yield waits
    finally:
        CudaEvent.wait = wait  # type: ignore[method-assign]


class EngineClock:
    """Processor time of the engine's threads between entering and leaving, in `seconds`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def _now_s(self) -> float:
        if not hasattr(time, "pthread_getcpuclockid"):
            raise Skipped("the system has no clock of another thread")
        threads = [t for t in threading.enumerate() if t.name.startswith("hgt_infer engine")]
        clocks = [time.pthread_getcpuclockid(t.ident) for t in threads if t.ident is not None]
        return sum(time.clock_gettime(clock) for clock in clocks)

    def __enter__(self) -> EngineClock:
        self._start_s = self._now_s()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = self._now_s() - self._start_s
