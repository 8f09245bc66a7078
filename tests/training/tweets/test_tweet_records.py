from __future__ import annotations

from typing import Any

import pytest
from support.tweet_files import json_lines, read, texts, write

from training.errors import TweetFileError
from training.tweets.tweet_records import Tweet, author_of, read_tweet, year_of


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"text": "RT @a: hello"}, True),
        ({"text": "they said RT @a: hello"}, False),
        ({"text": "rt @a hello"}, False),
        ({"text": "hello", "is_retweet": True}, True),
        ({"text": "hello", "is_retweet": False}, False),
        ({"text": "hello", "is_retweet": "False"}, False),
        ({"text": "hello", "is_retweet": "TRUE"}, True),
        ({"text": "hello", "isRetweet": "t"}, True),
        ({"text": "hello", "isRetweet": "f"}, False),
        ({"text": "hello", "isRetweet": 1}, True),
        ({"text": "hello", "retweeted_status": {"id": 1}}, True),
        ({"text": "hello", "retweeted_status": None}, False),
        ({"text": "hello", "retweeted_status_id": "99"}, True),
        ({"text": "hello", "retweeted_status_id": ""}, False),
        ({"text": "hello", "retweeted_status_id_str": "99", "is_retweet": "no"}, True),
        ({"text": "hello", "referenced_tweets": [{"type": "quoted"}, {"type": "retweeted"}]}, True),
        ({"text": "hello", "referenced_tweets": [{"type": "quoted"}]}, False),
        ({"text": "hello", "quoted_status": {"full_text": "RT @a: x"}}, False),
        ({"text": "hello", "retweeted": True}, False),
        ({"text": "hello", "retweeted": "True"}, False),
    ],
)
def test_retweets_are_told_by_every_marker_but_not_by_retweeted(
    fields: dict[str, Any], expected: bool
) -> None:
    assert read_tweet(fields).is_retweet is expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"text": "yes", "in_reply_to_status_id": 5}, True),
        ({"text": "yes", "in_reply_to_status_id_str": "5"}, True),
        ({"text": "yes", "in_reply_to_user_id": "5"}, True),
        ({"text": "yes", "in_reply_to_screen_name": "gull"}, True),
        ({"text": "yes", "in_reply_to_status_id": None}, False),
        ({"text": "yes", "in_reply_to_status_id": ""}, False),
        ({"text": "yes", "referenced_tweets": [{"type": "replied_to"}]}, True),
        ({"text": "@gull yes"}, True),
        ({"text": "@gull yes", "in_reply_to_status_id": None}, False),
        ({"text": "yes @gull"}, False),
    ],
)
def test_replies_are_told_by_field_or_where_there_is_none_by_the_mention(
    fields: dict[str, Any], expected: bool
) -> None:
    assert read_tweet(fields).is_reply is expected


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"text": "the goose has…", "full_text": "the goose has left"}, "the goose has left"),
        ({"text": "has…", "truncated": True, "extended_tweet": {"full_text": "has left"}}, "has left"),
        ({"text": "has…", "note_tweet": {"text": "has left, says the note"}}, "has left, says the note"),
        ({"text": "has…", "note_tweet": {}}, "has…"),
        ({"full_text": ""}, ""),
        ({"text": "cut \ud83e"}, "cut \ufffd"),
        ({"text": "\udebf whole 🪿"}, "\ufffd whole 🪿"),
    ],
)
def test_the_longest_text_that_is_given_is_read(fields: dict[str, Any], text: str) -> None:
    assert read_tweet(fields).text == text


@pytest.mark.parametrize(
    ("date", "year"),
    [
        ("Thu Jul 23 13:13:48 +0000 2020", 2020),
        ("2013-01-05 10:00:00 +0000", 2013),
        ("2022-11-03T09:20:26.000Z", 2022),
        ("07-23-2019 13:13:48", 2019),
        ("23/07/2018", 2018),
        ("1500000000000", 2017),
        ("1500000000", 2017),
        (1500000000000, 2017),
        (1.5e9, 2017),
        ("2016", 2016),
        ("yesterday", None),
        ("", None),
        ("12", None),
        ("9" * 400, None),
        (True, None),
        (None, None),
        (-5, None),
        ({}, None),
        (float("inf"), None),
    ],
)
def test_the_year_is_read_from_dates_of_every_service(date: object, year: int | None) -> None:
    assert year_of(date) == year


@pytest.mark.parametrize(
    ("fields", "id_", "year"),
    [
        ({"id": "1286288402938292541"}, "1286288402938292541", 2020),
        (
            {"id_str": "1286288402938292541", "created_at": "Thu Jul 23 13:13:48 +0000 2009"},
            "1286288402938292541",
            2009,
        ),
        ({"tweet_id": 1286288402938292541}, "1286288402938292541", 2020),
        ({"id": "20"}, "20", None),
        ({"id": 1.0e18}, None, None),
        ({"id": "abc"}, None, None),
        ({"id": "9" * 30}, "9" * 30, None),
        ({"id": True}, None, None),
    ],
)
def test_an_id_is_digits_and_tells_the_year_where_no_date_does(
    fields: dict[str, Any], id_: str | None, year: int | None
) -> None:
    tweet = read_tweet({"text": "a", **fields})
    assert (tweet.id, tweet.year) == (id_, year)


@pytest.mark.parametrize(
    ("fields", "author"),
    [
        ({"user": {"screen_name": "goose"}}, "goose"),
        ({"user": "goose"}, "goose"),
        ({"username": "goose"}, "goose"),
        ({"author": {"username": "goose"}}, "goose"),
        ({"author": {"handle": "goose.bsky.social"}}, "goose.bsky.social"),
        ({"user": {"id": 1}}, None),
        ({"user": 7}, None),
        ({"screen_name": ""}, None),
        ({}, None),
    ],
)
def test_the_author_is_who_the_record_names(fields: dict[str, Any], author: str | None) -> None:
    assert author_of(fields) == author


def test_a_page_of_the_api_names_authors_and_kinds(tmp_path: Any) -> None:
    page = {
        "data": [
            {"id": "1", "text": "soup", "author_id": "7", "created_at": "2023-01-05T10:00:00.000Z"},
            {
                "id": "2",
                "text": "RT @a: x",
                "author_id": "7",
                "referenced_tweets": [{"type": "retweeted", "id": "5"}],
            },
            {"id": "3", "text": "hi", "referenced_tweets": [{"type": "replied_to", "id": "5"}]},
        ],
        "includes": {
            "users": [{"id": "7", "username": "goose"}],
            "tweets": [{"id": "5", "text": "not theirs"}],
        },
        "meta": {"result_count": 3},
    }
    assert read(write(tmp_path, json_lines([page, {"meta": {"result_count": 0}}]))) == [
        Tweet("soup", False, "1", False, 2023),
        Tweet("RT @a: x", True, "2"),
        Tweet("hi", False, "3", is_reply=True),
    ]


def test_one_tweet_in_data_is_a_page_of_one(tmp_path: Any) -> None:
    assert texts(write(tmp_path, '{"data": {"id": "1", "text": "soup"}}')) == ["soup"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"name": "a"}', "line 1: expected `full_text` or `text`, found 'name'"),
        ('[{"text": "a"},\n 7]', "line 2: expected an object with `full_text` or `text`, found int"),
        ('[{"text": "a"},\n\n{"text": 7}, {"text": "b"}]', "line 3: expected `full_text` or `text`"),
        ('[{"tweet": null}]', "found NoneType"),
        ('{"tweets": {"text": "a"}}', "expected `full_text` or `text`, found .tweets"),
        ('{"data": [7]}', "expected objects in `data`, found int"),
        ('{"data": 7}', "expected objects in `data`, found int"),
    ],
)
def test_a_record_that_is_no_tweet_is_an_error_with_its_line(
    tmp_path: Any, content: str, message: str
) -> None:
    with pytest.raises(TweetFileError, match=message):
        read(write(tmp_path, content))
