"""`python -m training fetch`: gets the newest tweets of a user through the API, with the caller's own token.

Writes the API's pages as they come, a page a line, which `tweets` reads; what is kept is decided there.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from training.errors import FetchError, RateLimitError, TrainingError

if TYPE_CHECKING:
    import requests
    import tweepy

TOKEN_VARIABLES = ("X_BEARER_TOKEN", "TWITTER_BEARER_TOKEN")
MAX_TWEETS = 3200  # the API gives no older ones
PAGE_SIZE = 100
MAX_PAGES = 200  # of which some may be empty
MAX_WAIT_S = 1800
MAX_TRIES = 6
TIMEOUT_S = 60
TWEET_FIELDS = ["created_at", "referenced_tweets", "note_tweet", "in_reply_to_user_id", "lang"]
USER_FIELDS = ["username", "name", "protected"]
_HANDLE = re.compile(r"[A-Za-z0-9_]{1,15}")


def run(
    *,
    handle: Annotated[str, typer.Option(metavar="NAME", help="Whose tweets, without @.")],
    output: Annotated[Path, typer.Option(metavar="FILE", help="JSON lines to write.")],
    max_wait: Annotated[
        float, typer.Option(help="Seconds to wait for rate limits and a busy server, in all.")
    ] = MAX_WAIT_S,
) -> None:
    """Get the newest tweets of a user through the API.

    The API's token is read from the environment, X_BEARER_TOKEN or TWITTER_BEARER_TOKEN. An interrupted call
    goes on where it was when it is made again.

    Raises:
        TrainingError: one of its kinds, see `fetch_tweets`; FetchError where the environment holds no token.
    """
    token = next((value for name in TOKEN_VARIABLES if (value := os.environ.get(name, "").strip())), None)
    if token is None:
        raise FetchError(f"no token: set {' or '.join(TOKEN_VARIABLES)} to a bearer token of the API")
    num_tweets = fetch_tweets(handle, output, token=token, max_wait_s=max_wait)
    print(f"{num_tweets} tweets of @{handle.lstrip('@')} in {output}")


def fetch_tweets(
    handle: str,
    output: Path,
    *,
    token: str,
    max_wait_s: float = MAX_WAIT_S,
    session: requests.Session | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Fetch the newest tweets of a user, 3,200 at most, into a file, and return how many they are.

    Pages go into `output` with `.partial` at its end, which a later call goes on from, and which becomes
    `output` when all are there.

    Args:
        handle: the user, with or without `@`.
        output: must not exist.
        token: a bearer token; neither printed, written nor part of an error.
        max_wait_s: for all waits together, from 0; a longer one ends the call.
        session: what makes the requests.
        sleep: what waits, in seconds.

    Raises:
        FetchError: tweepy is missing, `output` exists, the API refuses the token, the user is unknown,
            suspended or protected, or the API answers what it should not.
        RateLimitError: it would take longer than `max_wait_s`.
        TrainingError: no such handle is possible.
    """
    handle = handle.removeprefix("@")
    if not _HANDLE.fullmatch(handle):
        raise TrainingError(f"handle {handle!r} is not 1 to 15 letters, digits or underscores")
    if not 0 <= max_wait_s < float("inf"):
        raise FetchError(f"max_wait is {max_wait_s}, expected 0 or more seconds")
    if output.exists():
        raise FetchError(f"{output}: exists; remove it to fetch anew")
    partial = output.with_name(output.name + ".partial")
    num_tweets, next_token = _resume(partial, handle)
    with _Api(token, max_wait_s, session, sleep) as api:
        user = _user(api, handle)
        for _ in range(MAX_PAGES):
            if (num_tweets and next_token is None) or num_tweets >= MAX_TWEETS:
                break
            page = api.call(
                "get_users_tweets",
                id=user["id"],
                max_results=PAGE_SIZE,
                pagination_token=next_token,
                tweet_fields=TWEET_FIELDS,
                expansions=["author_id"],
                user_fields=USER_FIELDS,
            )
            tweets = _tweets_of(page, handle)
            _append(partial, {**page, "data": tweets, "includes": {"users": [user]}})
            num_tweets += len(tweets)
            next_token = page["meta"].get("next_token")
            if next_token is None:
                break
        else:
            raise FetchError(
                f"the API gives more than {MAX_PAGES} pages; expected {MAX_TWEETS} tweets in them"
            )
    partial.replace(output)
    return num_tweets


class _Api:
    """tweepy's client, called again where waiting helps, as long as the waits together allow."""

    def __init__(
        self, token: str, max_wait_s: float, session: requests.Session | None, sleep: Callable[[float], None]
    ) -> None:
        try:
            import requests
            import tweepy
        except ImportError as error:
            raise FetchError("tweepy is not installed: pip install '.[fetch]'") from error
        # tweepy logs its headers, the token among them.
        logging.getLogger("tweepy.client").setLevel(logging.INFO)
        self._token = token
        self._left_s = max_wait_s
        self._sleep = sleep
        self._client: tweepy.Client = tweepy.Client(bearer_token=token, return_type=dict)
        if session is None:
            session = requests.Session()
            session.request = functools.partial(session.request, timeout=TIMEOUT_S)  # type: ignore[method-assign]
        self._client.session = session

    def __enter__(self) -> _Api:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.session.close()

    def call(self, method: str, **arguments: object) -> dict[str, Any]:
        """Return the API's answer.

        Raises:
            FetchError: one of its kinds, for what waiting does not help.
        """
        import requests
        import tweepy

        request = functools.partial(getattr(self._client, method), **arguments)
        # `from None`: a traceback would show what the API answered, which may repeat the token.
        for attempt in range(MAX_TRIES):
            backoff_s = 2.0**attempt
            try:
                answer = request()
            except tweepy.TooManyRequests as error:
                reset = error.response.headers.get("x-rate-limit-reset", "")
                wait_s = max(1.0, int(reset) - time.time() + 1) if reset.isdecimal() else 60 * backoff_s
                self._wait(wait_s, "the API's rate limit is reached")
            except tweepy.Unauthorized:
                raise FetchError("the API refuses the token (401); expected a valid bearer token") from None
            except tweepy.Forbidden as error:
                raise FetchError(f"the token may not read tweets (403, {self._text(error)})") from None
            except (tweepy.TwitterServerError, requests.RequestException) as error:
                if attempt == MAX_TRIES - 1:
                    raise FetchError(
                        f"the API does not answer after {MAX_TRIES} tries ({self._text(error)}); a later "
                        "call goes on from here"
                    ) from None
                self._wait(backoff_s, "the API does not answer")
            except tweepy.TweepyException as error:
                raise FetchError(f"the API refuses the call ({self._text(error)})") from None
            except (AttributeError, TypeError, ValueError):  # tweepy, of other JSON
                raise FetchError("the API answers with what is none of its own answers") from None
            else:
                if not isinstance(answer, dict):
                    raise FetchError(f"the API answers with {type(answer).__name__}, expected an object")
                return answer
        raise RateLimitError(
            f"the API's rate limit was reached {MAX_TRIES} times; a later call goes on from here"
        )

    def _wait(self, wait_s: float, reason: str) -> None:
        if wait_s > self._left_s:
            raise RateLimitError(
                f"{reason}, and {wait_s:.0f} more seconds are over --max-wait; a later call goes on from here"
            )
        self._left_s -= wait_s
        self._sleep(wait_s)

    def _text(self, error: Exception) -> str:
        return " ".join(str(error).replace(self._token, "***").split())[:200]


def _user(api: _Api, handle: str) -> dict[str, Any]:
    answer = api.call("get_user", username=handle, user_fields=USER_FIELDS)
    user = answer.get("data")
    if not isinstance(user, dict) or not isinstance(user.get("id"), str):
        raise FetchError(f"@{handle}: no such user, or suspended ({_problem(answer)})")
    if user.get("protected"):
        raise FetchError(f"@{handle}: the user's tweets are protected; expected a public account")
    return {field: user[field] for field in ("id", "username", "name") if field in user}


def _tweets_of(page: dict[str, Any], handle: str) -> list[dict[str, Any]]:
    meta = page.get("meta")
    tweets = page.get("data", [])
    if not isinstance(meta, dict) and page.get("errors"):
        raise FetchError(f"@{handle}: the tweets cannot be read ({_problem(page)})")
    if not isinstance(meta, dict) or not isinstance(tweets, list):
        raise FetchError("the API answers with a page without `meta`, or whose `data` is no list")
    for tweet in tweets:
        if not isinstance(tweet, dict) or not isinstance(tweet.get("text"), str) or "id" not in tweet:
            raise FetchError("the API answers with a tweet without `id` or `text`")
    return tweets


def _problem(answer: dict[str, Any]) -> str:
    errors = answer.get("errors")
    first = errors[0] if isinstance(errors, list) and errors else None
    detail = first.get("detail") or first.get("title") if isinstance(first, dict) else None
    return str(detail or "no reason given")[:200]


def _resume(partial: Path, handle: str) -> tuple[int, str | None]:
    """Return a partial file's number of tweets and next page's token; cut off a line half written."""
    if not partial.exists():
        return 0, None
    num_tweets, next_token, end = 0, None, 0
    with partial.open("rb+") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                page = json.loads(line)
                name = page["includes"]["users"][0]["username"]
                num_tweets += len(page["data"])
                next_token = page["meta"].get("next_token")
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                raise FetchError(f"{partial}: is no unfinished call's; remove it to fetch anew") from error
            if str(name).lower() != handle.lower():
                raise FetchError(f"{partial}: holds tweets of @{name}; remove it to fetch those of @{handle}")
            end += len(line)
        file.truncate(end)
    return num_tweets, next_token


def _append(partial: Path, page: dict[str, Any]) -> None:
    with partial.open("a", encoding="utf-8") as file:
        file.write(json.dumps(page) + "\n")
        file.flush()
        os.fsync(file.fileno())
