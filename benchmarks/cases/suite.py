"""The suite: every installed backend, in a process of its own, over the same workloads in turns.

`python -m benchmarks run` writes one JSON file; `benchmarks.pages.report` makes pages of it.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.measure.bounds import measure_bounds
from benchmarks.measure.comparison import Spread, take_turns
from benchmarks.measure.environment import capture_environment
from benchmarks.measure.fresh_processes import FIRST_TOKEN, TRANSFORMERS_FIRST_TOKEN, in_fresh_processes
from benchmarks.measure.workloads import (
    MixedWorkload,
    Workload,
    arrivals,
    long_prompt,
    one_prompt,
    random_prompts,
    tweets,
    write_model,
)
from benchmarks.peers.backends import num_physical_cores
from benchmarks.peers.registry import BACKENDS, STATIC_ALONE
from benchmarks.peers.worker import Remote

REFERENCE = "transformers"
PIPELINE = "transformers_pipeline"
"""Takes texts of one length of output alone."""
PADDED_LIKE_TRANSFORMERS = (PIPELINE, "optimum")
FEW_SLOTS = 16  # of hgt_infer, once more beside its most
MIN_INT8_AGREEMENT = 0.5
"""Of greedy tokens that are the reference's choice after the same text: a fault leaves none. Random weights
have many near-ties and magnify noise; how good int8 is, trained weights tell (`benchmarks.cases.quality`)."""
LONG_PROMPT = 900
STATIC_BATCH_SIZES = (16, 64)
LARGEST_BATCH_OF_ALL = 16
"""Beyond it, and for many samples, who pads like transformers is left out: it is within a tenth of it."""
SERVED_RATES = (1.0, 4.0, 16.0)  # requests a second
SERVED_SECONDS = 8.0
FIRST_TOKEN_GOAL_S = 0.5
FIRST_TOKEN_CODE = {
    "hgt_infer": FIRST_TOKEN,
    "hgt_infer_int8": FIRST_TOKEN,
    "transformers": TRANSFORMERS_FIRST_TOKEN,
}


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Attributes:
        rounds: timed rounds of fixed lengths by batch size.
        num_tweets: requests of the tweets workload that are run.
        num_samples: of one prompt.
        rounds_of_others: of the other workloads.
        num_starts: fresh processes of each cold start.
    """

    rounds: dict[int, int]
    num_tweets: int
    num_samples: int
    rounds_of_others: int
    num_starts: int


FULL = Plan(
    rounds={1: 11, 4: 10, 16: 5, 64: 2}, num_tweets=96, num_samples=100, rounds_of_others=1, num_starts=5
)
QUICK = Plan(rounds={1: 3, 16: 3}, num_tweets=64, num_samples=32, rounds_of_others=1, num_starts=2)


def run(names: Sequence[str], plan: Plan, folder: Path, *, config: Any = None) -> dict[str, Any]:
    """Run the suite and return its result.

    Args:
        names: of backends that are installed; the reference among them.
        plan: how much.
        folder: for the checkpoint of random weights and what backends make of it.
        config: transformers' configuration of the model; None is GPT-2 124M.

    Raises:
        WorkerError: a backend failed.
        ValueError: a backend does not choose the reference's tokens.
    """
    environment = capture_environment()
    bounds = measure_bounds(num_physical_cores())
    checkpoint = write_model(folder, config)
    for name in names:
        _prepare(name, checkpoint, folder)
    with _started(names, checkpoint, folder) as sides:
        result = {
            "environment": environment,
            "bounds": bounds,
            "model": _sizes(checkpoint),
            "reference": REFERENCE,
            "backends": {
                name: {
                    "precision": BACKENDS[name].precision,
                    "cannot": STATIC_ALONE if BACKENDS[name].is_static else "",
                    "load_s": sides[name].load_s,
                    "weights_mb": _weights_mb(folder / name / "model"),
                }
                for name in names
            },
            "agreement": check(sides),
            "cases": list(_fixed_lengths(sides, plan)),
        }
        for name, side in sides.items():
            result["backends"][name]["memory_mb"] = side.memory_mb()
        result["cases"] += _other_cases(sides, plan)
        result["serving"] = _serve(sides, plan)
    result["first_token_s"] = _cold_starts(checkpoint, folder, names, plan.num_starts)
    return result


def _prepare(name: str, checkpoint: Path, folder: Path) -> None:
    """Let a backend convert the checkpoint, so that no conversion is in its memory or its time."""
    model = folder / name / "model"
    if name.startswith("hgt_infer"):
        shutil.rmtree(model, ignore_errors=True)  # of another version of the exporter
    _say(f"{name}: preparing")
    Remote(name, checkpoint, folder / name).close()


@contextmanager
def _started(names: Sequence[str], checkpoint: Path, folder: Path) -> Iterator[dict[str, Remote]]:
    sides: dict[str, Remote] = {}
    try:
        for name in names:
            sides[name] = Remote(name, checkpoint, folder / name)
        yield sides
    finally:
        for side in sides.values():
            side.close()


def check(sides: dict[str, Remote]) -> dict[str, dict[str, float]]:
    """Check the greedy tokens of every side by the reference's own logits after the same text.

    Returns:
        By name: the share of tokens that are the reference's choice, and how far below its choice, in
        logits, the furthest one lies.
    """
    result = {}
    for name, side in sides.items():
        batch_size = 8 if BACKENDS[name].is_static else None
        workloads: list[Workload | MixedWorkload] = [random_prompts(4)]
        if name != PIPELINE:
            workloads.append(tweets().head(16, max_tokens=16))
        margins = [
            margin
            for workload in workloads
            for prompt, token_ids in zip(
                workload.prompt_token_ids,
                side.generate(workload, greedy=True, batch_size=batch_size),
                strict=True,
            )
            for margin in sides[REFERENCE].margins(prompt, token_ids)
        ]
        share = sum(margin <= BACKENDS[name].near_tie for margin in margins) / len(margins)
        result[name] = {"share": share, "largest_margin": max(margins)}
        least = MIN_INT8_AGREEMENT if BACKENDS[name].precision == "int8" else 1.0
        if len(margins) != sum(workload.num_tokens for workload in workloads) or share < least:
            raise ValueError(f"{name} agrees with {REFERENCE} in {share:.1%} of the tokens, not {least:.0%}")
    return result


def _fixed_lengths(sides: dict[str, Remote], plan: Plan) -> Iterator[dict[str, Any]]:
    for batch_size, num_rounds in plan.rounds.items():
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


def _other_cases(sides: dict[str, Remote], plan: Plan) -> Iterator[dict[str, Any]]:
    others = plan.rounds_of_others
    samples = one_prompt(plan.num_samples, num_new_tokens=35)
    yield _in_turns(
        {name: _timer(side, samples) for name, side in _of_batch(sides, samples.batch_size)},
        case="samples",
        num_tokens=samples.num_tokens,
        num_rounds=others,
        is_warm=True,
    )
    prompts = [long_prompt(LONG_PROMPT, number) for number in range(3 * others + 1)]
    yield _in_turns(
        {name: _timer(side, *prompts) for name, side in sides.items()},
        case="long_prompt",
        num_tokens=LONG_PROMPT,
        num_rounds=3 * others,
    )
    requests = next(tweets().batches(plan.num_tweets))
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
    _say(f"{case} {about.get('batch_size', '')}: {num_rounds} rounds of {len(timers)} sides")
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


def _serve(sides: dict[str, Remote], plan: Plan) -> list[dict[str, Any]]:
    """Requests that arrive by chance, at several rates; who cannot keep up falls ever further behind."""
    results = []
    for rate in SERVED_RATES:
        requests = next(tweets().batches(min(plan.num_tweets, math.ceil(rate * SERVED_SECONDS))))
        at = arrivals(requests, rate=rate)
        for name in sides:
            if name in (*PADDED_LIKE_TRANSFORMERS, "ctranslate2") or name.startswith("llama_cpp"):
                continue  # as transformers' or ctranslate2_int8's batches; llama.cpp has a server of its own
            _say(f"serving {rate:g} requests a second: {name}")
            served = sides[name].serve(requests, at, batch_size=16)
            first = sorted(times.first_token_s for times in served)
            whole = sorted(times.end_s for times in served)
            results.append(
                {
                    "backend": name,
                    "rate": rate,
                    "num_requests": len(served),
                    "first_token_s": percentiles(first),
                    "end_s": percentiles(whole),
                    "goodput": sum(value <= FIRST_TOKEN_GOAL_S for value in first) / len(first),
                }
            )
    return results


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 of sorted values, by the nearest rank."""
    return {f"p{p}": values[max(0, math.ceil(p / 100 * len(values)) - 1)] for p in (50, 90, 99)}


def _cold_starts(checkpoint: Path, folder: Path, names: Sequence[str], num_starts: int) -> dict[str, Any]:
    """Seconds from the first import to the first token, in fresh processes, files in the page cache."""
    result = {}
    for name in names:
        if name not in FIRST_TOKEN_CODE:
            continue
        _say(f"cold start: {name}")
        model = folder / name / "model" if name.startswith("hgt_infer") else checkpoint
        starts = in_fresh_processes(FIRST_TOKEN_CODE[name], str(model), num_rounds=num_starts)
        rounds = [sum(parts.values()) for parts in starts]
        result[name] = vars(Spread.of(rounds)) | {"rounds": rounds}
    return result


def _sizes(checkpoint: Path) -> dict[str, int]:
    config = json.loads((checkpoint / "config.json").read_text())
    return {key: config[key] for key in ("n_layer", "n_embd", "n_head", "n_positions", "vocab_size")}


def _weights_mb(folder: Path) -> float | None:
    """Of all files that the backend made of the checkpoint; None where it made none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6 or None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
