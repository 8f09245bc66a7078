"""The rules that make a tweet plain text, and the count of what each of them dropped.

Every rule is a function of one text. Reading files lives in `tweets`, joining tweets in `dataset`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from training.tweets import Tweet

MIN_PLAIN_WORDS = 3
# A link goes with the space before it or, where something else stands before it, the space after it.
_LINK = re.compile(r" https?:\S+|https?:\S+ ?")
_NOT_PLAIN = ("http", "@", "#")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many tweets there were and why they went: downloaded − retweets − short = kept."""

    downloaded: int
    retweets: int
    short: int

    @property
    def kept(self) -> int:
        """Tweets that are left to learn from."""
        return self.downloaded - self.retweets - self.short


@dataclass(frozen=True)
class CleanedTweets:
    """The cleaned texts in archive order, and the counts."""

    kept: tuple[str, ...]
    counts: Counts


def decode_entities(text: str) -> str:
    """Decode `&amp;`, `&lt;` and `&gt;`, the three that tweets escape; in this order, `&amp;` first.

    >>> decode_entities("soup &amp; bread &lt;3")
    'soup & bread <3'
    >>> decode_entities("&amp;gt; &quot;")
    '> &quot;'
    """
    return text.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")


def remove_links(text: str) -> str:
    """Remove everything from `http:` or `https:` to the next white space.

    >>> remove_links("look https://t.co/x here")
    'look here'
    >>> remove_links("https://t.co/x look")
    'look'
    """
    return _LINK.sub("", text)


def collapse_white_space(text: str) -> str:
    r"""Make each run of white space, new lines too, one space, and none at the ends.

    >>> collapse_white_space(" one\n\n two\t three ")
    'one two three'
    """
    return " ".join(text.split())


def is_short(text: str) -> bool:
    """Tell whether fewer than three words are plain: without `http`, `@` and `#`, in any case of letters.

    >>> is_short("thank you @someone #happy")
    True
    >>> is_short("thank you all")
    False
    """
    num_plain = sum(all(mark not in word.lower() for mark in _NOT_PLAIN) for word in text.split())
    return num_plain < MIN_PLAIN_WORDS


def clean_text(text: str) -> str:
    r"""Apply the rules to one tweet: entities, then links, then white space.

    >>> clean_text("salt &amp; fog\nhttps://t.co/x")
    'salt & fog'
    """
    return collapse_white_space(remove_links(decode_entities(text)))


def clean(tweets: Iterable[Tweet]) -> CleanedTweets:
    """Drop retweets, clean the rest, drop what is short then.

    >>> clean([Tweet("RT @a: one two three", True), Tweet("Honk.", False), Tweet("I made more soup", False)])
    CleanedTweets(kept=('I made more soup',), counts=Counts(downloaded=3, retweets=1, short=1))
    """
    downloaded = retweets = short = 0
    kept: list[str] = []
    for tweet in tweets:
        downloaded += 1
        if tweet.is_retweet:
            retweets += 1
            continue
        text = clean_text(tweet.text)
        if is_short(text):
            short += 1
        else:
            kept.append(text)
    return CleanedTweets(tuple(kept), Counts(downloaded=downloaded, retweets=retweets, short=short))
