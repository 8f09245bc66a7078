"""DeviceWorker: one device's runner and slots, and the batches that it has in flight.

Its thread, and what happens in a step, are `engine`'s.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future
from typing import NamedTuple, Protocol

from hgt_infer.engine.batch import Batch, BatchOutput
from hgt_infer.engine.scheduler import Scheduler
from hgt_infer.engine.sequence import Request, Sequence


class Runner(Protocol):
    """What the engine needs of a runner; all of it is called on one thread."""

    @property
    def max_in_flight(self) -> int:
        """Batches that may be launched before the first of them is collected, ≥ 1."""

    def launch(self, batch: Batch) -> None:
        """Start a batch."""

    def collect(self) -> BatchOutput:
        """Wait for the oldest batch that was launched."""

    def warmup(self) -> None:
        """Do now what the first batches would have to wait for."""

    def close(self) -> None:
        """Free what it holds on its device; nothing else is called afterwards."""


class CollectedBatch(NamedTuple):
    """A batch that has run.

    Attributes:
        finished: sequences that it ended.
        seconds: that it took on the device.
        gap_s: seconds since the batch before it was collected.
        end_s: when it was collected, on the clock time.perf_counter.
    """

    batch: Batch
    output: BatchOutput
    finished: list[Sequence]
    seconds: float
    gap_s: float
    end_s: float


class DeviceWorker:
    """One device: launches and collects batches, at most the runner's max_in_flight at once.

    Attributes:
        cancelled: requests to forget before the next batch.
        warmups: callers that wait for the next warm-up.
    """

    def __init__(self, runner: Runner, scheduler: Scheduler) -> None:
        self.runner = runner
        self.scheduler = scheduler
        self.cancelled: list[Request] = []
        self.warmups: list[Future[None]] = []
        self._in_flight: deque[tuple[Batch, float]] = deque()  # with the time of the launch
        self._last_end_s = 0.0

    @property
    def has_work(self) -> bool:
        """Whether its thread has anything to do."""
        return bool(self.scheduler.has_unfinished or self._in_flight or self.cancelled or self.warmups)

    def warm_up(self) -> None:
        """Warm the runner up, if a caller waits for that."""
        if self.warmups:
            self.runner.warmup()
            warmups, self.warmups = self.warmups, []
            for warmup in warmups:
                warmup.set_result(None)

    def launch(self, batch: Batch) -> None:
        """Start a batch behind those in flight."""
        self.runner.launch(batch)
        self.scheduler.launched(batch)
        self._in_flight.append((batch, time.perf_counter()))

    def num_due(self, launched: Batch | None) -> int:
        """How many batches have to be collected before the next one is scheduled.

        A scored prefill is collected at once: it may be all that was asked of a sequence. Where nothing was
        launched, the oldest batch in flight is due.
        """
        if launched is None:
            return min(1, len(self._in_flight))
        max_left = 0 if launched.is_scored else self.runner.max_in_flight - 1
        return max(0, len(self._in_flight) - max_left)

    def collect(self) -> CollectedBatch:
        """Wait for the oldest batch in flight, and give its sequences what it computed."""
        batch, launch_s = self._in_flight.popleft()
        output = self.runner.collect()
        finished = self.scheduler.update(batch, output)
        end_s, last_end_s = time.perf_counter(), self._last_end_s
        self._last_end_s = end_s
        # A batch begins when it was launched, or when the one before it has ended.
        return CollectedBatch(
            batch, output, finished, end_s - max(launch_s, last_end_s), end_s - last_end_s, end_s
        )
