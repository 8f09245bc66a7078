"""Reads the tweets of one person out of files of every known format, one at a time.

A format is told by what a file holds, never by its name. What is worth keeping is decided in `cleaning`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from training.errors import TweetFileError
from training.tweets.archive_files import ArchiveFile, open_files
from training.tweets.json_stream import ASSIGNMENT, MAX_VALUE_BYTES, STREAMED_LISTS, JsonValues
from training.tweets.line_files import csv_columns, csv_records, text_records
from training.tweets.post_records import (
    activity_author,
    bluesky_records,
    is_activity,
    read_activity,
    read_bluesky,
)
from training.tweets.tweet_records import (
    DATE_FIELDS,
    ID_FIELDS,
    TEXT_FIELDS,
    Record,
    RecordError,
    Tweet,
    author_of,
    read_tweet,
    unwrap,
)

EXPECTED = (
    "a tweet archive (tweets.js, its folder or zip), JSON, JSON lines, CSV with a column `full_text` or "
    "`text`, an outbox.json, Bluesky's records, or plain text, a tweet a line"
)
_DELIMITERS = (",", ";", "\t")
# Columns that make a first line a header even where the text is missing.
_OTHER_COLUMNS = frozenset({*ID_FIELDS, *DATE_FIELDS, "user", "username", "screen_name", "source", "lang"})
_COLUMN = re.compile(r"[\w.:/()#-][\w .:/()#-]{0,63}")
# How broken JSON, JavaScript and web pages start; `[laughs]` starts a tweet.
_CODE = re.compile(
    rf"""\[\s*(?:[\[\]{{"]|-?\d|$) | \{{\s*(?:["'}}\[{{]|\w+\s*:|$) | "[^"]*"\s*: | <(?:!|\?|\w+[\s>])
    | {ASSIGNMENT.pattern} | (?:window|Grailbird)\.[\w.]+ | (?:var|const|let)\s+\w+\s*=""",
    re.VERBOSE,
)
_JSON = re.compile(r"""\[\s*(?:[\[\]{"]|-?\d|$)|\{\s*(?:["}]|$)|""" + ASSIGNMENT.pattern)


def read_tweets(paths: Sequence[Path], *, handle: str | None = None) -> Iterator[Tweet]:
    """Read the tweets of one person from files that may be of any length, in file order.

    A tweet that stands in several files comes several times. What a file holds beside posts (likes, follows)
    and notes that were not public are left out.

    Args:
        paths: files, zips or folders of archives, each of any known format.
        handle: whose tweets they are, in any case of letters; those that name another author are left out.

    Raises:
        TweetFileError: a file does not exist or cannot be opened.
        TweetFileError: a file has none of the formats, or is broken.
        TweetFileError: at the end, where tweets were read and all of them name other authors.
        TweetFileError: at the end, where no file holds a tweet.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "any-name")
    ...     _ = path.write_text('window.YTD.tweets.part0 = [{"tweet": {"id": "7", "text": "RT @a: hi"}}]')
    ...     list(read_tweets([path]))
    [Tweet(text='RT @a: hi', is_retweet=True, id='7', is_reply=False, year=None)]
    """
    wanted = None if handle is None else handle.lstrip("@").lower()
    is_theirs: dict[str, bool] = {}
    num_tweets = 0
    for path in paths:
        for file in open_files(path):
            for tweet, author in _read_file(file):
                if wanted is not None and author is not None:
                    theirs = is_theirs.get(author)
                    if theirs is None:
                        # A Bluesky handle is a domain, and only its first part can be a handle here.
                        theirs = wanted in (author.lower(), author.lower().partition(".")[0])
                        is_theirs[author] = theirs
                    if not theirs:
                        continue
                num_tweets += 1
                yield tweet
    if num_tweets == 0:
        names = ", ".join(map(str, paths))
        if is_theirs:
            others = sorted(is_theirs)
            listed = ", ".join(f"@{other[:50]}" for other in others[:3]) + (", …" if len(others) > 3 else "")
            raise TweetFileError(f"{names}: holds no tweets of @{wanted}; found those of {listed}")
        raise TweetFileError(f"{names}: holds no tweets")


def _read_file(file: ArchiveFile) -> Iterator[tuple[Tweet, str | None]]:
    start = next(file.chunks, b"")
    while not start.strip() and len(start) < MAX_VALUE_BYTES and (chunk := next(file.chunks, b"")):
        start += chunk
    chunks = chain([start], file.chunks)
    beginning = start.lstrip()[:4096].decode(errors="ignore")
    if not beginning:
        raise TweetFileError(f"{file.name}: expected {EXPECTED}; found an empty file")
    if _JSON.match(beginning):
        yield from _read_json(JsonValues(chunks, file.name))
        return
    columns = start[: start.find(b"\n") + 1 or None].decode(errors="replace")
    delimiter = _csv_delimiter(columns, file.name)
    if delimiter is not None:
        records = csv_records(chunks, file.name, delimiter)
    elif _CODE.match(first_line := beginning.strip().partition("\n")[0].rstrip()):
        raise TweetFileError(f"{file.name}: expected {EXPECTED}; found {first_line[:60]!r}")
    else:
        records = text_records(chunks, file.name)
    for line, record in records:
        yield _checked(record, file.name, line)


def _csv_delimiter(first_line: str, name: str) -> str | None:
    r"""Return what separates the columns that a first line names, or None where it is no header.

    Raises:
        TweetFileError: it is a header without a column of texts.

    >>> _csv_delimiter("id;full_text;lang\n", "file"), _csv_delimiter("Dear diary, no text today\n", "file")
    (';', None)
    """
    for delimiter in _DELIMITERS:
        columns = csv_columns(first_line, delimiter)
        if not all(map(_COLUMN.fullmatch, columns)) or len(set(columns)) < len(columns):
            continue
        if any(field in columns for field in TEXT_FIELDS):
            return delimiter
        if len(columns) > 1 and _OTHER_COLUMNS.intersection(columns):
            raise TweetFileError(f"{name}: expected {EXPECTED}; found {first_line[:60]!r}")
    return None


def _checked(record: Record, name: str, line: int) -> tuple[Tweet, str | None]:
    try:
        return read_tweet(record), author_of(record)
    except RecordError as error:
        raise TweetFileError(f"{name}: line {line}: {error}") from error


def _read_json(values: JsonValues) -> Iterator[tuple[Tweet, str | None]]:
    for value in values:
        try:
            # The two formats that archives have are told first: there may be millions of them.
            record = value.get("tweet", value) if type(value) is dict else None
            if type(record) is dict and "full_text" in record:
                yield read_tweet(record), author_of(record)
            else:
                yield from _read_value(value)
        except RecordError as error:
            raise TweetFileError(f"{values.name}: line {values.line}: {error}") from error


def _read_value(value: object) -> Iterator[tuple[Tweet, str | None]]:
    if type(value) is dict:
        if is_activity(value):
            if note := read_activity(value):
                yield note, activity_author(value)
            return
        for field in STREAMED_LISTS:  # in a line of its own, not the file's first object
            if isinstance(elements := value.get(field), list):
                for element in elements:
                    yield from _read_value(element)
                return
        if (records := bluesky_records(value)) is not None:
            for record in records:
                if post := read_bluesky(record):
                    yield post, author_of(record)
            return
    for tweet in unwrap(value):
        yield read_tweet(tweet), author_of(tweet)
