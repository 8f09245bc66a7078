"""The eager runner: what a batch gives, in the words of the engine, and scores of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fake_cuda import FakeCudaDevice

from hgt_infer.artifact.folder import Artifact, read_artifact
from hgt_infer.engine.batch import Batch, BatchOutput
from hgt_infer.engine.scheduler import Scheduler
from hgt_infer.engine.sequence import Request, Sequence, SequenceParams
from hgt_infer.engine.waiting_queue import WaitingQueue
from hgt_infer.runtime.device import CpuDevice, Device
from hgt_infer.runtime.runner import ModelRunner
from hgt_infer.sampling.logprobs import token_logprobs


@pytest.fixture(scope="module")
def opened(artifact: Path) -> Artifact:
    return read_artifact(artifact)


def make(prompt: tuple[int, ...], max_tokens: int = 5, index: int = 0, **settings: Any) -> Sequence:
    return Sequence(prompt, SequenceParams(max_tokens=max_tokens, seed=3, **settings), index)


def make_scheduler(*sequences: Sequence) -> Scheduler:
    waiting = WaitingQueue()
    waiting.add(Request(lambda event: None), sequences)
    return Scheduler(max(4, len(sequences)), waiting)


def run(runner: ModelRunner, batch: Batch) -> BatchOutput:
    runner.launch(batch)
    return runner.collect()


def run_all(runner: ModelRunner, *sequences: Sequence) -> list[BatchOutput]:
    scheduler, outputs = make_scheduler(*sequences), []
    while (batch := scheduler.schedule()) is not None:
        outputs.append(run(runner, batch))
        scheduler.launched(batch)
        scheduler.update(batch, outputs[-1])
    return outputs


def test_a_step_says_of_every_row_what_it_gave(opened: Artifact) -> None:
    runner = ModelRunner(opened, CpuDevice(), num_slots=4, max_length=64)
    one, three = make((1,)), make((1, 2, 3))
    outputs = run_all(runner, one, three)
    assert [len(ids) for _, ids in outputs[0].new_tokens] == [1, 0]
    assert [output.num_fed for output in outputs] == [1, 1, 0, 0, 0, 0, 0]
    assert [output.num_sampled for output in outputs] == [1, 1, 2, 2, 2, 1, 1]
    assert {output.num_steps for output in outputs} == {1}
    assert [
        token_id for output in outputs for s, ids in output.new_tokens if s is one for token_id in ids
    ] == (one.output_token_ids)


def test_what_a_batch_gave_is_not_changed_by_the_next_one(opened: Artifact) -> None:
    runner = ModelRunner(opened, CpuDevice(), num_slots=4, max_length=64)
    sequence = make((1,), max_tokens=9, logprobs=2)
    outputs = run_all(runner, sequence)
    assert [ids for output in outputs for _, ids in output.new_tokens] == [
        [token_id] for token_id in sequence.output_token_ids
    ]
    assert [found for output in outputs for _, found in output.logprobs] == sequence.logprobs


SCORED_PROMPT = tuple(np.random.default_rng(0).integers(0, 390, 12).tolist())


@pytest.fixture(scope="module")
def stepped_logits(opened: Artifact) -> list[Any]:
    """Logits [V] behind each token of the scored prompt, computed token by token."""
    runner = ModelRunner(opened, CpuDevice(), num_slots=1, max_length=64)
    sequence = make(SCORED_PROMPT)
    sequence.slot = 0
    logits = []
    for position in range(len(SCORED_PROMPT)):
        run(runner, Batch([sequence], 1, False, [], [] if position else [sequence]))
        sequence.num_computed += 1
        logits.append(runner.download_logits(1)[0].copy())
    return logits


@pytest.mark.parametrize("num_unscored", [0, 3, 8])
def test_a_prompt_is_scored_from_the_first_token_that_is_asked_for(
    opened: Artifact, stepped_logits: list[Any], num_unscored: int
) -> None:
    prompt = SCORED_PROMPT
    sequence = make(prompt, prompt_logprobs=1)
    sequence.num_unscored = num_unscored
    run_all(ModelRunner(opened, CpuDevice(), num_slots=4, max_length=64), sequence)
    assert len(sequence.prompt_logprobs) == len(prompt) - 1 - num_unscored
    for found, position in zip(sequence.prompt_logprobs, range(num_unscored, len(prompt) - 1), strict=True):
        expected = token_logprobs(stepped_logits[position], prompt[position + 1], 1)
        assert found.token_id == expected.token_id == prompt[position + 1]
        assert found.logprob == pytest.approx(expected.logprob, abs=1e-4)
        assert found.top[0][0] == expected.top[0][0]


def test_a_prompt_in_pieces_is_scored_as_one(opened: Artifact) -> None:
    prompt = tuple(np.random.default_rng(1).integers(0, 390, 600).tolist())
    logprobs = []
    for num_unscored in (0, 300):
        sequence = make(prompt, 1, prompt_logprobs=0)
        sequence.num_unscored = num_unscored
        run_all(ModelRunner(opened, CpuDevice(), num_slots=4, max_length=700), sequence)
        logprobs.append(sequence.prompt_logprobs)
    assert len(logprobs[0]) == 599
    assert logprobs[0][300:] == logprobs[1]  # how many are asked for changes no bit


@pytest.mark.parametrize("prompt_length", [5, 30])
def test_it_runs_on_a_gpu_as_on_a_cpu(opened: Artifact, prompt_length: int) -> None:
    tokens = []
    fake = FakeCudaDevice()
    devices: list[Device] = [CpuDevice(with_kernels=False), fake]
    for device in devices:
        sequences = [
            make(tuple(range(prompt_length)), index=index, max_tokens=9, **settings)
            for index, settings in enumerate(
                [{}, {"top_p": 0.9}, {"repetition_penalty": 1.3, "logprobs": 1}, {"typical_p": 0.5}]
            )
        ]
        run_all(ModelRunner(opened, device, num_slots=4, max_length=64), *sequences)
        tokens.append([(s.output_token_ids, s.logprobs) for s in sequences])
    fake.close()
    assert tokens[0] == tokens[1]
