"""The captured runner's work on a stand-in for a GPU: waste, copies, waits, captures, memory, and errors."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import pytest
from support.calls import (
    ALL_SETTINGS,
    DEVICE_SETTINGS,
    MAX_LENGTH,
    any_length,
    make_calls,
    open_captured,
    run_all,
    short,
)
from support.fake_cuda import FakeCudaDevice

from hgt_infer.artifact.folder import Artifact
from hgt_infer.cuda.cudart import OUT_OF_MEMORY
from hgt_infer.cuda.runner import CapturedRunner
from hgt_infer.engine.batch import Batch, BatchOutput
from hgt_infer.engine.scheduler import Scheduler
from hgt_infer.engine.sequence import Request, Sequence, SequenceParams
from hgt_infer.errors import DeviceMemoryError, EngineError


@pytest.fixture
def device() -> Iterator[FakeCudaDevice]:
    device = FakeCudaDevice()
    yield device
    device.close()


class Counting:
    """A runner whose outputs are added up."""

    def __init__(self, runner: CapturedRunner) -> None:
        self.runner = runner
        self.num_sampled = self.num_fed = self.num_wasted = self.num_steps = 0

    @property
    def max_in_flight(self) -> int:
        return self.runner.max_in_flight

    def launch(self, batch: Batch) -> None:
        self.runner.launch(batch)

    def collect(self) -> BatchOutput:
        output = self.runner.collect()
        self.num_sampled += output.num_sampled
        self.num_fed += output.num_fed
        self.num_wasted += output.num_wasted
        self.num_steps += output.num_steps if output.new_tokens or output.num_sampled else 0
        return output


@pytest.mark.parametrize("steps_per_sync", [1, 2, 4, 8])
def test_a_sequence_that_ends_wastes_few_steps(
    opened: Artifact, device: FakeCudaDevice, steps_per_sync: int
) -> None:
    settings = [{"temperature": 2.0}, {"temperature": 2.0, "eos_token_ids": frozenset(range(10, 11))}]
    calls = make_calls(random.Random(3), 30, settings, lengths=lambda rng: rng.randint(1, 8))
    for call in calls:
        call.has_text = False
        call.params = dataclasses.replace(call.params, prompt_logprobs=None)
    runner, scheduler = open_captured(opened, device, steps_per_sync=steps_per_sync)
    counting = Counting(runner)
    results = [result for group in run_all(counting, scheduler, calls) for result in group]
    assert counting.num_sampled == sum(len(result.token_ids) for result in results)
    assert counting.num_wasted <= (steps_per_sync - 1) * len(results)
    if steps_per_sync > 1:
        assert counting.num_wasted > 0
    assert (
        0 < counting.num_fed <= sum(len(call.prompt) - 1 for call in calls for _ in range(call.num_samples))
    )


def admit(runner: CapturedRunner, scheduler: Scheduler, *sequences: Sequence) -> Batch:
    scheduler.waiting.add(Request(lambda event: None), sequences)
    batch = scheduler.schedule()
    assert batch is not None
    assert batch.admitted == list(sequences)
    runner.launch(batch)
    return batch


def sequence(prompt_length: int = 5, **settings: Any) -> Sequence:
    params = SequenceParams(max_tokens=30, seed=prompt_length, **settings)
    return Sequence(tuple(range(prompt_length)), params)


def test_an_ordinary_sequence_enters_by_two_copies(opened: Artifact, device: FakeCudaDevice) -> None:
    runner, scheduler = open_captured(opened, device)
    runner.warmup()
    num_copies = []
    for sequences in ([sequence(5)], [sequence(6, top_k=3), sequence(64, temperature=0.0)], []):
        before = len(device.cudart.calls)
        admit(runner, scheduler, *sequences)
        calls = device.cudart.calls[before:]
        assert not any("Synchronize" in name for name in calls)
        num_copies.append(sum(name.startswith("cudaMemcpy") for name in calls))
        runner.collect()
    num_reports = runner._num_steps
    assert num_copies == [2 + num_reports, 4 + num_reports, num_reports]


def test_a_prefill_without_scores_does_not_wait(opened: Artifact, device: FakeCudaDevice) -> None:
    runner, scheduler = open_captured(opened, device)
    before = len(device.cudart.calls)
    assert admit(runner, scheduler, sequence(200)).is_prefill
    assert not any("Synchronize" in name for name in device.cudart.calls[before:])
    assert device.cudart.num_pending


def test_memory_is_allocated_once(opened: Artifact, device: FakeCudaDevice) -> None:
    runner, scheduler = open_captured(opened, device)
    before = len(device.cudart.calls)
    run_all(
        runner, scheduler, make_calls(random.Random(4), len(ALL_SETTINGS), ALL_SETTINGS, lengths=any_length)
    )
    assert not {"cudaMalloc", "cudaHostAlloc", "cudaEventCreateWithFlags"} & set(device.cudart.calls[before:])


@pytest.mark.parametrize(("batch_invariant", "buckets"), [(True, {8}), (False, {1, 2, 4, 8})])
def test_warmup_captures_what_ordinary_settings_need(
    opened: Artifact, device: FakeCudaDevice, batch_invariant: bool, buckets: set[int]
) -> None:
    runner, scheduler = open_captured(opened, device, batch_invariant=batch_invariant)
    runner.warmup()
    runner.warmup()
    captured = [set(session.captures) for session in device.sessions]
    assert captured == [buckets]
    run_all(runner, scheduler, make_calls(random.Random(5), 20, DEVICE_SETTINGS[:9], lengths=short))
    assert [set(session.captures) for session in device.sessions] == captured


def test_a_sequence_that_the_host_sees_after_each_token_is_not_run_ahead(
    opened: Artifact, device: FakeCudaDevice
) -> None:
    runner, scheduler = open_captured(opened, device, steps_per_sync=8)
    assert runner.max_in_flight == 2
    admit(runner, scheduler, sequence(5, logprobs=0))
    assert runner.max_in_flight == 1
    output = runner.collect()
    assert output.num_steps == 1


@pytest.mark.parametrize("at", [1, 2, 40, 300])
def test_a_cuda_error_ends_the_run(opened: Artifact, device: FakeCudaDevice, at: int) -> None:
    runner, scheduler = open_captured(opened, device)
    device.cudart.fail(at=at)
    with pytest.raises(EngineError, match="cudaErrorIllegalAddress"):
        run_all(runner, scheduler, make_calls(random.Random(7), 20, DEVICE_SETTINGS, lengths=short))


@pytest.mark.parametrize("at", [1, 2, 30])
def test_an_error_of_onnx_runtime_ends_the_run(opened: Artifact, device: FakeCudaDevice, at: int) -> None:
    runner, scheduler = open_captured(opened, device)
    device.sessions[0].fail(at=at)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run_all(runner, scheduler, make_calls(random.Random(8), 20, DEVICE_SETTINGS, lengths=short))


@pytest.mark.parametrize("at", [1, 4, 8])
def test_memory_that_does_not_suffice_is_an_error_of_its_own(
    opened: Artifact, device: FakeCudaDevice, at: int
) -> None:
    device.cudart.fail("cudaMalloc", at=at, status=OUT_OF_MEMORY)
    with pytest.raises(DeviceMemoryError):
        open_captured(opened, device)


def test_as_many_slots_as_fit_are_taken(opened: Artifact, device: FakeCudaDevice) -> None:
    runner = CapturedRunner(opened, device, max_length=MAX_LENGTH, steps_per_sync=4)
    assert runner.num_slots == runner.num_rows
    assert 1 <= runner.num_slots <= 256
