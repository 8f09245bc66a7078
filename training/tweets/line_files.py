"""Rows of CSV and lines of plain text, each as a record with its line.

Which of them a file holds is told in `reading`; JSON is `json_stream`'s matter.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator

from training.errors import TweetFileError

MAX_LINE_BYTES = 256 << 20
_NOT_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")


def csv_columns(line: str, delimiter: str) -> list[str]:
    """Return the names of columns in the first line of CSV, in lower case; `[""]` for broken quotes."""
    try:
        row = next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return [""]
    return [column.lower() for column in row]


def csv_records(chunks: Iterable[bytes], name: str, delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
    r"""Give the rows of CSV by the names of their columns, each with the line it starts in.

    Raises:
        TweetFileError: broken quotes, more or fewer fields than columns, control characters, or
            bytes that are no UTF-8.

    >>> list(csv_records([b'id,text\n7,"soup, bread"\n'], "file", ","))
    [(2, {'id': '7', 'text': 'soup, bread'})]
    """
    # The module's limit is for the whole process and 131,072 at first: raised, never lowered.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    lines = _text_lines(chunks, name)
    columns = csv_columns(next(lines, ""), delimiter)
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
        TweetFileError: control characters, or bytes that are no UTF-8.

    >>> list(text_records([b"Dear diary\n\nthe goose left\n"], "file"))
    [(1, {'text': 'Dear diary'}), (3, {'text': 'the goose left'})]
    """
    for number, line in enumerate(_text_lines(chunks, name), start=1):
        if text := line.strip():
            yield number, {"text": text}


def split_lines(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    r"""Split chunks at their line feeds, which stay.

    Raises:
        TweetFileError: a line is longer than 256 MiB.

    >>> list(split_lines([b"one\ntw", b"o\n\nthree"], "file"))
    [b'one\n', b'two\n', b'\n', b'three']
    """
    left: list[bytes] = []
    num_left = num_lines = 0
    for chunk in chunks:
        lines = io.BytesIO(chunk).readlines()
        if left and lines[0].endswith(b"\n"):
            lines[0] = b"".join([*left, lines[0]])
            left, num_left = [], 0
        if not lines[-1].endswith(b"\n"):
            left.append(lines.pop())
            num_left += len(left[-1])
            if num_left > MAX_LINE_BYTES:
                raise TweetFileError(
                    f"{name}: line {num_lines + len(lines) + 1} is longer than {MAX_LINE_BYTES >> 20} MiB"
                )
        num_lines += len(lines)
        yield from lines
    if left:
        yield b"".join(left)


def _text_lines(chunks: Iterable[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(split_lines(chunks, name), start=1):
        if found := _NOT_TEXT.search(line):
            raise _unexpected("text", line, found.start(), name, number)
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise _unexpected("UTF-8 text", line, error.start, name, number) from error
        yield text


def _unexpected(expected: str, line: bytes, offset: int, name: str, number: int) -> TweetFileError:
    return TweetFileError(
        f"{name}: expected {expected}, found byte 0x{line[offset]:02x} in line {number} at offset {offset} "
        "of the line"
    )
