"""Many requests as long as tweets: slots that are refilled at once beside static batches of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.backends import NUM_SLOTS, HgtInfer, StaticBatches, Transformers, check_mixed_greedy
from benchmarks.comparison import BatchingComparison, time_in_turns
from benchmarks.conftest import Record, recorded_clock
from benchmarks.workloads import tweets

CASE = "tweets"
STATIC_BATCH_SIZES = (8, 16, 32, 64)


@pytest.fixture(scope="module")
def comparison(
    artifact: Path, transformers: Transformers, request: pytest.FixtureRequest
) -> BatchingComparison:
    """The greedy tokens are compared at the largest batch size, which takes the least time."""
    workload = tweets()
    ours = HgtInfer(artifact)  # of its own, for its statistics
    theirs = [StaticBatches(transformers.generate_padded, size) for size in STATIC_BATCH_SIZES]
    near_ties = check_mixed_greedy(ours, theirs[-1], workload, transformers.margins)
    for side in (ours, *theirs):
        side.generate(workload.head(max(STATIC_BATCH_SIZES), max_tokens=4))
    seconds = time_in_turns([ours, *theirs], workload, num_rounds=request.config.getoption("--tweets-rounds"))
    occupancy = ours.generator.stats().occupancy_while_waiting
    ours.close()
    return BatchingComparison(
        workload,
        name=ours.name,
        num_slots=NUM_SLOTS,
        occupancy=occupancy,
        batch_sizes={side.name: side.batch_size for side in theirs},
        seconds=seconds,
        near_ties=near_ties,
    )


@pytest.mark.benchmark(timer=recorded_clock, group=CASE)
@pytest.mark.parametrize(
    "side", [HgtInfer.name, *(f"{Transformers.name}_{size}" for size in STATIC_BATCH_SIZES)]
)
def test_tweets(
    comparison: BatchingComparison,
    side: str,
    benchmark: Any,
    replay: Callable[[Sequence[float]], None],
    record: Record,
) -> None:
    benchmark.extra_info["tokens_per_s"] = comparison.tokens_per_s(side)
    replay(comparison.seconds[side])
    if side == HgtInfer.name:
        record(CASE, comparison.summary(), comparison.record())
    else:
        benchmark.extra_info["ratio"] = vars(comparison.ratio(side))
