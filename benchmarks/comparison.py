"""Sides timed in turns, and their ratios: machines drift, neighbours in time drift together."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.backends import AnyWorkload, Backend, NearTie
from benchmarks.workloads import MixedWorkload, Workload


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
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    for number in range(num_rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            start = clock()
            token_ids = side.generate(workload)
            seconds[side.name].append(clock() - start)
            if sum(map(len, token_ids)) != workload.num_tokens:
                raise ValueError(f"{side.name} did not generate {workload.num_tokens} tokens")
    return seconds


@dataclass(frozen=True)
class BatchingComparison:
    """Seconds of each round: a side that refills its slots, and static batches of several sizes.

    Only the tokens that were asked for count, on both sides.
    """

    workload: MixedWorkload
    name: str
    """Of the side that refills its slots."""
    num_slots: int
    occupancy: float
    """Mean share of its slots in use over the steps during which requests waited."""
    batch_sizes: dict[str, int]
    """Of each other side, by its name."""
    seconds: dict[str, list[float]]
    near_ties: Sequence[NearTie] = ()

    def tokens_per_s(self, name: str) -> float:
        return self.workload.num_tokens / statistics.median(self.seconds[name])

    def ratio(self, name: str) -> Spread:
        """How many times faster the first side is than one of the others, from the paired rounds."""
        pairs = zip(self.seconds[self.name], self.seconds[name], strict=True)
        return Spread.of([their_s / our_s for our_s, their_s in pairs])

    @property
    def best(self) -> str:
        """The fastest of the others."""
        return max(self.batch_sizes, key=self.tokens_per_s)

    def summary(self) -> str:
        num_rounds = len(self.seconds[self.name])
        lines = [
            f"{len(self.workload.prompts)} requests, {self.workload.num_tokens:,} tokens, "
            f"{num_rounds} round{'s' * (num_rounds != 1)}, {self._agreement()}",
            f"{self.name}, {self.num_slots} slots: {self.tokens_per_s(self.name):,.1f} tok/s, "
            f"{self.occupancy:.1%} of the slots in use while requests waited",
        ]
        for name, batch_size in self.batch_sizes.items():
            ratio = self.ratio(name)
            lines.append(
                f"{name}: {self.tokens_per_s(name):,.1f} tok/s "
                f"({self.workload.useful_share(batch_size):.0%} of its tokens are useful), "
                f"ratio {ratio.median:.2f}× ({ratio.low:.2f}–{ratio.high:.2f}, "
                f"IQR {ratio.first_quartile:.2f}–{ratio.third_quartile:.2f})"
                f"{' ← its best' if name == self.best else ''}"
            )
        return "\n  ".join(lines)

    def _agreement(self) -> str:
        if not self.near_ties:
            return "all greedy tokens equal"
        margin = max(near_tie.margin for near_tie in self.near_ties)
        return (
            f"greedy tokens equal but in {len(self.near_ties)} of the requests, "
            f"there up to a near-tie (logits within {margin:.0e})"
        )

    def record(self) -> dict[str, Any]:
        """What is kept as JSON, raw values first."""
        return {
            "workload_sha256": self.workload.sha256,
            "num_requests": len(self.workload.prompts),
            "num_tokens": self.workload.num_tokens,
            "num_slots": self.num_slots,
            "num_rounds": len(self.seconds[self.name]),
            "seconds": self.seconds,
            "tokens_per_s": {name: self.tokens_per_s(name) for name in self.seconds},
            "occupancy_while_waiting": self.occupancy,
            "useful_share": {name: self.workload.useful_share(n) for name, n in self.batch_sizes.items()},
            "ratio": {name: vars(self.ratio(name)) for name in self.batch_sizes},
            "best": self.best,
            "near_ties": [vars(near_tie) for near_tie in self.near_ties],
        }
