"""Sides timed in turns, and their ratios: machines drift, neighbours in time drift together."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.measure.workloads import Workload
from benchmarks.peers.backends import AnyWorkload, Backend


@dataclass(frozen=True)
class Spread:
    """Median, range and quartiles of some values."""

    median: float
    low: float
    high: float
    first_quartile: float
    third_quartile: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        values = [*values] * 2 if len(values) == 1 else values  # quantiles takes two or more
        first, median, third = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, min(values), max(values), first, third)


@dataclass(frozen=True)
class Comparison:
    """Seconds of each round of both sides; round i of one ran right beside round i of the other."""

    workload: Workload
    seconds: dict[str, list[float]]
    """By name of the backend: the one that is judged first, the one it is judged by second."""

    def tokens_per_s(self, name: str) -> float:
        return self.workload.num_tokens / statistics.median(self.seconds[name])

    def ms_per_step(self, name: str) -> float:
        """The prompt's run is a step too: it gives the first token."""
        return 1e3 * statistics.median(self.seconds[name]) / self.workload.num_new_tokens

    @property
    def ratio(self) -> Spread:
        """How many times faster the first side is, from the paired rounds."""
        ours, theirs = self.seconds.values()
        return Spread.of([their_s / our_s for our_s, their_s in zip(ours, theirs, strict=True)])

    def summary(self) -> str:
        sides = ", ".join(
            f"{name} {self.tokens_per_s(name):,.1f} tok/s ({self.ms_per_step(name):.2f} ms/step)"
            for name in self.seconds
        )
        ratio = self.ratio
        num_rounds = len(next(iter(self.seconds.values())))
        return (
            f"batch {self.workload.batch_size}: {sides}, ratio {ratio.median:.2f}× "
            f"({ratio.low:.2f}–{ratio.high:.2f}, "
            f"IQR {ratio.first_quartile:.2f}–{ratio.third_quartile:.2f}, {num_rounds} rounds)"
        )

    def record(self) -> dict[str, Any]:
        """What is kept as JSON, raw values first."""
        return {
            "batch_size": self.workload.batch_size,
            "num_new_tokens": self.workload.num_new_tokens,
            "seconds": self.seconds,
            "tokens_per_s": {name: self.tokens_per_s(name) for name in self.seconds},
            "ms_per_step": {name: self.ms_per_step(name) for name in self.seconds},
            "ratio": vars(self.ratio),
        }


def compare(
    ours: Backend[Workload],
    theirs: Backend[Workload],
    workload: Workload,
    *,
    num_rounds: int,
    num_warmups: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Time both sides in turns, after the warm-ups."""
    for _ in range(num_warmups):
        for side in (ours, theirs):
            side.generate(workload)
    return Comparison(workload, time_in_turns([ours, theirs], workload, num_rounds=num_rounds, clock=clock))


def time_in_turns(
    sides: Sequence[Backend[AnyWorkload]],
    workload: AnyWorkload,
    *,
    num_rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each side by its name; every other round runs them in the opposite order."""

    def timer(side: Backend[AnyWorkload]) -> Callable[[], float]:
        def time_once() -> float:
            start = clock()
            token_ids = side.generate(workload)
            duration = clock() - start
            if sum(map(len, token_ids)) != workload.num_tokens:
                raise ValueError(f"{side.name} did not generate {workload.num_tokens} tokens")
            return duration

        return time_once

    return take_turns({side.name: timer(side) for side in sides}, num_rounds=num_rounds)


def take_turns(timers: Mapping[str, Callable[[], float]], *, num_rounds: int) -> dict[str, list[float]]:
    """What each timer gave in each round, by its name; every other round calls them in the opposite order."""
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for number in range(num_rounds):
        for name in timers if number % 2 == 0 else reversed(timers):
            seconds[name].append(timers[name]())
    return seconds
