"""OutputText: a sequence's text while its tokens come, cut at the first stop string.

It works on bytes: a token may end inside a character, and UTF-8 finds a stop string at the same places in
bytes as in characters. Which token ids end a sequence is `sequence`'s.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Sequence
from functools import lru_cache

_Utf8Decoder = getincrementaldecoder("utf-8")


class OutputText:
    """The text of a sequence, token by token.

    Of all matches of stop strings the one that ends first counts, and of those that end at the same byte the
    longest. The result does not depend on where the tokens' borders are. Bytes that are no whole character
    become U+FFFD, as in `Tokenizer.decode`; such a U+FFFD is no part of a stop string.

    Not safe to use from several threads at once.

    Args:
        token_bytes: bytes of every token id; ids behind its end have no text.
        stop: strings that end the text; none of them is empty.
        include_stop: whether the text ends behind the stop string instead of before it.

    Example:
        >>> output_text = OutputText([b"I am", b" a", b"wake", b"."], stop=("awake",))
        >>> output_text.append(0), output_text.append(1), output_text.take()  # "a" may begin "awake"
        (None, None, 'I am ')
        >>> output_text.append(2), output_text.text
        ('awake', 'I am ')
    """

    __slots__ = (
        *("_decoder", "_held", "_include_stop", "_num_taken", "_pieces"),
        *("_state", "_stop_strings", "_token_bytes"),
    )

    def __init__(
        self, token_bytes: Sequence[bytes], stop: tuple[str, ...] = (), include_stop: bool = False
    ) -> None:
        self._token_bytes = token_bytes
        self._stop_strings = _stop_strings(stop) if stop else None
        self._include_stop = include_stop
        self._state = 0
        self._held = b""  # the last bytes, as far as they may begin a stop string
        self._decoder = _Utf8Decoder("replace")  # keeps the bytes of an incomplete character before them
        self._pieces: list[str] = []
        self._num_taken = 0

    def append(self, token_id: int, *, may_stop: bool = True) -> str | None:
        """Add a token's text.

        Args:
            token_id: the token; none comes after a stop string or `finish`.
            may_stop: False where the text must not end in this token: no stop string that this token
                completes counts, but a later token may complete one that begins in this token.

        Returns:
            The stop string that this token completed, or None. All behind it is dropped.
        """
        token = self._token_bytes[token_id] if token_id < len(self._token_bytes) else b""
        if self._stop_strings is None:
            self._pieces.append(self._decoder.decode(token))
            return None
        output = self._held + token
        self._state, num_read, stop = self._stop_strings.scan(self._state, token, may_stop)
        if stop is not None:
            end = len(self._held) + num_read
            if not self._include_stop:
                end -= len(stop.encode())
            self._held = output[:end]
            self.finish()
            return stop
        end = len(output) - self._stop_strings.num_held[self._state]
        self._held = output[end:]
        # A stop string begins with a whole character, so that nothing before it is incomplete any more.
        self._pieces.append(self._decoder.decode(output[:end], bool(self._held)))
        return None

    def finish(self) -> None:
        """Give out what was held back: no more tokens come."""
        self._pieces.append(self._decoder.decode(self._held, True))
        self._held = b""

    def take(self) -> str:
        """Return the text that became final since the last call.

        No part of a character and nothing that may become part of a stop string is among it: what was
        returned stays, and all of it joined is `text` in the end.
        """
        text = "".join(self._pieces[self._num_taken :])
        self._num_taken = len(self._pieces)
        return text

    @property
    def text(self) -> str:
        """All text that is final; after a stop string or `finish` the whole text."""
        return "".join(self._pieces)


class _StopStrings:
    """Finds several strings in a stream of bytes, at a cost per byte (Aho and Corasick, 1975).

    A state is the longest end of the stream that some stop string begins with; 0 is the empty one. About
    150 bytes of memory per byte of the stop strings.

    Attributes:
        num_held: per state, bytes of the longest end of the stream from which a stop string goes on.
    """

    __slots__ = ("_matches", "_next", "_shorter", "num_held")

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._next: dict[int, int] = {}  # state * 256 + byte → state
        self._matches: list[str | None] = [None]  # per state, the longest stop string that ends there
        depths = [0]  # per state, its number of bytes
        for string in stop:
            state = 0
            for byte in string.encode():
                key = state << 8 | byte
                if key not in self._next:
                    self._next[key] = len(depths)
                    depths.append(depths[state] + 1)
                    self._matches.append(None)
                state = self._next[key]
            self._matches[state] = string
        self._shorter = [0] * len(depths)  # per state, the next shorter end that is a state
        self.num_held = [0] * len(depths)
        with_next = {key >> 8 for key in self._next}
        # Shorter states first: a state's shorter one is complete before it.
        for key, state in sorted(self._next.items(), key=lambda item: depths[item[1]]):
            parent, byte = key >> 8, key & 255
            if parent:
                self._shorter[state], _, _ = self.scan(self._shorter[parent], bytes([byte]), may_stop=False)
            shorter = self._shorter[state]
            self._matches[state] = self._matches[state] or self._matches[shorter]
            self.num_held[state] = depths[state] if state in with_next else self.num_held[shorter]

    def scan(self, state: int, data: bytes, may_stop: bool) -> tuple[int, int, str | None]:
        """Read data up to the end of the first match; return the state, the bytes read and the match.

        Without may_stop no match counts.
        """
        following, shorter, matches = self._next, self._shorter, self._matches
        for index, byte in enumerate(data):
            while (found := following.get(state << 8 | byte)) is None and state:
                state = shorter[state]
            state = found or 0
            if may_stop and matches[state] is not None:
                return state, index + 1, matches[state]
        return state, len(data), None


_stop_strings = lru_cache(maxsize=16)(_StopStrings)  # the samples of a prompt share it
