"""Turns, ratios, bounds and the environment. No speed is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial

import pytest
from support.fake_backend import MIXED, TINY, FakeBackend

from benchmarks.measure import arrivals, bounds, environment
from benchmarks.measure.bounds import measure_bounds, memory_budget_mb, step_bytes
from benchmarks.measure.comparison import Comparison, Spread, compare, seconds_of_workload, take_turns
from benchmarks.measure.environment import capture_environment
from benchmarks.measure.fresh_processes import in_fresh_processes
from benchmarks.measure.workloads import (
    MixedWorkload,
)
from benchmarks.peers.backends import (
    StaticBatches,
)

REQUESTS = MixedWorkload(
    prompts=("a", "b", "c", "d"), prompt_token_ids=((0,), (1,), (2,), (3,)), lengths=(1, 2, 3, 4)
)


def test_rounds_take_turns_after_the_warm_ups() -> None:
    now, calls = [0.0], []
    ours, theirs = FakeBackend("ours", now, 2.0, calls), FakeBackend("theirs", now, 3.0, calls)
    comparison = compare(ours, theirs, TINY, num_rounds=2, num_warmups=3, clock=lambda: now[0])
    assert calls == ["ours", "theirs"] * 3 + ["ours", "theirs", "theirs", "ours"]
    assert comparison.seconds == {"ours": [2.0, 2.0], "theirs": [3.0, 3.0]}


def test_more_than_two_sides_take_turns() -> None:
    now, calls = [0.0], []
    sides = [FakeBackend(name, now, step, calls) for name, step in (("a", 1.0), ("b", 2.0), ("c", 3.0))]
    timers = {side.name: partial(seconds_of_workload, side, MIXED, lambda: now[0]) for side in sides}
    seconds = take_turns(timers, num_rounds=2)
    assert calls == ["a", "b", "c", "c", "b", "a"]
    assert seconds == {"a": [1.0, 1.0], "b": [2.0, 2.0], "c": [3.0, 3.0]}


def test_missing_tokens_stop_the_rounds() -> None:
    side = StaticBatches(lambda batch, greedy: [(7,) for _ in batch.lengths], 2)
    with pytest.raises(ValueError, match="transformers_2 did not generate 8 tokens"):
        seconds_of_workload(side, MIXED)


def test_ratio_is_the_median_of_paired_rounds() -> None:
    comparison = Comparison(TINY, {"ours": [1.0, 2.0, 4.0], "theirs": [2.0, 8.0, 12.0]})
    assert comparison.ratio == Spread(median=3.0, low=2.0, high=4.0, first_quartile=2.5, third_quartile=3.5)
    assert comparison.tokens_per_s("ours") == 2 * 2 * 5 / 2.0
    assert comparison.ms_per_step("ours") == 400.0
    assert json.loads(json.dumps(comparison.record()))["seconds"]["theirs"] == [2.0, 8.0, 12.0]


def test_the_last_line_of_a_fresh_process_counts_and_its_failure_is_told() -> None:
    code = "import json, sys; print('noise'); print(json.dumps({'a': 1}))"
    assert in_fresh_processes(code, num_rounds=2) == [{"a": 1}] * 2  # behind one that does not count
    with pytest.raises(RuntimeError, match=r"^exit 1: no GPU$"):
        in_fresh_processes(f"{code}; sys.exit('more' + chr(10) + 'no GPU')", num_rounds=1)
    with pytest.raises(subprocess.TimeoutExpired):
        in_fresh_processes("import time; time.sleep(60)", num_rounds=1, timeout_s=0.5)


def test_spread_of_one_value() -> None:
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0, 2.0, 2.0)


def test_memory_budget() -> None:
    assert memory_budget_mb(498, num_positions=16 * 1024) == pytest.approx(
        1.25 * (498 + 1207.96) + 150, abs=0.01
    )


def test_environment_is_json_with_machine_and_versions() -> None:
    environment = json.loads(json.dumps(capture_environment()))
    assert environment["usable_cpus"] >= 1
    assert {"numpy", "tokenizers", "torch", "transformers"} <= set(environment["versions"])
    assert environment.keys() >= {"cpu", "cpu_flags", "memory_gb", "load_average_1min", "python", "commit"}


def test_environment_needs_no_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    captured = environment.capture_environment()
    assert captured["physical_cores"] is None
    assert captured["memory_gb"] > 0


def test_gpus_are_read_from_nvidia_smi() -> None:
    lines = "NVIDIA H200, 580.159.04, 143771, 4, 345, 1980, 3201, 700.00, 30, 0, 9.0\nT4, 1, [N/A]\n\n"
    first, second = environment.parse_gpus(lines)
    assert (first["name"], first["memory_mib"], first["sm_mhz"]) == ("NVIDIA H200", "143771", "345")
    assert second == {"name": "T4", "driver_version": "1"}


def test_bound_of_a_step_counts_weights_cache_and_logits() -> None:
    num_bytes = step_bytes(247_000_000, 36_864, [100] * 64, 2 * 50_257)
    assert num_bytes == 247_000_000 + 36_864 * 6_400 + 2 * 50_257 * 64
    assert num_bytes / 4.3e12 == pytest.approx(114e-6, rel=0.02)


def test_bounds_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("READ_MB", 16), ("GEMM_SIZE", 256), ("SECONDS", 0.01)):
        monkeypatch.setattr(bounds, name, value)
    measured = measure_bounds(1)
    assert measured["read_gb_s"] > 0.1
    assert measured["fp32_gflop_s"] > 0.1


class Batches:
    """Takes 50 ms for a batch of whatever size, on a clock that only it and waiting move."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.now_s = 0.0

    def generate_padded(self, batch: MixedWorkload) -> None:
        self.sizes.append(len(batch.prompts))
        self.now_s += 0.05

    def perf_counter(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def test_static_batches_take_all_that_wait_and_show_nothing_before_they_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = Batches()
    monkeypatch.setattr(arrivals, "time", backend)
    served = arrivals.serve(backend, REQUESTS, (0.01, 0.02, 0.03, 0.3), batch_size=3)
    assert backend.sizes == [1, 2, 1]
    assert [times.first_token_s for times in served] == pytest.approx([0.05, 0.09, 0.08, 0.05])
    assert all(times.first_token_s == times.end_s for times in served)
    full = Batches()
    monkeypatch.setattr(arrivals, "time", full)
    served = arrivals.serve(full, REQUESTS, (0.0, 0.01, 0.02, 0.03), batch_size=2)
    assert served[3].end_s == pytest.approx(0.12)  # it arrived in the first batch's time and waited for two
    assert full.sizes == [1, 2, 1]
