"""hgt_infer beside transformers' `generate`: same weights, prompts, settings and number of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from benchmarks.backends import HgtInfer, Transformers, check_greedy
from benchmarks.comparison import Comparison, compare
from benchmarks.conftest import Record, recorded_clock
from benchmarks.workloads import BATCH_SIZES, random_prompts

CASE = "cpu_fp32"


@pytest.fixture(scope="module", params=BATCH_SIZES, ids="batch_{}".format)
def comparison(
    request: pytest.FixtureRequest, hgt_infer: HgtInfer, transformers: Transformers, num_rounds: int
) -> Comparison:
    workload = random_prompts(request.param)
    check_greedy(hgt_infer, transformers, workload)
    return compare(hgt_infer, transformers, workload, num_rounds=num_rounds)


@pytest.mark.benchmark(timer=recorded_clock)
@pytest.mark.parametrize("side", [HgtInfer.name, Transformers.name])
def test_cpu_fp32(
    comparison: Comparison,
    side: str,
    benchmark: Any,
    replay: Callable[[Sequence[float]], None],
    record: Record,
) -> None:
    batch_size = comparison.workload.batch_size
    benchmark.group = f"{CASE}, batch {batch_size}"
    benchmark.extra_info.update(
        batch_size=batch_size,
        tokens_per_s=comparison.tokens_per_s(side),
        ms_per_step=comparison.ms_per_step(side),
        ratio=vars(comparison.ratio),
    )
    replay(comparison.seconds[side])
    if side == HgtInfer.name:
        record(CASE, comparison.summary(), comparison.record())
