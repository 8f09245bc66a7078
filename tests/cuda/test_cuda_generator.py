"""Generator on a stand-in for GPUs: what a caller gets, from one of them or several, and their faults."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fake_cuda import FakeCudaDevice

from hgt_infer import (
    DeviceMemoryError,
    EngineError,
    Generator,
    ParameterError,
    SamplingParams,
)
from hgt_infer.cuda.cudart import OUT_OF_MEMORY

PROMPTS = ["My dream is", "I think", "a", "The quick brown fox said: it's 7 o'clock " * 4]
GREEDY = SamplingParams(temperature=0, max_tokens=12, min_tokens=12)
SAMPLED = SamplingParams(n=4, top_p=0.9, temperature=1.2, max_tokens=20, seed=5)

Make = Callable[..., Generator]


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[FakeCudaDevice]:
    """What generators open: as many GPUs as names are asked for."""
    opened: list[FakeCudaDevice] = []

    def open_devices(device: Any, **options: Any) -> list[FakeCudaDevice]:
        names = [device] if isinstance(device, str) else device
        new = [FakeCudaDevice(i, pace=("late", "early", 7)[i % 3]) for i in range(len(names))]
        opened.extend(new)
        return new

    monkeypatch.setattr("hgt_infer.opening.open_devices", open_devices)
    return opened


@pytest.fixture
def make(artifact: Path, devices: list[FakeCudaDevice]) -> Iterator[Make]:
    made = []

    def make(device: Any = "cuda", **options: Any) -> Generator:
        made.append(Generator(artifact, device=device, **{"num_slots": 4, "max_length": 200, **options}))
        return made[-1]

    yield make
    for generator in made:
        generator.close()


def test_greedy_tokens_are_the_cpus(make: Make, generator: Generator) -> None:
    expected = [output.completions for output in generator.generate(PROMPTS, GREEDY)]
    assert [output.completions for output in make().generate(PROMPTS, GREEDY)] == expected


def test_a_request_is_the_same_alone_and_in_company_in_any_number_of_slots_and_gpus(make: Make) -> None:
    alone = [make(num_slots=1).generate(prompt, SAMPLED)[0] for prompt in PROMPTS]
    for options in ({}, {"num_slots": 7}, {"device": ["cuda:0", "cuda:1", "cuda:2"]}, {"steps_per_sync": 1}):
        assert make(**options).generate(PROMPTS, SAMPLED) == alone
    assert make(batch_invariant=False).generate(PROMPTS, SAMPLED) == alone


def test_several_gpus_share_the_work(make: Make, devices: list[FakeCudaDevice]) -> None:
    generator = make(["cuda:0", "cuda:1"])
    generator.warmup()
    before = [device.sessions[0].num_runs for device in devices]
    generator.generate(PROMPTS * 10, SAMPLED)
    assert all(device.sessions[0].num_runs > n for device, n in zip(devices, before, strict=True))


def test_a_stream_ends_where_its_stop_string_is(make: Make) -> None:
    generator = make()
    params = dataclasses.replace(SAMPLED, n=1, max_tokens=60)
    whole = generator.generate("I think", params)[0].completions[0].text
    stop = whole[20:23]
    stopped = dataclasses.replace(params, stop=[stop])
    text = "".join(delta.text for delta in generator.stream("I think", stopped))
    assert text == whole[: whole.index(stop)]
    assert generator.generate("I think", stopped)[0].completions[0].text == text


def test_async_streams_of_many_tasks_are_those_of_each_alone(make: Make) -> None:
    generator = make()

    async def text(prompt: str) -> str:
        return "".join([delta.text async for delta in generator.astream(prompt, GREEDY)])

    async def texts() -> list[str]:
        return await asyncio.gather(*(text(prompt) for prompt in PROMPTS * 3))

    expected = [output.completions[0].text for output in generator.generate(PROMPTS, GREEDY)]
    assert asyncio.run(texts()) == expected * 3


def test_log_probabilities_and_scores_are_the_cpus(make: Make, generator: Generator) -> None:
    params = dataclasses.replace(GREEDY, logprobs=3, prompt_logprobs=1)
    captured = make()
    for ours, theirs in zip(
        captured.generate(PROMPTS, params), generator.generate(PROMPTS, params), strict=True
    ):
        for mine, other in zip(
            [*(ours.completions[0].logprobs or ()), *(ours.prompt_logprobs or ())[1:]],
            [*(theirs.completions[0].logprobs or ()), *(theirs.prompt_logprobs or ())[1:]],
            strict=True,
        ):
            assert mine is not None
            assert other is not None
            assert mine.token_id == other.token_id
            assert mine.logprob == pytest.approx(other.logprob, abs=1e-4)
    for mine, other in zip(captured.score(PROMPTS), generator.score(PROMPTS), strict=True):
        assert mine.perplexity == pytest.approx(other.perplexity, rel=1e-4)


def test_closing_frees_the_gpus_memory(make: Make, devices: list[FakeCudaDevice]) -> None:
    generator = make(["cuda:0", "cuda:1"])
    generator.generate(PROMPTS, SAMPLED)
    assert all(device.cudart.device_memory for device in devices)
    generator.close()
    assert not any(device.cudart.device_memory for device in devices)


def test_warming_up_leaves_nothing_to_capture(make: Make, devices: list[FakeCudaDevice]) -> None:
    generator = make(batch_invariant=False)
    generator.warmup()
    captured = set(devices[0].sessions[0].captures)
    assert captured == {1, 2, 4}
    generator.generate(PROMPTS, SAMPLED)
    assert set(devices[0].sessions[0].captures) == captured


def test_slots_of_calls_that_needed_the_host_hold_up_nobody_afterwards(make: Make) -> None:
    generator = make()
    generator.generate("a", dataclasses.replace(SAMPLED, n=4, logprobs=1))
    worker = generator._engine.workers[0]
    assert worker.runner.max_in_flight == 1
    generator.generate("a", dataclasses.replace(SAMPLED, n=1))
    assert worker.runner.max_in_flight == 2


def test_steps_wasted_behind_ends_are_counted(make: Make) -> None:
    late, at_once = make(steps_per_sync=8), make(steps_per_sync=1)
    for generator in (late, at_once):
        generator.generate(PROMPTS * 5, SAMPLED)
    num_sequences = 4 * 5 * len(PROMPTS)
    assert at_once.stats().wasted_rows == 0
    assert 0 < late.stats().wasted_rows <= 7 * num_sequences
    assert late.stats().generated_tokens == at_once.stats().generated_tokens


def test_a_gpu_that_fails_amid_a_batch_ends_its_own_generator_alone(
    make: Make, devices: list[FakeCudaDevice]
) -> None:
    failing, other = make(), make()
    expected = other.generate(PROMPTS, SAMPLED)
    devices[0].cudart.fail("cudaMemcpyAsync", at=20)
    errors: list[BaseException] = []

    def call() -> None:
        try:
            failing.generate(PROMPTS * 20, SAMPLED)
        except EngineError as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert len(errors) == 3
    assert all("cudaErrorIllegalAddress" in str(error) for error in errors)
    with pytest.raises(EngineError, match="the device failed"):
        failing.generate("a")
    failing.close()
    assert not devices[0].is_open
    assert not devices[0].cudart.device_memory
    assert other.generate(PROMPTS, SAMPLED) == expected


def test_memory_that_is_not_there_is_said_before_anything_runs(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = FakeCudaDevice(total_bytes=(1 << 28) + 1_450_000_000)
    small.cudart.other_bytes = 1 << 28
    monkeypatch.setattr("hgt_infer.opening.open_devices", lambda device, **options: [small])
    with pytest.raises(DeviceMemoryError, match=r"256 slot\(s\) .* would fit .*other processes"):
        make(num_slots=256)
    assert not small.cudart.device_memory
    with make(num_slots="auto") as generator:
        assert 1 <= generator._engine.workers[0].scheduler.num_slots < 256


@pytest.mark.parametrize("at", [1, 3, 6])
def test_memory_that_another_process_takes_meanwhile_is_an_error_of_its_own(
    make: Make, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    device = FakeCudaDevice()
    device.cudart.fail("cudaMalloc", at=at, status=OUT_OF_MEMORY)
    monkeypatch.setattr("hgt_infer.opening.open_devices", lambda name, **options: [device])
    with pytest.raises(DeviceMemoryError, match="do not fit on cuda:0"):
        make()


@pytest.mark.parametrize("options", [{"steps_per_sync": 0}, {"steps_per_sync": 65}, {"batch_invariant": 1}])
def test_bad_options_are_named(make: Make, options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=rf"^{next(iter(options))} must be"):
        make(**options)
