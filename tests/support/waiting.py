"""Requests that go on until they are cancelled, and waiting for a generator that does nothing."""

from __future__ import annotations

import time

from hgt_infer import Generator, SamplingParams

ENDLESS = SamplingParams(max_tokens=1000, min_tokens=1000, seed=1)
TIMEOUT_S = 60  # of what would otherwise hang for ever


def wait_until_idle(generator: Generator) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while (stats := generator.stats()).running or stats.waiting:
        assert time.monotonic() < deadline
        time.sleep(0.001)
