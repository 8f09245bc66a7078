"""JSON values one at a time out of a file of any length: of lists, lines, JavaScript, and lists in objects.

A value is bounded, the file is not; what a value means is `tweet_records`' matter. No library does this:
orjson and msgspec read whole texts, ijson tells no lines and crashes on some files (docs/decisions.md).
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from typing import NoReturn

import orjson

from training.errors import TweetFileError

MAX_VALUE_BYTES = 256 << 20
# Members of an object that hold its records: they are read one by one, whatever their length.
STREAMED_LISTS = frozenset({"tweets", "orderedItems", "records"})

# `window.YTD.tweets.part0 = [`, `window.YTD.tweet.part0 = [`, `Grailbird.data.tweets_2013_01 = [`
ASSIGNMENT = re.compile(r"[A-Za-z_$][\w$.]*\s*=\s*(?=[\[{])")
# So far a separator is looked for that ends a value.
LOOK_AHEAD_BYTES = 1 << 20
_MAX_ASSIGNMENT_BYTES = 4096
_WHITE_SPACE = re.compile(rb"[ \t\r\n]*")
# From the end of one element of a list to the first field name of the next.
_SEPARATOR = re.compile(rb'\s*,\s*\{\s*"[^"\\]*"')


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


class JsonValues:
    """The records of one file, in order; iterate once.

    A list gives its elements; so does one in a member named `tweets`, `orderedItems` or `records` of the
    object that a file starts with. Any other object is a record itself, wherever its lines end.

    Args:
        chunks: the file's UTF-8, in pieces of any length but 0.
        name: what errors call the file.

    Attributes:
        line: the line, from 1, that the value given last starts in.

    Raises:
        TweetFileError: while iterating; broken JSON or UTF-8, with its line; a value of over 256 MiB.

    >>> list(JsonValues([b'[{"a": 1}, ', b'{"a": 2}]'], "file"))
    [{'a': 1}, {'a': 2}]
    >>> list(JsonValues([b'window.YTD.tweets.part0 = [{"a": 1}]'], "file"))
    [{'a': 1}]
    """

    def __init__(self, chunks: Iterable[bytes], name: str) -> None:
        self.name = name
        self.line = 1
        self._chunks = iter(chunks)
        self._text = b""  # a window on the file
        self._position = 0  # in the window, of what comes next
        self._dropped = 0  # bytes before the window
        self._counted = 0  # in the window: up to here its lines are counted
        self._num_lines = 0  # before that place
        self._ended = False  # nothing comes behind the window

    def __iter__(self) -> Iterator[object]:
        is_first = True
        while character := self._peek():
            if character == b"[":
                yield from self._elements()
            elif character == b"{":
                if is_first:
                    yield from self._object()
                else:
                    yield self._value()
                is_first = False
                self._peek()
                yield from self._values_before(b"\n", 1)
            elif character == b";":
                self._position += 1
            elif assignment := ASSIGNMENT.match(self._decoded(self._position, _MAX_ASSIGNMENT_BYTES)):
                self._position += len(assignment[0].encode())
            elif len(self._text) - self._position > _MAX_ASSIGNMENT_BYTES or not self._more():
                self._fail("expected `[` or `{`", self._position)

    def _elements(self) -> Iterator[object]:
        self._position += 1
        closes = self._peek() == b"]"
        while not closes:
            yield self._value()
            separator = _SEPARATOR.match(self._text, self._position)
            closes = self._closes(b"]")
            if separator:
                yield from self._values_before(separator[0], separator[0].index(b"{"))
        self._position += 1

    def _object(self) -> Iterator[object]:
        line, start = self._line_at(self._position), self._dropped + self._position
        members: dict[object, object] = {}
        is_streamed = False
        self._position += 1
        closes = self._peek() == b"}"
        while not closes:
            if self._peek() != b'"':
                self._fail("Expecting a field name in double quotes", self._position)
            key = self._value()
            if self._peek() != b":":
                self._fail("Expecting ':'", self._position)
            self._position += 1
            if self._peek() == b"[" and key in STREAMED_LISTS:
                is_streamed = True
                yield from self._elements()
            else:
                members[key] = self._value()
                if self._dropped + self._position - start > MAX_VALUE_BYTES and not is_streamed:
                    self._fail_of_length(line)
            closes = self._closes(b"}")
        self._position += 1
        if not is_streamed:
            self.line = line
            yield members

    def _closes(self, bracket: bytes) -> bool:
        """Go to the bracket and return True, or past the comma before another element and return False."""
        character = self._peek()
        if character == bracket:
            return True
        if character != b",":
            self._fail(f"Expecting ',' or '{bracket.decode()}'", self._position)
        self._position += 1
        self._peek()
        return False

    def _values_before(self, separator: bytes, num_skipped: int) -> Iterator[object]:
        """Give the values that a separator ends and orjson reads, which is several times as fast as `_value`.

        Args:
            separator: one that probably ends the next value, and those behind it.
            num_skipped: how many of its bytes are no part of the value behind it.
        """
        self._count_lines(self._position)
        has_one_line = separator == b"\n"
        text = self._text
        while True:
            start = self._position
            end = text.find(separator, start, start + LOOK_AHEAD_BYTES)
            if end < 0:
                if len(text) - start >= LOOK_AHEAD_BYTES or not self._more():
                    return
                text = self._text
                continue
            try:
                value = orjson.loads(text[start:end])
            except ValueError:  # the separator is inside of the value, or the value has half an emoji
                return
            self.line = self._num_lines + 1
            self._position = self._counted = end = end + num_skipped
            self._num_lines += 1 if has_one_line else text.count(b"\n", start, end)
            yield value

    def _value(self) -> object:
        """Return the value that starts here, whatever comes behind it, and go to its end."""
        self._count_lines(self._position)
        self.line = self._num_lines + 1
        num_bytes = 4096
        while True:
            text = self._decoded(self._position, num_bytes)
            try:
                value, end = _DECODER.raw_decode(text)
                problem, is_cut = "", end == len(text)  # a number may go on
            except json.JSONDecodeError as error:
                # A value that is cut fails at the text's end, or for a string that started before.
                problem, end = error.msg, error.pos
                is_cut = problem.startswith("Unterminated") or end > len(text) - 16
            except RecursionError:
                problem, end, is_cut = "nested too deeply", 0, False
            except ValueError as error:  # NaN, Infinity, or an integer of over 4,300 digits
                problem, end, is_cut = str(error).partition(";")[0], 0, False
            if is_cut and (self._position + num_bytes < len(self._text) or self._more()):
                num_bytes *= 2
                continue
            end = self._position + len(text[:end].encode())
            if problem:
                self._fail(problem, end)
            self._position = end
            return value

    def _peek(self) -> bytes:
        """Go to the next character that is no white space, and return it; empty at the end."""
        while True:
            match = _WHITE_SPACE.match(self._text, self._position)
            assert match is not None  # it may be empty
            self._position = match.end()
            if self._position < len(self._text):
                return self._text[self._position : self._position + 1]
            if not self._more():
                return b""

    def _more(self) -> bool:
        """Drop what was read from the window, and double the rest at least; False at the end of the file."""
        left = self._text[self._position :]
        if len(left) > MAX_VALUE_BYTES:
            self._fail_of_length(self._line_at(self._position))
        parts, num_new = [left], 0
        while num_new <= len(left) and (chunk := next(self._chunks, b"")):
            parts.append(chunk)
            num_new += len(chunk)
        if not num_new:
            self._ended = True
            return False
        self._count_lines(self._position)
        self._dropped += self._position
        self._text, self._position, self._counted = b"".join(parts), 0, 0
        return True

    def _decoded(self, start: int, num_bytes: int) -> str:
        """Return a part of the window as text, without a character that is cut at its end."""
        end = start + num_bytes
        is_last = self._ended and end >= len(self._text)
        try:
            return codecs.utf_8_decode(self._text[start:end], "strict", is_last)[0]
        except UnicodeDecodeError as error:
            position = start + error.start
            raise TweetFileError(
                f"{self.name}: expected UTF-8 text, found byte 0x{self._text[position]:02x} in line "
                f"{self._line_at(position)} at offset {self._dropped + position}"
            ) from error

    def _count_lines(self, position: int) -> None:
        self._num_lines = self._line_at(position) - 1
        self._counted = position

    def _line_at(self, position: int) -> int:
        return self._num_lines + 1 + self._text.count(b"\n", self._counted, position)

    def _fail(self, problem: str, position: int) -> NoReturn:
        found = self._decoded(position, 240)[:60]
        line_start = self._text.rfind(b"\n", 0, position) + 1
        column = len(self._text[line_start:position].decode(errors="replace")) + 1
        raise TweetFileError(
            f"{self.name}: broken JSON; {problem} at line {self._line_at(position)} column {column}, "
            f"found {found!r}"
        )

    def _fail_of_length(self, line: int) -> NoReturn:
        raise TweetFileError(
            f"{self.name}: a value of more than {MAX_VALUE_BYTES >> 20} MiB at line {line}; "
            "expected a bracket or quote that closes it before"
        )
