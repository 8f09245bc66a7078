"""Prompts, lengths, arrivals, and the checkpoint of random weights."""

from __future__ import annotations

import statistics
from bisect import bisect_left
from dataclasses import replace

import pytest
from support.fake_backend import MIXED

from benchmarks.measure import workloads
from benchmarks.measure.checkpoints import byte_tokenizer
from benchmarks.measure.workloads import (
    TWEET_LENGTHS,
    arrivals,
    long_prompt,
    one_prompt,
    random_prompts,
    tweet_length,
    tweets,
)


def test_prompts_are_seeded_different_and_of_four_tokens() -> None:
    workload = random_prompts(16)
    assert workload == random_prompts(16)
    assert len(set(workload.prompts)) == 16
    assert workload.prompts[:5] == random_prompts(5).prompts
    assert not set(workload.prompts) & set(random_prompts(16, 1).prompts)
    assert random_prompts(16, 1) == random_prompts(16, 1)
    assert one_prompt(2, 1, num_new_tokens=3).prompts == random_prompts(1, 1).prompts
    tokenizer = byte_tokenizer(400)
    assert [tuple(tokenizer.encode(prompt).ids) for prompt in workload.prompts] == list(
        workload.prompt_token_ids
    )
    assert {len(ids) for ids in workload.prompt_token_ids} == {4}


def test_byte_tokenizer_has_a_text_for_every_id() -> None:
    tokenizer = byte_tokenizer(400)
    assert tokenizer.get_vocab_size() == 400
    assert tokenizer.token_to_id("<|endoftext|>") == 399
    assert tokenizer.decode([300, 301]) == " w300 w301"


def test_tweets_workload_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tweets().sha256 == "8c6d3382a22d1825e310f4ce52eb19e4a20366f8ffae00a2d87c4c0c3d31f8a9"
    assert replace(tweets(), top_k=49).sha256 != tweets().sha256
    monkeypatch.setattr(workloads, "SEED", 1)
    with pytest.raises(ValueError, match="the tweets workload has SHA-256"):
        tweets()


def test_tweets_are_as_long_as_real_ones() -> None:
    lengths = sorted(tweets().lengths)
    assert statistics.mean(lengths) == pytest.approx(34.8, abs=0.05)
    for quantile, length in TWEET_LENGTHS[:-1]:
        assert bisect_left(lengths, length) / 256 == pytest.approx(quantile, abs=1 / 256)
    assert lengths[-1] < 110


def test_tweets_have_different_prompts_of_three_to_eight_tokens() -> None:
    workload = tweets()
    assert len(set(workload.prompts)) == len(workload.lengths) == 256
    assert {len(ids) for ids in workload.prompt_token_ids} == {3, 4, 5, 6, 7, 8}
    tokenizer = byte_tokenizer(400)
    assert [tuple(tokenizer.encode(prompt).ids) for prompt in workload.prompts] == list(
        workload.prompt_token_ids
    )


def test_lengths_are_linear_between_the_quantiles() -> None:
    quantiles = (0, 0.025, 0.05, 0.15, 0.25, 0.625, 0.995, 0.9999)
    assert [tweet_length(quantile) for quantile in quantiles] == [4, 7, 11, 16, 22, 40, 92, 109]
    with pytest.raises(ValueError, match=r"\[0, 1\); got 1"):
        tweet_length(1)


def test_useful_share_counts_the_tokens_that_static_batches_drop() -> None:
    assert MIXED.num_tokens == 1 + 4 + 3
    assert MIXED.useful_share(1) == 1.0
    assert MIXED.useful_share(2) == 8 / (2 * 4 + 1 * 3)
    assert MIXED.useful_share(64) == 8 / (3 * 4)


def test_head_is_a_shorter_call_of_the_first_requests() -> None:
    assert MIXED.head(2, max_tokens=3) == replace(
        MIXED, prompts=("a", "bcd"), prompt_token_ids=((0,), (1, 2, 3)), lengths=(1, 3)
    )


def test_arrivals_are_the_same_traffic_at_any_rate() -> None:
    workload = tweets()
    slow, fast = arrivals(workload, rate=2.0), arrivals(workload, rate=4.0)
    assert slow == pytest.approx([2 * at for at in fast])
    assert list(slow) == sorted(slow)
    assert len(slow) / slow[-1] == pytest.approx(2.0, rel=0.2)
    assert len(long_prompt(900, 1).prompt_token_ids[0]) == 900
    assert long_prompt(900, 1) == long_prompt(900, 1) != long_prompt(900, 2)
    assert one_prompt(7, num_new_tokens=3).num_tokens == 21
