"""A prompt's settings: the caller's, else the checkpoint's, within the vocabulary and the context."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from hgt_infer import ParameterError, PromptError, SamplingParams
from hgt_infer.artifact.config import GenerationDefaults
from hgt_infer.engine.sequence import SequenceParams
from hgt_infer.requests.resolve import resolve

DEFAULTS = GenerationDefaults(
    do_sample=True,
    temperature=0.8,
    top_k=50,
    top_p=0.95,
    min_length=10,
    max_length=30,
    max_new_tokens=None,
    min_new_tokens=None,
    eos_token_ids=(99,),
    prefix="",
    min_p=0.02,
    typical_p=0.9,
    repetition_penalty=1.2,
    no_repeat_ngram_size=3,
)
WORDS = {"lily": [20, 21], " lily": [22, 21], "\n": [4], " \n": [5, 4], "a": [6], " a": [7], "": [], " ": [5]}


def resolved(
    params: SamplingParams | None = None,
    defaults: GenerationDefaults = DEFAULTS,
    *,
    prompt: str = "x",
    prompt_length: int = 4,
    max_length: int = 100,
) -> SequenceParams:
    return resolve(
        params or SamplingParams(),
        defaults,
        prompt,
        prompt_length,
        max_length,
        vocab_size=100,
        encode=WORDS.__getitem__,
    )


def test_defaults_come_from_the_checkpoint() -> None:
    assert resolved(SamplingParams(seed=1)) == SequenceParams(
        max_tokens=26,
        min_tokens=6,
        seed=1,
        temperature=0.8,
        top_k=50,
        top_p=0.95,
        min_p=0.02,
        typical_p=0.9,
        repetition_penalty=1.2,
        no_repeat_ngram_size=3,
        eos_token_ids=frozenset({99}),
    )


def test_a_callers_setting_wins_over_the_checkpoints() -> None:
    off: dict[str, Any] = {
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "typical_p": 1.0,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "min_tokens": 0,
        "max_tokens": 7,
    }
    params = resolved(SamplingParams(**off, seed=0))
    assert params == SequenceParams(**off, seed=0, eos_token_ids=frozenset({99}))


def test_every_setting_of_a_caller_arrives() -> None:
    given: dict[str, Any] = {
        "logit_bias": ((3, 1.0),),
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "allowed_token_ids": (1, 2),
        "repetition_penalty": 1.5,
        "no_repeat_ngram_size": 2,
        "min_tokens": 1,
        "max_tokens": 5,
        "logits_processor": print,
        "temperature": 0.5,
        "top_k": 9,
        "top_p": 0.5,
        "min_p": 0.1,
        "typical_p": 0.5,
        "seed": 2**64 - 1,
        "include_stop_str_in_output": True,
        "logprobs": 3,
        "prompt_logprobs": 2,
    }
    params = resolved(SamplingParams(**given, stop_token_ids=[8], bad_words=["a"]))
    assert {name: getattr(params, name) for name in given} == given
    assert (params.stop_token_ids, params.bad_words_ids) == (frozenset({8}), ((6,), (7,)))
    converted = {"eos_token_ids", "stop_token_ids", "bad_words_ids"}
    assert given.keys() | converted == {field.name for field in fields(SequenceParams)}


def test_greedy_defaults_give_way_to_a_temperature() -> None:
    greedy = replace(DEFAULTS, do_sample=False)
    assert resolved(defaults=greedy).temperature == 0
    assert resolved(SamplingParams(temperature=0.3), greedy).temperature == 0.3


@pytest.mark.parametrize(
    ("params", "changes", "expected"),
    [
        ({}, {}, (26, 6)),
        ({}, {"max_length": None, "max_new_tokens": 8}, (8, 6)),
        ({}, {"max_length": None}, (96, 6)),
        ({}, {"max_length": None, "max_new_tokens": 200}, (96, 6)),
        ({}, {"min_new_tokens": 3}, (26, 3)),
        ({}, {"min_length": 3}, (26, 0)),
        ({"max_tokens": 2}, {}, (2, 2)),
        ({"max_tokens": 2**31 - 1, "min_tokens": 2**31 - 1}, {}, (96, 96)),
    ],
)
def test_lengths_fit_the_context(
    params: dict[str, int], changes: dict[str, Any], expected: tuple[int, int]
) -> None:
    found = resolved(SamplingParams(**params), replace(DEFAULTS, **changes))
    assert (found.max_tokens, found.min_tokens) == expected


@pytest.mark.parametrize(
    ("prompt_length", "max_length", "message"),
    [(0, 100, "empty"), (100, 100, "100 tokens.*context of 100"), (30, 100, "30 tokens.*max_length of 30")],
)
def test_a_prompt_without_room_is_an_error_with_both_lengths(
    prompt_length: int, max_length: int, message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        resolved(prompt_length=prompt_length, max_length=max_length)


def test_a_long_prompt_is_cut_in_a_message() -> None:
    with pytest.raises(PromptError, match=r"^prompt 'y{30}…' has 100 tokens") as caught:
        resolved(prompt="y" * 10**7, prompt_length=100)
    assert len(str(caught.value)) < 200


def test_a_seed_is_drawn_anew_each_time() -> None:
    seeds = {resolved().seed for _ in range(20)}
    assert len(seeds) == 20
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_ignored_end_of_text_ends_nothing() -> None:
    assert resolved(SamplingParams(ignore_eos=True)).eos_token_ids == frozenset()


@pytest.mark.parametrize(("logprobs", "best_of", "expected"), [(None, None, None), (None, 3, 0), (5, 3, 5)])
def test_best_of_needs_the_log_probabilities_of_samples(
    logprobs: int | None, best_of: int | None, expected: int | None
) -> None:
    assert resolved(SamplingParams(n=3, best_of=best_of, logprobs=logprobs)).logprobs == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ()),
        (["lily"], ((20, 21), (22, 21))),
        ([" lily", "lily", "   lily"], ((20, 21), (22, 21))),
        (["\n"], ((4,),)),  # (5, 4) ends in what never comes
        (["a", "lily", "a"], ((6,), (7,), (20, 21), (22, 21))),
    ],
)
def test_bad_words_are_taken_with_and_without_a_space(
    words: list[str], expected: tuple[tuple[int, ...], ...]
) -> None:
    assert resolved(SamplingParams(bad_words=words)).bad_words_ids == expected


@pytest.mark.parametrize(
    "options",
    [
        {"logit_bias": {5: 1, 100: 1}},
        {"allowed_token_ids": [5, 100]},
        {"stop_token_ids": [5, 100]},
    ],
)
def test_a_token_id_outside_the_vocabulary_is_named(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ParameterError, match=rf"^{name} must have token ids .*0 … 99; got 100$"):
        resolved(SamplingParams(**options))
    inside = {5: 1, 99: 1} if name == "logit_bias" else [5, 99]
    resolved(SamplingParams(**{name: inside}))


def test_a_bad_word_outside_the_vocabulary_is_named() -> None:
    with pytest.raises(ParameterError, match=r"^bad_words must have token ids .*0 … 20; got 22$"):
        resolve(
            SamplingParams(bad_words=["lily"], ignore_eos=True),
            DEFAULTS,
            "x",
            4,
            100,
            vocab_size=21,
            encode=WORDS.__getitem__,
        )


@pytest.mark.parametrize(
    "options",
    [
        {"allowed_token_ids": [99]},  # end-of-text, before min_length
        {"allowed_token_ids": [8, 99], "stop_token_ids": [8], "min_tokens": 1},
        {"allowed_token_ids": [6, 7], "bad_words": ["a"], "min_tokens": 0},
        {"allowed_token_ids": [6, 7, 99], "bad_words": ["a"], "min_tokens": 1},
    ],
)
def test_settings_that_leave_no_token_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=r"^allowed_token_ids must leave a token.*got none"):
        resolved(SamplingParams(**options))


@pytest.mark.parametrize(
    "options",
    [
        {"allowed_token_ids": [99], "min_tokens": 0},
        {"allowed_token_ids": [99], "ignore_eos": True},
        {"allowed_token_ids": [20, 21], "bad_words": ["lily"]},  # only their succession is forbidden
        {"allowed_token_ids": [6, 8], "bad_words": ["a"]},
    ],
)
def test_settings_that_leave_a_token_are_taken(options: dict[str, Any]) -> None:
    assert resolved(SamplingParams(**options)).allowed_token_ids == tuple(options["allowed_token_ids"])


def test_bad_words_that_forbid_the_whole_vocabulary_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"^bad_words must leave a token"):
        resolve(
            SamplingParams(bad_words=["x", "y"]),
            replace(DEFAULTS, eos_token_ids=(0,)),
            "p",
            4,
            100,
            vocab_size=5,
            encode={"x": [1], " x": [2], "y": [3], " y": [4]}.__getitem__,
        )
