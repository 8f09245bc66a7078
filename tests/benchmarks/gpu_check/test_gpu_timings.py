"""The timings on a stand-in for a GPU: no speed is asserted."""

from __future__ import annotations

from typing import Any

import pytest
from support.check_results import results_of

from benchmarks.gpu_check import correctness, profiling, timings, tweets
from benchmarks.gpu_check.replays import records, step_parts
from benchmarks.gpu_check.subject import Subject, fixed_length, token_ids
from hgt_infer.cuda import slot_record


@pytest.mark.parametrize(
    "timing",
    [
        correctness.measure_variance,
        timings.measure_bandwidth,
        timings.time_graphs,
        timings.time_decode,
        tweets.time_steps_per_sync,
        timings.time_prompts,
        tweets.time_tweets,
    ],
    ids=lambda timing: timing.__name__,
)
def test_timing_runs_on_a_stand_in(timing: Any, fake: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timings, "COPY_BYTES", 1 << 16)
    monkeypatch.setattr(tweets, "TWEETS_SLOTS", 8)
    monkeypatch.setattr("benchmarks.gpu_check.replays.NUM_REPLAYS", 2)
    fake.notes.update(bandwidth=1e9, step_s={"8": 1e-4})
    results = results_of(timing(fake))
    assert {result.status for result in results} == {"measured"}, results
    assert all(result.figure for result in results)


def test_records_are_those_of_sequences_that_sample_and_wait() -> None:
    rows = records(3, {"top_p": 0.95})
    assert rows["top_p"].tolist() == pytest.approx([0.95] * 3)
    assert (rows["mode"] == slot_record.HOST_CONTROLLED).all()
    assert (rows["fed_tokens"] == -1).all()
    assert len(set(rows["sample_index"].tolist())) == 3


def test_replayed_graphs_compute_what_the_runner_samples(fake: Subject) -> None:
    """Greedy of the replayed logits is the replayed token; a replay changes nothing that it reads."""
    with step_parts(fake, 2) as parts:
        parts.open_sampler("greedy", temperature=0.0)
        before = parts.read("seqlens_k").copy()
        parts.time("model", num_rounds=1, warmup_s=0, num_replays=2)
        parts.time("greedy", num_rounds=1, warmup_s=0, num_replays=2)
        logits, reports = parts.read("logits").copy(), parts.read("token_ids").copy()
        assert (slot_record.PROPOSED - reports).tolist() == logits.argmax(axis=1).tolist()
        assert parts.read("seqlens_k").tolist() == before.tolist()
        parts.run_all(1)


def test_waits_for_events_are_counted_and_the_method_is_put_back(fake: Subject) -> None:
    from hgt_infer.cuda.stream import CudaEvent

    wait = CudaEvent.wait
    with fake.generator(num_slots=2) as generator, tweets.waiting_for_events() as waited:
        outputs = generator.generate("ab", fixed_length(4))
    assert [len(ids) for ids in token_ids(outputs)] == [4]
    assert waited
    assert min(waited) >= 0
    assert CudaEvent.wait is wait


def test_kernels_are_added_up_by_name() -> None:
    events = [
        {"cat": "kernel", "name": "void f<int>(int*)", "dur": 3},
        {"cat": "kernel", "name": "void f<int>(int*)", "dur": 4},
        {"cat": "Node", "name": "h.0/MatMul_kernel_time", "dur": 5, "args": {"op_name": "MatMul"}},
        {"cat": "Node", "name": "h.0/MatMul_fence_before", "dur": 9, "args": {"op_name": "MatMul"}},
        {"name": "metadata"},
    ]
    assert profiling.totals_by_name(events, "kernel") == {"void f<int>(int*)": (7, 2)}
    assert profiling.totals_by_name(events, "Node") == {"MatMul": (5, 1)}
