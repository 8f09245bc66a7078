"""Tokens a second of every side over the same workloads, in turns."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

from benchmarks.measure.comparison import Spread, backend_of, is_ours, take_turns
from benchmarks.measure.quiet import MAX_REPEATS, take_quiet_turns
from benchmarks.measure.workloads import (
    MixedWorkload,
    Workload,
    long_prompt,
    offline,
    one_prompt,
    random_prompts,
    tweets,
)
from benchmarks.peers.registry import BACKENDS
from benchmarks.peers.worker import Remote

REFERENCE = "transformers"
PIPELINE = "transformers_pipeline"
"""Takes texts of one length of output alone."""
LONG_PROMPT = 900
STATIC_BATCH_SIZE = 64
"""Of requests of mixed lengths; 16 was slower for every backend that pads."""
SMALL_BATCH = 16
"""Every side takes part up to this size; in larger cases those that are not far behind, see `fast_enough`."""
FAR_BEHIND = 4
"""A backend is far behind where the fastest one of the same precision is more than so many times as fast."""
NEW_TOKENS = {256: 16}
"""By batch size, where they are not 64: the slowest side then takes 20 seconds a round."""
OFFLINE = ("hgt_infer_int8", "openvino_int8")
"""Who runs very many requests: each takes minutes."""


def fast_enough(case: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """The names that are not far behind in a case, in tokens a second, and the reference."""
    rates = {
        name: max(
            (spread["median"] for way, spread in case["tokens_per_s"].items() if backend_of(way) == name),
            default=0.0,
        )
        for name in names
    }
    best: dict[str, float] = {}
    for name, rate in rates.items():
        precision = BACKENDS[name].precision
        best[precision] = max(best.get(precision, 0.0), rate)
    return [
        name
        for name, rate in rates.items()
        if rate >= best[BACKENDS[name].precision] / FAR_BEHIND or name == REFERENCE
    ]


class Timings:
    """Times cases one after the other, and leaves out of the larger ones the sides that are far behind.

    Every timing has prompts that its side has not seen, but for tweets and many requests offline: their next
    round finds next to none of their prompts in the 64 slots of hgt_infer.

    Args:
        sides: by name, the reference among them.
    """

    def __init__(self, sides: Mapping[str, Remote]) -> None:
        self._sides = sides
        self.cases: list[dict[str, Any]] = []

    def fixed_lengths(self, batch_size: int, *, num_rounds: int) -> None:
        """Time prompts and texts of one length."""
        names = self._names if batch_size > SMALL_BATCH else [*self._sides]
        workloads = [
            replace(random_prompts(batch_size, number), num_new_tokens=NEW_TOKENS.get(batch_size, 64))
            for number in timing_numbers(num_rounds)
        ]
        self._in_turns(
            {name: self._timer(name, *workloads) for name in names},
            case="fixed",
            batch_size=batch_size,
            num_tokens=workloads[0].num_tokens,
            num_steps=workloads[0].num_new_tokens,
            num_rounds=num_rounds,
        )

    def samples(self, num_samples: int, *, num_rounds: int) -> None:
        """Time many samples of one prompt."""
        workloads = [
            one_prompt(num_samples, number, num_new_tokens=35) for number in timing_numbers(num_rounds)
        ]
        self._in_turns(
            {name: self._timer(name, *workloads) for name in self._names},
            case="samples",
            num_tokens=workloads[0].num_tokens,
            num_rounds=num_rounds,
        )

    def long_prompts(self, *, num_rounds: int) -> None:
        """Time prefill: a prompt of LONG_PROMPT tokens."""
        prompts = [long_prompt(LONG_PROMPT, number) for number in timing_numbers(num_rounds)]
        self._in_turns(
            {name: self._timer(name, *prompts) for name in self._sides},
            case="long_prompt",
            num_tokens=LONG_PROMPT,
            num_rounds=num_rounds,
        )

    def tweets(self, num_requests: int, *, num_rounds: int) -> None:
        """Time requests of mixed lengths, of those that are not far behind."""
        requests = next(tweets().batches(num_requests))
        self._in_turns(
            {
                f"{name}, batches of {STATIC_BATCH_SIZE}" if BACKENDS[name].is_static else name: self._timer(
                    name, requests
                )
                for name in self._names
                if name != PIPELINE
            },
            case="tweets",
            num_requests=num_requests,
            num_tokens=requests.num_tokens,
            num_rounds=num_rounds,
        )

    def offline(self, num_requests: int, *, num_rounds: int) -> None:
        """Time very many requests in one call."""
        requests = offline(num_requests)
        self._in_turns(
            {name: self._timer(name, requests) for name in OFFLINE if name in self._sides},
            case="offline",
            num_requests=num_requests,
            num_tokens=requests.num_tokens,
            num_rounds=num_rounds,
            num_warmups=0,
        )

    @property
    def _names(self) -> list[str]:
        """Of those that were not far behind in the last case of fixed lengths."""
        last = [case for case in self.cases if case["case"] == "fixed"][-1]
        return fast_enough(last, self._sides)

    def _timer(self, name: str, *workloads: Workload | MixedWorkload) -> Callable[[], float]:
        """Time a workload, or the next one of several at each call."""
        turns = cycle(workloads)
        return lambda: self._sides[name].seconds(next(turns), batch_size=STATIC_BATCH_SIZE)

    def _in_turns(
        self,
        timers: Mapping[str, Callable[[], float]],
        *,
        case: str,
        num_tokens: int,
        num_rounds: int,
        num_warmups: int = 1,
        **about: Any,
    ) -> None:
        """Time all ways in turns, after a round that is not counted."""
        size = about.get("batch_size", "")
        print(f"{case} {size}: {num_rounds} rounds of {len(timers)} sides", file=sys.stderr, flush=True)
        take_turns(timers, num_rounds=num_warmups)
        seconds, disturbed = take_quiet_turns(
            timers, num_rounds=num_rounds, pids=lambda way: [self._sides[backend_of(way)].pid]
        )
        self.cases.append({"case": case, **about, "num_tokens": num_tokens, **_rates(seconds, num_tokens)})
        self.cases[-1]["disturbed"] = disturbed


def timing_numbers(num_rounds: int) -> range:
    """A number for each timing of a side: the rounds, repeated ones, and one that is not counted."""
    return range((MAX_REPEATS + 1) * num_rounds + 1)


def _rates(seconds: Mapping[str, Sequence[float]], num_tokens: int) -> dict[str, Any]:
    """Tokens a second of every way, and how many times as fast it is as the reference's fastest one.

    Where the reference did not take part, the fastest peer stands in for it.
    """
    peers = [way for way in seconds if not is_ours(way)]
    compared = [way for way in seconds if backend_of(way) == REFERENCE] or peers or [*seconds]
    best = min(compared, key=lambda way: statistics.median(seconds[way]))
    return {
        "seconds": seconds,
        "tokens_per_s": {
            way: vars(Spread.of([num_tokens / duration for duration in durations]))
            for way, durations in seconds.items()
        },
        "compared_with": best,
        "ratio": {
            way: vars(Spread.of([their / our for our, their in zip(durations, seconds[best], strict=True)]))
            for way, durations in seconds.items()
        },
    }
