"""Sides timed in turns, and their ratios: machines drift, neighbours in time drift together."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from benchmarks.measure.workloads import AnyWorkload, Backend, Workload

Value = TypeVar("Value")


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

    def shown(self, digits: int = 1, unit: str = "") -> str:
        """Median and range.

        >>> Spread.of([1200.0, 1250.0, 1301.26]).shown(unit="µs")
        '1,250.0 µs (1,200.0–1,301.3)'
        """
        median, low, high = (f"{value:,.{digits}f}" for value in (self.median, self.low, self.high))
        return f"{median}{unit and f' {unit}'} ({low}–{high})"


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
    timers = {side.name: partial(seconds_of_workload, side, workload, clock) for side in (ours, theirs)}
    return Comparison(workload, take_turns(timers, num_rounds=num_rounds))


def take_turns(timers: Mapping[str, Callable[[], Value]], *, num_rounds: int) -> dict[str, list[Value]]:
    """What each timer gave in each round, by its name; see `turns` for their order."""
    values: dict[str, list[Value]] = {name: [] for name in timers}
    for _, name in turns(timers, num_rounds):
        values[name].append(timers[name]())
    return values


def turns(names: Iterable[str], num_rounds: int) -> Iterator[tuple[int, str]]:
    """Yield the number of the round and whose turn it is.

    Every other round is in the opposite order, and every two rounds begin with the next name: each side has
    early and late turns, and no two of them have the same distance in every round.

    >>> ["".join(name for number, name in turns("abc", 4) if number == round) for round in range(4)]
    ['abc', 'cba', 'bca', 'acb']
    """
    names = list(names)
    for number in range(num_rounds):
        first = number // 2 % max(1, len(names))
        order = names[first:] + names[:first]
        for name in order if number % 2 == 0 else reversed(order):
            yield number, name


def seconds_of_workload(
    side: Backend[AnyWorkload], workload: AnyWorkload, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Run a workload once, and return how long it took.

    Raises:
        ValueError: the tokens are not as many as asked for.
    """
    start = clock()
    token_ids = side.generate(workload)
    duration = clock() - start
    if sum(map(len, token_ids)) != workload.num_tokens:
        raise ValueError(f"{side.name} did not generate {workload.num_tokens} tokens")
    return duration


def seconds_of(function: Callable[[], object], num_rounds: int) -> list[float]:
    """Time a function that many times."""
    seconds = []
    for _ in range(num_rounds):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return seconds


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99, by the nearest rank.

    >>> percentiles([3.0, 1.0, 2.0])
    {'p50': 2.0, 'p90': 3.0, 'p99': 3.0}
    """
    ordered = sorted(values)
    return {f"p{p}": ordered[max(0, math.ceil(p / 100 * len(ordered)) - 1)] for p in (50, 90, 99)}


def first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """The first place where two differ; the end of the shorter one counts."""
    return next((step for step, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def backend_of(way: str) -> str:
    """Return the backend of a way to run a case.

    >>> backend_of("transformers, batches of 64")
    'transformers'
    """
    return way.split(",")[0]


def is_ours(way: str) -> bool:
    """Whether it is a way of hgt_infer, in whatever precision."""
    return way.startswith("hgt_infer")
