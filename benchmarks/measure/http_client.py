"""The least of an HTTP client that a load needs: on two cores, what a client computes its server cannot."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, NamedTuple


class Reply(NamedTuple):
    """A stream's answer.

    Attributes:
        first_token_s: seconds from the request to the first event.
        end_s: to the end.
        text: of the only choice.
    """

    first_token_s: float
    end_s: float
    text: str


class Client:
    """One connection, which is kept."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Ask for a completion, and return the answer.

        Raises:
            RuntimeError: another status than 200.
        """
        reader = await self._post(body)
        length = int((await _head(reader))["content-length"])
        answer: dict[str, Any] = json.loads(await reader.readexactly(length))
        return answer

    async def stream(self, body: dict[str, Any]) -> Reply:
        """As complete, as a stream of events."""
        start = time.perf_counter()
        reader = await self._post({**body, "stream": True})
        await _head(reader)
        first, text = 0.0, []
        while size := int(await reader.readline(), 16):
            data = await reader.readexactly(size + 2)
            first = first or time.perf_counter() - start
            for line in data.splitlines():
                if line.startswith(b"data: {"):
                    text += [choice["text"] for choice in json.loads(line[6:])["choices"]]
        await reader.readline()
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

    async def _post(self, body: dict[str, Any]) -> asyncio.StreamReader:
        return await self.send(post(body))


def post(body: dict[str, Any]) -> bytes:
    """A request for a completion."""
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def _head(reader: asyncio.StreamReader) -> dict[str, str]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status, *lines = head.strip().split("\r\n")
    if status.split()[1] != "200":
        raise RuntimeError(f"the service answered {status}")
    return {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
