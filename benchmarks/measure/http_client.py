"""The least of an HTTP client that a load needs: on two cores, what a client computes its server cannot.

It reads answers of OpenAI's completions route, whoever serves them.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, NamedTuple, Protocol

COMPLETIONS = "/v1/completions"


class Server(Protocol):
    """A service that the benchmarks drive."""

    name: str
    host: str
    port: int

    def close(self) -> None:
        """End it."""


class Reply(NamedTuple):
    """A stream's answer.

    Attributes:
        first_token_s: seconds to the first event.
        end_s: seconds to the end.
        text: of the only choice.
    """

    first_token_s: float
    end_s: float
    text: str


class Client:
    """One connection, which is kept.

    Args:
        host, port: of the server.
        reconnects: whether a request is sent once more, on a new connection, where the server ended the
            kept one without an answer. llama-server ends it after every stream.
    """

    def __init__(self, host: str, port: int, *, reconnects: bool = False) -> None:
        self.host, self.port, self._reconnects = host, port, reconnects
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def complete(self, body: dict[str, Any], *, path: str = COMPLETIONS) -> dict[str, Any]:
        """Ask for a completion, and return the answer.

        Raises:
            RuntimeError: another status than 200.
        """
        reader, head = await self._ask(post(body, path=path))
        answer: dict[str, Any] = json.loads(await reader.readexactly(int(head["content-length"])))
        return answer

    async def stream(self, body: dict[str, Any], *, since: float | None = None) -> Reply:
        """As complete, as a stream of events.

        Args:
            since: the time of `time.perf_counter` from which the reply's seconds count; None is now.

        Raises:
            RuntimeError: another status than 200, an event that tells of an error, or a text that ends
                before its length.
            ConnectionError: the server ended the connection before its last chunk.
        """
        start = time.perf_counter() if since is None else since
        reader, _ = await self._ask(post({**body, "stream": True}))
        first, text, rest, reason = 0.0, [], b"", None
        while size := int(await _line(reader), 16):
            data = await reader.readexactly(size + 2)
            *lines, rest = (rest + data[:-2]).split(b"\n")  # an event may go on in the next chunk
            for line in lines:
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise RuntimeError(f"the service answered {event['error']}")
                    first = first or time.perf_counter() - start
                    text += [choice["text"] for choice in event["choices"]]
                    reason = next((choice.get("finish_reason") for choice in event["choices"]), reason)
        await reader.readline()
        if reason != "length":
            raise RuntimeError(f"a stream ended with the finish reason {reason}, not length")
        return Reply(first, time.perf_counter() - start, "".join(text))

    def close(self) -> None:
        """Hang up, whatever runs."""
        if self._writer is not None:
            self._writer.close()
            self._reader = self._writer = None

    async def send(self, data: bytes) -> asyncio.StreamReader:
        """Send bytes as they are."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self.host, self.port)
        assert self._reader is not None
        self._writer.write(data)
        return self._reader

    async def _ask(self, request: bytes) -> tuple[asyncio.StreamReader, dict[str, str]]:
        """Send a request, and read the head of its answer."""
        may_reconnect = self._reconnects and self._writer is not None
        try:
            reader = await self.send(request)
            return reader, await _head(reader)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            if not may_reconnect or getattr(error, "partial", None):
                raise
            self.close()
        reader = await self.send(request)
        return reader, await _head(reader)


def post(body: dict[str, Any], *, path: str = COMPLETIONS) -> bytes:
    """A request for a completion."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def _line(reader: asyncio.StreamReader) -> bytes:
    if not (line := await reader.readline()):
        raise ConnectionResetError("the server ended the connection in the middle of a stream")
    return line


async def _head(reader: asyncio.StreamReader) -> dict[str, str]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status, *lines = head.strip().split("\r\n")
    if status.split()[1] != "200":
        raise RuntimeError(f"the service answered {status}")
    return {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
