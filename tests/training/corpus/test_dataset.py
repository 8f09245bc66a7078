from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.small_run import cleaned_of

from training.corpus.cleaning import CleanedTweets, Counts, Texts
from training.corpus.dataset import END_OF_TEXT, Dataset, check_size, make_dataset, sha256_of, split
from training.corpus.text_store import TextStore
from training.errors import HyperParameterError, TrainingError

TWEETS = [f"tweet number {number} of a long and quiet winter {number * number}" for number in range(200)]


def cleaned_of_length(num_characters: int) -> CleanedTweets:
    """Two tweets that are `num_characters` long when joined by <|endoftext|>."""
    first, last = "a" * 1000, "b" * (num_characters - 1000 - len(END_OF_TEXT))
    return cleaned_of(first, last, counts=Counts(downloaded=1234, retweets=200, short=1032))


def texts_of(dataset: Dataset) -> list[str]:
    return list(Texts(dataset.store, dataset.order))


def test_under_6000_characters_is_an_error_that_names_the_counts() -> None:
    with pytest.raises(
        TrainingError,
        match=r"5,999 characters and at least 6,000 .*: 1,234 downloaded, 200 retweets, 1,032 short, 2 kept",
    ):
        check_size(cleaned_of_length(5_999))


def test_from_6000_to_40000_characters_is_a_warning() -> None:
    assert "only 6,000 characters" in (check_size(cleaned_of_length(6_000)) or "")
    assert "only 39,999 characters" in (check_size(cleaned_of_length(39_999)) or "")
    assert check_size(cleaned_of_length(40_000)) is None


def test_no_tweet_kept_is_too_little_text() -> None:
    with pytest.raises(TrainingError, match="the tweets are 0 characters"):
        check_size(cleaned_of(counts=Counts(downloaded=3, retweets=3, short=0)))


def test_each_epoch_holds_each_tweet_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    dataset = make_dataset([cleaned_of(*TWEETS)], epochs=4, eval_fraction=0, seed=7)
    dataset.write(tmp_path / "file")
    text = (tmp_path / "file").read_text("utf-8")
    assert text.startswith(END_OF_TEXT + "tweet")
    assert text.endswith(END_OF_TEXT)
    assert len(text) == dataset.num_characters()
    parts = text.split(END_OF_TEXT)
    assert parts[0] == parts[-1] == ""
    parts = parts[1:-1]
    epochs = [parts[start : start + 200] for start in range(0, 800, 200)]
    assert parts == texts_of(dataset)
    assert len(parts) == 800
    assert all(sorted(epoch) == sorted(TWEETS) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [TWEETS, *epochs]}) == 5


def test_the_seed_decides_the_order() -> None:
    def order(seed: int) -> list[str]:
        return texts_of(make_dataset([cleaned_of(*TWEETS)], epochs=2, eval_fraction=0, seed=seed))

    assert order(7) == order(7)
    assert order(7) != order(8)


def test_a_file_needs_an_epoch() -> None:
    with pytest.raises(HyperParameterError, match="epochs is 0"):
        make_dataset([cleaned_of(*TWEETS)], epochs=0, eval_fraction=0, seed=7)


@given(st.lists(st.text(), min_size=2), st.floats(0, 0.5), st.integers(0, 2**32 - 1))
def test_a_split_loses_and_repeats_nothing(tweets: list[str], fraction: float, seed: int) -> None:
    tweets = [tweet.encode(errors="replace").decode() for tweet in tweets]
    training, evaluation = split(cleaned_of(*tweets).kept, fraction=fraction, seed=seed)
    assert Counter(training) + Counter(evaluation) == Counter(tweets)
    assert training
    assert bool(evaluation) == (fraction > 0)


def test_a_tenth_is_drawn_by_the_seed() -> None:
    kept = cleaned_of(*TWEETS).kept
    training, evaluation = split(kept, fraction=0.1, seed=7)
    assert (len(training), len(evaluation)) == (180, 20)
    assert list(evaluation) != TWEETS[:20]
    assert list(split(kept, fraction=0.1, seed=7)[1]) == list(evaluation)
    assert list(split(kept, fraction=0.1, seed=8)[1]) != list(evaluation)
    assert list(split(kept, fraction=0.1, seed=7, user=1)[1]) != list(evaluation)


@pytest.mark.parametrize("fraction", [-0.1, 0.51, float("nan")])
def test_a_fraction_out_of_range_is_an_error(fraction: float) -> None:
    with pytest.raises(HyperParameterError, match="eval_fraction is"):
        split(cleaned_of(*TWEETS).kept, fraction=fraction, seed=7)


def test_evaluation_tweets_occur_in_no_epoch() -> None:
    tweets = [f"{number} is a number and nothing else {number}" for number in range(1_500)]
    dataset = make_dataset([cleaned_of(*tweets)], epochs=3, eval_fraction=0.1, seed=5)
    evaluation = list(Texts(dataset.store, dataset.evaluation_order))
    assert (dataset.num_training, dataset.num_evaluation) == (1_350, 150)
    assert Counter(Counter(texts_of(dataset)).values()) == {3: 1_350}
    assert set(texts_of(dataset)) | set(evaluation) == set(tweets)
    assert not set(texts_of(dataset)) & set(evaluation)
    assert dataset.warnings == ()


def test_without_evaluation_every_tweet_is_trained_on_and_a_warning_is_kept() -> None:
    dataset = make_dataset([cleaned_of_length(6_000)], epochs=2, eval_fraction=0, seed=5)
    assert len(dataset.evaluation_order) == 0
    assert (dataset.num_training, dataset.num_evaluation) == (2, 0)
    assert "only 6,000 characters" in dataset.warnings[0]


def test_each_person_has_as_many_characters_in_each_epoch() -> None:
    store = TextStore()
    people = {
        "goose": [f"goose says honk for the time {number:04}" for number in range(250)],
        "gull": [f"gull takes the bread of a visitor {number:04}, and another one" for number in range(900)],
        "moon": [f"moon {number:04} " + "over the harbour " * 20 for number in range(20)],
    }
    users = [cleaned_of(*texts, store=store) for texts in people.values()]
    dataset = make_dataset(users, epochs=3, eval_fraction=0.1, seed=5)
    assert dataset.num_training == sum(map(len, dataset.training)) == 225 + 810 + 18

    longest = max(sum(map(len, texts)) for texts in dataset.training)
    texts = texts_of(dataset)
    size = len(texts) // 3
    for epoch in (texts[:size], texts[size : 2 * size]):  # of about equal numbers of tweets
        for name, repeats in zip(people, dataset.repeats, strict=True):
            own = Counter(text for text in epoch if text.startswith(name))
            assert sum(len(text) * times for text, times in own.items()) == pytest.approx(longest, rel=0.05)
            assert max(own.values()) - min(own.values()) <= 2
            assert sum(own.values()) / len(own) == pytest.approx(repeats, rel=0.1)
    assert dataset.repeats[1] == 1.0


def test_a_person_with_too_little_is_an_error_among_others_too() -> None:
    store = TextStore()
    users = [cleaned_of(*TWEETS, store=store), cleaned_of("honk", store=store)]
    with pytest.raises(TrainingError, match="the tweets are 4 characters"):
        make_dataset(users, epochs=1, eval_fraction=0, seed=5)


def test_the_hash_tells_one_text_from_another() -> None:
    first, second = cleaned_of("one", "two").kept, cleaned_of("one two").kept
    assert sha256_of([first]) == sha256_of([first])
    assert len({sha256_of([first]), sha256_of([second]), sha256_of([]), sha256_of([first, second])}) == 4


def test_the_order_of_a_seed_stays_the_same_over_versions_of_numpy() -> None:
    dataset = make_dataset([cleaned_of(*TWEETS)], epochs=1, eval_fraction=0.02, seed=1)
    assert dataset.evaluation_order.tolist() == [2, 20, 41, 185]
    assert dataset.order[:6].tolist() == [11, 162, 8, 187, 135, 146]
