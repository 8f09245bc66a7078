from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from training.errors import (
    EmptyTweetArchiveError,
    MissingTweetFileError,
    NotATweetArchiveError,
    TrainingError,
)
from training.tweets import Tweet, read_tweets

TWO = [
    {"id_str": "11", "full_text": "soup &amp; bread"},
    {"id_str": "12", "full_text": "RT @baker: the ferry is late"},
]
TWO_READ = [Tweet("soup &amp; bread", False, "11"), Tweet("RT @baker: the ferry is late", True, "12")]


def write(folder: Path, content: str | bytes, name: str = "file") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        "window.YTD.tweets.part0 = " + json.dumps([{"tweet": tweet} for tweet in TWO], indent=2),
        "window.YTD.tweet.part12 =\n" + json.dumps([{"tweet": tweet} for tweet in TWO]) + ";\n",
        "Grailbird.data.tweets_2013_01 = \n" + json.dumps(TWO),
        json.dumps(TWO),
        "\n  " + json.dumps(TWO, indent=1),
        json.dumps({"query": "(from:someone)", "tweets": TWO}),
        "\n".join(json.dumps(tweet) for tweet in TWO),
        "\r\n\r\n".join(json.dumps(tweet) for tweet in TWO) + "\r\n",
        "id_str,full_text\r\n11,soup &amp; bread\r\n12,RT @baker: the ferry is late\r\n",
        'tweet_id,"text"\n11,soup &amp; bread\n12,"RT @baker: the ferry is late"\n',
    ],
    ids=[
        "official",
        "older",
        "grailbird",
        "list",
        "indented",
        "object",
        "lines",
        "crlf-lines",
        "csv",
        "csv-text",
    ],
)
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["no-bom", "bom"])
def test_each_layout_is_told_by_its_content(tmp_path: Path, content: str, bom: bytes) -> None:
    assert read_tweets([write(tmp_path, bom + content.encode(), "misnamed.xyz")]) == TWO_READ


def test_quoted_new_lines_commas_and_quotes_in_crlf_csv_stay_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path, 'id,full_text\r\n1,"one\r\ntwo, ""three""\n\nfour"\r\n2,five\r\n')
    assert [tweet.text for tweet in read_tweets([path])] == ['one\r\ntwo, "three"\n\nfour', "five"]


def test_a_line_separator_inside_a_json_line_ends_no_line(tmp_path: Path) -> None:
    path = write(tmp_path, '{"text": "one\u2028two"}\n{"text": "three\x85four"}')
    assert [tweet.text for tweet in read_tweets([path])] == ["one\u2028two", "three\x85four"]


def test_one_json_line_is_one_tweet(tmp_path: Path) -> None:
    assert read_tweets([write(tmp_path, '{"text": "fog", "id": 5}')]) == [Tweet("fog", False, "5")]


def test_the_zip_of_an_archive_gives_its_parts_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "download"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/tweets.js", 'window.YTD.tweets.part0 = [{"tweet": {"full_text": "one"}}]')
        archive.writestr(
            "data/tweets-part1.js", 'window.YTD.tweets.part1 = [{"tweet": {"full_text": "two"}}]'
        )
        archive.writestr("data/deleted-tweets.js", 'window.YTD.x.part0 = [{"tweet": {"full_text": "gone"}}]')
        archive.writestr("data/like.js", "window.YTD.like.part0 = []")
    assert sorted(tweet.text for tweet in read_tweets([path])) == ["one", "two"]


def test_full_text_goes_before_the_cut_text(tmp_path: Path) -> None:
    path = write(tmp_path, '[{"text": "the goose has…", "full_text": "the goose has left"}]')
    assert read_tweets([path])[0].text == "the goose has left"


def test_an_empty_text_is_a_tweet(tmp_path: Path) -> None:
    assert read_tweets([write(tmp_path, '[{"full_text": ""}]')]) == [Tweet("", False)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"text": "RT @a: hello"}, True),
        ({"text": "they said RT @a: hello"}, False),
        ({"text": "rt @a hello"}, False),
        ({"text": "hello", "is_retweet": True}, True),
        ({"text": "hello", "is_retweet": False}, False),
        ({"text": "hello", "retweeted_status": {"id": 1}}, True),
        ({"text": "hello", "retweeted_status": None}, False),
        ({"text": "hello", "retweeted": True}, False),
    ],
)
def test_retweets_are_told_by_prefix_or_field_but_not_by_retweeted(
    tmp_path: Path, fields: dict[str, object], expected: bool
) -> None:
    assert read_tweets([write(tmp_path, json.dumps([fields]))])[0].is_retweet is expected


def test_csv_fields_of_retweets_are_words(tmp_path: Path) -> None:
    path = write(tmp_path, "text,is_retweet,retweeted_status_id\na,True,\nb,False,\nc,false,99\nd,,\n")
    assert [tweet.is_retweet for tweet in read_tweets([path])] == [True, False, True, False]


def test_only_a_repeated_id_drops_a_tweet(tmp_path: Path) -> None:
    first = write(tmp_path, json.dumps([{"id": 1, "text": "a"}, {"text": "same"}, {"text": "same"}]), "first")
    second = write(tmp_path, json.dumps([{"id_str": "1", "text": "a"}, {"id": 2, "text": "a"}]), "second")
    assert [tweet.text for tweet in read_tweets([first, second])] == ["a", "same", "same", "a"]


def test_an_id_that_went_through_a_float_identifies_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, '[{"id": 1.0e18, "text": "a"}, {"id": 1.0e18, "text": "b"}]')
    assert read_tweets([path]) == [Tweet("a", False), Tweet("b", False)]


def test_half_an_emoji_becomes_a_character_that_can_be_written(tmp_path: Path) -> None:
    path = write(tmp_path, r'[{"text": "cut \ud83e"}, {"text": "whole \ud83e\udebf"}]')
    texts = [tweet.text for tweet in read_tweets([path])]
    assert texts == ["cut \ufffd", "whole 🪿"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingTweetFileError, match=r"gone\.js: cannot be read \(No such file"):
        read_tweets([tmp_path / "gone.js"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found an empty file"),
        (b"  \n ", "found an empty file"),
        (b"Dear diary, today the goose left", "found 'Dear diary"),
        (b"id,date\n1,2020\n", "found 'id,date"),
        (b'[{"text": "a"', "broken JSON; .* at line 1 column 14"),
        (b'window.YTD.tweets.part0 = [{"tweet": }]', "broken JSON; Expecting value at line 1 column 12"),
        (b'{"tweets": {"text": "a"}}', "expected a list in `tweets`, found dict"),
        (b'{"text": "a"}\n{"text": b}\n', "broken JSON in line 2"),
        (b'{"name": "a"}', "tweet 1: expected `full_text` or `text`, found 'name'"),
        (b'[{"text": "a"}, 7]', "tweet 2: expected an object with `full_text` or `text`, found int"),
        (b'[{"text": 7}]', "expected `full_text` or `text`"),
        (b'[{"tweet": null}]', "found NoneType"),
        (b'text\n"never closed\n', "broken CSV after line 1"),
        (b'text\n"a"b\n', "broken CSV after line"),
        ("text\ncafé".encode("latin-1"), "expected UTF-8 text, found byte 0xe9 at offset 8"),
        (b"PK\x03\x04 not a zip", "broken zip"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_broken_file_is_named_with_what_was_expected_and_found(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(NotATweetArchiveError, match=message) as error:
        read_tweets([write(tmp_path, content, "broken.js")])
    assert str(error.value).startswith(str(tmp_path / "broken.js"))
    assert isinstance(error.value, TrainingError)
    assert len(str(error.value)) < 500


def test_a_zip_without_tweets_and_a_folder_are_no_archives(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("data/like.js", "window.YTD.like.part0 = []")
    with pytest.raises(NotATweetArchiveError, match=r"a zip without tweets\.js"):
        read_tweets([tmp_path / "a.zip"])
    with pytest.raises(NotATweetArchiveError, match="is a folder"):
        read_tweets([tmp_path])


@pytest.mark.parametrize("content", ["[]", "window.YTD.tweets.part0 = [ ]", '{"tweets": []}', "id,text\n"])
def test_an_archive_of_no_tweets_is_an_error_of_its_own(tmp_path: Path, content: str) -> None:
    with pytest.raises(EmptyTweetArchiveError, match="holds no tweets"):
        read_tweets([write(tmp_path, content)])


def test_counts_of_real_files(reference_data: Path) -> None:
    counts = set()
    for path in (reference_data / "tweets").iterdir():
        tweets = read_tweets([path])
        counts.add((path.suffix, len(tweets), sum(tweet.is_retweet for tweet in tweets)))
        assert all(tweet.id for tweet in tweets)
    assert counts == {
        (".csv", 3245, 873),
        (".json", 4575, 533),
        (".json", 4637, 335),
        (".js", 300, 104),
        (".json", 60, 0),
    }
