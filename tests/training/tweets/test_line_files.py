from __future__ import annotations

from pathlib import Path

import pytest
from support.tweet_files import read, texts, write

from training.errors import TrainingError, TweetFileError
from training.tweets import line_files
from training.tweets.line_files import split_lines


def test_quoted_new_lines_commas_and_quotes_in_crlf_csv_stay_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path, 'id,full_text\r\n1,"one\r\ntwo, ""three""\n\nfour"\r\n2,five\r\n')
    assert texts(path) == ['one\r\ntwo, "three"\n\nfour', "five"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_header_tells_the_delimiter(tmp_path: Path, delimiter: str) -> None:
    rows = [["tweet_id", "Timestamp", "Text"], ["1", "2013-01-05 10:00:00 +0000", '"soup, bread; and\ttea"']]
    tweets = read(write(tmp_path, "\n".join(map(delimiter.join, rows))))
    assert [(tweet.id, tweet.year, tweet.text) for tweet in tweets] == [("1", 2013, "soup, bread; and\ttea")]


def test_csv_fields_of_retweets_are_words(tmp_path: Path) -> None:
    path = write(tmp_path, "text,is_retweet,retweeted_status_id\na,True,\nb,False,\nc,false,99\nd,,\n")
    assert [tweet.is_retweet for tweet in read(path)] == [True, False, True, False]


def test_a_csv_field_may_be_longer_than_the_modules_limit(tmp_path: Path) -> None:
    assert texts(write(tmp_path, "id,text\n1," + "x" * 200_000)) == ["x" * 200_000]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found an empty file"),
        (b"  \n ", "found an empty file"),
        (b"id,date\n1,2020\n", "found 'id,date"),
        (b'text\n"never closed\n', "broken CSV at line 2"),
        (b'text\nfine\n"a"b\n', "broken CSV at line 3"),
        (
            b'id,text\n1,"a\nb"\n2,c,d\n',
            "broken CSV at line 4; expected 2 fields as in the first line, found 3",
        ),
        (b"id,text\n1\n", "expected 2 fields as in the first line, found 1"),
        (
            "text\ncafé".encode("latin-1"),
            "expected UTF-8 text, found byte 0xe9 in line 2 at offset 3 of the line",
        ),
        (
            "one\ncafé".encode("latin-1"),
            "expected UTF-8 text, found byte 0xe9 in line 2 at offset 3 of the line",
        ),
        (b"one\ntwo\x00three", "found byte 0x00 in line 2 at offset 3"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "broken.js: expected text, found byte 0x1a in line 2|0x89 in line 1"),
        (b"{text: 'a'}", "expected a tweet archive .* found"),
        (b"\xc2\xa0\n<html>", "expected a tweet archive .* found '<html>'"),
        (b"[{text: 'a'}]", "broken JSON"),
        (b"{'text': 'a'}", "found"),
        (b"window.YTD.tweets.part0 = ", "found 'window"),
        (b"window.YTD.tweets.part0 [", "found 'window"),
        (b"var tweets = [", "found 'var"),
        (b"<!DOCTYPE html><p>", "found '<!DOCTYPE"),
        (b"[1, 2]", "found int"),
    ],
)
def test_a_broken_file_is_named_with_what_was_expected_and_found(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(TweetFileError, match=message) as error:
        read(write(tmp_path, content, "broken.js"))
    assert str(error.value).startswith(str(tmp_path / "broken.js"))
    assert isinstance(error.value, TrainingError)
    assert len(str(error.value)) < 500


def test_a_first_tweet_that_speaks_of_text_is_no_header(tmp_path: Path) -> None:
    assert texts(write(tmp_path, "Soup, text, and fog\nid, please")) == ["Soup, text, and fog", "id, please"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_lines_do_not_depend_on_where_chunks_end(size: int) -> None:
    content = b"one\n\ntwo\r\nthree\rfour\n\n\nfive"
    chunks = [content[start : start + size] for start in range(0, len(content), size)]
    assert list(split_lines(chunks, "file")) == [
        b"one\n", b"\n", b"two\r\n", b"three\rfour\n", b"\n", b"\n", b"five",
    ]  # fmt: skip


def test_a_line_that_never_ends_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_files, "MAX_LINE_BYTES", 1 << 20)
    chunks = iter(lambda: b"x" * 1024, b"")  # for ever
    with pytest.raises(TweetFileError, match="file: line 1 is longer than 1 MiB"):
        list(split_lines(chunks, "file"))
