from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.cleaning import CleanedTweets, Counts
from training.dataset import (
    END_OF_TEXT,
    check_size,
    epochs_text,
    evaluation_blocks,
    make_dataset,
    split,
    training_blocks,
)
from training.errors import HyperParameterError, NotEnoughTextError

TWEETS = [f"tweet number {number}" for number in range(50)]


def cleaned_of(num_characters: int) -> CleanedTweets:
    """Tweets that are `num_characters` long when joined by <|endoftext|>."""
    first, last = "a" * 1000, "b" * (num_characters - 1000 - len(END_OF_TEXT))
    return CleanedTweets((first, last), Counts(downloaded=1234, retweets=200, short=1032))


def test_under_6000_characters_is_an_error_that_names_the_counts() -> None:
    with pytest.raises(
        NotEnoughTextError,
        match=r"5,999 characters and at least 6,000 .*: 1,234 downloaded, 200 retweets, 1,032 short, 2 kept",
    ):
        check_size(cleaned_of(5_999))


def test_from_6000_to_40000_characters_is_a_warning() -> None:
    assert "only 6,000 characters" in (check_size(cleaned_of(6_000)) or "")
    assert "only 39,999 characters" in (check_size(cleaned_of(39_999)) or "")
    assert check_size(cleaned_of(40_000)) is None


def test_no_tweet_kept_is_too_little_text() -> None:
    with pytest.raises(NotEnoughTextError, match="the tweets are 0 characters"):
        check_size(CleanedTweets((), Counts(downloaded=3, retweets=3, short=0)))


def test_each_epoch_holds_each_tweet_once_in_an_order_of_its_own() -> None:
    text = epochs_text(TWEETS, epochs=4, seed=7)
    assert text.startswith(END_OF_TEXT + "tweet")
    assert text.endswith(END_OF_TEXT)
    parts = text.split(END_OF_TEXT)
    assert parts[0] == parts[-1] == ""
    parts = parts[1:-1]
    epochs = [parts[start : start + 50] for start in range(0, 200, 50)]
    assert len(parts) == 200
    assert all(sorted(epoch) == sorted(TWEETS) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [TWEETS, *epochs]}) == 5


def test_the_seed_decides_the_order() -> None:
    assert epochs_text(TWEETS, epochs=2, seed=7) == epochs_text(TWEETS, epochs=2, seed=7)
    assert epochs_text(TWEETS, epochs=2, seed=7) != epochs_text(TWEETS, epochs=2, seed=8)


def test_a_file_needs_an_epoch() -> None:
    with pytest.raises(HyperParameterError, match="epochs is 0"):
        epochs_text(TWEETS, epochs=0, seed=7)


@given(st.lists(st.text(), min_size=2), st.floats(0, 0.5), st.integers(0, 2**32 - 1))
def test_a_split_loses_and_repeats_nothing(tweets: list[str], fraction: float, seed: int) -> None:
    training, evaluation = split(tweets, fraction=fraction, seed=seed)
    assert Counter(training) + Counter(evaluation) == Counter(tweets)
    assert training
    assert bool(evaluation) == (fraction > 0)


def test_a_tenth_is_drawn_by_the_seed() -> None:
    training, evaluation = split(TWEETS, fraction=0.1, seed=7)
    assert (len(training), len(evaluation)) == (45, 5)
    assert evaluation != TWEETS[:5]
    assert split(TWEETS, fraction=0.1, seed=7) == (training, evaluation)
    assert split(TWEETS, fraction=0.1, seed=8)[1] != evaluation


@pytest.mark.parametrize("fraction", [-0.1, 0.51, float("nan")])
def test_a_fraction_out_of_range_is_an_error(fraction: float) -> None:
    with pytest.raises(HyperParameterError, match="eval_fraction is"):
        split(TWEETS, fraction=fraction, seed=7)


def test_evaluation_tweets_occur_in_no_epoch() -> None:
    tweets = tuple(f"{number} is a number and nothing else {number}" for number in range(1_500))
    dataset = make_dataset(
        CleanedTweets(tweets, Counts(downloaded=1_500, retweets=0, short=0)),
        epochs=3,
        eval_fraction=0.1,
        seed=5,
    )
    training = dataset.text.split(END_OF_TEXT)[1:-1]
    evaluation = dataset.evaluation_text.split(END_OF_TEXT)[1:-1]
    assert (dataset.num_training, dataset.num_evaluation) == (1_350, 150)
    assert Counter(Counter(training).values()) == {3: 1_350}
    assert set(training) | set(evaluation) == set(tweets)
    assert not set(training) & set(evaluation)
    assert dataset.warnings == ()


def test_without_evaluation_every_tweet_is_trained_on_and_a_warning_is_kept() -> None:
    dataset = make_dataset(cleaned_of(6_000), epochs=2, eval_fraction=0, seed=5)
    assert dataset.evaluation_text == ""
    assert (dataset.num_training, dataset.num_evaluation) == (2, 0)
    assert "only 6,000 characters" in dataset.warnings[0]


@given(st.integers(0, 300), st.integers(1, 40))
def test_training_blocks_are_full_and_drop_less_than_one(num_tokens: int, block_size: int) -> None:
    tokens = list(range(num_tokens))
    blocks = training_blocks(tokens, block_size)
    joined = [token for block in blocks for token in block]
    assert joined == tokens[: len(joined)]
    if num_tokens >= block_size:
        assert {len(block) for block in blocks} == {block_size}
        assert num_tokens - len(joined) < block_size
    else:
        assert blocks == [tokens]


@given(st.integers(2, 300), st.integers(2, 40))
def test_evaluation_blocks_predict_each_token_once(num_tokens: int, block_size: int) -> None:
    blocks = evaluation_blocks(list(range(num_tokens)), block_size)
    assert [token for block in blocks for token in block[1:]] == list(range(1, num_tokens))
    assert all(2 <= len(block) <= block_size for block in blocks)
