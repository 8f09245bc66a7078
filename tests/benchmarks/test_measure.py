"""Turns, ratios, bounds and the environment. No speed is asserted."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import ANY

import numpy as np
import psutil
import pytest
from support.fake_backend import MIXED, TINY, FakeBackend

from benchmarks.measure import arrivals, bounds, environment, quiet
from benchmarks.measure.bounds import best_bounds, measure_bounds, memory_budget_mb, step_bytes
from benchmarks.measure.comparison import Comparison, Spread, compare, seconds_of_workload, take_turns
from benchmarks.measure.environment import capture_environment
from benchmarks.measure.fresh_processes import in_fresh_processes
from benchmarks.measure.quiet import Watched, take_quiet_turns, wait_for_quiet, watch
from benchmarks.measure.workloads import MixedWorkload, TokenIds
from benchmarks.peers.backends import StaticBatches

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
    seconds = take_turns(timers, num_rounds=4)
    assert "".join(calls) == "abc" + "cba" + "bca" + "acb"
    assert seconds == {"a": [1.0] * 4, "b": [2.0] * 4, "c": [3.0] * 4}


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
    measured = measure_bounds(2)
    assert measured.keys() == {"read_gb_s", "read_huge_gb_s", "fp32_gflop_s", "bf16_gflop_s", "int8_gop_s"}
    assert all(value > 0.1 for value in measured.values())


@pytest.mark.parametrize(("advice", "is_huge"), [(mmap.MADV_NOHUGEPAGE, False), (mmap.MADV_HUGEPAGE, True)])
def test_all_is_read_from_pages_of_the_size_asked_for(
    monkeypatch: pytest.MonkeyPatch, advice: int, is_huge: bool
) -> None:
    setting, rollup = Path("/sys/kernel/mm/transparent_hugepage/enabled"), Path("/proc/self/smaps_rollup")
    if not setting.is_file() or "[never]" in setting.read_text() or not rollup.is_file():
        pytest.skip("this kernel has no transparent huge pages")

    def huge_mb() -> int:
        return int(rollup.read_text().partition("AnonHugePages:")[2].split()[0]) >> 10

    before, during = huge_mb(), []

    def once(work: Callable[[], list[np.int64]]) -> float:
        assert work() == [1, 1]  # of either thread: the bitwise or of what was written
        during.append(huge_mb())
        return 0.5

    monkeypatch.setattr(bounds, "READ_MB", 64)
    monkeypatch.setattr(bounds, "_best", once)
    assert bounds._read_gb_s(2, advice) == (64 << 20) / 0.5 / 1e9
    assert (during[0] - before > 16) == is_huge


def test_the_best_of_several_readings_is_the_bound() -> None:
    readings = [{"read_gb_s": 3.0, "fp32_gflop_s": 5.0}, {"read_gb_s": 2.0, "fp32_gflop_s": 7.0}]
    assert best_bounds(readings) == {"read_gb_s": 3.0, "fp32_gflop_s": 7.0}
    with pytest.raises(ValueError, match="at least one reading"):
        best_bounds([])


def test_waiting_ends_when_the_load_is_under_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    now, loads = [100.0], [1.2, 0.3, 0.29]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        loads.pop(0)

    found = wait_for_quiet(interval_s=5, load=lambda: loads[0], clock=lambda: now[0], sleep=sleep)
    assert found == {"load": 0.29, "waited_s": 10.0, "is_quiet": True}
    assert capsys.readouterr().err == "load 1.20: waiting until it is under 0.3\n"
    assert wait_for_quiet(load=lambda: 0.1, clock=lambda: now[0], sleep=sleep)["waited_s"] == 0
    assert capsys.readouterr().err == ""


def test_waiting_ends_when_its_time_is_over() -> None:
    now = [0.0]
    found = wait_for_quiet(
        timeout_s=12,
        interval_s=5,
        load=lambda: 2.0,
        clock=lambda: now[0],
        sleep=lambda seconds: now.append(now.pop() + seconds),
    )
    assert found == {"load": 2.0, "waited_s": 15.0, "is_quiet": False}


class FakeProc:
    """A /proc of two processors: this process, its child 10 and grandchild 11; 20 and its child 21; 30.

    All times are in clock ticks.
    """

    PARENTS: ClassVar = {os.getpid(): 1, 10: os.getpid(), 11: 10, 20: 1, 21: 20, 30: 1}

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ticks: dict[int, list[int]] = {pid: [100, 10, 0, 0] for pid in self.PARENTS}
        self.machine = [
            5000,
            40,
            900,
            70000,
            800,
            30,
            20,
            60,
        ]  # user nice system idle iowait irq softirq steal
        self.write()

    def write(self) -> None:
        times = " ".join(map(str, self.machine))
        (self.folder / "stat").write_text(f"cpu  {times} 0 0\ncpu0 {times} 0 0\ncpu1 {times} 0 0\nintr 5\n")
        for pid, ticks in self.ticks.items():
            (self.folder / str(pid)).mkdir(exist_ok=True)
            fields = " ".join(map(str, [self.PARENTS[pid], *range(9), *ticks, 20, 0]))
            (self.folder / str(pid) / "stat").write_text(f"{pid} (a (b) c) R {fields}\n")

    def run(self, pid: int, user: int = 0, system: int = 0) -> None:
        """Let a process take time of the machine."""
        self.ticks[pid][0] += user
        self.ticks[pid][1] += system
        self.machine[0] += user
        self.machine[2] += system
        self.write()

    def end(self, pid: int) -> None:
        """End a process whose parent waits for it."""
        own = self.ticks.pop(pid)
        waiting = self.ticks[self.PARENTS[pid]]
        waiting[2:] = [waiting[2] + own[0] + own[2], waiting[3] + own[1] + own[3]]
        (self.folder / str(pid) / "stat").unlink()
        self.write()


@pytest.fixture
def fake_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeProc:
    monkeypatch.setattr(quiet, "PROC", tmp_path)
    monkeypatch.setattr(quiet.os, "sysconf", lambda name: 100)
    return FakeProc(tmp_path)


def test_time_of_others_is_what_is_not_ours(fake_proc: FakeProc) -> None:
    with watch({10, 20}) as watched:
        for pid in (os.getpid(), 10, 11, 20, 21):
            fake_proc.run(pid, 7, 2)
        fake_proc.end(11)  # its time is now in its parent's
        fake_proc.run(30, 20, 5)
        fake_proc.machine[7] += 8
        fake_proc.machine[3] += 1000  # idle
        fake_proc.write()
    assert (watched.num_cpus, watched.others_s, watched.steal_s) == pytest.approx((2, 0.25, 0.08))
    assert watched.is_disturbed
    with watch() as watched:
        fake_proc.run(os.getpid(), 9)
        fake_proc.run(10, 30)  # a child of this process works for another side
        fake_proc.run(20, 4)
    assert watched.others_s == pytest.approx(0.34)  # nobody said that these are ours


def test_a_child_that_outlives_its_parent_stays_ours(fake_proc: FakeProc, monkeypatch: Any) -> None:
    with watch({10}) as watched:
        fake_proc.run(11, 40)
        monkeypatch.setitem(FakeProc.PARENTS, 11, 1)
        fake_proc.end(10)
    assert watched.others_s == 0


def test_rounding_makes_no_time_of_others_negative(fake_proc: FakeProc) -> None:
    with watch({10}) as watched:
        fake_proc.ticks[10][0] += 3
        fake_proc.write()
    assert watched.others_s == 0
    assert not watched.is_disturbed


def test_nothing_is_disturbed_where_there_is_no_proc(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(quiet, "PROC", tmp_path / "none")
    with watch() as watched:
        pass
    assert (watched.lost_s, watched.is_disturbed) == (0.0, False)


def test_disturbed_is_above_a_share_of_the_machine_and_above_rounding() -> None:
    assert not Watched(num_cpus=2, wall_s=10.0, others_s=0.5, steal_s=0.09).is_disturbed
    assert Watched(num_cpus=2, wall_s=10.0, others_s=0.5, steal_s=0.11).is_disturbed
    assert not Watched(num_cpus=2, wall_s=0.1, others_s=0.03, steal_s=0.01).is_disturbed
    assert Watched(num_cpus=2, wall_s=0.1, others_s=0.03, steal_s=0.03).is_disturbed


def test_disturbed_timings_are_repeated_at_once(fake_proc: FakeProc) -> None:
    calls = []
    disturbances = {"a": [0, 30, 0], "b": [40, 20, 30, 0]}  # ticks of another process, by call

    def timer(name: str) -> float:
        calls.append(name)
        fake_proc.run(10, 50)  # a worker of ours
        fake_proc.run(30, ticks := disturbances[name].pop(0))
        return 1.0 + ticks

    timers = {name: partial(timer, name) for name in ("a", "b")}
    seconds, disturbed = take_quiet_turns(timers, num_rounds=2, pids=lambda name: [10])
    assert calls == ["a", "b", "b", "b", "b", "a", "a"]
    assert seconds == {"a": [1.0, 1.0], "b": [21.0, 1.0]}
    assert disturbed["a"] == [
        {"round": 1, "wall_s": ANY, "others_s": pytest.approx(0.3), "steal_s": 0.0, "is_kept": False}
    ]
    assert [(entry["round"], entry["others_s"], entry["is_kept"]) for entry in disturbed["b"]] == [
        (0, pytest.approx(0.4), False),
        (0, pytest.approx(0.2), True),
        (0, pytest.approx(0.3), False),
    ]


def test_processes_of_ours_are_asked_for_at_each_timing(fake_proc: FakeProc) -> None:
    ours: list[int] = []

    def timer() -> float:
        fake_proc.run(30, 50)
        ours.append(30)
        return 1.0

    seconds, disturbed = take_quiet_turns({"a": timer}, num_rounds=1, pids=lambda name: ours)
    assert seconds == {"a": [1.0]}
    assert [entry["is_kept"] for entry in disturbed["a"]] == [False]
    assert len(ours) == 2  # ours by the second try
    _, disturbed = take_quiet_turns({"a": timer}, num_rounds=1, pids=lambda name: [30])
    assert disturbed == {"a": []}


def test_a_busy_process_is_seen_unless_it_is_ours() -> None:
    """The parent of the busy process ends, so it is no descendant of this one."""
    command = f"{sys.executable} -c 'while True: pass' >&2 & echo $!"
    pid = int(subprocess.run(command, shell=True, stdout=subprocess.PIPE, check=True).stdout)
    process = psutil.Process(pid)
    try:
        start = sum(process.cpu_times()[:2])
        with watch() as seen, watch({pid}) as ours:
            while sum(process.cpu_times()[:2]) < start + 0.15:
                time.sleep(0.01)
        assert seen.others_s > 0.1
        assert seen.others_s - ours.others_s > 0.1  # else other processes on this machine would count
    finally:
        process.kill()


class Batches:
    """Takes 50 ms for a batch of whatever size, on a clock that only it and waiting move."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.now_s = 0.0

    def generate_padded(self, batch: MixedWorkload) -> TokenIds:
        self.sizes.append(len(batch.prompts))
        self.now_s += 0.05
        return [(7,) * max(batch.lengths)] * len(batch.prompts)

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


class Losing:
    """An engine whose steps give every request but the last one all of its tokens."""

    def __init__(self) -> None:
        self.lengths: dict[int, int] = {}

    def add_request(self, number: int, prompt: Any, num_new_tokens: int, sampling: Any) -> None:
        self.lengths[number] = num_new_tokens

    def step(self) -> dict[int, int]:
        given, self.lengths = self.lengths, {}
        given.pop(3, None)
        return given

    @property
    def num_unfinished(self) -> int:
        return len(self.lengths)


def test_requests_without_all_of_their_tokens_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"did not get all of their tokens: \[3\]"):
        arrivals.serve(Losing(), REQUESTS, (0.0,) * 4, batch_size=1)
    batches: Any = type("Batches", (), {"generate_padded": lambda _, batch: [(7,)] * len(batch.prompts)})
    with pytest.raises(ValueError, match=r"a batch of 4 requests gave rows of \[1, 1, 1, 1\] tokens"):
        arrivals.serve(batches(), REQUESTS, (0.0,) * 4, batch_size=4)


def test_static_batches_may_tell_the_time_of_each_token() -> None:
    class Told:
        def time_tokens(self, batch: MixedWorkload) -> list[tuple[float, float]]:
            now = time.perf_counter()
            return [(now + 1, now + length) for length in batch.lengths]

    served = arrivals.serve(Told(), REQUESTS, (0.0,) * 4, batch_size=4)
    assert [times.first_token_s for times in served] == pytest.approx([1.0] * 4, abs=0.5)
    assert [times.end_s for times in served] == pytest.approx([1.0, 2.0, 3.0, 4.0], abs=0.5)
