"""CSV and plain text, a tweet a row or a line, and how they are told from each other and from broken files.

JSON and archives are `json_stream`'s matter.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator

from training.errors import TweetFileError
from training.tweets.archive_files import split_lines
from training.tweets.json_stream import ASSIGNMENT, MAX_VALUE_BYTES, quote
from training.tweets.tweet_records import DATE_FIELDS, ID_FIELDS, TEXT_FIELDS

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
_NOT_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")


def csv_delimiter(first_line: bytes, name: str) -> str | None:
    r"""Return what separates the columns that a first line names, or None where it is no header.

    Raises:
        TweetFileError: it is a header without a column of texts.

    >>> csv_delimiter(b"id;full_text;lang\n", "file"), csv_delimiter(b"Dear diary, no text today\n", "file")
    (';', None)
    """
    try:
        line = first_line.decode()
    except UnicodeDecodeError:
        return None
    for delimiter in _DELIMITERS:
        columns = _columns(line, delimiter)
        if not all(map(_COLUMN.fullmatch, columns)) or len(set(columns)) < len(columns):
            continue
        if any(field in columns for field in TEXT_FIELDS):
            return delimiter
        if len(columns) > 1 and _OTHER_COLUMNS.intersection(columns):
            raise TweetFileError(f"{name}: expected {EXPECTED}; found {quote(line)}")
    return None


def csv_records(chunks: Iterable[bytes], name: str, delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
    r"""Give the rows of CSV by the names of their columns, each with the line it starts in.

    Raises:
        TweetFileError: broken quotes, more or fewer fields than columns, or bytes that are no UTF-8.

    >>> list(csv_records([b'id,text\n7,"soup, bread"\n'], "file", ","))
    [(2, {'id': '7', 'text': 'soup, bread'})]
    """
    # The module's limit is for the whole process and 131,072 at first: raised, never lowered.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_VALUE_BYTES))
    lines = _decoded(split_lines(chunks, name, MAX_VALUE_BYTES), name)
    columns = _columns(next(lines, ""), delimiter)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    line = 2
    try:
        for row in rows:
            if row:
                if len(row) != len(columns):
                    raise TweetFileError(
                        f"{name}: broken CSV at line {line}; expected {len(columns)} fields as in the first "
                        f"line, found {len(row)}"
                    )
                yield line, dict(zip(columns, row, strict=True))
            line = rows.line_num + 2
    except csv.Error as error:
        raise TweetFileError(f"{name}: broken CSV at line {line}; {error}") from error


def text_records(chunks: Iterable[bytes], name: str) -> Iterator[tuple[int, dict[str, str]]]:
    r"""Give the lines of plain text that are not blank, as records with a `text`, each with its number.

    Raises:
        TweetFileError: it starts as JSON, JavaScript or HTML does, or is no text.

    >>> list(text_records([b"Dear diary\n\nthe goose left\n"], "file"))
    [(1, {'text': 'Dear diary'}), (3, {'text': 'the goose left'})]
    """
    is_first = True
    lines = _decoded(split_lines(chunks, name, MAX_VALUE_BYTES), name)
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text:
            continue
        if is_first and _CODE.match(text):
            raise TweetFileError(f"{name}: expected {EXPECTED}; found {quote(text)}")
        is_first = False
        yield number, {"text": text}


def _columns(line: str, delimiter: str) -> list[str]:
    try:
        row = next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return [""]
    return [column.lower() for column in row]


def _decoded(lines: Iterable[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line.isascii() or _NOT_TEXT.search(line):
            yield _checked(line, name, number)
        else:
            yield line.decode("ascii")


def _checked(line: bytes, name: str, number: int) -> str:
    if found := _NOT_TEXT.search(line):
        raise TweetFileError(
            f"{name}: expected text, found byte 0x{line[found.start()]:02x} in line {number} at offset "
            f"{found.start()} of the line"
        )
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise TweetFileError(
            f"{name}: expected UTF-8 text, found byte 0x{line[error.start]:02x} in line {number} at offset "
            f"{error.start} of the line"
        ) from error
