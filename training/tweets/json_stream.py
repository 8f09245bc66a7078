"""JSON values one at a time out of a file of any length: of lists, lines, JavaScript, and lists in objects.

A value is bounded, the file is not. What a value means is `tweet_records`' matter.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Generator, Iterable, Iterator
from itertools import chain
from typing import NoReturn

import orjson

from training.errors import TweetFileError
from training.tweets.archive_files import CHUNK_BYTES, split_lines

MAX_VALUE_BYTES = 256 << 20
# Members of an object that hold its records: they are read one by one, whatever their length.
STREAMED_LISTS = frozenset({"tweets", "orderedItems", "records"})

# `window.YTD.tweets.part0 = [`, `window.YTD.tweet.part0 = [`, `Grailbird.data.tweets_2013_01 = [`
ASSIGNMENT = re.compile(r"[A-Za-z_$][\w$.]*\s*=\s*(?=[\[{])")
_WHITE_SPACE = re.compile(r"[ \t\r\n]*")
_COMMA = re.compile(r"\s*,\s*")
# From one element of a list to the first field name of the next.
_SEPARATOR = re.compile(r'\s*,\s*\{\s*"[^"\\]*"')


class _NotANumberError(ValueError):
    """NaN and Infinity, which JSON has not."""


def _refuse_constant(name: str) -> NoReturn:
    raise _NotANumberError(name)


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


class JsonValues:
    """The records of one file, in order; iterate once.

    A list gives its elements; so does one in a member named `tweets`, `orderedItems` or `records` of the
    object that a file starts with. Any other object is a record itself, wherever its lines end.

    Args:
        chunks: the file's UTF-8.
        name: what errors call the file.

    Raises:
        TweetFileError: while iterating; broken JSON, with its line; a value of over 256 MiB.

    >>> list(JsonValues([b'[{"a": 1}, ', b'{"a": 2}]'], "file"))
    [{'a': 1}, {'a': 2}]
    >>> list(JsonValues([b'window.YTD.tweets.part0 = [{"a": 1}]'], "file"))
    [{'a': 1}]
    """

    def __init__(self, chunks: Iterable[bytes], name: str) -> None:
        self.name = name
        self._chunks = iter(chunks)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""  # a window on the file
        self._position = 0  # in the window, of what comes next
        self._ended = False
        self._num_bytes = 0  # before the next chunk
        self._lines_before = 0  # before the window
        self._dropped = 0  # characters before the window
        self._start = 0  # in the window, of the value given last, or of the batch that it is in
        self._index = 0  # of that value in its batch
        self._singly_until = 0  # in the window: no batches before this
        self._object_line: int | None = None

    @property
    def line(self) -> int:
        """The line, from 1, that the value given last starts in."""
        if self._object_line is not None:
            return self._object_line
        position = self._start
        for _ in range(self._index):
            _, position = _DECODER.raw_decode(self._text, position)
            comma = _COMMA.match(self._text, position)
            position = comma.end() if comma else position
        return self._line_at(position)

    def __iter__(self) -> Iterator[object]:
        lines_are_values = True
        while character := self._peek():
            if character == "[":
                yield from self._elements()
            elif character == "{":
                yield from self._object()
                if lines_are_values:
                    yield from self._lines()
                    lines_are_values = False
            elif character == ";":
                self._position += 1
            elif assignment := ASSIGNMENT.match(self._text, self._position):
                self._position = assignment.end()
            else:
                self._fail("expected `[` or `{`", self._position)

    def _line_at(self, position: int) -> int:
        return self._lines_before + 1 + self._text.count("\n", 0, position)

    def _peek(self) -> str:
        """Go to the next character that is no white space, and return it; empty at the end."""
        while True:
            match = _WHITE_SPACE.match(self._text, self._position)
            assert match is not None  # it may be empty
            self._position = match.end()
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._more():
                return ""

    def _more(self) -> bool:
        """Lengthen the window, at least to twice what is left in it; False at the end of the file."""
        if self._ended:
            return False
        left = self._text[self._position :]
        if len(left) > MAX_VALUE_BYTES:
            line = self._line_at(self._position)
            raise TweetFileError(
                f"{self.name}: a value of more than {MAX_VALUE_BYTES >> 20} MiB at line {line}; "
                "expected a bracket or quote that closes it before"
            )
        self._lines_before += self._text.count("\n", 0, self._position)
        self._dropped += self._position
        self._singly_until -= self._position
        self._position = 0
        parts, num_new = [left], 0
        while num_new < max(len(left), CHUNK_BYTES) and not self._ended:
            chunk = next(self._chunks, b"")
            self._ended = not chunk
            try:
                parts.append(self._decoder.decode(chunk, final=self._ended))
            except UnicodeDecodeError as error:
                line_before = self._lines_before + sum(part.count("\n") for part in parts)
                self._fail_decoding(error, line_before)
            self._num_bytes += len(chunk)
            num_new += len(parts[-1])
        self._text = "".join(parts)
        return num_new > 0

    def _value(self) -> object:
        """Return the value that starts here, and go to its end."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                # A value that the window cuts fails at the window's end, or for a string that started before.
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - 16
                if not (cut and self._more()):
                    self._fail(error.msg, error.pos)
            except RecursionError:
                self._fail("nested too deeply", self._position)
            except _NotANumberError as error:
                self._fail(f"{error} is no number of JSON", self._text.find(str(error), self._position))
            except ValueError:  # an integer of over 4,300 digits
                self._fail("a number of too many digits", self._position)
            else:
                # A number may go on behind the window.
                if end < len(self._text) or not self._more():
                    self._start, self._index, self._position = self._position, 0, end
                    return value

    def _elements(self) -> Iterator[object]:
        self._position += 1
        if self._peek() == "]":
            self._position += 1
            return
        separator: str | None = None
        while True:
            self._peek()
            if separator is not None and (yield from self._batch(separator)) and self._more():
                continue
            self._peek()
            yield self._value()
            if separator is None and (match := _SEPARATOR.match(self._text, self._position)):
                separator = match[0]
            character = self._peek()
            if character not in (",", "]"):
                self._fail("Expecting ',' or ']'", self._position)
            self._position += 1
            if character == "]":
                return

    def _batch(self, separator: str) -> Generator[object, None, bool]:
        """Give all elements before the window's last separator at once: orjson reads whole texts only.

        If that separator is inside of an element, the text before it is no sequence of values, and nothing is
        given: False.
        """
        start = self._position
        if start < self._singly_until:
            return False
        cut = self._text.rfind(separator, start)
        if cut <= start:
            self._singly_until = len(self._text)
            return False
        try:
            batch = orjson.loads(f"[{self._text[start:cut]}]")
        except ValueError:  # UnicodeEncodeError, too
            self._singly_until = cut
            return False
        self._start, self._position = start, self._text.index(",", cut) + 1
        for self._index, value in enumerate(batch):
            yield value
        return True

    def _object(self) -> Iterator[object]:
        line = self._line_at(self._position)
        start = self._dropped + self._position
        self._position += 1
        members: dict[object, object] = {}
        is_streamed = False
        closes = self._peek() == "}"
        while not closes:
            if self._peek() != '"':
                self._fail("Expecting a field name in double quotes", self._position)
            key = self._value()
            if self._peek() != ":":
                self._fail("Expecting ':'", self._position)
            self._position += 1
            if self._peek() == "[" and key in STREAMED_LISTS:
                is_streamed = True
                yield from self._elements()
            else:
                members[key] = self._value()
                if self._dropped + self._position - start > MAX_VALUE_BYTES and not is_streamed:
                    raise TweetFileError(
                        f"{self.name}: an object of more than {MAX_VALUE_BYTES >> 20} MiB at line {line}"
                    )
            closes = self._peek() == "}"
            if not closes:
                if self._peek() != ",":
                    self._fail("Expecting ',' or '}'", self._position)
                self._position += 1
        self._position += 1
        if not is_streamed:
            self._object_line = line
            yield members
            self._object_line = None

    def _lines(self) -> Iterator[object]:
        """Give a value a line, up to the first line that is none; the window starts there then."""
        left = self._text[self._position :].encode() + self._decoder.getstate()[0]
        self._object_line = self._line_at(self._position)
        self._decoder.reset()
        self._num_bytes -= len(left)
        self._dropped += self._position
        self._text, self._position, self._start, self._index, self._singly_until = "", 0, 0, 0, 0
        lines = split_lines(chain([left] if left else [], self._chunks), self.name, MAX_VALUE_BYTES)
        self._ended = True
        for line in lines:
            try:
                value = orjson.loads(line)
            except orjson.JSONDecodeError:
                if line.strip():
                    try:  # it takes what orjson does not: half an emoji, for one
                        value = _DECODER.decode(line.decode())
                    except (ValueError, RecursionError):
                        self._lines_before = self._object_line - 1
                        self._chunks, self._ended = chain([line], lines), False
                        break
                    yield value
            else:
                yield value
            self._object_line += 1
            self._num_bytes += len(line)
        self._object_line = None

    def _fail(self, problem: str, position: int) -> NoReturn:
        line = self._line_at(position)
        column = position - self._text.rfind("\n", 0, position)
        found = self._text[position : position + 60]
        raise TweetFileError(
            f"{self.name}: broken JSON; {problem} at line {line} column {column}, found {quote(found)}"
        )

    def _fail_decoding(self, error: UnicodeDecodeError, lines_before: int) -> NoReturn:
        before = error.object[: error.start]
        num_bytes = self._num_bytes - len(self._decoder.getstate()[0])
        raise TweetFileError(
            f"{self.name}: expected UTF-8 text, found byte 0x{error.object[error.start]:02x} in line "
            f"{lines_before + 1 + before.count(10)} at offset {num_bytes + error.start}"
        ) from error


def quote(text: str) -> str:
    """Return a text as errors show it: quoted, at most 60 characters."""
    return repr(text if len(text) <= 60 else text[:59] + "…")
