"""The public API on a tiny checkpoint: greedy ids, batches, seeds, slots, bad input."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.chi_squared import assert_follows
from support.random_requests import random_text, text_of_length

from hgt_infer import (
    DeviceUnavailableError,
    GenerationOutput,
    Generator,
    ModelFormatError,
    ModelNotFoundError,
    ParameterError,
    PromptError,
    SamplingParams,
)
from hgt_infer.cuda.cudart import count_cuda_devices
from hgt_infer.kernels.library import load_kernels

NUM_GREEDY_TOKENS = 64


def greedy_reference(model: Any, prompt_token_ids: tuple[int, ...], num_tokens: int) -> tuple[int, ...]:
    with torch.inference_mode():
        output = model.generate(
            torch.tensor([prompt_token_ids]),
            attention_mask=torch.ones(1, len(prompt_token_ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            pad_token_id=0,
        )
    return tuple(output[0, len(prompt_token_ids) :].tolist())


GREEDY = SamplingParams(temperature=0, max_tokens=NUM_GREEDY_TOKENS, min_tokens=NUM_GREEDY_TOKENS)


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 5, 16, 17, 18, 63, 64, 65, 255, 500, 999, 1000])
def test_greedy_ids_equal_transformers(generator: Generator, reference_model: Any, num_tokens: int) -> None:
    prompt = "" if num_tokens == 1 else text_of_length(generator, num_tokens, seed=num_tokens)
    output = generator.generate(prompt, GREEDY)[0]
    assert len(output.prompt_token_ids) == num_tokens
    expected = greedy_reference(reference_model, output.prompt_token_ids, NUM_GREEDY_TOKENS)
    assert output.completions[0].token_ids == expected
    assert output.completions[0].finish_reason == "length"


def test_greedy_ids_of_a_ragged_batch_equal_transformers(generator: Generator, reference_model: Any) -> None:
    lengths = [1, 2, 1000, 3, 40, 17, 8, 16, 300, 5, 64, 33, 150, 9, 700, 12]
    prompts = ["" if n == 1 else text_of_length(generator, n, seed=100 + n) for n in lengths]
    for output in generator.generate(prompts, GREEDY):
        expected = greedy_reference(reference_model, output.prompt_token_ids, NUM_GREEDY_TOKENS)
        assert output.completions[0].token_ids == expected


SAMPLING = [
    SamplingParams(n=3, temperature=1.0, top_k=50, top_p=0.95, max_tokens=20, seed=7),
    SamplingParams(n=3, temperature=0.7, top_k=0, top_p=0.9, max_tokens=20, seed=7),
    SamplingParams(n=3, temperature=1.5, top_k=0, top_p=1.0, max_tokens=20, seed=7),
    SamplingParams(n=3, temperature=1.0, top_k=300, top_p=0.9, max_tokens=20, seed=7),  # on the host
]


@pytest.mark.parametrize("params", SAMPLING)
def test_every_row_of_a_batch_equals_the_same_request_alone(
    generator: Generator, params: SamplingParams
) -> None:
    prompts = [random_text(seed, 1 + seed % 30) for seed in range(20)]  # 60 samples over 16 slots
    together = generator.generate(prompts, params)
    assert together == [generator.generate(prompt, params)[0] for prompt in prompts]


@pytest.mark.parametrize("num_slots", [1, 3])
def test_the_number_of_slots_changes_no_token(artifact: Path, generator: Generator, num_slots: int) -> None:
    prompts = [random_text(seed, 1 + seed % 25) for seed in range(8)]
    few = Generator(artifact, device="cpu", num_slots=num_slots)
    assert few.generate(prompts, SAMPLING[0]) == generator.generate(prompts, SAMPLING[0])


def test_a_top_k_of_the_vocabulary_or_more_is_off(generator: Generator) -> None:
    off = generator.generate("My dream is", SAMPLING[1])
    for top_k in (398, 10**6):
        assert generator.generate("My dream is", replace(SAMPLING[1], top_k=top_k)) == off


def test_a_tiny_temperature_is_greedy_and_a_huge_one_is_uniform(generator: Generator) -> None:
    greedy = generator.generate("My dream is", replace(SAMPLING[2], temperature=0))
    for temperature in (1e-300, 1e-30, 9e-6):
        assert generator.generate("My dream is", replace(SAMPLING[2], temperature=temperature)) == greedy
    params = replace(SAMPLING[2], temperature=1e300, n=500, max_tokens=1)
    ids = [c.token_ids[0] for c in generator.generate("My dream is", params)[0].completions]
    assert len(set(ids)) > 200  # 398 in all


def test_samples_of_one_prompt_differ_and_do_not_depend_on_n(generator: Generator) -> None:
    five = generator.generate("My dream is", replace(SAMPLING[0], n=5))[0].completions
    two = generator.generate("My dream is", replace(SAMPLING[0], n=2))[0].completions
    assert five[:2] == two
    assert len({c.token_ids for c in five}) == 5


def test_the_seed_that_was_drawn_reproduces_the_output(generator: Generator) -> None:
    params = replace(SAMPLING[0], seed=None)
    first, other = (generator.generate("My dream is", params)[0] for _ in range(2))
    assert first.completions != other.completions
    assert generator.generate("My dream is", replace(params, seed=first.seed))[0] == first


def test_more_samples_than_slots_share_few_prefills(generator: Generator) -> None:
    runner: Any = generator._engine.workers[0].runner
    batches = []
    original = runner.launch
    runner.launch = lambda batch: batches.append(batch) or original(batch)
    try:
        output = generator.generate(random_text(0, 40), replace(SAMPLING[0], n=50))[0]
    finally:
        runner.launch = original
    assert len(output.completions) == 50
    assert sum(batch.is_prefill or max(batch.num_scheduled_tokens or [1]) > 1 for batch in batches) == 1


def test_first_tokens_follow_the_models_distribution(generator: Generator, reference_model: Any) -> None:
    """Through the whole engine: 4,000 first tokens of one prompt against transformers' softmax."""
    output = generator.generate(
        "My dream is", SamplingParams(n=4000, temperature=1.0, top_k=0, top_p=1.0, max_tokens=1, seed=3)
    )[0]
    with torch.inference_mode():
        logits = reference_model(torch.tensor([output.prompt_token_ids])).logits[0, -1]
    probs = torch.softmax(logits.double(), -1).numpy()

    assert_follows(np.array([c.token_ids[0] for c in output.completions]), probs)


def test_a_context_that_fills_up_ends_with_length(artifact: Path) -> None:
    small = Generator(artifact, device="cpu", max_length=12, num_slots=2)
    completion = small.generate("My dream", SamplingParams(temperature=0, max_tokens=500, min_tokens=500))[0]
    total = len(completion.prompt_token_ids) + len(completion.completions[0].token_ids)
    assert total == 12
    assert completion.completions[0].finish_reason == "length"


def test_end_of_text_is_last_and_has_no_text(generator: Generator) -> None:
    """Over many samples some end by themselves; none before the min_tokens asked for."""
    params = SamplingParams(n=100, temperature=3.0, top_k=0, top_p=1.0, max_tokens=200, min_tokens=5, seed=1)
    reasons = Counter()
    for completion in generator.generate("a", params)[0].completions:
        reasons[completion.finish_reason] += 1
        assert len(completion.token_ids) >= 5
        assert "<|endoftext|>" not in completion.text
        if completion.finish_reason == "stop":
            assert completion.token_ids[-1] == generator._tokenizer.encode("<|endoftext|>")[0]
            assert len(completion.token_ids) > 5
    assert reasons["stop"] > 10


def test_generate_of_no_prompts_is_empty(generator: Generator) -> None:
    assert generator.generate([]) == []
    assert generator([]) == []


def test_progress_counts_samples(generator: Generator, capsys: pytest.CaptureFixture[str]) -> None:
    generator.generate(["a", "b"], SamplingParams(n=2, max_tokens=2), progress=True)
    assert "4/4" in capsys.readouterr().err


@pytest.mark.parametrize(
    "call",
    [
        lambda g: g("a", num_return_sequences=0),
        lambda g: g("a", num_return_sequences=10**9),
        lambda g: g("a", max_new_tokens=0),
        lambda g: g("a", max_length=-1),
        lambda g: g("a", min_length=-1),
        lambda g: g("a", do_sample=1),
        lambda g: g("a", return_full_text=None),
        lambda g: g("a", temperature=math.nan),
        lambda g: g("a", top_p=2),
        lambda g: g("a", seed="x"),
        lambda g: g(5),
        lambda g: g(["a", 5]),
        lambda g: g(None),
        lambda g: g.generate("a", {"n": 2}),
        lambda g: g("\ud800"),
        lambda g: g("a " * 2000),
    ],
)
def test_bad_arguments_raise_before_anything_runs(generator: Generator, call: Any) -> None:
    runner: Any = generator._engine.workers[0].runner
    original = runner.launch
    runner.launch = lambda batch: pytest.fail("something ran")
    try:
        with pytest.raises((ParameterError, PromptError)):
            call(generator)
    finally:
        runner.launch = original


def test_an_unknown_option_is_a_type_error(generator: Generator) -> None:
    with pytest.raises(TypeError, match="num_beams"):
        generator("a", num_beams=4)


@pytest.mark.parametrize(
    "options",
    [
        {"device": "tpu"},
        {"device": "cuda:x"},
        {"device": None},
        {"precision": "fp16"},
        {"precision": "int3"},
        {"num_slots": 0},
        {"num_slots": 10**9},
        {"num_slots": 1.5},
        {"max_length": 1},
        {"max_length": 1101},
        {"max_length": "9"},
    ],
)
def test_a_bad_construction_argument_is_named(artifact: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=rf"^{next(iter(options))} must be .*got "):
        Generator(artifact, **{"device": "cpu", **options})


@pytest.mark.skipif(count_cuda_devices() > 0, reason="this machine has a GPU")
def test_cuda_on_a_machine_without_it_is_an_error(artifact: Path) -> None:
    with pytest.raises(DeviceUnavailableError, match=r"no NVIDIA driver|the driver shows 0"):
        Generator(artifact, device="cuda")


def test_auto_takes_the_cpu_where_there_is_no_gpu(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hgt_infer.opening.count_cuda_devices", lambda: 0)
    with caplog.at_level("INFO"):
        Generator(artifact)
    assert "device='auto' took cpu" in caplog.text
    kernels = load_kernels()
    name = kernels.instruction_set if kernels else "onnxruntime"
    assert f"cpu in fp32, kernels of {name}: 16 slots of 1100 positions" in caplog.text


def test_a_missing_model_and_a_folder_that_is_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        Generator(tmp_path / "nowhere", device="cpu")
    with pytest.raises(ModelFormatError, match=str(tmp_path)):
        Generator(tmp_path, device="cpu")


def test_outputs_are_complete(generator: Generator) -> None:
    output = generator.generate("My dream is", SamplingParams(n=2, max_tokens=4, seed=5))[0]
    assert isinstance(output, GenerationOutput)
    assert (output.prompt, output.seed) == ("My dream is", 5)
    assert [c.index for c in output.completions] == [0, 1]
    assert output.completions[0].text == generator._tokenizer.decode(output.completions[0].token_ids)


def test_threads_change_no_token(artifact: Path, generator: Generator) -> None:
    params = SamplingParams(n=3, max_tokens=12, seed=4)
    with Generator(artifact, device="cpu", num_threads=3, num_slots=2) as several:
        assert several.generate(["My dream", "a"], params) == generator.generate(["My dream", "a"], params)
    with pytest.raises(ParameterError, match="num_threads must be an integer in 1 … 1024; got 0"):
        Generator(artifact, device="cpu", num_threads=0)


def test_what_a_generator_tells_of_itself(artifact: Path) -> None:
    with Generator(artifact, device="cpu", num_slots=3) as one:
        assert (one.num_slots, one.is_alive) == (3, True)
        [ids] = one.encode("My dream")
        assert one.decode(ids) == "<|endoftext|>My dream"
        one.generate("a", SamplingParams(max_tokens=5, ignore_eos=True))
        first, between = one.stats().time_to_first_token_s, one.stats().inter_token_s
    assert not one.is_alive
    assert (first.count, between.count) == (1, 4)
    assert between.cumulative[-1][1] == 4
    assert 0 < between.sum_s < 10
