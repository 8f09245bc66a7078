"""Posts of Mastodon's outbox and of Bluesky's records as a `Tweet`, with what each of them calls a retweet.

Twitter's own records are `tweet_records`' matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from html.parser import HTMLParser

from training.tweets.tweet_records import Record, RecordError, Tweet, without_lone_surrogates, year_of

PUBLIC = frozenset({"https://www.w3.org/ns/activitystreams#Public", "as:Public", "Public"})
_ACTIVITIES = ("Create", "Announce")
_BLUESKY_POST = "app.bsky.feed.post"
_BLUESKY_REPOST = "app.bsky.feed.repost"
_INNER = ("value", "record")
# A path in a repository: a collection, and a record's key where it is that of one record.
_BLUESKY_PATH = re.compile(r"(?:at://[^/]+/)?[a-z][a-zA-Z0-9-]*(?:\.[a-zA-Z0-9-]+){2,}(?:/[\w.~:-]+)?")


def is_activity(record: Record) -> bool:
    """Tell whether a record is an entry of an ActivityPub outbox."""
    return record.get("type") in _ACTIVITIES and "actor" in record and "object" in record


def read_activity(activity: Record) -> Tweet | None:
    """Read an entry of an outbox: a note is a tweet, a boost a retweet; None where not public, or no note.

    Text is escaped as tweets are: `&amp;`, `&lt;`, `&gt;`.

    Raises:
        RecordError: a note without content.

    >>> note = {"type": "Note", "to": ["as:Public"], "content": "<p>soup &amp; bread</p>", "id": "u/1"}
    >>> read_activity({"type": "Create", "actor": "https://a.example/users/goose", "object": note})
    Tweet(text='soup &amp; bread', is_retweet=False, id='u/1', is_reply=False, year=None)
    """
    year = year_of(activity.get("published"))
    id_ = _text_or_none(activity.get("id"))
    if activity["type"] == "Announce":
        return Tweet("", True, id_, False, year)
    note = activity["object"]
    if not isinstance(note, dict):
        raise RecordError(f"expected an object in `object`, found {type(note).__name__}")
    if note.get("type") != "Note" or not _is_public(note):
        return None
    content = note.get("content")
    if not isinstance(content, str):
        raise RecordError(f"expected HTML in `content`, found {type(content).__name__}")
    return Tweet(
        escape(without_lone_surrogates(plain_text(content)), quote=False),
        False,
        _text_or_none(note.get("id")) or id_,
        bool(note.get("inReplyTo")),
        year_of(note.get("published")) or year,
    )


def activity_author(activity: Record) -> str | None:
    """Return the user name in an entry's actor, the end of its address."""
    actor = activity["actor"]
    return actor.rstrip("/").rpartition("/")[2].lstrip("@") if isinstance(actor, str) else None


def plain_text(html: str) -> str:
    r"""Return the text of HTML: paragraphs after an empty line, `br` a new line, links as they read.

    >>> plain_text("<p>one<br>two &lt;3</p><p><a href='https://x.example'>@<span>gull</span></a></p>")
    'one\ntwo <3\n\n@gull'
    """
    parser = _TextParser()
    parser.feed(html)
    parser.close()
    return "".join(parser.parts).strip()


class _TextParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "br":
            self.parts.append("\n")
        elif tag == "p":
            self.parts.append("\n\n")
        elif tag in ("li", "blockquote", "pre"):
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def bluesky_records(value: Record) -> Iterator[Record] | None:
    """Give the records in a value of a Bluesky export, with their `uri` where it is given, or None.

    >>> record = {"$type": "app.bsky.feed.post"}
    >>> list(bluesky_records({"uri": "at://did/app.bsky.feed.post/1", "value": record}))
    [{'$type': 'app.bsky.feed.post', 'uri': 'at://did/app.bsky.feed.post/1'}]
    >>> bluesky_records({"text": "hi"}) is None
    True
    """
    if "$type" in value:
        return iter([value])
    for field in _INNER:
        record = value.get(field)
        if isinstance(record, dict) and "$type" in record:
            author = value.get("author")
            named = {"author": author} if isinstance(author, dict) else {}
            return iter([{**record, "uri": value.get("uri"), **named}])
    if value and all(isinstance(key, str) and _BLUESKY_PATH.fullmatch(key) for key in value):
        return _by_path(value)
    return None


def _by_path(value: Record) -> Iterator[Record]:
    for path, content in value.items():
        records: list[tuple[str | None, object]]
        if isinstance(content, list):
            records = [(None, element) for element in content]
        elif isinstance(content, dict) and "/" not in path:
            records = [(f"{path}/{key}", record) for key, record in content.items()]
        else:
            records = [(path, content)]
        for uri, record in records:
            if not isinstance(record, dict):
                raise RecordError(f"expected an object under {path!r}, found {type(record).__name__}")
            inner = next((record[field] for field in _INNER if isinstance(record.get(field), dict)), record)
            yield {**inner, "uri": uri or record.get("uri")}


def read_bluesky(record: Record) -> Tweet | None:
    """Read a record of a Bluesky repository: a post or a repost, None for likes, follows and so on.

    Raises:
        RecordError: a post without a text.

    >>> read_bluesky({"$type": "app.bsky.feed.post", "text": "fog", "createdAt": "2024-05-01T10:00:00Z"})
    Tweet(text='fog', is_retweet=False, id=None, is_reply=False, year=2024)
    """
    kind = record.get("$type")
    if kind not in (_BLUESKY_POST, _BLUESKY_REPOST):
        return None
    id_, year = _text_or_none(record.get("uri")), year_of(record.get("createdAt"))
    if kind == _BLUESKY_REPOST:
        return Tweet("", True, id_, False, year)
    text = record.get("text")
    if not isinstance(text, str):
        raise RecordError(f"expected `text` in a post, found {type(text).__name__}")
    return Tweet(
        escape(without_lone_surrogates(text), quote=False), False, id_, bool(record.get("reply")), year
    )


def _is_public(note: Record) -> bool:
    for field in ("to", "cc"):
        audience = note.get(field)
        if any(
            str(address) in PUBLIC for address in (audience if isinstance(audience, list) else [audience])
        ):
            return True
    return False


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
