from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from support.tweet_files import FORMATS, archive, json_lines, read, texts, write

from training.errors import TweetFileError
from training.tweets.account import Account, read_account
from training.tweets.reading import read_tweets
from training.tweets.tweet_records import Tweet

TWO: list[dict[str, Any]] = [
    {"id_str": "11", "full_text": "soup &amp; bread"},
    {"id_str": "12", "full_text": "RT @baker: the ferry is late"},
]
TWO_READ = [Tweet("soup &amp; bread", False, "11"), Tweet("RT @baker: the ferry is late", True, "12")]
ANY_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=40)


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_each_format_is_told_by_its_content(tmp_path: Path, format_: str, encoding: str) -> None:
    assert read(write(tmp_path, FORMATS[format_](TWO).encode(encoding), "misnamed.xyz")) == TWO_READ


@given(st.lists(ANY_TEXT, min_size=1, max_size=8), st.sampled_from(sorted(FORMATS)))
def test_any_texts_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, written: list[str], format_: str
) -> None:
    if format_.startswith("csv"):
        written = [text.translate(dict.fromkeys([*range(9), *range(14, 32), 127])) for text in written]
    records = [{"id_str": str(number), "full_text": text} for number, text in enumerate(written)]
    path = write(tmp_path_factory.getbasetemp(), FORMATS[format_](records))
    assert [(tweet.id, tweet.text) for tweet in read(path)] == [
        (str(n), text) for n, text in enumerate(written)
    ]


PIECES = st.sampled_from(
    [
        b"[",
        b"]",
        b"{",
        b"}",
        b'"',
        b",",
        b":",
        b"\n",
        b"\\",
        b"text",
        b'"full_text":"a"',
        b"window.YTD.tweet.part0 = ",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"PK\x03\x04",
        b"\x00",
        b"\xf0\x9f\xaa",
        b"id,text\n",
        b"NaN",
        b"1e999",
        b'"tweets":',
        b'"data":',
        b'"$type":"app.bsky.feed.post"',
        b'"type":"Create"',
        b'"object":',
        b'"actor":"a"',
        b"null",
        b"\r",
    ]
)


@given(st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=30).map(b"".join)))
def test_whatever_bytes_give_tweets_or_an_error_of_a_tweet_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = write(tmp_path_factory.getbasetemp(), content, "fuzz")
    try:
        assert all(isinstance(tweet, Tweet) for tweet in read(path))
    except TweetFileError as error:
        assert str(error).startswith(str(path))
        assert len(str(error)) < 700


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False), st.integers(), st.text()
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                [
                    "tweet",
                    "tweets",
                    "data",
                    "includes",
                    "users",
                    "id",
                    "username",
                    "text",
                    "full_text",
                    "user",
                    "type",
                    "actor",
                    "object",
                    "content",
                    "to",
                    "$type",
                    "value",
                    "records",
                    "created_at",
                    "author",
                    "orderedItems",
                    "note_tweet",
                    "referenced_tweets",
                    "author_id",
                    "app.bsky.feed.post",
                    "is_retweet",
                ]
            ),
            st.one_of(
                inner, st.sampled_from(["Create", "Announce", "Note", "app.bsky.feed.post", "as:Public"])
            ),
            max_size=5,
        ),
    ),
    max_leaves=20,
)


@given(JSON)
def test_whatever_json_gives_tweets_or_an_error_of_a_tweet_file(
    tmp_path_factory: pytest.TempPathFactory, value: object
) -> None:
    path = write(tmp_path_factory.getbasetemp(), json.dumps(value), "fuzz.json")
    try:
        assert all(isinstance(tweet, Tweet) for tweet in read(path, "goose"))
    except TweetFileError as error:
        assert str(error).startswith(str(path))


def test_a_line_separator_inside_a_json_line_ends_no_line(tmp_path: Path) -> None:
    path = write(tmp_path, '{"text": "one\u2028two"}\n{"text": "three\x85four"}')
    assert texts(path) == ["one\u2028two", "three\x85four"]


def test_one_json_line_is_one_tweet(tmp_path: Path) -> None:
    assert read(write(tmp_path, '{"text": "fog", "id": 5}')) == [Tweet("fog", False, "5")]


def test_plain_text_is_a_tweet_a_line(tmp_path: Path) -> None:
    path = write(
        tmp_path, "Dear diary, no text today\r\n\r\n[laughs] the goose left\n@gull thanks\nRT @a: no"
    )
    assert read(path) == [
        Tweet("Dear diary, no text today"),
        Tweet("[laughs] the goose left"),
        Tweet("@gull thanks", is_reply=True),
        Tweet("RT @a: no", is_retweet=True),
    ]


def test_a_tweet_that_is_in_two_files_comes_twice(tmp_path: Path) -> None:
    first = write(tmp_path, archive(TWO), "first")
    second = write(tmp_path, json_lines(TWO), "second")
    assert list(read_tweets([first, second])) == [*TWO_READ, *TWO_READ]


def test_tweets_come_before_the_file_is_read_to_its_end(tmp_path: Path) -> None:
    path = write(tmp_path, json_lines([TWO[0]] * 5000) + "{broken")
    tweets = read_tweets([path])
    assert next(tweets) == TWO_READ[0]
    with pytest.raises(TweetFileError, match="line 5001"):
        list(tweets)


def test_a_tweet_of_100_000_characters_is_read(tmp_path: Path) -> None:
    text = "goose 🪿 " * 12_500
    records = [{"id_str": "1", "full_text": text}] * 3
    for number, write_format in enumerate(FORMATS.values()):
        assert texts(write(tmp_path, write_format(records), str(number))) == [text] * 3


def test_other_authors_are_left_out_whatever_the_case_of_letters(tmp_path: Path) -> None:
    records = [
        {"text": "a", "user": {"screen_name": "Goose"}},
        {"text": "b", "username": "gull"},
        {"text": "c", "author": {"username": "GOOSE"}},
        {"text": "d", "screen_name": "gull"},
        {"text": "e"},
    ]
    path = write(tmp_path, json.dumps(records))
    assert texts(path, "@gooSE") == ["a", "c", "e"]
    assert texts(path) == ["a", "b", "c", "d", "e"]


def test_authors_of_api_pages_and_of_csv_are_known_too(tmp_path: Path) -> None:
    page = {
        "data": [{"id": "1", "text": "a", "author_id": "7"}, {"id": "2", "text": "b", "author_id": "8"}],
        "includes": {"users": [{"id": "7", "username": "goose"}, {"id": "8", "username": "gull"}]},
    }
    assert texts(write(tmp_path, json.dumps(page), "page"), "goose") == ["a"]
    assert texts(write(tmp_path, "username,text\ngull,x\ngoose,y\n", "csv"), "goose") == ["y"]


def test_files_of_other_people_name_some_of_them(tmp_path: Path) -> None:
    path = write(tmp_path, json_lines([{"text": "a", "username": name} for name in "vwxyz"]))
    with pytest.raises(TweetFileError, match="no tweets of @goose; found those of @v, @w, @x, …"):
        read(path, "goose")


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "window.YTD.tweets.part0 = [ ]",
        '{"tweets": []}',
        "id,text\n",
        '{"data": [], "meta": {}}',
        '{"meta": {"result_count": 0}}',
        '{"orderedItems": []}',
        '[{"$type": "app.bsky.feed.like"}]',
    ],
)
def test_an_archive_of_no_tweets_is_an_error_of_its_own(tmp_path: Path, content: str) -> None:
    with pytest.raises(TweetFileError, match="holds no tweets"):
        read(write(tmp_path, content))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("name", "content", "account"),
    [
        (
            "data/account.js",
            'window.YTD.account.part0 = [{"account": {"username": "goose", "accountDisplayName": "Göose"}}]',
            Account("goose", "Göose"),
        ),
        (
            "data/js/user_details.js",
            'var user_details = {"screen_name": "gull", "id": "1"}',
            Account("gull", None),
        ),
        ("actor.json", '{"preferredUsername": "tern", "name": "Tern"}', Account("tern", "Tern")),
        ("data/other.js", "{}", None),
        ("data/account.js", "window.YTD.account.part0 = [ ]", None),
    ],
)
def test_an_archive_says_whose_it_is(
    tmp_path: Path, name: str, content: str, account: Account | None, zipped: bool
) -> None:
    path = tmp_path / "archive"
    if zipped:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(name, content)
    else:
        write(path, content, name)
    if content.endswith("[ ]"):
        with pytest.raises(TweetFileError, match="account file is broken"):
            read_account(path)
    else:
        assert read_account(path) == account


def test_a_file_that_is_no_archive_says_not_whose_it_is(tmp_path: Path) -> None:
    assert read_account(write(tmp_path, json.dumps(TWO))) is None


def test_counts_of_real_files(reference_data: Path) -> None:
    counts = set()
    for path in (reference_data / "tweets").iterdir():
        tweets = read(path)
        counts.add((path.suffix, len(tweets), sum(tweet.is_retweet for tweet in tweets)))
        assert all(tweet.id and tweet.year for tweet in tweets)
    assert counts == {
        (".csv", 3245, 873),
        (".json", 4575, 533),
        (".json", 4637, 335),
        (".js", 300, 104),
        (".json", 60, 0),
    }
