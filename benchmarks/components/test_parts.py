"""The parts of a step by themselves: prefill, decode, sampler, tokenizer. The engine's is in test_engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.measure.workloads import tweets
from hgt_infer.artifact.folder import Artifact, read_artifact
from hgt_infer.artifact.tokenizer import Tokenizer
from hgt_infer.engine.batch import Batch
from hgt_infer.engine.sequence import Sequence, SequenceParams
from hgt_infer.runtime.device import CpuDevice
from hgt_infer.runtime.runner import ModelRunner

MAX_LENGTH = 512
CONTEXT = 100  # positions that a decode step finds in the cache
PREFILL_LENGTHS = (16, 256)
BATCH_SIZES = (1, 16)

# At least ten rounds and ten seconds, after ten that are not counted.
pytestmark = pytest.mark.benchmark(min_rounds=10, max_time=10.0, warmup=True, warmup_iterations=10)


@pytest.fixture(scope="module")
def exported(artifact: Path) -> Artifact:
    return read_artifact(artifact)


def sequences(number: int, length: int, vocab_size: int) -> list[Sequence]:
    """Sequences in the first slots, with prompts of that many tokens and tweets' settings."""
    params = SequenceParams(max_tokens=64, seed=1, temperature=1.0, top_k=50, top_p=0.95)
    return [
        Sequence(tuple((7 * slot + 13 * i) % vocab_size for i in range(length)), params, slot=slot)
        for slot in range(number)
    ]


@pytest.mark.parametrize("length", PREFILL_LENGTHS)
def test_prefill(exported: Artifact, length: int, benchmark: Any) -> None:
    runner = ModelRunner(exported, CpuDevice(), num_slots=1, max_length=MAX_LENGTH)
    batch = Batch(
        sequences(1, length + 1, exported.config.vocab_size), length, is_prefill=True, copies=[], admitted=[]
    )
    benchmark.group = f"prefill of {length} tokens"
    benchmark(run, runner, batch)


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
@pytest.mark.parametrize("part", ["step", "model", "sampler"])
def test_decode(exported: Artifact, batch_size: int, part: str, benchmark: Any) -> None:
    """A whole step of the runner, and its two sessions; the same one again and again."""
    runner = ModelRunner(exported, CpuDevice(), num_slots=batch_size, max_length=MAX_LENGTH)
    rows = sequences(batch_size, CONTEXT + 1, exported.config.vocab_size)
    for row in rows:
        row.num_computed = CONTEXT
    step = Batch(rows, 1, is_prefill=False, copies=[], admitted=rows)
    run(runner, step)
    model_binding, sampler_binding = runner._bindings[batch_size]
    work = {
        "step": lambda: run(runner, Batch(rows, 1, is_prefill=False, copies=[], admitted=[])),
        "model": lambda: runner.model.run(model_binding),
        "sampler": lambda: runner.sampler.run_with_iobinding(sampler_binding),
    }
    benchmark.group = f"decode, {part}, batch {batch_size}"
    benchmark(work[part])


def test_encode(exported: Artifact, benchmark: Any) -> None:
    tokenizer = Tokenizer(exported.tokenizer_path)
    prompts = tweets().prompts
    benchmark.group = f"encoding of {len(prompts)} prompts"
    benchmark(lambda: [tokenizer.encode(prompt) for prompt in prompts])


def run(runner: ModelRunner, batch: Batch) -> None:
    runner.launch(batch)
    runner.collect()
