"""Scores and log-probabilities beside transformers' own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.random_requests import random_text

from hgt_infer import Generator, ParameterError, PromptError, SamplingParams
from hgt_infer.requests.scoring import windows

TOLERANCE = 1e-4


def log_softmax(model: Any, token_ids: tuple[int, ...]) -> Any:
    """transformers' log-probabilities [S, V] of what follows each token."""
    with torch.inference_mode():
        logits = model(torch.tensor([token_ids])).logits[0]
    return torch.log_softmax(logits.double(), -1).numpy()


def reference_logprobs(
    model: Any, token_ids: tuple[int, ...], num_given: int, max_length: int, stride: int
) -> list[float | None]:
    """The sliding window of transformers' page "Perplexity of fixed-length models"."""
    logprobs: list[float | None] = [None] * len(token_ids)
    previous_end = num_given
    for begin in range(0, len(token_ids), stride):
        end = min(begin + max_length, len(token_ids))
        found = log_softmax(model, token_ids[begin:end])
        for position in range(previous_end, end):
            logprobs[position] = float(found[position - 1 - begin, token_ids[position]])
        previous_end = max(end, previous_end)
        if end == len(token_ids):
            break
    return logprobs


def assert_close(actual: tuple[float | None, ...], expected: list[float | None]) -> None:
    assert [x is None for x in actual] == [x is None for x in expected]
    for a, b in zip(actual, expected, strict=True):
        assert a is None or b is None or abs(a - b) < TOLERANCE


def test_scores_of_texts_of_any_length_equal_transformers(generator: Generator, reference_model: Any) -> None:
    texts = ["a", "My dream is"] + [random_text(seed, 1 + 7 * seed) for seed in range(30)]
    for text, score in zip(texts, generator.score(texts), strict=True):
        assert score.text == text
        assert score.token_ids[1:] == tuple(generator._tokenizer.encode(text))
        expected = reference_logprobs(reference_model, score.token_ids, 1, 1100, 550)
        assert_close(score.logprobs, expected)
        mean = sum(x for x in expected if x is not None) / (len(expected) - 1)
        assert score.perplexity == pytest.approx(math.exp(-mean), rel=1e-4)


@pytest.mark.parametrize("stride", [None, 1, 17, 63])
def test_long_texts_are_scored_by_a_sliding_window(
    artifact: Path, reference_model: Any, stride: int | None
) -> None:
    with Generator(artifact, device="cpu", max_length=64, num_slots=4) as generator:
        texts = [random_text(seed, num_words) for seed, num_words in enumerate([3, 40, 55, 90])]
        for score in generator.score(texts, stride=stride):
            expected = reference_logprobs(reference_model, score.token_ids, 1, 64, stride or 32)
            assert_close(score.logprobs, expected)


def test_a_text_of_many_windows_of_a_long_context(generator: Generator, reference_model: Any) -> None:
    [score] = generator.score(random_text(1, 900))
    assert len(score.token_ids) > 2200
    assert_close(score.logprobs, reference_logprobs(reference_model, score.token_ids, 1, 1100, 550))


def test_scoring_runs_beside_generation(generator: Generator) -> None:
    params = SamplingParams(n=20, max_tokens=200, min_tokens=200, seed=1)
    alone = generator.score(["nobody knows", "My dream is"])
    expected = generator.generate("a", params)
    stream = generator.stream("a", params)
    assert generator.score(["nobody knows", "My dream is"]) == alone
    assert len(list(stream)) > 0
    assert generator.generate("a", params) == expected


@given(
    num_tokens=st.integers(2, 300),
    num_given=st.integers(1, 299),
    max_length=st.integers(2, 100),
    data=st.data(),
)
def test_windows_score_every_token_once_with_enough_context(
    num_tokens: int, num_given: int, max_length: int, data: Any
) -> None:
    num_given = min(num_given, num_tokens - 1)
    stride = data.draw(st.integers(1, max_length - 1))
    scored = []
    for start, stop, num_unscored in windows(num_tokens, num_given, max_length, stride):
        assert 0 <= start < stop <= num_tokens
        assert stop - start <= max_length
        tokens = range(start + num_unscored + 1, stop)
        assert len(tokens) > 0
        assert all(token - start >= min(token, max_length - stride) for token in tokens)
        scored += tokens
    assert scored == list(range(num_given, num_tokens))


@pytest.mark.parametrize("prompt_length", [1, 2, 8, 9, 30, 300])
@pytest.mark.parametrize("num_top", [0, 3])
def test_prompt_logprobs_equal_transformers(
    generator: Generator, reference_model: Any, prompt_length: int, num_top: int
) -> None:
    prompt = generator._tokenizer.decode(
        generator._tokenizer.encode(random_text(9, 400))[: prompt_length - 1]
    )
    params = SamplingParams(n=3, prompt_logprobs=num_top, max_tokens=4, seed=2)
    output = generator.generate(prompt, params)[0]
    expected = log_softmax(reference_model, output.prompt_token_ids)
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    for position, token in enumerate(output.prompt_logprobs[1:]):
        assert token is not None
        assert token.token_id == output.prompt_token_ids[position + 1]
        assert abs(token.logprob - expected[position, token.token_id]) < TOLERANCE
        best = np.argsort(-expected[position])[:num_top]
        assert len(token.top) == num_top
        for (token_id, logprob), best_id in zip(token.top, best, strict=True):
            assert abs(logprob - expected[position, best_id]) < TOLERANCE
            assert abs(logprob - expected[position, token_id]) < TOLERANCE
    plain = generator.generate(prompt, SamplingParams(n=3, max_tokens=4, seed=2))[0]
    assert plain.completions == output.completions


def test_logprobs_are_those_of_the_models_own_distribution(
    generator: Generator, reference_model: Any
) -> None:
    params = SamplingParams(
        n=2, logprobs=4, max_tokens=12, seed=3, temperature=0.5, top_k=20, repetition_penalty=1.5
    )
    output = generator.generate("My dream is", params)[0]
    for completion in output.completions:
        found = log_softmax(reference_model, output.prompt_token_ids + completion.token_ids)
        assert completion.logprobs is not None
        assert [token.token_id for token in completion.logprobs] == list(completion.token_ids)
        for step, token in enumerate(completion.logprobs):
            row = found[len(output.prompt_token_ids) - 1 + step]
            assert abs(token.logprob - row[token.token_id]) < TOLERANCE
            assert [logprob for _, logprob in token.top] == pytest.approx(sorted(row)[:-5:-1], abs=TOLERANCE)
        assert completion.cumulative_logprob == pytest.approx(sum(t.logprob for t in completion.logprobs))
    plain = generator.generate("My dream is", SamplingParams(n=2, max_tokens=12, seed=3))[0].completions[0]
    assert plain.logprobs is None
    assert plain.cumulative_logprob is None


def test_best_of_returns_the_samples_with_the_highest_mean_logprob(generator: Generator) -> None:
    params = SamplingParams(n=20, logprobs=0, max_tokens=20, seed=4, temperature=2.0)
    everyone = generator.generate("My dream is", params)[0].completions
    means = {c.index: (c.cumulative_logprob or 0.0) / len(c.token_ids) for c in everyone}
    best = generator.generate(
        "My dream is", SamplingParams(n=3, best_of=20, max_tokens=20, seed=4, temperature=2.0)
    )[0].completions
    assert [c.index for c in best] == sorted(means, key=means.__getitem__, reverse=True)[:3]
    assert [c.token_ids for c in best] == [everyone[c.index].token_ids for c in best]
    assert all(c.logprobs is None and c.cumulative_logprob is not None for c in best)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda g: g.score(""), PromptError, "no token to score"),
        (lambda g: g.score(["a", "\ud800"]), PromptError, "U\\+D800"),
        (lambda g: g.score(5), ParameterError, "texts must be"),
        (lambda g: g.score("a", stride=0), ParameterError, "stride must be"),
        (lambda g: g.score("a", stride=1100), ParameterError, "stride must be"),
        (lambda g: g.score("a" * 10_000_001), PromptError, "at most 10,000,000 characters"),
    ],
)
def test_what_cannot_be_scored_is_named(generator: Generator, call: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        call(generator)


def test_no_texts_have_no_scores(generator: Generator) -> None:
    assert generator.score([]) == []
