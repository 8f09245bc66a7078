"""The suite: every installed backend, in a process of its own, over the same workloads in turns.

`python -m benchmarks run` writes one JSON file; `benchmarks.pages.report` makes pages of it.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cases.throughput import (
    PADDED_LIKE_TRANSFORMERS,
    PIPELINE,
    REFERENCE,
    time_fixed_lengths,
    time_other_workloads,
)
from benchmarks.measure.bounds import measure_bounds
from benchmarks.measure.checkpoints import write_model
from benchmarks.measure.comparison import Spread, percentiles
from benchmarks.measure.environment import capture_environment, num_physical_cores
from benchmarks.measure.fresh_processes import (
    FIRST_TOKEN,
    TRANSFORMERS_FIRST_TOKEN,
    first_token_s,
    in_fresh_processes,
)
from benchmarks.measure.workloads import MixedWorkload, Workload, arrivals, random_prompts, tweets
from benchmarks.peers.registry import BACKENDS, STATIC_ALONE
from benchmarks.peers.worker import Remote

MIN_INT8_AGREEMENT = 0.5
"""Of greedy tokens that are the reference's choice after the same text: a fault leaves none. Random weights
have many near-ties and magnify noise; how good int8 is, trained weights tell (`benchmarks.cases.quality`)."""
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
    sizes = json.loads((checkpoint / "config.json").read_text())
    for name in names:
        _prepare(name, checkpoint, folder)
    with ExitStack() as stack:
        sides = {
            name: stack.enter_context(closing(Remote(name, checkpoint, folder / name))) for name in names
        }
        result = {
            "environment": environment,
            "bounds": bounds,
            "model": {
                key: sizes[key] for key in ("n_layer", "n_embd", "n_head", "n_positions", "vocab_size")
            },
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
            "cases": list(time_fixed_lengths(sides, plan.rounds)),
        }
        for name, side in sides.items():
            result["backends"][name]["memory_mb"] = side.memory_mb()
        result["cases"] += time_other_workloads(
            sides,
            num_rounds=plan.rounds_of_others,
            num_samples=plan.num_samples,
            num_tweets=plan.num_tweets,
        )
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
            first = [times.first_token_s for times in served]
            results.append(
                {
                    "backend": name,
                    "rate": rate,
                    "num_requests": len(served),
                    "first_token_s": percentiles(first),
                    "end_s": percentiles([times.end_s for times in served]),
                    "goodput": sum(value <= FIRST_TOKEN_GOAL_S for value in first) / len(first),
                }
            )
    return results


def _cold_starts(checkpoint: Path, folder: Path, names: Sequence[str], num_starts: int) -> dict[str, Any]:
    """Seconds from the first import to the first token, in fresh processes, files in the page cache."""
    result = {}
    for name in names:
        if name not in FIRST_TOKEN_CODE:
            continue
        _say(f"cold start: {name}")
        model = folder / name / "model" if name.startswith("hgt_infer") else checkpoint
        starts = in_fresh_processes(FIRST_TOKEN_CODE[name], str(model), "cpu", num_rounds=num_starts)
        rounds = [first_token_s(times) for times in starts]
        result[name] = vars(Spread.of(rounds)) | {"rounds": rounds}
    return result


def _weights_mb(folder: Path) -> float | None:
    """Of all files that the backend made of the checkpoint; None where it made none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6 or None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
