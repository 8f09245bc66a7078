"""Counters and percentiles, held against NumPy's exact ones."""

from __future__ import annotations

import dataclasses
import sys
import threading

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hgt_infer.engine.stats import Statistics, Stats


def snapshot(statistics: Statistics) -> Stats:
    return statistics.snapshot(running=0, waiting=0)


seconds = st.floats(-5, 3).map(lambda exponent: min(max(10.0**exponent, 1e-5), 1e3))


@given(times=st.lists(st.tuples(seconds, st.integers(1, 40)), min_size=1, max_size=60))
@example(times=[(1e-5, 1), (1e3, 1)])
def test_percentiles_are_within_5_percent_of_the_exact_ones(times: list[tuple[float, int]]) -> None:
    statistics = Statistics()
    for gap_s, count in times:
        statistics.record_tokens(gap_s, count)
        for _ in range(count):
            statistics.record_first_token(gap_s)
    every = np.repeat([gap_s for gap_s, _ in times], [count for _, count in times])
    exact = np.percentile(every, [50, 90, 99], method="inverted_cdf")
    stats = snapshot(statistics)
    found = stats.inter_token_s
    np.testing.assert_allclose([found.p50, found.p90, found.p99], exact, rtol=0.05 + 1e-9)
    assert found.count == len(every)
    assert found.sum_s == pytest.approx(every.sum())
    other = stats.time_to_first_token_s
    assert (other.p50, other.p90, other.p99) == (found.p50, found.p90, found.p99)
    assert other.cumulative == found.cumulative
    assert stats.generated_tokens == 2 * len(every)


@pytest.mark.parametrize(("beyond", "limit"), [(-1e-9, 1e-5), (0.0, 1e-5), (1e-7, 1e-5), (1e9, 1e3)])
def test_a_time_beyond_the_range_counts_as_its_end(beyond: float, limit: float) -> None:
    statistics = Statistics()
    statistics.record_first_token(beyond)
    found = snapshot(statistics).time_to_first_token_s
    np.testing.assert_allclose([found.p50, found.p90, found.p99], limit, rtol=0.05 + 1e-9)


def test_percentiles_of_the_two_kinds_of_times_are_apart() -> None:
    statistics = Statistics()
    statistics.record_first_token(1.0)
    statistics.record_tokens(0.01, 5)
    stats = snapshot(statistics)
    assert (stats.time_to_first_token_s.count, stats.inter_token_s.count) == (1, 5)
    first, between = stats.time_to_first_token_s.p99, stats.inter_token_s.p99
    assert first is not None
    assert between is not None
    assert first > 50 * between


def test_without_a_record_there_is_nothing_to_tell() -> None:
    stats = Statistics().snapshot(running=2, waiting=3)
    assert (stats.running, stats.waiting) == (2, 3)
    assert (stats.occupancy, stats.occupancy_while_waiting) == (None, None)
    assert stats.time_to_first_token_s == stats.inter_token_s
    empty = stats.inter_token_s
    assert (empty.p50, empty.p90, empty.p99, empty.count, empty.sum_s) == (None, None, None, 0, 0)
    assert {count for _, count in empty.cumulative} == {0}
    counts = [value for value in dataclasses.asdict(stats).values() if isinstance(value, int | float)]
    assert sum(counts) == 5


def test_tokens_given_to_nobody_leave_no_percentiles() -> None:
    statistics = Statistics()
    statistics.record_tokens(0.02, 0)
    assert snapshot(statistics).inter_token_s.p50 is None


def test_prefills_and_steps_add_up() -> None:
    statistics = Statistics()
    statistics.record_prefill(0.25, 100)
    statistics.record_prefill(0.5, 20)
    statistics.record_step(1.0, num_rows=3, num_slots=4, is_anyone_waiting=False, num_prompt_tokens=2)
    statistics.record_step(2.0, num_rows=4, num_slots=4, is_anyone_waiting=True, num_prompt_tokens=1)
    statistics.record_first_token(0.1)
    statistics.record_tokens(0.02, 3)
    stats = snapshot(statistics)
    assert (stats.prefill_s, stats.decode_s, stats.steps) == (0.75, 3.0, 2)
    assert (stats.prompt_tokens, stats.generated_tokens) == (123, 4)


def test_occupancy_is_the_mean_over_steps_and_over_those_with_a_queue() -> None:
    statistics = Statistics()
    for num_rows, is_anyone_waiting in [(1, False), (4, True), (2, True), (1, False)]:
        statistics.record_step(
            0.02, num_rows=num_rows, num_slots=4, is_anyone_waiting=is_anyone_waiting, num_prompt_tokens=0
        )
    stats = snapshot(statistics)
    assert (stats.occupancy, stats.occupancy_while_waiting) == (0.5, 0.75)


def test_ends_are_counted_by_their_kind() -> None:
    statistics = Statistics()
    for _ in range(2):
        statistics.record_finished(3)
        statistics.record_cancelled(2)
        statistics.record_failed(1)
    stats = snapshot(statistics)
    assert (stats.finished, stats.cancelled, stats.failed) == (6, 4, 2)


def test_a_snapshot_has_all_of_a_record_or_nothing_of_it() -> None:
    statistics, is_done = Statistics(), threading.Event()

    def record() -> None:
        while not is_done.is_set():
            statistics.record_step(0.5, num_rows=3, num_slots=4, is_anyone_waiting=True, num_prompt_tokens=7)
            statistics.record_tokens(0.5, 3)

    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=record)
    thread.start()
    try:
        for _ in range(2000):
            stats = snapshot(statistics)
            if stats.steps and stats.inter_token_s.count:
                assert stats.occupancy == stats.occupancy_while_waiting == 0.75
                assert stats.prompt_tokens == 7 * stats.steps
                assert stats.decode_s == 0.5 * stats.steps
                assert stats.generated_tokens == stats.inter_token_s.count
    finally:
        is_done.set()
        thread.join()
        sys.setswitchinterval(interval_s)
