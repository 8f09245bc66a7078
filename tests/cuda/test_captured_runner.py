"""The captured runner on a stand-in for a GPU: the same tokens as the eager runner, whatever else runs.

The stand-in (fake_cuda.py) runs what is queued late, early or in between, and captures as ONNX Runtime does.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fake_cuda import FakeCudaDevice
from support.kernel_rows import Rows

from hgt_infer.artifact.folder import Artifact, read_artifact
from hgt_infer.cuda.runner import CapturedRunner
from hgt_infer.cuda.runtime import OUT_OF_MEMORY
from hgt_infer.cuda.slot_record import MAX_FED_TOKENS
from hgt_infer.engine.scheduler import Batch, BatchOutput, Scheduler
from hgt_infer.engine.sequence import Request, Sequence, SequenceParams
from hgt_infer.errors import DeviceMemoryError, EngineError, ParameterError
from hgt_infer.export import export_checkpoint
from hgt_infer.runtime.device import CpuDevice
from hgt_infer.runtime.runner import ModelRunner
from hgt_infer.sampling.host import filtered_probs, needs_host

MAX_LENGTH = 320
VOCAB_SIZE = 398
END = 7  # ends a sequence; the graph's own end-of-text is another token
EOS = VOCAB_SIZE - 1


class Text:
    """Stands in for an OutputText: ends a sequence at tokens of one residue."""

    def append(self, token_id: int, *, may_stop: bool) -> str | None:
        return "stop" if may_stop and token_id % 16 == 3 else None

    def finish(self) -> None:
        pass


def prefer_even_tokens(token_ids: list[int], logits: Any) -> Any:
    logits[1::2] -= len(token_ids) % 3
    return logits


DEVICE_SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 50, "top_p": 0.9},
    {"top_k": 51},
    {"top_p": 0.95},
    {"top_p": 0.3, "temperature": 1.5},
    {"min_p": 0.1, "temperature": 2.0},
    {"temperature": 3.0},
    {"eos_token_ids": frozenset([EOS]), "min_tokens": 5, "logit_bias": ((EOS, 8.0),)},
    {"eos_token_ids": frozenset([END, EOS])},
    {"eos_token_ids": frozenset()},
    {"stop_token_ids": frozenset(range(3, 100, 4))},
    {"temperature": 60.0, "top_p": 0.7},  # the device fails to draw 1 of 100 tokens
]
ADJUSTED_SETTINGS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 1.3, "top_k": 20, "temperature": 0.8},
    {"presence_penalty": 0.7, "frequency_penalty": 0.3, "temperature": 0.0},
    {"frequency_penalty": 1.1, "top_p": 0.9},
    {"logit_bias": ((5, 4.0), (6, -3.5)), "top_k": 40},
    {"allowed_token_ids": tuple(range(0, VOCAB_SIZE, 3))},
    {"bad_words_ids": ((3,), (5,))},
    {"temperature": 60.0, "top_p": 0.7, "repetition_penalty": 1.2, "presence_penalty": 0.5},
]
HELD_SETTINGS: list[dict[str, Any]] = [
    {"logprobs": 0, "top_k": 30},
    {"logprobs": 3, "repetition_penalty": 1.2, "frequency_penalty": 0.5},
    {"typical_p": 0.6},
    {"typical_p": 0.6, "logprobs": 2, "presence_penalty": 1.0},
    {"no_repeat_ngram_size": 2, "temperature": 0.0},
    {"bad_words_ids": ((3,), (5, 6))},
    {"logits_processor": prefer_even_tokens},
    {"logits_processor": prefer_even_tokens, "repetition_penalty": 0.8},
    {"top_k": 300},
    {"stop_token_ids": frozenset(range(0, VOCAB_SIZE, 9)), "min_tokens": 3},
]


@dataclass
class Call:
    """A request's sequences to be made, and when it arrives and leaves."""

    prompt: tuple[int, ...]
    num_samples: int
    params: SequenceParams
    has_text: bool = False
    arrival: int = 0  # in batches
    departure: int | None = None
    request: Request = field(default_factory=lambda: Request(lambda event: None))
    error: BaseException | None = None

    def sequences(self) -> list[Sequence]:
        text: Any = Text
        return [
            Sequence(self.prompt, self.params, index, output_text=text() if self.has_text else None)
            for index in range(self.num_samples)
        ]


@dataclass
class Result:
    """What a sequence came to."""

    token_ids: list[int]
    finish_reason: str | None
    stop_reason: str | int | None
    logprobs: list[Any]
    prompt_logprobs: list[Any]


def make_calls(
    rng: random.Random,
    count: int,
    settings: list[dict[str, Any]],
    *,
    lengths: Callable[[random.Random], int],
    max_tokens: int = 40,
    spread: int = 20,
) -> list[Call]:
    calls = []
    for number in range(count):
        length = lengths(rng)
        values: dict[str, Any] = {"eos_token_ids": frozenset([END]), **settings[number % len(settings)]}
        params = SequenceParams(
            max_tokens=rng.randint(1, max_tokens),
            seed=rng.randrange(2**64),
            prompt_logprobs=rng.choice([0, 2]) if rng.random() < 0.1 and length > 1 else None,
            **values,
        )
        prompt = tuple(rng.randrange(VOCAB_SIZE) for _ in range(length))
        if calls and rng.random() < 0.2:
            prompt = rng.choice(calls).prompt
        samples = rng.choice([1, 1, 1, 2, 5])
        calls.append(Call(prompt, samples, params, rng.random() < 0.2, arrival=rng.randrange(spread)))
    return calls


def short(rng: random.Random) -> int:
    return rng.choice([1, 2, 3, 5, 8, 20])


def any_length(rng: random.Random) -> int:
    return rng.choice([1, 2, 4, 9, MAX_FED_TOKENS, MAX_FED_TOKENS + 1, 80, 80, 270])


def run_all(runner: Any, scheduler: Scheduler, calls: list[Call]) -> list[list[Result]]:
    """Run the calls as the engine does: as many runs in flight as the runner takes, prefills alone."""
    sequences = [call.sequences() for call in calls]
    waiting = sorted(range(len(calls)), key=lambda i: calls[i].arrival)
    calls_of = {id(call.request): call for call in calls}
    in_flight: list[Any] = []

    def collect() -> None:
        batch = in_flight.pop(0)
        output = runner.collect()
        assert min(output.num_sampled, output.num_fed, output.num_wasted) >= 0
        for sequence in scheduler.update(batch, output):
            assert sequence.finish_reason is not None
        for sequence, error in output.errors:
            calls_of[id(sequence.request)].error = error
            scheduler.cancel(sequence.request)

    for number in range(100_000):
        while waiting and calls[waiting[0]].arrival <= number:
            index = waiting.pop(0)
            scheduler.waiting.add(calls[index].request, sequences[index])
        for call in calls:
            if call.departure == number:
                scheduler.cancel(call.request)
        batch = scheduler.schedule()
        if batch is not None:
            runner.launch(batch)
            scheduler.launched(batch)
            in_flight.append(batch)
            limit = 1 if batch.is_scored else runner.max_in_flight
            while len(in_flight) >= limit:
                collect()
        elif in_flight:
            collect()
        elif not waiting:
            break
    assert not scheduler.has_unfinished
    return [
        [
            Result(s.output_token_ids, s.finish_reason, s.stop_reason, s.logprobs, s.prompt_logprobs)
            for s in group
        ]
        for group in sequences
    ]


@pytest.fixture(scope="module")
def opened(artifact: Path) -> Artifact:
    return read_artifact(artifact)


@pytest.fixture
def device() -> Iterator[FakeCudaDevice]:
    device = FakeCudaDevice()
    yield device
    device.close()


class KernelRunner(ModelRunner):
    """The eager runner, but a row that the host does not sample is drawn by CUDA's sampler, by itself."""

    def _step(self, sequences: list[Sequence]) -> BatchOutput:
        drawn = [
            s
            for s in sequences
            if s.has_cached_prompt and not needs_host(s.params, VOCAB_SIZE, max_top_k=None)
        ]
        params = [s.params for s in drawn]
        try:
            for s in drawn:  # sampled on the host, that is to say below
                s.params = dataclasses.replace(s.params, logits_processor=partial(self._draw, s))
                self.on_host[s.slot] = self.reads_logits[s.slot] = True
            return super()._step(sequences)
        finally:
            for s, original in zip(drawn, params, strict=True):
                s.params = original
                self.on_host[s.slot] = False  # a copy of the slot has its settings

    def _draw(self, sequence: Sequence, token_ids: list[int], logits: Any) -> Any:
        """Logits that leave nothing but the token that CUDA's sampler draws."""
        params, step = sequence.params, len(sequence.output_token_ids)
        position = len(sequence.prompt_token_ids) - 1 + step
        row = Rows(
            logits,
            seed=np.uint64(params.seed),
            sample_index=sequence.sample_index,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            prompt_length=len(sequence.prompt_token_ids),
        )
        row.positions[:] = position
        token_id = row.step()[0]
        if token_id < 0:
            return logits
        only = np.full_like(logits, -np.inf)
        only[token_id] = 0
        return only


def run_eager(artifact: Artifact, calls: list[Call]) -> list[list[Result]]:
    runner = KernelRunner(artifact, CpuDevice(), num_slots=8, max_length=MAX_LENGTH)
    return run_all(runner, Scheduler(8, max_fed_tokens=MAX_FED_TOKENS), calls)


def run_captured(
    artifact: Artifact,
    calls: list[Call],
    *,
    num_slots: int = 8,
    pace: str | int = "late",
    steps_per_sync: int = 4,
    batch_invariant: bool = True,
) -> list[list[Result]]:
    device = FakeCudaDevice(pace=pace)
    runner = CapturedRunner(
        artifact,
        device,
        num_slots=num_slots,
        max_length=MAX_LENGTH,
        steps_per_sync=steps_per_sync,
        batch_invariant=batch_invariant,
    )
    scheduler = Scheduler(
        num_slots, max_fed_tokens=MAX_FED_TOKENS, closes_gaps=False, shares_prefills=not batch_invariant
    )
    results = run_all(runner, scheduler, calls)
    device.close()
    return results


def copied(calls: list[Call]) -> list[Call]:
    return [Call(c.prompt, c.num_samples, c.params, c.has_text, c.arrival, c.departure) for c in calls]


@pytest.mark.parametrize(
    ("steps_per_sync", "batch_invariant", "pace"),
    [(1, True, "late"), (2, True, "early"), (4, True, "late"), (8, False, "late"), (4, False, 1)],
)
@pytest.mark.parametrize("kinds", ["device", "adjusted", "held", "all"])
def test_a_request_gets_the_tokens_of_the_eager_runner(
    opened: Artifact, kinds: str, steps_per_sync: int, batch_invariant: bool, pace: str | int
) -> None:
    """Fed, prefilled, copied and scored prompts, slots used over and over, calls that come and go."""
    rng = random.Random(f"{kinds} {steps_per_sync} {pace}")
    settings = {
        "device": DEVICE_SETTINGS,
        "adjusted": DEVICE_SETTINGS + ADJUSTED_SETTINGS,
        "held": HELD_SETTINGS + DEVICE_SETTINGS[:3],
        "all": DEVICE_SETTINGS + ADJUSTED_SETTINGS + HELD_SETTINGS,
    }[kinds]
    lengths = any_length if kinds == "all" else short
    calls = make_calls(rng, 2 * len(settings), settings, lengths=lengths)
    expected = run_eager(opened, copied(calls))
    actual = run_captured(
        opened, calls, pace=pace, steps_per_sync=steps_per_sync, batch_invariant=batch_invariant
    )
    for call, ours, theirs in zip(calls, actual, expected, strict=True):
        assert ours == theirs, call


def test_half_precision_gives_the_tokens_of_the_eager_runner_too(checkpoint: Path, tmp_path: Path) -> None:
    """Logits in float16: the sampler and the host read the same ones."""
    half = export_checkpoint(checkpoint, tmp_path / "half", precision="fp16", references=())
    settings = DEVICE_SETTINGS + ADJUSTED_SETTINGS + HELD_SETTINGS
    calls = make_calls(random.Random(16), 2 * len(settings), settings, lengths=short)
    expected = run_eager(half, copied(calls))
    assert any(result.prompt_logprobs for group in expected for result in group)
    assert run_captured(half, calls, pace=3) == expected


def test_top_p_of_a_hot_row_is_the_hosts(opened: Artifact) -> None:
    """At such a temperature many logits share a level of the kernel's."""
    kept: list[Any] = []

    def keep(token_ids: list[int], logits: Any) -> Any:
        kept.append(logits.copy())
        return logits

    hot: dict[str, Any] = {"temperature": 1e9, "top_p": 0.3, "max_tokens": 1}
    prompt = (5, 6, 7)
    calls = [Call(prompt, 1, SequenceParams(seed=0, logits_processor=keep, **hot))]
    calls += [Call(prompt, 1, SequenceParams(seed=seed, **hot)) for seed in range(60)]
    results = run_captured(opened, calls)
    probs = filtered_probs(kept[0], calls[1].params)
    assert 0 < np.count_nonzero(probs) < 0.35 * VOCAB_SIZE
    assert all(probs[result.token_ids[0]] > 0 for [result] in results)


@pytest.mark.parametrize("num_slots", [1, 2, 3, 8, 13])
@pytest.mark.parametrize("batch_invariant", [True, False])
def test_any_number_of_slots_gives_the_same_tokens(
    opened: Artifact, num_slots: int, batch_invariant: bool
) -> None:
    calls = make_calls(random.Random(num_slots), 30, DEVICE_SETTINGS + ADJUSTED_SETTINGS, lengths=short)
    expected = run_eager(opened, copied(calls))
    assert expected == run_captured(
        opened, calls, num_slots=num_slots, batch_invariant=batch_invariant, pace=num_slots
    )


@pytest.mark.parametrize("steps_per_sync", [1, 4, 8])
def test_what_is_cancelled_leaves_the_others_alone(opened: Artifact, steps_per_sync: int) -> None:
    rng = random.Random(steps_per_sync)
    settings = DEVICE_SETTINGS + ADJUSTED_SETTINGS + HELD_SETTINGS
    calls = make_calls(rng, 40, settings, lengths=any_length)
    expected = run_eager(opened, copied(calls))
    for call in calls[::3]:
        call.departure = call.arrival + rng.randrange(20)
    actual = run_captured(opened, calls, steps_per_sync=steps_per_sync)
    for call, ours, theirs in zip(calls, actual, expected, strict=True):
        assert ours == theirs or call.departure is not None
        for result, whole in zip(ours, theirs, strict=True):
            assert result.token_ids == whole.token_ids[: len(result.token_ids)]


def test_a_slot_forgets_the_adjustments_of_the_sequence_before(opened: Artifact) -> None:
    """One slot that is used in turn by sequences with and without them."""
    adjusted, plain = {"frequency_penalty": 1.9, "repetition_penalty": 1.5}, {"temperature": 1.2}
    settings: list[dict[str, Any]] = [{**adjusted, "top_k": 3}, plain, {**adjusted, "top_k": 4}, plain]
    calls = make_calls(random.Random(1), 16, settings, lengths=short)
    assert run_captured(opened, calls, num_slots=2) == run_eager(opened, copied(calls))


def fail(token_ids: list[int], logits: Any) -> Any:
    if len(token_ids) > 6:
        raise KeyError("mine")
    return logits


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"logits_processor": fail}, KeyError),
        ({"logits_processor": fail, "logprobs": 1, "presence_penalty": 1.0}, KeyError),
        ({"allowed_token_ids": (5,), "bad_words_ids": ((5,),)}, ParameterError),  # nothing can be drawn
    ],
)
def test_a_sequence_that_cannot_be_drawn_ends_its_own_call(
    opened: Artifact, settings: dict[str, Any], error: type[Exception]
) -> None:
    calls = make_calls(random.Random(2), 10, DEVICE_SETTINGS, lengths=short)
    expected = run_eager(opened, copied(calls))
    params = SequenceParams(max_tokens=30, seed=1, **settings)
    failing = Call((1, 2, 3), 2, params, arrival=4)
    assert run_captured(opened, [*calls, failing])[:-1] == expected
    assert isinstance(failing.error, error)


class Counting:
    """A runner whose batches are looked at."""

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


def make_runner(
    artifact: Artifact, device: FakeCudaDevice, num_slots: int = 4, **options: Any
) -> tuple[CapturedRunner, Scheduler]:
    runner = CapturedRunner(
        artifact,
        device,
        num_slots=num_slots,
        max_length=MAX_LENGTH,
        steps_per_sync=options.pop("steps_per_sync", 4),
        **options,
    )
    scheduler = Scheduler(num_slots, max_fed_tokens=MAX_FED_TOKENS, closes_gaps=False, shares_prefills=False)
    return runner, scheduler


@pytest.mark.parametrize("steps_per_sync", [1, 2, 4, 8])
def test_a_sequence_that_ends_wastes_few_steps(
    opened: Artifact, device: FakeCudaDevice, steps_per_sync: int
) -> None:
    settings = [{"temperature": 2.0}, {"temperature": 2.0, "eos_token_ids": frozenset(range(10, 11))}]
    calls = make_calls(random.Random(3), 30, settings, lengths=lambda rng: rng.randint(1, 8))
    for call in calls:
        call.has_text = False
        call.params = dataclasses.replace(call.params, prompt_logprobs=None)
    runner, scheduler = make_runner(opened, device, steps_per_sync=steps_per_sync)
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
    runner, scheduler = make_runner(opened, device)
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
    runner, scheduler = make_runner(opened, device)
    before = len(device.cudart.calls)
    assert admit(runner, scheduler, sequence(200)).is_prefill
    assert not any("Synchronize" in name for name in device.cudart.calls[before:])
    assert device.cudart.num_pending


def test_memory_is_allocated_once(opened: Artifact, device: FakeCudaDevice) -> None:
    runner, scheduler = make_runner(opened, device)
    before = len(device.cudart.calls)
    settings = DEVICE_SETTINGS + ADJUSTED_SETTINGS + HELD_SETTINGS
    run_all(runner, scheduler, make_calls(random.Random(4), 30, settings, lengths=any_length))
    assert not {"cudaMalloc", "cudaHostAlloc", "cudaEventCreateWithFlags"} & set(device.cudart.calls[before:])


@pytest.mark.parametrize(("batch_invariant", "buckets"), [(True, {8}), (False, {1, 2, 4, 8})])
def test_warmup_captures_what_ordinary_settings_need(
    opened: Artifact, device: FakeCudaDevice, batch_invariant: bool, buckets: set[int]
) -> None:
    runner, scheduler = make_runner(opened, device, 8, batch_invariant=batch_invariant)
    runner.warmup()
    runner.warmup()
    captured = [set(session.captures) for session in device.sessions]
    assert captured == [buckets]
    run_all(runner, scheduler, make_calls(random.Random(5), 20, DEVICE_SETTINGS[:9], lengths=short))
    assert [set(session.captures) for session in device.sessions] == captured


@pytest.mark.parametrize("batch_invariant", [True, False])
def test_a_capture_changes_nothing_that_runs(opened: Artifact, batch_invariant: bool) -> None:
    """Between any two batches, with others in flight and rows that wait for the host."""
    settings = HELD_SETTINGS[:4] + ADJUSTED_SETTINGS + DEVICE_SETTINGS
    calls = make_calls(random.Random(6), 30, settings, lengths=any_length)
    device = FakeCudaDevice()
    runner, scheduler = make_runner(opened, device, 8, batch_invariant=batch_invariant)
    launch = runner.launch

    def capture_and_launch(batch: Batch) -> None:
        with device.at_work():
            for num_rows in (1, 8):
                device.sessions[0].captures.pop(num_rows, None)
                runner._replays.pop(num_rows, None)
                runner._capture(num_rows)
        launch(batch)

    runner.launch = capture_and_launch  # type: ignore[method-assign]
    assert run_all(runner, scheduler, calls) == run_eager(opened, copied(calls))
    device.close()


def test_a_sequence_that_the_host_sees_after_each_token_is_not_run_ahead(
    opened: Artifact, device: FakeCudaDevice
) -> None:
    runner, scheduler = make_runner(opened, device, steps_per_sync=8)
    assert runner.max_in_flight == 2
    admit(runner, scheduler, sequence(5, logprobs=0))
    assert runner.max_in_flight == 1
    output = runner.collect()
    assert output.num_steps == 1


def test_runners_on_several_devices_run_side_by_side(opened: Artifact) -> None:
    calls = [make_calls(random.Random(i), 20, DEVICE_SETTINGS, lengths=short) for i in range(3)]
    expected = [run_eager(opened, copied(c)) for c in calls]

    def run(index: int) -> list[list[Result]]:
        device = FakeCudaDevice(index, pace=index)
        results = run_all(*make_runner(opened, device, batch_invariant=False), calls[index])
        device.close()
        return results

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(run, range(3))) == expected


@pytest.mark.parametrize("at", [1, 2, 40, 300])
def test_a_cuda_error_ends_the_run(opened: Artifact, device: FakeCudaDevice, at: int) -> None:
    runner, scheduler = make_runner(opened, device)
    device.cudart.fail(at=at)
    with pytest.raises(EngineError, match="cudaErrorIllegalAddress"):
        run_all(runner, scheduler, make_calls(random.Random(7), 20, DEVICE_SETTINGS, lengths=short))


@pytest.mark.parametrize("at", [1, 2, 30])
def test_an_error_of_onnx_runtime_ends_the_run(opened: Artifact, device: FakeCudaDevice, at: int) -> None:
    runner, scheduler = make_runner(opened, device)
    device.sessions[0].fail(at=at)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run_all(runner, scheduler, make_calls(random.Random(8), 20, DEVICE_SETTINGS, lengths=short))


@pytest.mark.parametrize("at", [1, 4, 8])
def test_memory_that_does_not_suffice_is_an_error_of_its_own(
    opened: Artifact, device: FakeCudaDevice, at: int
) -> None:
    device.cudart.fail("cudaMalloc", at=at, status=OUT_OF_MEMORY)
    with pytest.raises(DeviceMemoryError):
        make_runner(opened, device)


def test_as_many_slots_as_fit_are_taken(opened: Artifact, device: FakeCudaDevice) -> None:
    runner = CapturedRunner(opened, device, max_length=MAX_LENGTH, steps_per_sync=4)
    assert runner.num_slots == runner.num_rows
    assert 1 <= runner.num_slots <= 256
