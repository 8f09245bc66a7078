from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.tweet_files import PUBLIC, json_lines, read, texts, write

from training.errors import TweetFileError
from training.tweets.post_records import plain_text
from training.tweets.tweet_records import Tweet

ACTOR = "https://a.example/users/goose"


def note(content: str = "<p>fog</p>", **fields: Any) -> dict[str, Any]:
    return {
        "id": "u/1/activity",
        "type": "Create",
        "actor": ACTOR,
        "published": "2023-04-05T10:00:00Z",
        "object": {
            "id": "u/1",
            "type": "Note",
            "to": [PUBLIC],
            "content": content,
            "inReplyTo": None,
            **fields,
        },
    }


def outbox(*activities: dict[str, Any]) -> str:
    return json.dumps(
        {
            "@context": "https://www.w3.org/ns/activitystreams",
            "id": "outbox.json",
            "type": "OrderedCollection",
            "totalItems": len(activities),
            "orderedItems": activities,
        }
    )


def test_an_outbox_gives_notes_boosts_and_replies(tmp_path: Path) -> None:
    boost = {
        "id": "u/2",
        "type": "Announce",
        "actor": ACTOR,
        "published": "2022-01-01T00:00:00Z",
        "object": "o/9",
    }
    path = write(
        tmp_path, outbox(note("<p>soup &amp; bread</p>"), boost, note("<p>yes</p>", inReplyTo="o/9"))
    )
    assert read(path) == [
        Tweet("soup &amp; bread", False, "u/1", False, 2023),
        Tweet("", True, "u/2", False, 2022),
        Tweet("yes", False, "u/1", True, 2023),
    ]


@pytest.mark.parametrize(
    ("audience", "is_read"),
    [
        ({"to": [PUBLIC]}, True),
        ({"to": ["as:Public"], "cc": []}, True),
        ({"to": [ACTOR + "/followers"], "cc": [PUBLIC]}, True),  # unlisted
        ({"to": PUBLIC}, True),
        ({"to": [ACTOR + "/followers"], "cc": []}, False),
        ({"to": ["https://b.example/users/gull"]}, False),  # a direct message
        ({"to": None}, False),
        ({"to": [{}]}, False),
    ],
)
def test_notes_that_are_not_public_are_left_out(
    tmp_path: Path, audience: dict[str, Any], is_read: bool
) -> None:
    path = write(tmp_path, outbox(note(**audience)))
    if is_read:
        assert texts(path) == ["fog"]
    else:
        with pytest.raises(TweetFileError):
            read(path)


def test_the_actor_is_the_author(tmp_path: Path) -> None:
    path = write(tmp_path, outbox(note(), {**note("<p>no</p>"), "actor": "https://a.example/users/gull"}))
    assert texts(path, "goose") == ["fog"]


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>one</p><p>two</p>", "one\n\ntwo"),
        ("<p>one<br>two<br />three</p>", "one\ntwo\nthree"),
        (
            '<p><span class="h-card"><a href="https://b.example/@gull">@<span>gull</span></a></span> hi</p>',
            "@gull hi",
        ),
        (
            '<a href="x"><span class="invisible">https://</span><span>x.example/a</span></a>',
            "https://x.example/a",
        ),
        ("<p>5 &lt; 6 &amp;&#39;</p>", "5 < 6 &'"),
        ("no tags", "no tags"),
        ("", ""),
    ],
)
def test_html_becomes_its_text(html: str, text: str) -> None:
    assert plain_text(html) == text


def test_a_note_without_content_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TweetFileError, match="expected HTML in `content`, found int"):
        read(write(tmp_path, outbox(note(content=7))))  # type: ignore[arg-type]


POST = {"$type": "app.bsky.feed.post", "text": "fog & soup", "createdAt": "2024-05-01T10:00:00Z"}
REPLY = {**POST, "text": "yes", "reply": {"parent": {"uri": "at://x"}}}
REPOST = {"$type": "app.bsky.feed.repost", "subject": {"uri": "at://x"}, "createdAt": "2025-05-01T10:00:00Z"}
LIKE = {"$type": "app.bsky.feed.like", "subject": {"uri": "at://x"}}
RECORDS = [POST, LIKE, REPLY, REPOST]
READ = [
    Tweet("fog &amp; soup", False, None, False, 2024),
    Tweet("yes", False, None, True, 2024),
    Tweet("", True, None, False, 2025),
]
PATHS = [f"{record['$type']}/3k{number}" for number, record in enumerate(RECORDS)]


def listed(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"uri": f"at://did:plc:a/{path}", "cid": "b", "value": record}
        for path, record in zip(PATHS, records, strict=True)
    ]


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(RECORDS),
        json_lines(RECORDS),
        json.dumps(listed(RECORDS)),
        json_lines(listed(RECORDS)),
        json.dumps({"records": listed(RECORDS), "cursor": "x"}),
        json_lines(
            [{"records": listed(RECORDS)[:2], "cursor": "x"}] * 1 + [{"records": listed(RECORDS)[2:]}]
        ),
        json.dumps(dict(zip(PATHS, RECORDS, strict=True))),
        json.dumps(
            {path: {"cid": "b", "value": record} for path, record in zip(PATHS, RECORDS, strict=True)}
        ),
        json.dumps(
            {
                "app.bsky.feed.post": [POST, REPLY],
                "app.bsky.feed.like": [LIKE],
                "app.bsky.feed.repost": [REPOST],
            }
        ),
        json.dumps({"app.bsky.feed.post": {"a": POST, "b": REPLY}, "app.bsky.feed.repost": {"c": REPOST}}),
    ],
    ids=[
        "list",
        "lines",
        "listed",
        "listed-lines",
        "records",
        "pages",
        "by-path",
        "by-path-listed",
        "by-kind",
        "by-kind-and-key",
    ],
)
def test_each_layout_of_blueskys_records_gives_posts_and_reposts(tmp_path: Path, content: str) -> None:
    assert [tweet._replace(id=None) for tweet in read(write(tmp_path, content))] == READ


def test_the_address_of_a_record_is_its_id(tmp_path: Path) -> None:
    assert [tweet.id for tweet in read(write(tmp_path, json.dumps(listed(RECORDS))))] == [
        "at://did:plc:a/app.bsky.feed.post/3k0",
        "at://did:plc:a/app.bsky.feed.post/3k2",
        "at://did:plc:a/app.bsky.feed.repost/3k3",
    ]


def test_a_domain_is_the_handle_that_it_starts_with(tmp_path: Path) -> None:
    author = {"handle": "goose.bsky.social"}
    path = write(tmp_path, json.dumps([{"uri": "at://x", "record": POST, "author": author}]))
    assert texts(path, "goose") == ["fog &amp; soup"]
    assert texts(path, "goose.bsky.social") == ["fog &amp; soup"]


def test_a_post_without_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TweetFileError, match="line 2: expected `text` in a post, found NoneType"):
        read(write(tmp_path, json_lines([POST, {"$type": "app.bsky.feed.post"}])))
