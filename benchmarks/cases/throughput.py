"""Tokens a second of every side over the same workloads, in turns."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

from benchmarks.measure.comparison import Spread, take_turns
from benchmarks.measure.workloads import (
    MixedWorkload,
    Workload,
    long_prompt,
    one_prompt,
    random_prompts,
    tweets,
)
from benchmarks.peers.registry import BACKENDS
from benchmarks.peers.worker import Remote

REFERENCE = "transformers"
PIPELINE = "transformers_pipeline"
"""Takes texts of one length of output alone."""
PADDED_LIKE_TRANSFORMERS = (PIPELINE, "optimum")
FEW_SLOTS = 16  # of hgt_infer, once more beside its most
LONG_PROMPT = 900
STATIC_BATCH_SIZES = (16, 64)
LARGEST_BATCH_OF_ALL = 16
"""Beyond it, and for many samples, who pads like transformers is left out: it is within a tenth of it."""


def time_fixed_lengths(sides: dict[str, Remote], rounds: Mapping[int, int]) -> Iterator[dict[str, Any]]:
    """Prompts and texts of one length, by batch size: so many timed rounds of each."""
    for batch_size, num_rounds in rounds.items():
        workload = random_prompts(batch_size)
        yield _in_turns(
            {name: _timer(side, workload) for name, side in _of_batch(sides, batch_size)},
            case="fixed",
            batch_size=batch_size,
            num_tokens=workload.num_tokens,
            num_steps=workload.num_new_tokens,
            num_rounds=num_rounds,
            is_warm=batch_size > 16,
        )


def time_other_workloads(
    sides: dict[str, Remote], *, num_rounds: int, num_samples: int, num_tweets: int
) -> Iterator[dict[str, Any]]:
    """Many samples of one prompt, a long prompt (three times the rounds), and tweets (one round)."""
    samples = one_prompt(num_samples, num_new_tokens=35)
    yield _in_turns(
        {name: _timer(side, samples) for name, side in _of_batch(sides, samples.batch_size)},
        case="samples",
        num_tokens=samples.num_tokens,
        num_rounds=num_rounds,
        is_warm=True,
    )
    prompts = [long_prompt(LONG_PROMPT, number) for number in range(3 * num_rounds + 1)]
    yield _in_turns(
        {name: _timer(side, *prompts) for name, side in sides.items()},
        case="long_prompt",
        num_tokens=LONG_PROMPT,
        num_rounds=3 * num_rounds,
    )
    requests = next(tweets().batches(num_tweets))
    yield _in_turns(
        {_way(name, size): _timer(sides[name], requests, batch_size=size) for name, size in _ways(sides)},
        case="tweets",
        num_tokens=requests.num_tokens,
        num_rounds=1,
        is_warm=True,
    )


def _of_batch(sides: dict[str, Remote], batch_size: int) -> Iterator[tuple[str, Remote]]:
    for name, side in sides.items():
        if batch_size <= LARGEST_BATCH_OF_ALL or name not in PADDED_LIKE_TRANSFORMERS:
            yield name, side


def _ways(sides: dict[str, Remote]) -> Iterator[tuple[str, int | None]]:
    """Backends for requests of mixed lengths, with sizes of static batches, or slots, to be tried."""
    for name in sides:
        if name in PADDED_LIKE_TRANSFORMERS or (name == "ctranslate2" and "ctranslate2_int8" in sides):
            continue
        sizes: Sequence[int | None] = (None,)
        if BACKENDS[name].is_static:
            sizes = STATIC_BATCH_SIZES
        elif name.startswith("hgt_infer"):
            sizes = (None, FEW_SLOTS)
        yield from ((name, size) for size in sizes)


def _way(name: str, size: int | None) -> str:
    if size is None:
        return name
    return f"{name}, batches of {size}" if BACKENDS[name].is_static else f"{name}, {size} slots"


def _timer(
    side: Remote, *workloads: Workload | MixedWorkload, batch_size: int | None = None
) -> Callable[[], float]:
    """Times a workload, or the next one of several at each call."""
    turns = cycle(workloads)
    return lambda: side.seconds(next(turns), batch_size=batch_size)


def _in_turns(
    timers: dict[str, Callable[[], float]],
    *,
    case: str,
    num_tokens: int,
    num_rounds: int,
    is_warm: bool = False,
    **about: Any,
) -> dict[str, Any]:
    """Time all sides in turns, after a round that is not counted unless they are warm."""
    size = about.get("batch_size", "")
    print(f"{case} {size}: {num_rounds} rounds of {len(timers)} sides", file=sys.stderr, flush=True)
    if not is_warm:
        take_turns(timers, num_rounds=1)
    seconds = take_turns(timers, num_rounds=num_rounds)
    by_reference = [name for name in timers if name.split(",")[0] == REFERENCE]
    best = min(by_reference, key=lambda name: statistics.median(seconds[name]))
    return {
        "case": case,
        **about,
        "num_tokens": num_tokens,
        "seconds": seconds,
        "tokens_per_s": {
            name: vars(Spread.of([num_tokens / duration for duration in durations]))
            for name, durations in seconds.items()
        },
        "compared_with": best,
        "ratio": {
            name: vars(Spread.of([their / our for our, their in zip(durations, seconds[best], strict=True)]))
            for name, durations in seconds.items()
        },
    }
