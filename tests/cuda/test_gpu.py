"""On a real GPU, where there is one: a first look. `make gpu-check` is the whole of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from support.checkpoints import write_checkpoint

from hgt_infer import Generator, SamplingParams
from hgt_infer.cuda.cudart import count_cuda_devices
from hgt_infer.export import export_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(count_cuda_devices() == 0, reason="the driver shows no GPU"),
]

PROMPTS = ["My dream is", "I think", "The quick brown fox said: it's 7 o'clock " * 5]
SAMPLED = SamplingParams(n=5, top_p=0.9, max_tokens=20, seed=3, ignore_eos=True)


@pytest.fixture(scope="module")
def checkpoint_and_half(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("gpu")
    checkpoint = write_checkpoint(folder / "checkpoint", layout="modern")
    return checkpoint, export_checkpoint(checkpoint, folder / "fp16", precision="fp16").path


def test_log_probabilities_are_the_cpus_up_to_half_precision(checkpoint_and_half: tuple[Path, Path]) -> None:
    checkpoint, half = checkpoint_and_half
    with (
        Generator(half, device="cuda", num_slots=4) as gpu,
        Generator(checkpoint, device="cpu", cache_dir=half.parent / "cache") as cpu,
    ):
        for ours, theirs in zip(gpu.score(PROMPTS), cpu.score(PROMPTS), strict=True):
            assert np.allclose(ours.logprobs[1:], theirs.logprobs[1:], atol=0.2)


def test_a_request_is_the_same_alone_and_in_company(checkpoint_and_half: tuple[Path, Path]) -> None:
    with Generator(checkpoint_and_half[1], device="cuda", num_slots=16) as generator:
        alone = [generator.generate(prompt, SAMPLED)[0] for prompt in PROMPTS]
        assert generator.generate(PROMPTS, SAMPLED) == alone


def test_more_samples_than_slots_all_end(checkpoint_and_half: tuple[Path, Path]) -> None:
    with Generator(checkpoint_and_half[1], device="cuda", num_slots=8) as generator:
        [output] = generator.generate("a", dataclasses.replace(SAMPLED, n=200))
        assert len({completion.token_ids for completion in output.completions}) > 150
        assert generator.stats().running == 0
