"""Run the service until a signal or a dead engine ends it."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import uvicorn

from hgt_infer.generator import Generator
from hgt_infer.server.app import create_app
from hgt_infer.server.limits import Limits

logger = logging.getLogger(__name__)

WATCH_INTERVAL_S = 0.5
KEEP_ALIVE_S = 30
_MAX_HEAD_BYTES = 16_384


def serve(
    generators: Mapping[str, Generator],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    api_keys: Sequence[str] = (),
    grace_s: int = 30,
) -> int:
    """Serve until SIGINT or SIGTERM, then let requests that run end for at most grace_s seconds.

    Args:
        generators, limits, api_keys: see create_app.
        host, port: where to listen; port 0 takes a free one, which the log names.
        grace_s: whole seconds; what still runs then is cut off.

    Returns:
        0, or 1 where an engine died or the address could not be had.
    """
    config = uvicorn.Config(
        create_app(generators, limits=limits, api_keys=api_keys),
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=grace_s,
        timeout_keep_alive=KEEP_ALIVE_S,
        h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
        http="h11",
    )
    server = _Server(config, generators)
    try:
        server.run()
    except SystemExit:  # uvicorn's, when it cannot listen
        return 1
    return 1 if server.dead else 0


class _Server(uvicorn.Server):
    """uvicorn's server, which also ends with the first engine that dies, and whose signals kill nobody."""

    def __init__(self, config: uvicorn.Config, generators: Mapping[str, Generator]) -> None:
        super().__init__(config)
        self._generators = generators
        self.dead: list[str] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for server in self.servers:
            for listening in server.sockets:
                host, port = listening.getsockname()[:2]
                host = f"[{host}]" if ":" in host else host
                logger.info("serving %s on http://%s:%d/", ", ".join(self._generators), host, port)

    async def main_loop(self) -> None:
        watch = asyncio.ensure_future(self._watch())
        try:
            await super().main_loop()
        finally:
            watch.cancel()

    async def _watch(self) -> None:
        while not self.dead:
            self.dead = [name for name, generator in self._generators.items() if not generator.is_alive]
            await asyncio.sleep(WATCH_INTERVAL_S)
        logger.critical("the engine of %s has died: the service ends", ", ".join(self.dead))
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a signal that was heeded is not raised once more at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
