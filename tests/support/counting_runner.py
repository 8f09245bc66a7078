"""Runners that sample a sequence's length instead of a model's token, and calls of an engine over them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from support.cache_model import CacheModel, sampled

from hgt_infer.engine.batch import Batch, BatchOutput
from hgt_infer.engine.engine import Engine
from hgt_infer.engine.sequence import Request, Sequence, SequenceParams
from hgt_infer.requests.submission import run

TIMEOUT_S = 60  # of what would otherwise hang for ever


def make(prompt: tuple[int, ...], max_tokens: int = 4, **options: Any) -> Sequence:
    return Sequence(prompt, SequenceParams(max_tokens=max_tokens, seed=0), **options)


class CountingRunner:
    """Samples the number of tokens that a sequence has. Checks the cache, and that one thread runs."""

    def __init__(self, num_slots: int = 2) -> None:
        self.cache = CacheModel(num_slots)
        self.batches: list[Batch] = []
        self.output = BatchOutput()
        self.num_warmups = 0
        self.is_closed = False
        self.error: BaseException | None = None
        self.row_errors: Callable[[Sequence], Exception | None] = lambda sequence: None
        self.gate = threading.Event()
        self.gate.set()
        self.at_gate = threading.Event()
        self.thread: threading.Thread | None = None

    max_in_flight = 1

    def launch(self, batch: Batch) -> None:
        self.output = self.run(batch)

    def collect(self) -> BatchOutput:
        return self.output

    def warmup(self) -> None:
        self.num_warmups += 1

    def close(self) -> None:
        self.is_closed = True

    def run(self, batch: Batch) -> BatchOutput:
        assert self.thread in (None, threading.current_thread()), "two threads run batches"
        self.thread = threading.current_thread()
        if not self.gate.is_set():
            self.at_gate.set()
            assert self.gate.wait(TIMEOUT_S)
            self.at_gate.clear()
        self.batches.append(batch)
        if self.error is not None:
            raise self.error
        self.cache.run(batch)
        output = sampled(batch, [len(s.prompt_token_ids) + len(s.output_token_ids) for s in batch.sequences])
        output.errors = [(s, e) for s in batch.sequences if (e := self.row_errors(s)) is not None]
        return output

    def wait_at_gate(self) -> None:
        """Wait until a run is held by the gate, which was closed by gate.clear()."""
        assert self.at_gate.wait(TIMEOUT_S)


class LateRunner:
    """As CountingRunner, but its tokens are seen late: rows go on by themselves, also behind their end."""

    max_in_flight = 2

    def __init__(self, num_steps: int = 2) -> None:
        self.num_steps = num_steps
        self.launched: list[BatchOutput] = []
        self.num_drawn: dict[Sequence, int] = {}

    def launch(self, batch: Batch) -> None:
        assert len(self.launched) < self.max_in_flight
        output = BatchOutput(num_steps=self.num_steps)
        if not batch.is_prefill:
            for sequence in batch.sequences:
                first = len(sequence.prompt_token_ids) + self.num_drawn.get(sequence, 0)
                output.new_tokens.append((sequence, list(range(first, first + self.num_steps))))
                self.num_drawn[sequence] = self.num_drawn.get(sequence, 0) + self.num_steps
                output.num_sampled += self.num_steps
        self.launched.append(output)

    def collect(self) -> BatchOutput:
        return self.launched.pop(0)

    def warmup(self) -> None: ...

    def close(self) -> None: ...


def finish(engine: Engine, *sequences: Sequence, max_in_flight: int = 8) -> list[Sequence]:
    return list(run(engine, iter(sequences), max_in_flight=max_in_flight))


def submit(engine: Engine, *sequences: Sequence, is_stream: bool = False) -> tuple[Request, SimpleQueue[Any]]:
    events: SimpleQueue[Any] = SimpleQueue()
    request = Request(events.put, is_stream=is_stream)
    engine.submit(request, sequences)
    return request, events


def expected_output(sequence: Sequence) -> list[int]:
    length = len(sequence.prompt_token_ids)
    return list(range(length, length + sequence.params.max_tokens))
