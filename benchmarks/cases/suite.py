"""The suite: every installed backend, in a process of its own, over the same workloads in turns.

`python -m benchmarks run` writes one JSON file; `benchmarks.pages.report` makes pages of it.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.cases.throughput import OFFLINE, PIPELINE, REFERENCE, SMALL_BATCH, STATIC_BATCH_SIZE, Timings
from benchmarks.measure.bounds import measure_bounds
from benchmarks.measure.checkpoints import write_model
from benchmarks.measure.comparison import Spread, is_ours, percentiles
from benchmarks.measure.environment import capture_environment, num_physical_cores
from benchmarks.measure.quiet import take_quiet_turns, wait_for_quiet
from benchmarks.measure.workloads import MixedWorkload, Workload, arrivals, one_prompt, random_prompts, tweets
from benchmarks.peers.registry import BACKENDS
from benchmarks.peers.worker import Remote, prepare

MIN_AGREEMENT = {"fp32": 1.0, "bf16": 0.5, "int8": 0.5}
"""The least share, by precision, of greedy tokens that are the reference's choice after the same text, and of
sampled ones that are among its top_k; a fault leaves none. Random weights have many near-ties and magnify
noise: how good int8 is, trained weights tell (`benchmarks.cases.quality`)."""
MAX_LIKELIEST = 0.5
"""The largest share of sampled tokens that are the reference's choice; of greedy tokens nearly all are."""
NUM_IN_COMPANY = 8
SERVED_RATES = (1.0, 4.0, 16.0)  # requests a second
SERVED_SECONDS = 5.0
FIRST_TOKEN_GOAL_S = 0.5
SERVED = (
    "hgt_infer", "hgt_infer_int8", "openvino_f32", "openvino_int8", "vllm_bfloat16",
    "llama_server_q8_0_unified", "ctranslate2_int8", "transformers",
)  # fmt: skip
"""Backends that a service can be made of; llama.cpp is its own."""
APART = ("vllm", "transformers_compiled", "transformers_pipeline", "optimum")
"""Backends that take turns with our sides and the reference alone, since 24 GB do not hold all processes.
None of them has been the strongest peer of a case."""


@dataclass(frozen=True)
class Plan:
    """How much of everything; nothing of what is 0 or empty.

    Attributes:
        rounds: timed rounds of fixed lengths by batch size, in rising order.
        num_tweets: requests of the tweets workload that are run.
        num_samples: of one prompt.
        num_offline: requests in one call.
        rounds_of_others: of the other workloads.
        rounds_offline: of the many requests.
        num_starts: fresh processes of each cold start.
        rates: of Poisson arrivals, in requests a second.
        has_long_prompts: whether prefill is timed.
    """

    rounds: Mapping[int, int]
    num_tweets: int = 128  # twice as many as hgt_infer has slots
    num_samples: int = 0
    num_offline: int = 0
    rounds_of_others: int = 5
    rounds_offline: int = 1
    num_starts: int = 0
    rates: Sequence[float] = ()
    has_long_prompts: bool = False


FULL = Plan(
    rounds={1: 10, 4: 10, 16: 5, 64: 5, 256: 5},
    num_samples=100,
    num_offline=10_000,
    num_starts=5,
    rates=SERVED_RATES,
    has_long_prompts=True,
)
QUICK_NAMES = ("hgt_infer", "hgt_infer_int8", "openvino_f32", "openvino_int8", "transformers")
QUICK = Plan(rounds={1: 5, 16: 3}, num_tweets=32, rounds_of_others=2)


def run(
    names: Sequence[str],
    plan: Plan,
    folder: Path,
    *,
    config: Any = None,
    wait: Callable[[], dict[str, Any]] = wait_for_quiet,
    keep: Callable[[dict[str, Any]], object] = lambda _: None,
) -> dict[str, Any]:
    """Run the suite and return its result.

    Args:
        names: of backends that are installed; the reference among them.
        plan: how much.
        folder: for the checkpoint of random weights and what backends make of it.
        config: transformers' configuration of the model; None is GPT-2 124M.
        wait: waits until the machine is quiet, and returns what it found.
        keep: is given what there is of the result after each part.

    Raises:
        WorkerError: a backend failed.
        ValueError: a backend does not choose the reference's tokens.
    """
    checkpoint = write_model(folder, config)
    sizes = json.loads((checkpoint / "config.json").read_text())
    for name in names:
        prepare(name, checkpoint, folder / name)
    result: dict[str, Any] = {
        "quiet": wait(),
        "environment": capture_environment(),
        "bounds": [_bounds("before")],
        "model": {key: sizes[key] for key in ("n_layer", "n_embd", "n_head", "n_positions", "vocab_size")},
        "reference": REFERENCE,
        "backends": {},
        "absent": [name for name in BACKENDS if name not in names],
        "agreement": {},
        "cases": [],
        "apart": [],
        "serving": [],
        "first_token_s": {},
    }
    keep(result)
    apart = [name for name in names if name in APART]
    with _open([name for name in names if name not in apart], checkpoint, folder) as sides:
        _describe(sides, folder, result)
        timings = Timings(sides)
        result["cases"] = timings.cases
        for batch_size, num_rounds in plan.rounds.items():
            timings.fixed_lengths(batch_size, num_rounds=num_rounds)
            keep(result)
        _weigh(sides, result)
        result["bounds"].append(_bounds("between"))
        if plan.num_samples:
            timings.samples(plan.num_samples, num_rounds=plan.rounds_of_others)
        if plan.has_long_prompts:
            timings.long_prompts(num_rounds=plan.rounds_of_others)
        timings.tweets(plan.num_tweets, num_rounds=plan.rounds_of_others)
        keep(result)
        result["serving"] = _serve(sides, plan)
    if apart:
        beside = [name for name in names if name == REFERENCE or is_ours(name)]
        with _open([*beside, *apart], checkpoint, folder) as sides:
            _describe(sides, folder, result)
            timings = Timings(sides)
            result["apart"] = timings.cases
            for batch_size, num_rounds in plan.rounds.items():
                if batch_size <= SMALL_BATCH:
                    timings.fixed_lengths(batch_size, num_rounds=num_rounds)
                    keep(result)
            _weigh(sides, result)
    result["first_token_s"] = {
        name: _cold_starts(name, checkpoint, folder / name, plan.num_starts)
        for name in names
        if plan.num_starts
    }
    keep(result)
    offline = [name for name in OFFLINE if name in names]
    if plan.num_offline and offline:
        with _open(offline, checkpoint, folder) as sides:
            timings = Timings(sides)
            timings.offline(plan.num_offline, num_rounds=plan.rounds_offline)
        result["cases"] += timings.cases
    result["bounds"].append(_bounds("after"))
    keep(result)
    return result


@contextmanager
def _open(names: Sequence[str], checkpoint: Path, folder: Path) -> Iterator[dict[str, Remote]]:
    """Start the processes of some backends, and end them."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(closing(Remote(name, checkpoint, folder / name))) for name in names}


def _bounds(when: str) -> dict[str, Any]:
    _say(f"what the machine can do at most, {when} the cases")
    return {"when": when, **measure_bounds(num_physical_cores())}


def _describe(sides: Mapping[str, Remote], folder: Path, result: dict[str, Any]) -> None:
    """Check the tokens of the sides that are not in the result yet, and tell what they are."""
    new = {name: side for name, side in sides.items() if name not in result["backends"]}
    result["agreement"] |= check({REFERENCE: sides[REFERENCE], **new})
    result["backends"] |= {name: _about(name, side, folder / name / "model") for name, side in new.items()}


def _weigh(sides: Mapping[str, Remote], result: dict[str, Any]) -> None:
    """Read the memory of the sides that have none in the result yet."""
    for name, side in sides.items():
        result["backends"][name].setdefault("memory_mb", side.memory_mb())


def _about(name: str, side: Remote, model: Path) -> dict[str, Any]:
    """What a backend is and can do, and what of it can be measured at once."""
    entry = BACKENDS[name]
    return {
        "precision": entry.precision,
        "arithmetic": entry.arithmetic,
        "cache_bytes": entry.cache_bytes,
        "environment": entry.environment,
        "settings": entry.settings,
        "can": {"seeds": entry.has_seeds, "refills": not entry.is_static, "lengths": entry.has_lengths},
        "company": in_company(side, has_seeds=entry.has_seeds),
        "load_s": side.load_s,
        "weights_mb": _weights_mb(model),
        **side.about(),
    }


def in_company(side: Any, *, has_seeds: bool) -> dict[str, tuple[int, int] | None]:
    """Count the prompts that give the same tokens alone and among others, greedy and with a seed for each."""
    workload = random_prompts(NUM_IN_COMPANY)
    seeds = [*range(NUM_IN_COMPANY)]

    def same(*, greedy: bool) -> tuple[int, int]:
        together = side.generate(workload, greedy=greedy, seeds=None if greedy else seeds)
        alone = [
            side.generate(workload.part(number), greedy=greedy, seeds=None if greedy else [seed])[0]
            for number, seed in enumerate(seeds)
        ]
        return sum(a == b for a, b in zip(together, alone, strict=True)), NUM_IN_COMPANY

    return {"greedy": same(greedy=True), "sampled": same(greedy=False) if has_seeds else None}


def check(sides: dict[str, Remote]) -> dict[str, dict[str, float]]:
    """Check the tokens of every side by the reference's own logits after the same text.

    Returns:
        By name: the share of greedy tokens that are the reference's choice, and how far below its choice, in
        logits, the furthest one lies.

    Raises:
        ValueError: too few greedy tokens are the reference's choice, too few of the sampled ones are among
            its top_k, most of the sampled ones are its choice, or tokens are missing.
    """
    result = {}
    for name, side in sides.items():
        least = MIN_AGREEMENT[BACKENDS[name].precision]
        greedy, sampled = (_tokens(name, side, greedy=greedy) for greedy in (True, False))
        margins = _margins(sides[REFERENCE], greedy)
        share = _share(name, margins)
        if share < least:
            raise ValueError(f"{name} agrees with {REFERENCE} in {share:.1%} of the tokens, not {least:.0%}")
        among = _share(name, _margins(sides[REFERENCE], sampled, top_k=Workload.top_k))
        if among < least:
            raise ValueError(
                f"of the tokens that {name} samples, {among:.1%} are among the top_k of {REFERENCE}, "
                f"not {least:.0%}"
            )
        likeliest = _share(name, _margins(sides[REFERENCE], sampled))
        if likeliest > MAX_LIKELIEST:
            raise ValueError(
                f"of the tokens that {name} samples, {likeliest:.1%} are the choice of {REFERENCE}, "
                f"not {MAX_LIKELIEST:.0%} at most"
            )
        result[name] = {"share": share, "largest_margin": max(margins)}
    return result


def _tokens(name: str, side: Any, *, greedy: bool) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Generate what is checked, and return pairs of a prompt and its new tokens."""
    workloads: list[Workload | MixedWorkload] = [random_prompts(4)]
    if name != PIPELINE:
        workloads.append(tweets().head(16, max_tokens=16))
    rows = [
        row
        for workload in workloads
        for row in zip(
            workload.prompt_token_ids, side.generate(workload, greedy=greedy, batch_size=8), strict=True
        )
    ]
    num_tokens = sum(len(token_ids) for _, token_ids in rows)
    expected = sum(workload.num_tokens for workload in workloads)
    if num_tokens != expected:
        raise ValueError(f"{name} gave {num_tokens} tokens, not {expected}")
    return rows


def _margins(
    reference: Any, rows: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], *, top_k: int = 1
) -> list[float]:
    return [margin for row in rows for margin in reference.margins(*row, top_k=top_k)]


def _share(name: str, margins: Sequence[float]) -> float:
    return sum(margin <= BACKENDS[name].near_tie for margin in margins) / len(margins)


def _serve(sides: Mapping[str, Remote], plan: Plan) -> list[dict[str, Any]]:
    """Poisson arrivals at several rates; a side that cannot keep up falls ever further behind."""
    results = []
    names = [name for name in SERVED if name in sides]
    for rate in plan.rates:
        requests = next(tweets().batches(min(plan.num_tweets, math.ceil(rate * SERVED_SECONDS))))
        at = arrivals(requests, rate=rate)
        _say(f"serving {rate:g} requests a second: {plan.rounds_of_others} rounds of {len(names)} sides")
        serving = {
            name: partial(sides[name].serve, requests, at, batch_size=STATIC_BATCH_SIZE) for name in names
        }
        served_by, disturbed = take_quiet_turns(
            serving, num_rounds=plan.rounds_of_others, pids=lambda name: [sides[name].pid]
        )
        for name, rounds in served_by.items():
            served = [*chain(*rounds)]
            first = [times.first_token_s for times in served]
            results.append(
                {
                    "backend": name,
                    "rate": rate,
                    "num_rounds": len(rounds),
                    "num_requests": len(served),
                    "first_token_s": percentiles(first),
                    "end_s": percentiles([times.end_s for times in served]),
                    "goodput": sum(value <= FIRST_TOKEN_GOAL_S for value in first) / len(first),
                    "disturbed": disturbed[name],
                }
            )
    return results


def _cold_starts(name: str, checkpoint: Path, folder: Path, num_starts: int) -> dict[str, Any]:
    """Seconds from making a backend, its imports included, to its first token, in fresh processes.

    Its files are in the page cache.
    """
    _say(f"cold start: {name}")

    def start() -> float:
        with closing(Remote(name, checkpoint, folder)) as side:
            return side.load_s + side.seconds(one_prompt(1, num_new_tokens=1))

    rounds, disturbed = take_quiet_turns({name: start}, num_rounds=num_starts)
    return vars(Spread.of(rounds[name])) | {"rounds": rounds[name], "disturbed": disturbed[name]}


def _weights_mb(folder: Path) -> float | None:
    """Of all files that the backend made of the checkpoint; None where it made none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6 or None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
