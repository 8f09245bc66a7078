"""One record of Twitter's, in whichever of its formats, as a `Tweet`: text, kind, id, year; and its author.

Records of Mastodon and Bluesky are `post_records`' matter, finding records in files `json_stream`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeAlias

Record: TypeAlias = dict[str, Any]

TEXT_FIELDS = ("full_text", "text")
ID_FIELDS = ("id_str", "id", "tweet_id")
DATE_FIELDS = ("created_at", "timestamp", "date")
_REPLY_FIELDS = (
    "in_reply_to_status_id",
    "in_reply_to_user_id",
    "in_reply_to_screen_name",
    "in_reply_to_status_id_str",
)
# With one of them, a record that is no reply says so.
_SAYS_REPLIES = frozenset({*_REPLY_FIELDS, "in_reply_to_user_id_str", "referenced_tweets"})
_RETWEET_FIELDS = (
    "retweeted_status",
    "retweeted_status_id",
    "retweeted_status_id_str",
    "is_retweet",
    "isRetweet",
)
_TRUE_WORDS = frozenset({"true", "t", "yes", "y", "1"})
_FALSE_WORDS = frozenset({"", "false", "f", "no", "n", "0", "null", "none", "nan"})
_YEARS = {str(year): year for year in range(1970, 2100)}
_YEAR = re.compile(r"(?<!\d)(?:19[7-9]|20\d)\d(?!\d)")
# Ids before were counted, not made of the time: snowflakes began in November 2010.
_FIRST_SNOWFLAKE = 29_700_000_000
_SNOWFLAKE_EPOCH_MS = 1_288_834_974_657


class Tweet(NamedTuple):
    """One tweet as its file has it: text not cleaned, HTML entities still escaped, in full where it is given.

    `id` is None where the file gives none; `year` is that in which it was written, None where nothing tells.
    """

    text: str
    is_retweet: bool = False
    id: str | None = None
    is_reply: bool = False
    year: int | None = None


class RecordError(ValueError):
    """A record is no tweet, and nothing else that its format has; says what was expected and found."""


def read_tweet(record: Record) -> Tweet:
    """Read a record of Twitter's, in any of its formats.

    Args:
        record: an object of an archive, of API v1.1 or v2, or a row of CSV by its column names.

    Raises:
        RecordError: it has no text.

    >>> read_tweet({"id_str": "7", "full_text": "RT @a: hi", "created_at": "Thu Jul 23 13:13:48 +0000 2020"})
    Tweet(text='RT @a: hi', is_retweet=True, id='7', is_reply=False, year=2020)
    """
    get = record.get
    text = get("full_text")
    if type(text) is not str:
        text = get("text")
        if type(text) is not str:
            raise RecordError(f"expected `full_text` or `text`, found {_names(record)}")
    if longer := get("extended_tweet") or get("note_tweet"):
        text = _longer_text(longer, text)
    if not text.isascii():
        text = without_lone_surrogates(text)

    is_retweet = text.startswith("RT @") or _gives_any(record, _RETWEET_FIELDS)
    is_reply = _gives_any(record, _REPLY_FIELDS)
    if referenced := get("referenced_tweets"):
        is_retweet = is_retweet or _refers(referenced, "retweeted")
        is_reply = is_reply or _refers(referenced, "replied_to")
    if not is_reply and text.startswith("@"):
        is_reply = _SAYS_REPLIES.isdisjoint(record)

    id_ = get("id_str")
    if type(id_) is not str or not (id_.isdecimal() and id_.isascii()):
        id_ = _digits(get("id_str")) or _digits(get("id")) or _digits(get("tweet_id"))
    year = None
    if date := get("created_at") or get("timestamp") or get("date"):
        year = year_of(date)
    if year is None and id_:
        year = _snowflake_year(int(id_)) if len(id_) < 20 else None
    return Tweet(text, is_retweet, id_, is_reply, year)


def author_of(record: Record) -> str | None:
    """Return the user name of who wrote a record of Twitter's, where it says so.

    >>> author_of({"text": "hi", "user": {"screen_name": "goose"}})
    'goose'
    """
    get = record.get
    user = get("user") or get("author") or record
    if type(user) is str:
        return user
    if not isinstance(user, dict):
        return None
    name = user.get("screen_name") or user.get("username") or user.get("handle")
    return name if name and type(name) is str else None


def unwrap(value: object) -> Iterator[Record]:
    """Give the records in a value of a file: a tweet, an archive's `{"tweet": …}`, a page of API v2.

    Raises:
        RecordError: the value is none of them.

    >>> includes = {"users": [{"id": "1", "username": "b"}]}
    >>> list(unwrap({"data": [{"text": "a", "author_id": "1"}], "includes": includes}))
    [{'username': 'b', 'text': 'a', 'author_id': '1'}]
    """
    if type(value) is not dict:
        raise RecordError(f"expected an object with `full_text` or `text`, found {type(value).__name__}")
    if (tweet := value.get("tweet")) is not None or "tweet" in value:
        if type(tweet) is not dict:
            raise RecordError(f"expected an object in `tweet`, found {type(tweet).__name__}")
        yield tweet
    elif "data" in value and "text" not in value:
        yield from _page(value)
    elif not (value.keys() == {"meta"} or value.keys() == {"meta", "includes"}):  # a page without results
        yield value


def _page(page: dict[str, Any]) -> Iterator[Record]:
    tweets = page["data"] if type(page["data"]) is list else [page["data"]]
    includes = page.get("includes")
    users = includes.get("users", []) if isinstance(includes, dict) else []
    names = {
        str(user["id"]): user["username"]
        for user in users
        if isinstance(user, dict) and "id" in user and isinstance(user.get("username"), str)
    }
    for tweet in tweets:
        if type(tweet) is not dict:
            raise RecordError(f"expected objects in `data`, found {type(tweet).__name__}")
        name = names.get(str(tweet.get("author_id")))
        yield {"username": name, **tweet} if name else tweet


def year_of(date: object) -> int | None:
    """Return the year of a date, in any of the ways that services write them.

    >>> [year_of(date) for date in ("Thu Jul 23 13:13:48 +0000 2020", "2013-01-05 10:00:00", 1500000000000)]
    [2020, 2013, 2017]
    """
    if type(date) is str:
        year = _YEARS.get(date[-4:] if date[3:4] == " " else date[:4])
        if not date.isdecimal():
            found = None if year else _YEAR.search(date)
            return int(found[0]) if found else year
        if len(date) <= 4:
            return year
        date = int(date) if len(date) < 20 else 0
    if isinstance(date, int | float) and not isinstance(date, bool) and 0 < date < 1e14:
        return _YEARS.get(str(datetime.fromtimestamp(date / 1000 if date > 1e11 else date, UTC).year))
    return None


def without_lone_surrogates(text: str) -> str:
    r"""Replace halves of characters: JSON may escape half an emoji, which no UTF-8 file can hold.

    >>> without_lone_surrogates("cut \ud83e")
    'cut �'
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _longer_text(longer: object, text: str) -> str:
    if isinstance(longer, dict):
        for field in TEXT_FIELDS:
            found = longer.get(field)
            if isinstance(found, str) and found:
                return found
    return text


def _gives_any(record: Record, fields: tuple[str, ...]) -> bool:
    # Most of millions of records have none of the fields, which the first test tells soonest.
    return not record.keys().isdisjoint(fields) and any(map(_is_given, map(record.get, fields)))


def _is_given(value: object) -> bool:
    if value is None or value is False:
        return False
    if type(value) is str:  # CSV, or an id
        return value.strip().lower() not in _FALSE_WORDS
    return bool(value)


def _refers(referenced: object, kind: str) -> bool:
    if not isinstance(referenced, list):
        return isinstance(referenced, str) and kind in referenced  # CSV: the list as text
    return any(isinstance(tweet, dict) and tweet.get("type") == kind for tweet in referenced)


def _digits(value: object) -> str | None:
    # A float has lost the last digits of an id: different tweets would become one.
    if type(value) is int and value >= 0:
        return str(value)
    if type(value) is str and value.isdecimal() and value.isascii():
        return value
    return None


def _snowflake_year(id_: int) -> int | None:
    if id_ < _FIRST_SNOWFLAKE or id_ >= 1 << 63:
        return None
    milliseconds = (id_ >> 22) + _SNOWFLAKE_EPOCH_MS
    return _YEARS.get(str(datetime.fromtimestamp(milliseconds / 1000, UTC).year))


def _names(record: Record) -> str:
    return repr((", ".join(sorted(map(str, record))) or "no fields")[:60])
