"""The captured runner on a stand-in for a GPU: the same tokens as the eager runner, whatever else runs.

The stand-in (fake_cuda.py) runs what is queued late, early or in between, and captures as ONNX Runtime does.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.calls import (
    ADJUSTED_SETTINGS,
    ALL_SETTINGS,
    DEVICE_SETTINGS,
    HOST_SETTINGS,
    VOCAB_SIZE,
    Call,
    Result,
    any_length,
    copied,
    make_calls,
    open_captured,
    run_all,
    short,
)
from support.fake_cuda import FakeCudaDevice
from support.kernel_runner import run_eager

from hgt_infer.artifact.folder import Artifact
from hgt_infer.engine.batch import Batch
from hgt_infer.engine.sequence import SequenceParams
from hgt_infer.errors import ParameterError
from hgt_infer.export import export_checkpoint
from hgt_infer.sampling.host import filtered_probs


@dataclass
class Reference:
    """Calls, and what the eager runner gives each of them: that of one does not depend on the others."""

    calls: list[Call]
    results: list[list[Result]]


@pytest.fixture(scope="module")
def of_device(opened: Artifact) -> Reference:
    """Calls that the device samples by itself, with and without adjustments."""
    settings = DEVICE_SETTINGS + ADJUSTED_SETTINGS
    calls = make_calls(random.Random(1), 2 * len(settings), settings, lengths=short, max_tokens=20)
    return Reference(calls, run_eager(opened, calls))


@pytest.fixture(scope="module")
def of_host(opened: Artifact) -> Reference:
    """Calls of which the host reads the logits of each token, and a few others."""
    settings = HOST_SETTINGS + DEVICE_SETTINGS[:3]
    calls = make_calls(random.Random(2), 2 * len(settings), settings, lengths=short, max_tokens=20)
    return Reference(calls, run_eager(opened, calls))


@pytest.fixture(scope="module")
def of_all_kinds(opened: Artifact) -> Reference:
    """Calls of all settings and any length: fed, prefilled, copied and scored prompts."""
    calls = make_calls(
        random.Random(0), 2 * len(ALL_SETTINGS), ALL_SETTINGS, lengths=any_length, max_tokens=20
    )
    return Reference(calls, run_eager(opened, calls))


def run_captured(
    artifact: Artifact, calls: list[Call], *, pace: str | int = "late", device_id: int = 0, **options: Any
) -> list[list[Result]]:
    device = FakeCudaDevice(device_id, pace=pace)
    results = run_all(*open_captured(artifact, device, **options), calls)
    device.close()
    return results


@pytest.mark.parametrize(
    ("steps_per_sync", "batch_invariant", "pace"),
    [(1, True, "late"), (2, True, "early"), (4, True, "late"), (8, False, "late"), (4, False, 1)],
)
@pytest.mark.parametrize("kind", ["of_device", "of_host", "of_all_kinds"])
def test_a_request_gets_the_tokens_of_the_eager_runner(
    opened: Artifact,
    request: pytest.FixtureRequest,
    kind: str,
    steps_per_sync: int,
    batch_invariant: bool,
    pace: str | int,
) -> None:
    """Slots used over and over, calls that come and go."""
    reference: Reference = request.getfixturevalue(kind)
    calls = copied(reference.calls)
    actual = run_captured(
        opened, calls, pace=pace, steps_per_sync=steps_per_sync, batch_invariant=batch_invariant
    )
    for call, ours, theirs in zip(calls, actual, reference.results, strict=True):
        assert ours == theirs, call


def test_half_precision_gives_the_tokens_of_the_eager_runner_too(checkpoint: Path, tmp_path: Path) -> None:
    """Logits in float16: the sampler and the host read the same ones."""
    half = export_checkpoint(checkpoint, tmp_path / "half", precision="fp16", is_verified=False)
    calls = make_calls(random.Random(16), len(ALL_SETTINGS), ALL_SETTINGS, lengths=short)
    expected = run_eager(half, calls)
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


@pytest.mark.parametrize(
    ("num_slots", "batch_invariant"), [(1, True), (2, False), (3, True), (3, False), (13, True), (13, False)]
)
def test_any_number_of_slots_gives_the_same_tokens(
    opened: Artifact, of_device: Reference, num_slots: int, batch_invariant: bool
) -> None:
    calls = copied(of_device.calls)
    assert of_device.results == run_captured(
        opened, calls, num_slots=num_slots, batch_invariant=batch_invariant, pace=num_slots
    )


@pytest.mark.parametrize("steps_per_sync", [1, 4, 8])
def test_what_is_cancelled_leaves_the_others_alone(
    opened: Artifact, of_all_kinds: Reference, steps_per_sync: int
) -> None:
    rng, calls = random.Random(steps_per_sync), copied(of_all_kinds.calls)
    for call in calls[::3]:
        call.departure = call.arrival + rng.randrange(20)
    actual = run_captured(opened, calls, steps_per_sync=steps_per_sync)
    for call, ours, theirs in zip(calls, actual, of_all_kinds.results, strict=True):
        assert ours == theirs or call.departure is not None
        for result, whole in zip(ours, theirs, strict=True):
            assert result.token_ids == whole.token_ids[: len(result.token_ids)]


def test_a_slot_forgets_the_adjustments_of_the_sequence_before(opened: Artifact) -> None:
    """One slot that is used in turn by sequences with and without them."""
    adjusted, plain = {"frequency_penalty": 1.9, "repetition_penalty": 1.5}, {"temperature": 1.2}
    settings: list[dict[str, Any]] = [{**adjusted, "top_k": 3}, plain, {**adjusted, "top_k": 4}, plain]
    calls = make_calls(random.Random(1), 16, settings, lengths=short)
    assert run_captured(opened, copied(calls), num_slots=2) == run_eager(opened, calls)


def test_a_slot_forgets_what_the_host_kept_of_the_sequence_before(opened: Artifact) -> None:
    """The host finds that no token is left of the second one; with the first one's adjustments all are."""
    watched: dict[str, Any] = {"logprobs": 1, "repetition_penalty": 1.3}
    impossible: dict[str, Any] = {"allowed_token_ids": (5,), "bad_words_ids": ((5,),)}
    calls = [
        Call((1, 2, 3), 1, SequenceParams(max_tokens=3, seed=1, **settings))
        for settings in (watched, impossible)
    ]
    [[first], _] = run_captured(opened, calls, num_slots=1)
    assert len(first.logprobs) == 3
    assert isinstance(calls[1].error, ParameterError)


def fail(token_ids: list[int], logits: Any) -> Any:
    if len(token_ids) > 6:
        raise KeyError("mine")
    return logits


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"logits_processor": fail}, KeyError),
        ({"logits_processor": fail, "logprobs": 1, "presence_penalty": 1.0}, KeyError),
        ({"allowed_token_ids": (5,), "bad_words_ids": ((5,),)}, ParameterError),  # no token is left
    ],
)
def test_a_sequence_that_cannot_be_sampled_ends_its_own_call(
    opened: Artifact, of_device: Reference, settings: dict[str, Any], error: type[Exception]
) -> None:
    calls = copied(of_device.calls)[:10]
    params = SequenceParams(max_tokens=30, seed=1, **settings)
    failing = Call((1, 2, 3), 2, params, arrival=4)
    assert run_captured(opened, [*calls, failing])[:-1] == of_device.results[:10]
    assert isinstance(failing.error, error)


@pytest.mark.parametrize("batch_invariant", [True, False])
def test_a_capture_changes_nothing_that_runs(
    opened: Artifact, of_all_kinds: Reference, batch_invariant: bool
) -> None:
    """Between any two batches, with others in flight and rows that wait for the host."""
    count = len(ALL_SETTINGS)
    device = FakeCudaDevice()
    runner, scheduler = open_captured(opened, device, batch_invariant=batch_invariant)
    launch = runner.launch

    def capture_and_launch(batch: Batch) -> None:
        with device.at_work():
            for num_rows in (1, 8):
                device.sessions[0].captures.pop(num_rows, None)
                runner._replays.pop(num_rows, None)
                runner._capture(num_rows)
        launch(batch)

    runner.launch = capture_and_launch  # type: ignore[method-assign]
    assert run_all(runner, scheduler, copied(of_all_kinds.calls)[:count]) == of_all_kinds.results[:count]
    device.close()


def test_runners_on_several_devices_run_side_by_side(opened: Artifact, of_device: Reference) -> None:
    calls, third = copied(of_device.calls), len(of_device.calls) // 3

    def run(index: int) -> list[list[Result]]:
        own = calls[index * third : (index + 1) * third]
        return run_captured(opened, own, device_id=index, pace=index, batch_invariant=False)

    with ThreadPoolExecutor(3) as pool:
        assert [group for own in pool.map(run, range(3)) for group in own] == of_device.results[: 3 * third]
