from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.api_stand_in import Answer, Api, running_api

from training import fetch
from training.__main__ import main
from training.errors import (
    FetchError,
    RateLimitError,
    TrainingError,
)
from training.fetch import fetch_tweets
from training.tweets.reading import read_tweets

TOKEN = "secret-token-of-a-goose"
BUSY: Answer = (503, {}, '{"title": "Service Unavailable"}')


@pytest.fixture
def api() -> Iterator[Api]:
    with running_api(250) as running:
        yield running


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "goose.jsonl"


class Sleeps(list[float]):
    """Notes how long a wait would be, and waits not at all."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def fetched(api: Api, output: Path, handle: str = "goose", **options: Any) -> int:
    options.setdefault("sleep", Sleeps())
    with api.session() as session:
        return fetch_tweets(handle, output, token=TOKEN, session=session, **options)


def test_all_pages_are_fetched_and_can_be_read(api: Api, output: Path) -> None:
    assert fetched(api, output, "@GOOSE") == 250
    tweets = list(read_tweets([output], handle="goose"))
    assert [(tweet.id, tweet.text) for tweet in tweets] == [(t["id"], t["text"]) for t in api.tweets]
    assert api.pages_asked == [None, "100", "200"]
    assert set(api.tokens) == {f"Bearer {TOKEN}"}
    assert [path.name for path in output.parent.iterdir()] == ["goose.jsonl"]


def test_what_tells_kinds_and_full_texts_is_asked_for(api: Api, output: Path) -> None:
    fetched(api, output)
    query = api.requests[1][1]
    assert {"created_at", "referenced_tweets", "note_tweet"} <= set(query["tweet.fields"].split(","))
    assert query["max_results"] == "100"


def test_no_more_than_3200_tweets_are_asked_for(output: Path) -> None:
    with running_api(4000) as api:
        assert fetched(api, output) == 3200


def test_a_user_without_tweets_gives_a_file_without_tweets(output: Path) -> None:
    with running_api(0) as api:
        assert fetched(api, output) == 0
    assert output.exists()


def test_an_interrupted_call_goes_on_after_its_last_page(api: Api, output: Path) -> None:
    partial = output.with_name("goose.jsonl.partial")

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    answer = api.answer
    api.answer = lambda path, query: BUSY if query.get("pagination_token") == "100" else answer(path, query)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        fetched(api, output, sleep=interrupt)
    assert not output.exists()
    with partial.open("a") as file:  # died while writing
        file.write('{"data": [{"id": "1", "te')
    api.answer = answer  # type: ignore[method-assign]
    api.requests.clear()
    assert fetched(api, output) == 250
    assert api.pages_asked == ["100", "200"]
    assert [tweet.id for tweet in read_tweets([output])] == [tweet["id"] for tweet in api.tweets]
    assert not partial.exists()


def test_a_call_that_died_before_the_last_step_asks_for_no_page(api: Api, output: Path) -> None:
    fetched(api, output)
    output.rename(output.with_name("goose.jsonl.partial"))
    api.requests.clear()
    assert fetched(api, output) == 250
    assert api.pages_asked == []


def test_an_unfinished_file_of_someone_else_is_kept(api: Api, output: Path) -> None:
    fetched(api, output)
    output.rename(output.with_name("gull.jsonl.partial"))
    with pytest.raises(FetchError, match="holds tweets of @Goose; remove it to fetch those of @gull"):
        fetched(api, output.with_name("gull.jsonl"), "gull")


@pytest.mark.parametrize("content", ["hello\n", "[]\n", '{"data": []}\n', "[" * 100_000 + "\n"])
def test_a_file_that_is_no_unfinished_call_is_kept(api: Api, output: Path, content: str) -> None:
    partial = output.with_name("goose.jsonl.partial")
    partial.write_text(content)
    with pytest.raises(FetchError, match=r"goose\.jsonl\.partial: is no unfinished call's; remove it"):
        fetched(api, output)
    assert partial.read_text() == content


def test_an_output_that_exists_is_kept(api: Api, output: Path) -> None:
    output.write_text("mine")
    with pytest.raises(FetchError, match=r"goose\.jsonl: exists"):
        fetched(api, output)
    assert output.read_text() == "mine"
    assert api.requests == []


def test_a_rate_limit_is_waited_for_until_it_ends(api: Api, output: Path) -> None:
    api.in_the_way = [(429, {"x-rate-limit-reset": str(int(time.time()) + 90)}, "{}")]
    sleeps = Sleeps()
    assert fetched(api, output, sleep=sleeps) == 250
    assert len(sleeps) == 1
    assert 60 < sleeps[0] <= 92


def test_a_rate_limit_without_an_end_is_waited_for_longer_each_time(api: Api, output: Path) -> None:
    api.in_the_way = [(429, {}, "{}")] * 2
    sleeps = Sleeps()
    assert fetched(api, output, sleep=sleeps) == 250
    assert sleeps == [60, 120]


def test_waits_together_are_no_longer_than_allowed(api: Api, output: Path) -> None:
    api.in_the_way = [(429, {}, "{}")] * 2
    sleeps = Sleeps()
    with pytest.raises(RateLimitError, match="120 more seconds are over --max-wait; a later call goes on"):
        fetched(api, output, max_wait_s=100, sleep=sleeps)
    assert sleeps == [60]


@pytest.mark.parametrize("trouble", [BUSY, None, (200, {}, "<html>"), (502, {}, "<html>")])
def test_a_busy_server_is_asked_again_after_longer_and_longer_waits(
    api: Api, output: Path, trouble: Answer | None
) -> None:
    api.in_the_way = [trouble] * 3
    sleeps = Sleeps()
    assert fetched(api, output, sleep=sleeps) == 250
    assert sleeps == [1, 2, 4]


def test_a_server_that_stays_busy_is_given_up(api: Api, output: Path) -> None:
    api.in_the_way = [BUSY] * 50
    with pytest.raises(FetchError, match=r"does not answer after 6 tries .*503.*; a later call goes on"):
        fetched(api, output)
    assert len(api.requests) == 6


NOT_FOUND = {
    "errors": [{"title": "Not Found Error", "detail": "Could not find user with username: [goose]."}]
}
SUSPENDED = {"errors": [{"title": "Forbidden", "detail": "User has been suspended: [goose]."}]}


@pytest.mark.parametrize(
    ("user", "message"),
    [
        (NOT_FOUND, "@goose: no such user, .*Could not find user"),
        (SUSPENDED, "@goose: .* has been suspended"),
        ({"data": {"id": "7", "username": "goose", "protected": True}}, "@goose: .* protected"),
        ({}, "@goose: no such user"),
    ],
)
def test_a_user_whose_tweets_are_not_to_be_had_is_named(
    api: Api, output: Path, user: dict[str, Any], message: str
) -> None:
    api.user = user
    with pytest.raises(FetchError, match=message):
        fetched(api, output)
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ((401, {}, '{"title": "Unauthorized"}'), FetchError, "refuses the token"),
        ((403, {}, '{"detail": "not in a project"}'), FetchError, "may not read tweets .*not in a project"),
        ((400, {}, json.dumps({"detail": f"bad {TOKEN}"})), FetchError, r"refuses the call .*bad \*\*\*"),
        ((418, {}, "tea"), FetchError, "refuses the call .*418"),
        ((200, {}, "[]"), FetchError, "answers with list, expected an object"),
        ((400, {}, "[]"), FetchError, "none of its own answers"),
        ((429, {"x-rate-limit-reset": "soon"}, "{}"), FetchError, "none of its own answers"),
    ],
)
def test_what_the_api_refuses_is_named_without_the_token(
    api: Api, output: Path, answer: Answer, error: type[TrainingError], message: str
) -> None:
    api.in_the_way = [answer]
    with pytest.raises(error, match=message) as raised:
        fetched(api, output)
    assert TOKEN not in str(raised.value)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("{}", "a page without `meta`"),
        ('{"meta": {}, "data": {}}', "whose `data` is no list"),
        ('{"meta": {}, "data": [{"id": "1"}]}', "a tweet without `id` or `text`"),
        ('{"errors": [{"title": "Authorization Error"}]}', "cannot be read .Authorization Error"),
    ],
)
def test_a_page_of_another_shape_is_an_error(api: Api, output: Path, page: str, message: str) -> None:
    answer = api.answer
    api.answer = lambda path, query: (200, {}, page) if path.endswith("/tweets") else answer(path, query)  # type: ignore[method-assign]
    with pytest.raises(FetchError, match=message):
        fetched(api, output)
    assert not output.exists()


def test_pages_that_never_end_are_not_followed_for_ever(
    api: Api, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "MAX_PAGES", 5)
    answer = api.answer
    page = '{"meta": {"next_token": "x", "result_count": 0}}'
    api.answer = lambda path, query: (200, {}, page) if path.endswith("/tweets") else answer(path, query)  # type: ignore[method-assign]
    with pytest.raises(FetchError, match="5 pages"):
        fetched(api, output)


def test_the_token_is_in_no_log(api: Api, output: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        fetched(api, output)
    assert TOKEN not in caplog.text
    assert TOKEN not in output.read_text()


@pytest.mark.parametrize("handle", ["", "two words", "../x", "a" * 16, "gööse"])
def test_a_handle_that_cannot_be_is_refused_before_any_request(api: Api, output: Path, handle: str) -> None:
    with pytest.raises(TrainingError, match="is not 1 to 15 letters, digits or underscores"):
        fetched(api, output, handle)
    assert api.requests == []


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_a_wait_out_of_its_range_is_refused(api: Api, output: Path, seconds: float) -> None:
    with pytest.raises(FetchError, match="max_wait"):
        fetched(api, output, max_wait_s=seconds)


def test_without_tweepy_the_remedy_is_named(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tweepy", None)
    with pytest.raises(FetchError, match=r"pip install '\.\[fetch\]'"):
        fetch_tweets("goose", output, token=TOKEN)


def test_the_command_takes_the_token_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in fetch.TOKEN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    options = ["fetch", "--handle", "@goose", "--output", str(output)]
    assert main(options) == 2
    assert "set X_BEARER_TOKEN or TWITTER_BEARER_TOKEN" in capsys.readouterr().err

    given: dict[str, Any] = {}

    def note(handle: str, output: Path, **rest: Any) -> int:
        given.update(rest, handle=handle)
        return 3

    monkeypatch.setattr(fetch, "fetch_tweets", note)
    monkeypatch.setenv("TWITTER_BEARER_TOKEN", TOKEN)
    assert main(options) == 0
    assert given == {"handle": "@goose", "token": TOKEN, "max_wait_s": 1800}
    assert capsys.readouterr().out == f"3 tweets of @goose in {output}\n"


def test_a_traceback_shows_no_token(api: Api, output: Path) -> None:
    api.in_the_way = [(400, {}, json.dumps({"detail": f"bad {TOKEN}"}))]
    with pytest.raises(FetchError) as raised:
        fetched(api, output)
    assert TOKEN not in "".join(traceback.format_exception(raised.value))
