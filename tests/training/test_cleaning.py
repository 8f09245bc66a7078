from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.cleaning import (
    CleanedTweets,
    Counts,
    clean,
    clean_text,
    collapse_white_space,
    decode_entities,
    is_short,
    remove_links,
)
from training.tweets import Tweet, read_tweets


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
    cleaned = clean([Tweet("look here https://t.co/a", False), Tweet("one &amp; two https://t.co/a", False)])
    assert cleaned == CleanedTweets(("one & two",), Counts(downloaded=2, retweets=0, short=1))


def test_a_short_retweet_counts_as_retweet() -> None:
    assert clean([Tweet("RT @a: b", True)]).counts == Counts(downloaded=1, retweets=1, short=0)


PIECES = st.sampled_from(
    ["soup", "@a", "#b", "https://t.co/x", "http:", "&amp;", "\n", " ", "  ", "🪿", "RT @a"]
)
TWEETS = st.builds(
    Tweet, st.one_of(st.text(), st.lists(PIECES).map(" ".join), st.lists(PIECES).map("".join)), st.booleans()
)


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
        tweets = read_tweets([path])
        cleaned = clean(tweets)
        assert cleaned.counts.downloaded == len(tweets)
        assert 0.5 < cleaned.counts.kept / (cleaned.counts.downloaded - cleaned.counts.retweets) < 1
        assert not [text for text in cleaned.kept if "https://" in text or "\n" in text or "&amp;" in text]
