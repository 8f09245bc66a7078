"""The gate before every route: who may pass, how large a body is and how long it takes, and what is logged.

A plain ASGI middleware: streams pass through it untouched.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hgt_infer.server.errors import RequestError, too_many
from hgt_infer.server.limits import Limits
from hgt_infer.server.metrics import Metrics

logger = logging.getLogger("hgt_infer.server.access")

OPEN_PATHS = ("/health", "/health/live", "/health/ready")
COUNTED_PATH = "/v1/completions"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Guard:
    """Passes requests on to the app, or refuses them.

    Args:
        app: what is behind the gate.
        limits: of bodies, and of completions at once.
        api_keys: one of which has to come with every request but health's, as a bearer token, or as the
            password of HTTP's basic authentication, which browsers ask for. Where there are none, all pass.
        metrics: what counts requests.
    """

    def __init__(self, app: ASGIApp, *, limits: Limits, api_keys: Sequence[str], metrics: Metrics) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics
        self._digests = [hashlib.sha256(key.encode()).digest() for key in api_keys]
        self._num_concurrent = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(12)
        state: dict[str, Any] = scope.setdefault("state", {})
        start, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        is_counted = scope["path"] == COUNTED_PATH and scope["method"] == "POST"
        self._num_concurrent += is_counted
        try:
            self._check_key(scope["path"], headers)
            if is_counted and self._num_concurrent > self.limits.max_concurrent_requests:
                raise too_many("too many requests at once", "too_many_requests", self.limits)
            body = await self._body(headers, receive)
            await self.app(scope, _replayed(body, receive), send_with_id)
        except RequestError as error:
            await error.response()(scope, receive, send_with_id)
        finally:
            self._num_concurrent -= is_counted
            seconds = time.perf_counter() - start
            self.metrics.count_request(scope["path"], status, seconds)
            record = {
                "request_id": request_id,
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": round(1e3 * seconds, 1),
                **state.get("usage", {}),
            }
            logger.info("%s", json.dumps(record))

    def _check_key(self, path: str, headers: Headers) -> None:
        if not self._digests or path in OPEN_PATHS:
            return
        digest = hashlib.sha256(_given_key(headers.get("authorization", "")).encode()).digest()
        # All of them are compared, each in a time that tells nothing.
        if not sum(hmac.compare_digest(digest, key) for key in self._digests):
            raise RequestError(
                401,
                "an API key is needed: Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": 'Basic realm="hgt_infer", Bearer'},
            )

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """Read the whole body, up to the limits of its size and of its time."""
        limit = self.limits.max_body_bytes
        too_large = RequestError(413, f"a body has at most {limit:,} bytes", code="body_too_large")
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdecimal() and (len(length) > 18 or int(length) > limit):
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RequestError(400, "the body ended early", code="body_incomplete")
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise too_large
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise RequestError(
                408,
                f"the body took more than {self.limits.body_timeout_s:g} s",
                code="body_timeout",
                headers={"Connection": "close"},
            ) from None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A receive that gives the body, and then whatever comes next: that the client went away."""
    is_given = False

    async def replay() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _given_key(authorization: str) -> str:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""
