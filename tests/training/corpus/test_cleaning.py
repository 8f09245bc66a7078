from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.corpus.cleaning import (
    CleaningRules,
    Counts,
    clean,
    clean_text,
    collapse_lines,
    collapse_white_space,
    decode_entities,
    is_short,
    remove_links,
    strip_leading_mentions,
)
from training.corpus.text_store import TextStore
from training.errors import HyperParameterError
from training.tweets.reading import read_tweets
from training.tweets.tweet_records import Tweet


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a &amp; b &lt; c &gt; d", "a & b < c > d"),
        ("&amp;lt;3", "<3"),
        ("&quot;a&quot; &#39;b&#39; &nbsp; &AMP;", "&quot;a&quot; &#39;b&#39; &nbsp; &AMP;"),
    ],
)
def test_only_three_entities_are_decoded(text: str, expected: str) -> None:
    assert decode_entities(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("look https://t.co/abc here", "look here"),
        ("look http://t.co/abc", "look"),
        ("https://t.co/abc look", "look"),
        ("one\nhttps://t.co/abc\ntwo", "one two"),
        ("a https://t.co/1 https://t.co/2 b", "a b"),
        ("look (https://t.co/abc) here", "look (here"),
        ("cut off https:…", "cut off"),
        ("http is a protocol, t.co/abc is none", "http is a protocol, t.co/abc is none"),
        ("HTTPS://T.CO/ABC", "HTTPS://T.CO/ABC"),
    ],
)
def test_links_go_with_the_space_before_them(text: str, expected: str) -> None:
    assert collapse_white_space(remove_links(text)) == expected
    assert clean_text(text) == expected


def test_white_space_of_every_kind_becomes_one_space() -> None:
    assert collapse_white_space("\u00a0one \r\n\r\n two\tthree\u2003four ") == "one two three four"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("one two", True),
        ("one two three", False),
        ("one two @three", True),
        ("one two #three", True),
        ("one two HTTP", True),
        ("one two e@mail four", False),
        ("@a @b @c one two three", False),
        ("one two 🪿", False),
    ],
)
def test_short_means_under_three_plain_words(text: str, expected: bool) -> None:
    assert is_short(text) is expected


def test_a_tweet_is_measured_after_its_links_went() -> None:
    cleaned = clean([Tweet("look here https://t.co/a"), Tweet("one &amp; two https://t.co/a")])
    assert list(cleaned.kept) == ["one & two"]
    assert cleaned.counts == Counts(downloaded=2, retweets=0, short=1)


def test_a_short_retweet_counts_as_retweet() -> None:
    assert clean([Tweet("RT @a: b", True)]).counts == Counts(downloaded=1, retweets=1, short=0)


def test_lines_stay_where_they_are_asked_for() -> None:
    text = "one  two\r\n\r\n\n\nthree https://t.co/x\n four\t five\n"
    assert clean_text(text, CleaningRules(keep_new_lines=True)) == "one two\n\nthree\nfour five"
    assert clean_text(text) == "one two three four five"
    assert collapse_lines("\n\n") == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("@a @b_2 thank you @c", "thank you @c"),
        ("thank you @c", "thank you @c"),
        ("@a", ""),
        ("@a\n@b\nthanks", "thanks"),
        (".@a thanks", ".@a thanks"),
        ("@ a", "@ a"),
        ("me@home is here", "me@home is here"),
        ("", ""),
    ],
)
def test_only_mentions_at_the_start_are_stripped(text: str, expected: str) -> None:
    assert strip_leading_mentions(text) == expected


def test_mentions_are_stripped_before_words_are_counted_and_only_on_request() -> None:
    tweets = [Tweet("@goose @gull thank you both", is_reply=True)]
    assert list(clean(tweets).kept) == ["@goose @gull thank you both"]
    assert list(clean(tweets, CleaningRules(strip_mentions=True)).kept) == ["thank you both"]


def test_replies_are_dropped_and_counted_on_request() -> None:
    tweets = [
        Tweet("a reply of five words", is_reply=True),
        Tweet("Honk.", is_reply=True),
        Tweet("I made more soup"),
    ]
    tweets += [Tweet("RT @a: b", is_retweet=True, is_reply=True)]
    kept = clean(tweets)
    assert (kept.counts.kept, kept.counts.replies, kept.num_replies) == (2, 0, 2)
    dropped = clean(tweets, CleaningRules(drop_replies=True))
    assert dropped.counts == Counts(downloaded=4, retweets=1, replies=2, short=0)
    assert list(dropped.kept) == ["I made more soup"]
    assert dropped.num_replies == 2


@pytest.mark.parametrize(("min_words", "kept"), [(0, 3), (1, 2), (2, 1), (3, 0)])
def test_the_number_of_words_can_be_chosen_and_an_empty_tweet_is_always_short(
    min_words: int, kept: int
) -> None:
    tweets = [Tweet("soup again"), Tweet("soup"), Tweet("@goose"), Tweet(" https://t.co/x ")]
    assert clean(tweets, CleaningRules(min_words=min_words)).counts.kept == kept


@pytest.mark.parametrize("min_words", [-1, 101])
def test_a_number_of_words_out_of_range_is_an_error(min_words: int) -> None:
    with pytest.raises(HyperParameterError, match=f"min_words is {min_words}, expected 0 to 100"):
        CleaningRules(min_words=min_words)


def test_a_repeated_id_counts_once_whatever_it_looks_like() -> None:
    texts = [f"tweet of number {number}" for number in range(6)]
    ids = ["7", "at://did/post/a", "7", None, "at://did/post/a", None]
    cleaned = clean([Tweet(text, id=id_) for text, id_ in zip(texts, ids, strict=True)])
    assert list(cleaned.kept) == [texts[0], texts[1], texts[3], texts[5]]
    assert (cleaned.counts.downloaded, cleaned.num_duplicates) == (4, 2)


def test_a_repeated_retweet_is_no_retweet_more() -> None:
    cleaned = clean(
        [Tweet("RT @a: b", True, "1"), Tweet("RT @a: b", True, "1"), Tweet("made more soup", id="2")]
    )
    assert cleaned.counts == Counts(downloaded=2, retweets=1, short=0)


def test_ids_that_differ_in_the_last_digit_are_two() -> None:
    tweets = [Tweet("one two three", id=str(10**18 + number)) for number in range(100)]
    assert clean(tweets).num_duplicates == 0


def test_distinct_tweets_are_counted_by_year() -> None:
    tweets = [Tweet("a", id="1", year=2019), Tweet("a", id="1", year=2019), Tweet("b", year=2008), Tweet("c")]
    per_year = clean(tweets).per_year
    assert per_year == {"2008": 1, "2019": 1, "unknown": 1}
    assert list(per_year) == ["2008", "2019", "unknown"]


def test_several_people_share_a_store_and_keep_their_own_texts() -> None:
    store = TextStore()
    first = clean([Tweet("one two three"), Tweet("x")], store=store)
    second = clean([Tweet("four five six"), Tweet("seven eight nine")], store=store)
    assert list(first.kept) == ["one two three"]
    assert list(second.kept) == ["four five six", "seven eight nine"]
    assert second.kept[1] == "seven eight nine"
    assert list(second.kept[:1]) == ["four five six"]


PIECES = st.sampled_from(
    ["soup", "@a", "#b", "https://t.co/x", "http:", "&amp;", "\n", " ", "  ", "🪿", "RT @a"]
)
TEXTS = st.one_of(st.text(), st.lists(PIECES).map(" ".join), st.lists(PIECES).map("".join))
YEARS = st.none() | st.integers(2006, 2030)
TWEETS = st.builds(Tweet, TEXTS, st.booleans(), st.none(), is_reply=st.booleans(), year=YEARS)


@given(st.lists(TWEETS))
def test_downloaded_less_retweets_less_short_is_kept(tweets: list[Tweet]) -> None:
    cleaned = clean(tweets)
    counts = cleaned.counts
    assert counts.downloaded == len(tweets)
    assert counts.retweets == sum(tweet.is_retweet for tweet in tweets)
    assert counts.downloaded - counts.retweets - counts.short == counts.kept == len(cleaned.kept)
    assert min(counts.retweets, counts.short, counts.kept) >= 0


@given(st.lists(TWEETS))
def test_kept_texts_are_one_line_without_links_and_long_enough(tweets: list[Tweet]) -> None:
    for text in clean(tweets).kept:
        assert text == " ".join(text.split())
        assert not is_short(text)
        assert remove_links(text) == text or "http" in text.split("http", 1)[1]  # http:/x glued to http:/y


def test_real_files_keep_no_link_and_add_up(reference_data: Path) -> None:
    for path in (reference_data / "tweets").iterdir():
        tweets = list(read_tweets([path]))
        cleaned = clean(tweets)
        assert cleaned.counts.downloaded == len(tweets)
        assert 0.5 < cleaned.counts.kept / (cleaned.counts.downloaded - cleaned.counts.retweets) < 1
        assert not [text for text in cleaned.kept if "https://" in text or "\n" in text or "&amp;" in text]
