"""Reads tweet archives of every known layout into a list of `Tweet`.

The layout is told by a file's content, never by its name. What is worth keeping is decided in `cleaning`.
"""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.errors import EmptyTweetArchiveError, MissingTweetFileError, NotATweetArchiveError

TEXT_FIELDS = ("full_text", "text")
ID_FIELDS = ("id_str", "id", "tweet_id")
EXPECTED = (
    "a tweet archive (tweets.js or its zip), a JSON list, a JSON object with `tweets`, "
    "JSON lines, or CSV; each tweet with its text in `full_text` or `text`"
)

# `window.YTD.tweets.part0 = [`, `window.YTD.tweet.part0 = [`, `Grailbird.data.tweets_2013_01 = [`
_ASSIGNMENT = re.compile(r"[A-Za-z_$][\w$.]*\s*=\s*(?=[\[{])")
_ZIP_MEMBER = re.compile(r"(?:^|/)(?:tweets?(?:-part\d+)?|data/js/tweets/\d{4}_\d{2})\.js$")
_ZIP_MAGIC = b"PK\x03\x04"


@dataclass(frozen=True)
class Tweet:
    """One tweet as its archive has it: text not cleaned, HTML entities still escaped.

    `id` is None where the archive gives none; ids are digits, too long for a float.
    """

    text: str
    is_retweet: bool
    id: str | None = None


def read_tweets(paths: Sequence[Path]) -> list[Tweet]:
    """Read the tweets of one user from one or more files, in file order.

    A tweet whose id was already read is left out (parts of an archive may overlap); tweets without an id are
    all kept.

    Args:
        paths: the files, each of any known layout.

    Raises:
        MissingTweetFileError: a file does not exist or cannot be opened.
        NotATweetArchiveError: a file has none of the layouts, or is broken.
        EmptyTweetArchiveError: no file holds a tweet.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "any-name")
    ...     _ = path.write_text('window.YTD.tweets.part0 = [{"tweet": {"id": "7", "text": "RT @a: hi"}}]')
    ...     read_tweets([path])
    [Tweet(text='RT @a: hi', is_retweet=True, id='7')]
    """
    tweets: list[Tweet] = []
    seen_ids: set[str] = set()
    for path in paths:
        for tweet in _read_file(path):
            if tweet.id is not None and tweet.id in seen_ids:
                continue
            if tweet.id is not None:
                seen_ids.add(tweet.id)
            tweets.append(tweet)
    if not tweets:
        raise EmptyTweetArchiveError(f"{', '.join(map(str, paths))}: holds no tweets")
    return tweets


def _read_file(path: Path) -> Iterator[Tweet]:
    if path.is_dir():
        raise NotATweetArchiveError(f"{path}: is a folder; expected a file, such as the tweets.js inside it")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MissingTweetFileError(f"{path}: cannot be read ({error.strerror or error})") from error
    if content.startswith(_ZIP_MAGIC):
        yield from _zip_tweets(content, path)
    else:
        yield from _text_tweets(content, str(path))


def _zip_tweets(content: bytes, path: Path) -> Iterator[Tweet]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = sorted(name for name in archive.namelist() if _ZIP_MEMBER.search(name))
            if not names:
                raise NotATweetArchiveError(
                    f"{path}: a zip without tweets.js; expected the zip of a tweet archive"
                )
            for name in names:
                yield from _text_tweets(archive.read(name), f"{path}/{name}")
    except (zipfile.BadZipFile, RuntimeError) as error:  # RuntimeError: a password is needed
        raise NotATweetArchiveError(f"{path}: broken zip ({error})") from error


def _text_tweets(content: bytes, where: str) -> Iterator[Tweet]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotATweetArchiveError(
            f"{where}: expected UTF-8 text, found byte 0x{content[error.start]:02x} at offset {error.start}"
        ) from error
    start = text.lstrip()
    if not start:
        raise NotATweetArchiveError(f"{where}: expected {EXPECTED}; found an empty file")
    assignment = _ASSIGNMENT.match(start)
    if assignment:
        records = _json_records(start[assignment.end() :].rstrip().removesuffix(";"), where)
    elif start[0] in "[{":
        records = _json_records(start, where)
    else:
        records = _csv_records(text, where)
    for number, record in enumerate(records, start=1):
        yield _tweet(record, f"{where}: tweet {number}")


def _json_records(text: str, where: str) -> Iterable[object]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if text.startswith("{") and error.msg == "Extra data":
            return _json_lines(text, where)
        raise NotATweetArchiveError(
            f"{where}: broken JSON; {error.msg} at line {error.lineno} column {error.colno}, "
            f"found {_quote(text[error.pos :])}"
        ) from error
    except RecursionError as error:
        raise NotATweetArchiveError(f"{where}: expected {EXPECTED}; found JSON nested too deeply") from error
    if isinstance(value, list):
        return value
    if "tweets" in value:
        if isinstance(value["tweets"], list):
            return list(value["tweets"])
        raise NotATweetArchiveError(
            f"{where}: expected a list in `tweets`, found {type(value['tweets']).__name__}"
        )
    return [value]  # JSON lines of one line


def _json_lines(text: str, where: str) -> Iterator[object]:
    # Not splitlines(): U+2028 and U+0085 may stand unescaped inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise NotATweetArchiveError(
                    f"{where}: broken JSON in line {number}; expected one tweet, found {_quote(line)}"
                ) from error


def _csv_records(text: str, where: str) -> Iterator[object]:
    # newline="" keeps new lines inside quotes as they are, CRLF included.
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        fields = rows.fieldnames or ()
        if not any(field in fields for field in TEXT_FIELDS):
            raise NotATweetArchiveError(f"{where}: expected {EXPECTED}; found {_quote(text)}")
        yield from rows
    except csv.Error as error:
        raise NotATweetArchiveError(f"{where}: broken CSV after line {rows.line_num}; {error}") from error


def _tweet(record: object, where: str) -> Tweet:
    if isinstance(record, dict):
        record = record.get("tweet", record)
    if not isinstance(record, dict):
        raise NotATweetArchiveError(
            f"{where}: expected an object with `full_text` or `text`, found {type(record).__name__}"
        )
    text = next((record[field] for field in TEXT_FIELDS if isinstance(record.get(field), str)), None)
    if text is None:
        found = ", ".join(sorted(str(field) for field in record)) or "no fields"
        raise NotATweetArchiveError(f"{where}: expected `full_text` or `text`, found {_quote(found)}")
    # `retweeted` is not read: it is false for every tweet of an official archive.
    is_retweet = (
        text.startswith("RT @")
        or _is_true(record.get("is_retweet"))
        or bool(record.get("retweeted_status"))
        or bool(record.get("retweeted_status_id"))
    )
    ids = (_digits(record.get(field)) for field in ID_FIELDS)
    return Tweet(_without_lone_surrogates(text), is_retweet, next((id_ for id_ in ids if id_), None))


def _is_true(value: object) -> bool:
    if isinstance(value, str):  # CSV
        return value.strip().lower() in ("true", "t", "yes", "1")
    return value is True or value == 1


def _digits(value: object) -> str | None:
    # A float has lost the last digits of an id: different tweets would become one.
    if isinstance(value, int | str) and not isinstance(value, bool) and re.fullmatch(r"[0-9]+", str(value)):
        return str(value)
    return None


def _without_lone_surrogates(text: str) -> str:
    # JSON may escape half an emoji, "\ud83d", which no UTF-8 file can hold.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _quote(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")
