"""The rules that make a tweet plain text, and the count of what each of them dropped.

Every rule is a function of one text. Reading files lives in `tweets`, joining tweets in `dataset`.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import overload

import numpy as np
from numpy.typing import NDArray

from training.corpus.text_store import TextStore
from training.errors import HyperParameterError
from training.tweets.tweet_records import Tweet

MIN_PLAIN_WORDS = 3
# A link goes with the space before it or, where something else stands before it, the space after it.
_LINK = re.compile(r" https?:\S+|https?:\S+ ?")
_LEADING_MENTIONS = re.compile(r"\s*(?:@\w+\s+)+")
_BLANK_LINES = re.compile(r"\n{3,}")
_NOT_PLAIN = ("http", "@", "#")
_RETWEET, _REPLY, _SHORT, _KEPT = range(4)


@dataclass(frozen=True, kw_only=True)
class CleaningRules:
    """What is kept of a tweet; the defaults are huggingtweets'.

    Attributes:
        keep_new_lines: a tweet keeps its lines, instead of becoming one.
        drop_replies: replies go, and are counted.
        strip_mentions: the mentions that a reply starts with go.
        min_words: a tweet with fewer plain words is short, 0 to 100; 0 keeps all but empty ones.

    Raises:
        HyperParameterError: `min_words` out of range.
    """

    keep_new_lines: bool = False
    drop_replies: bool = False
    strip_mentions: bool = False
    min_words: int = MIN_PLAIN_WORDS

    def __post_init__(self) -> None:
        if not 0 <= self.min_words <= 100:
            raise HyperParameterError(f"min_words is {self.min_words}, expected 0 to 100")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many tweets there were and why they went: downloaded − retweets − replies − short = kept.

    A tweet is counted once, for the first reason to drop it. `replies` are those dropped on request.
    """

    downloaded: int
    retweets: int
    short: int
    replies: int = 0

    @property
    def kept(self) -> int:
        """Tweets that are left to learn from."""
        return self.downloaded - self.retweets - self.replies - self.short


@dataclass(frozen=True)
class Texts(Sequence[str]):
    """Some texts of a store, by their indices, in order."""

    store: TextStore
    indices: NDArray[np.int64]  # [texts]

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Texts: ...
    def __getitem__(self, index: int | slice) -> str | Texts:
        if isinstance(index, slice):
            return Texts(self.store, self.indices[index])
        return self.store[int(self.indices[index])]

    def __iter__(self) -> Iterator[str]:
        return (self.store[index] for index in self.indices.tolist())


@dataclass(frozen=True, kw_only=True)
class CleanedTweets:
    """One person's cleaned texts in archive order, and what was counted on the way.

    Attributes:
        kept: the texts to learn from.
        counts: of distinct tweets.
        num_duplicates: tweets whose id had been read before; counted nowhere else.
        num_replies: replies among all distinct tweets but retweets, dropped or not.
        per_year: distinct tweets by the year they were written in, in order; the years first, then `unknown`.
    """

    kept: Texts
    counts: Counts
    num_duplicates: int
    num_replies: int
    per_year: dict[str, int]


def decode_entities(text: str) -> str:
    """Decode `&amp;`, `&lt;` and `&gt;`, the three that tweets escape; in this order, `&amp;` first.

    >>> decode_entities("soup &amp; bread &lt;3")
    'soup & bread <3'
    >>> decode_entities("&amp;gt; &quot;")
    '> &quot;'
    """
    if "&" not in text:
        return text
    return text.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")


def remove_links(text: str) -> str:
    """Remove everything from `http:` or `https:` to the next white space.

    >>> remove_links("look https://t.co/x here")
    'look here'
    >>> remove_links("https://t.co/x look")
    'look'
    """
    return _LINK.sub("", text) if "http" in text else text


def strip_leading_mentions(text: str) -> str:
    """Remove the mentions that a text starts with, as replies do; a text of mentions alone becomes empty.

    >>> strip_leading_mentions("@goose @gull thank you @all")
    'thank you @all'
    """
    mentions = _LEADING_MENTIONS.match(text + " ")
    return text[mentions.end() :] if mentions else text


def collapse_white_space(text: str) -> str:
    r"""Make each run of white space, new lines too, one space, and none at the ends.

    >>> collapse_white_space(" one\n\n two\t three ")
    'one two three'
    """
    return " ".join(text.split())


def collapse_lines(text: str) -> str:
    r"""Collapse the white space within each line; at most one empty line in a row, none at the ends.

    >>> collapse_lines(" one \r\n\n\n\n two\t three ")
    'one\n\ntwo three'
    """
    lines = "\n".join(" ".join(line.split()) for line in text.splitlines())
    return _BLANK_LINES.sub("\n\n", lines).strip("\n")


def is_short(text: str, min_words: int = MIN_PLAIN_WORDS) -> bool:
    """Tell whether fewer than `min_words` words are plain: without `http`, `@` and `#`, in any case of
    letters.

    >>> is_short("thank you @someone #happy")
    True
    >>> is_short("thank you all")
    False
    """
    words = text.split()
    if len(words) < min_words:
        return True
    lowered = text.lower()
    if not any(mark in lowered for mark in _NOT_PLAIN):
        return not words
    num_plain = sum(all(mark not in word for mark in _NOT_PLAIN) for word in lowered.split())
    return num_plain < min_words or not words


def clean_text(text: str, rules: CleaningRules = CleaningRules()) -> str:
    r"""Apply the rules to one tweet: entities, links, mentions where asked for, then white space.

    >>> clean_text("salt &amp; fog\nhttps://t.co/x")
    'salt & fog'
    """
    text = remove_links(decode_entities(text))
    if rules.strip_mentions:
        text = strip_leading_mentions(text)
    return collapse_lines(text) if rules.keep_new_lines else collapse_white_space(text)


def clean(
    tweets: Iterable[Tweet],
    rules: CleaningRules = CleaningRules(),
    store: TextStore | None = None,
) -> CleanedTweets:
    """Drop repeated ids, retweets and, where asked for, replies; clean the rest; drop what is short then.

    Args:
        tweets: of one person; read once, so that they may come from a file of any length.
        rules: what is kept of a tweet.
        store: where the kept texts go, a new one where None.

    >>> cleaned = clean([Tweet("RT @a: one two three", True), Tweet("Honk."), Tweet("I made more soup")])
    >>> list(cleaned.kept), cleaned.counts
    (['I made more soup'], Counts(downloaded=3, retweets=1, short=1, replies=0))
    """
    store = TextStore() if store is None else store
    start = len(store)
    # A row for each tweet, 12 bytes: duplicates are known only when all ids are.
    ids, kinds, replies, years = array("Q"), bytearray(), bytearray(), array("H")
    for tweet in tweets:
        ids.append(_id_number(tweet.id))
        years.append(tweet.year or 0)
        replies.append(tweet.is_reply and not tweet.is_retweet)
        if tweet.is_retweet:
            kinds.append(_RETWEET)
        elif rules.drop_replies and tweet.is_reply:
            kinds.append(_REPLY)
        elif is_short(text := clean_text(tweet.text, rules), rules.min_words):
            kinds.append(_SHORT)
        else:
            kinds.append(_KEPT)
            store.append(text)

    distinct = _first_of_each(np.frombuffer(ids, np.uint64))
    kind = np.frombuffer(kinds, np.uint8)
    in_store = start + np.cumsum(kind == _KEPT) - 1  # index of a kept tweet's text
    years_read, per_year = np.unique(np.frombuffer(years, np.uint16)[distinct], return_counts=True)
    num_of_kind = np.bincount(kind[distinct], minlength=4).tolist()
    by_year = {str(year): number for year, number in zip(years_read.tolist(), per_year.tolist(), strict=True)}
    if "0" in by_year:
        by_year["unknown"] = by_year.pop("0")
    return CleanedTweets(
        kept=Texts(store, in_store[distinct & (kind == _KEPT)]),
        counts=Counts(
            downloaded=int(distinct.sum()),
            retweets=num_of_kind[_RETWEET],
            replies=num_of_kind[_REPLY],
            short=num_of_kind[_SHORT],
        ),
        num_duplicates=int((~distinct).sum()),
        num_replies=int(np.frombuffer(replies, np.uint8)[distinct].sum()),
        per_year=by_year,
    )


def _id_number(id_: str | None) -> int:
    """Return an id as 64 bits: itself below 2⁶³, else a hash with the highest bit set; 0 for no id."""
    if not id_:
        return 0
    if id_.isdecimal() and id_.isascii() and (number := int(id_)) < 1 << 63:
        return number
    return int.from_bytes(blake2b(id_.encode(), digest_size=8).digest()) | 1 << 63


def _first_of_each(ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return a mask of the ids that stand for the first time; every 0 does."""
    mask: NDArray[np.bool_] = ids == 0
    known = np.flatnonzero(~mask)
    mask[known[np.unique(ids[known], return_index=True)[1]]] = True
    return mask
