"""Engine: schedule, run, update, until every sequence has ended. One caller at a time owns the device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Protocol

from hgt_infer.errors import EngineError
from hgt_infer.scheduler import Batch, Scheduler
from hgt_infer.sequence import Sequence


class Runner(Protocol):
    """What the engine needs of a ModelRunner."""

    def run(self, batch: Batch) -> list[int]:
        """Run a batch and return one token id per sequence."""


class Engine:
    """Runs sequences to their end.

    Args:
        runner: runs one batch.
        scheduler: decides what a batch is.
    """

    def __init__(self, runner: Runner, scheduler: Scheduler) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._lock = threading.Lock()
        self._failure: Exception | None = None

    def generate(
        self, sequences: Iterable[Sequence], on_finish: Callable[[Sequence], object] = lambda sequence: None
    ) -> None:
        """Run sequences until each has a finish_reason; on_finish is called as each one ends.

        Calls from several threads take turns.

        Raises:
            EngineError: the device failed, in this call or in an earlier one.
        """
        with self._lock:
            self._scheduler.add(sequences)
            try:
                while self._scheduler.has_unfinished:
                    for sequence in self._step():
                        on_finish(sequence)
            finally:
                self._scheduler.clear()  # of what an exception left behind

    def _step(self) -> list[Sequence]:
        if self._failure is not None:
            raise EngineError(f"the device failed earlier: {self._failure}") from self._failure
        batch = self._scheduler.schedule()
        try:
            token_ids = self._runner.run(batch)
        except Exception as error:
            self._failure = error
            raise EngineError(f"the device failed: {error}") from error
        return self._scheduler.update(batch, token_ids)
