"""Every sampling control through the whole generator, beside transformers' generate."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support.checkpoints import write_checkpoint
from support.chi_squared import assert_follows
from support.random_requests import (
    END_OF_TEXT,
    PROMPTS,
    V,
    chosen,
    controls,
    prefer_neighbours,
    random_text,
)
from support.transformers_filters import exact_probs, processors, theirs
from support.transformers_version import needs_transformers_4
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from hgt_infer import Generator, SamplingParams
from hgt_infer.engine.sequence import SequenceParams
from hgt_infer.export import export_checkpoint

GREEDY = SamplingParams(temperature=0, max_tokens=24, seed=0)
LOOPING = {197: 8, 22: 8, 152: 8}  # a bias by which the model says little else


class OutputPenalties(LogitsProcessor):
    """presence_penalty and frequency_penalty by their formula: transformers has neither."""

    def __init__(self, params: SequenceParams, prompt_length: int) -> None:
        self.params = params
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        counts = torch.bincount(input_ids[0, self.prompt_length :], minlength=scores.shape[1])
        params = self.params
        return scores - params.frequency_penalty * counts - params.presence_penalty * (counts > 0)


class CallersProcessor(LogitsProcessor):
    """A caller's function, as transformers would have it."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.tensor(self.function(input_ids[0].tolist(), scores[0].numpy().copy()))[None]


def resolved(generator: Generator, prompt: str, params: SamplingParams) -> SequenceParams:
    return generator._reader.group(0, prompt, params).resolved


def chain(params: SequenceParams, prompt_length: int) -> LogitsProcessorList:
    """All that comes before temperature, in the documented order."""
    before = LogitsProcessorList([OutputPenalties(params, prompt_length), *processors(params, prompt_length)])
    if params.logits_processor is not None:
        before.append(CallersProcessor(params.logits_processor))
    return before


def greedy(
    model: Any, prompt_token_ids: tuple[int, ...], params: SequenceParams, **options: Any
) -> tuple[int, ...]:
    ending = sorted(params.eos_token_ids | params.stop_token_ids)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=params.max_tokens,
        eos_token_id=ending or [V],  # one that never comes: None is the model's own
        bos_token_id=END_OF_TEXT,
        pad_token_id=0,
    )
    ids = torch.tensor([prompt_token_ids])
    with torch.inference_mode():
        output = model.generate(
            ids, generation_config=config, use_model_defaults=False, attention_mask=ids * 0 + 1, **options
        )
    return tuple(output[0, len(prompt_token_ids) :].tolist())


def transformers_options(params: SequenceParams) -> dict[str, Any]:
    """The settings under transformers' own names, without NAMELESS; what is off is left out."""
    allowed = params.allowed_token_ids
    options = {
        "repetition_penalty": params.repetition_penalty,
        "no_repeat_ngram_size": params.no_repeat_ngram_size,
        "bad_words_ids": [list(ids) for ids in params.bad_words_ids],
        "sequence_bias": {(token_id,): bias for token_id, bias in params.logit_bias},
        "prefix_allowed_tokens_fn": None if allowed is None else lambda _, ids: list(allowed),
        "min_new_tokens": params.min_tokens,
    }
    return {name: value for name, value in options.items() if value}


NAMELESS = {"presence_penalty", "frequency_penalty", "logits_processor"}  # in transformers
CONTROLS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8},
    *({"no_repeat_ngram_size": size, "logit_bias": LOOPING} for size in (1, 2, 3, 4)),
    {"bad_words": ["\t", "!"]},
    {"bad_words": ["7\t", "\t[", "\t\x1e", "y y", "ZA", "\ta", "\t "]},  # of several tokens too
    {"logit_bias": {197: -100, 22: 2.5, 300: 5}},
    {"allowed_token_ids": range(0, V, 3)},
    {"logit_bias": {END_OF_TEXT: 100}, "min_tokens": 7},
    {"stop_token_ids": [197, 152, 292], "min_tokens": 9},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 0.7},
    {"frequency_penalty": -0.6},
    {"logits_processor": prefer_neighbours},
]


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: ", ".join(control))
def test_greedy_ids_of_each_control_equal_transformers(
    generator: Generator, reference_model: Any, control: dict[str, Any]
) -> None:
    params = replace(GREEDY, **control)
    outputs = generator.generate(PROMPTS, params)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        own = resolved(generator, prompt, params)
        options = transformers_options(own)
        if not NAMELESS.isdisjoint(control):
            options = {"logits_processor": chain(own, len(output.prompt_token_ids))}
        expected = greedy(reference_model, output.prompt_token_ids, own, **options)
        assert output.completions[0].token_ids == expected
    neutral = replace(params, **dict.fromkeys(set(control) - {"logit_bias"}))
    assert outputs != generator.generate(PROMPTS, neutral) or set(control) == {"logit_bias"}


def random_controls(rng: random.Random) -> dict[str, Any]:
    return chosen(rng, controls(rng) | {"min_tokens": rng.randint(1, 20), "ignore_eos": True}, 2, 6)


def test_combinations_in_one_ragged_batch_equal_transformers_and_each_alone(
    generator: Generator, reference_model: Any
) -> None:
    rng = random.Random(1)
    prompts = [*PROMPTS, *(random_text(seed, rng.choice([1, 2, 8, 9, 40, 150])) for seed in range(23))]
    params = [replace(GREEDY, **random_controls(rng)) for _ in prompts]
    outputs = generator.generate(prompts, params)
    for prompt, own, output in zip(prompts, params, outputs, strict=True):
        settled = resolved(generator, prompt, own)
        before = chain(settled, len(output.prompt_token_ids))
        expected = greedy(reference_model, output.prompt_token_ids, settled, logits_processor=before)
        assert output.completions[0].token_ids == expected
        assert generator.generate(prompt, own) == [output]
    sampled = [replace(own, temperature=1.3, top_k=rng.choice([0, 9, 300]), top_p=0.9, n=2) for own in params]
    outputs = generator.generate(prompts, sampled)
    assert outputs == [generator.generate(*one)[0] for one in zip(prompts, sampled, strict=True)]
    assert {c.finish_reason for output in outputs for c in output.completions} == {"stop", "length"}


def exact(model: Any, params: SequenceParams, prompt_token_ids: tuple[int, ...], *output: int) -> Any:
    """The distribution [V] of the next token, out of transformers' logits, processors and warpers."""
    token_ids = [*prompt_token_ids, *output]
    with torch.inference_mode():
        logits = model(torch.tensor([token_ids])).logits[0, -1]
    return exact_probs(theirs(chain(params, len(prompt_token_ids)), logits, token_ids).numpy(), params)


@pytest.fixture(scope="module")
def wide(artifact: Path) -> Iterator[Generator]:
    """More slots, which take thousands of samples in fewer steps."""
    with Generator(artifact, device="cpu", num_slots=64) as generator:
        yield generator


PURE = SamplingParams(n=4000, max_tokens=1, seed=11, top_k=0, top_p=1.0, temperature=1.0)
# The graph draws from the 257 likeliest tokens or, where a nucleus is wider, from all.
WIDE = {"temperature": 3.0, "top_p": 0.97}


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.6},
        {"temperature": 2.0},
        {"top_p": 0.5},
        WIDE,
        {**WIDE, "min_p": 0.1},
        {"min_p": 0.05},
        {"min_p": 0.2, "top_k": 50, "top_p": 0.9},
        {"typical_p": 0.6},
        {"typical_p": 0.9, "min_p": 0.02, "temperature": 1.5},
        {"top_k": 300, "temperature": 2.0},
        {"repetition_penalty": 2.0, "logit_bias": {300: 4, 12: -3}, "bad_words": ["\t"]},
        {"min_tokens": 1, "logit_bias": {END_OF_TEXT: 5}, "top_p": 0.9},
        {"logits_processor": prefer_neighbours, "top_p": 0.9},
    ],
    ids=lambda settings: str({name: getattr(value, "__name__", value) for name, value in settings.items()}),
)
def test_first_tokens_follow_transformers_distribution(
    wide: Generator, reference_model: Any, settings: dict[str, Any]
) -> None:
    params = replace(PURE, **settings)
    output = wide.generate("a b c d a b c", params)[0]
    probs = exact(reference_model, resolved(wide, "a b c d a b c", params), output.prompt_token_ids)
    if settings in ({"top_p": 0.5}, WIDE):
        assert ((probs > 0).sum() > 256) == (settings is WIDE)
    assert_follows(np.array([c.token_ids[0] for c in output.completions]), probs)


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 3.0},
        {"presence_penalty": 2.0, "frequency_penalty": -0.5},
        {"presence_penalty": -2.0, "frequency_penalty": -2.0, "repetition_penalty": 0.5, "typical_p": 0.8},
        {"no_repeat_ngram_size": 1},
    ],
    ids=str,
)
def test_second_tokens_follow_the_distribution_that_the_first_one_left(
    wide: Generator, reference_model: Any, settings: dict[str, Any]
) -> None:
    """Three tokens are favoured: penalties for the first tell in the second."""
    bias = dict.fromkeys([218, 197, 12], 10)
    params = replace(PURE, n=6000, max_tokens=2, temperature=3.0, logit_bias=bias, **settings)
    own = resolved(wide, "My dream is", params)
    output = wide.generate("My dream is", params)[0]
    pairs = [c.token_ids for c in output.completions if len(c.token_ids) == 2]
    firsts = [first for first, count in Counter(first for first, _ in pairs).items() if count > 500]
    assert len(firsts) > 1
    for first in firsts:
        probs = exact(reference_model, own, output.prompt_token_ids, first)
        assert_follows(np.array([second for one, second in pairs if one == first]), probs)


@pytest.mark.integration
@needs_transformers_4
@pytest.mark.filterwarnings("ignore")
def test_the_checkpoints_own_settings_are_the_pipelines(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", layout="modern", task_params=None)
    settings = {
        "do_sample": True,
        "max_new_tokens": 15,
        "min_new_tokens": 5,
        "temperature": 1.4,
        "top_k": 0,
        "top_p": 0.95,
        "min_p": 0.01,
        "typical_p": 0.9,
        "repetition_penalty": 1.4,
        "no_repeat_ngram_size": 2,
        "eos_token_id": END_OF_TEXT,
    }
    (folder / "generation_config.json").write_text(json.dumps(settings))
    pipeline = transformers.pipeline("text-generation", model=str(folder))
    export_checkpoint(folder, tmp_path / "artifact")
    with Generator(tmp_path / "artifact", device="cpu") as generator:
        for prompt in filter(None, PROMPTS):
            for penalty in (None, 1.0, 2.0):  # a call's own wins
                options = {} if penalty is None else {"repetition_penalty": penalty}
                texts = generator(prompt, do_sample=False, **options)
                assert texts == pipeline(prompt, do_sample=False, **options)
        output = generator.generate("a b c d", SamplingParams(n=4000, max_tokens=1, seed=2))[0]
        own = resolved(generator, "a b c d", SamplingParams())
    assert own.temperature == 0.7  # the pipeline's own wins over a model's
    for name in ("top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "no_repeat_ngram_size"):
        assert getattr(own, name) == settings[name]
    probs = exact(pipeline.model, own, output.prompt_token_ids)
    assert 0 < (probs == 0).sum() < V
    assert_follows(np.array([c.token_ids[0] for c in output.completions]), probs)
