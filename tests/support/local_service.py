"""Runs hgt_infer's service on a free port of this machine while a block runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import uvicorn

from hgt_infer import Generator
from hgt_infer.server import create_app


@contextmanager
def served(generators: Mapping[str, Generator], **settings: Any) -> Iterator[str]:
    """Yield the service's address; settings are create_app's."""
    app = create_app(generators, **settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False, http="h11"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        [listening] = server.servers[0].sockets
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def wait_until(is_so: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for what another thread or process does."""
    end = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
