"""A stand-in for the API on 127.0.0.1: a user, pages of tweets, and what a test puts in the way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests
from requests.adapters import HTTPAdapter
from support.local_server import serving

Answer = tuple[int, dict[str, str], str]


class Api:
    """What the stand-in knows and was asked for.

    Attributes:
        tweets: the user's, newest first.
        user: the answer to a look-up of the user.
        in_the_way: answers that go before the right ones, to any request, the first first; None drops the
            connection.
        requests: path and query of each request, in order.
        tokens: what each request had in its Authorization header.
    """

    def __init__(self, num_tweets: int) -> None:
        self.tweets = [
            {"id": str(10**18 - number), "text": f"tweet {number} 🪿", "author_id": "7"}
            for number in range(num_tweets)
        ]
        self.user: dict[str, Any] = {
            "data": {"id": "7", "username": "Goose", "name": "A Goose", "protected": False}
        }
        self.in_the_way: list[Answer | None] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.tokens: list[str | None] = []
        self.url = ""

    def answer(self, path: str, query: dict[str, str]) -> Answer | None:
        """Answer a request; None drops the connection."""
        self.requests.append((path, query))
        if self.in_the_way:
            return self.in_the_way.pop(0)
        if path.startswith("/2/users/by/username/"):
            return 200, {}, json.dumps(self.user)
        assert path == "/2/users/7/tweets"
        start = int(query.get("pagination_token", "0"))
        end = start + int(query["max_results"])
        page: dict[str, Any] = {"meta": {"result_count": len(self.tweets[start:end])}}
        if self.tweets[start:end]:
            page |= {"data": self.tweets[start:end], "includes": {"users": [self.user["data"]]}}
        if end < len(self.tweets):
            page["meta"]["next_token"] = str(end)
        return 200, {}, json.dumps(page)

    def session(self) -> requests.Session:
        """A session whose requests to the API come here."""
        session = requests.Session()
        session.mount("https://api.twitter.com", _Redirecting(self.url))
        return session

    @property
    def pages_asked(self) -> list[str | None]:
        """The pagination token of each request for tweets."""
        return [query.get("pagination_token") for path, query in self.requests if path.endswith("/tweets")]


class _Redirecting(HTTPAdapter):
    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        assert request.url is not None
        request.url = request.url.replace("https://api.twitter.com", self._url)
        return super().send(request, *args, **kwargs)


@contextmanager
def running_api(num_tweets: int) -> Iterator[Api]:
    """Run a stand-in with a user @Goose of so many tweets."""
    api = Api(num_tweets)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            api.tokens.append(self.headers["Authorization"])
            answer = api.answer(
                parts.path, {name: values[0] for name, values in parse_qs(parts.query).items()}
            )
            if answer is None:
                self.close_connection = True
                return
            status, headers, body = answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as endpoint:
        api.url = endpoint
        yield api
