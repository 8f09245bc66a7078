"""Engine: one thread that owns the runner. Any number of threads submit to it and share its batches."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Collection
from typing import Protocol

from hgt_infer.errors import EngineError, QueueFullError
from hgt_infer.outputs import Delta
from hgt_infer.scheduler import Batch, BatchOutput, Scheduler
from hgt_infer.sequence import Request, Sequence
from hgt_infer.stats import Statistics, Stats

logger = logging.getLogger(__name__)


class Runner(Protocol):
    """What the engine needs of a ModelRunner."""

    def run(self, batch: Batch) -> BatchOutput:
        """Run a batch."""


class Engine:
    """Runs the sequences that are submitted to it until each has ended.

    Args:
        runner: runs one batch.
        scheduler: decides what a batch is.
        max_queued_sequences: most sequences that wait for a slot at once, ≥ 1.
    """

    def __init__(self, runner: Runner, scheduler: Scheduler, *, max_queued_sequences: int) -> None:
        self.max_queued_sequences = max_queued_sequences
        self._runner = runner
        self._scheduler = scheduler
        self._statistics = Statistics()
        self._last_step_s = 0.0
        # Guards what follows, and the scheduler until a batch is chosen. Reentrant: the thread that holds it
        # may be the one that collects an abandoned stream or generator, which cancels or closes.
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._submitted: list[tuple[Request, Collection[Sequence]]] = []
        self._cancelled: list[Request] = []
        self._num_queued = 0
        self._end: tuple[str, BaseException | None] | None = None  # why there is nothing more to come
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._loop, name="hgt_infer engine", daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        """All that the engine's thread does: choose a batch, run it, update, tell the callers."""
        try:
            while (batch := self._next_batch()) is not None:
                start_s = time.perf_counter()
                output = self._runner.run(batch)
                finished = self._scheduler.update(batch, output)
                self._record(batch, finished, start_s)
                self._publish_progress(batch, output, finished)
        except BaseException as error:
            logger.exception("the device failed")
            self._tell_end(f"the device failed: {error}", error)
        else:
            self._tell_end("the generator was closed")

    def _next_batch(self) -> Batch | None:
        """Take what was submitted and cancelled, wait while there is nothing to do, and choose what to run.

        Returns None where the engine was closed.
        """
        with self._lock:
            while True:
                submitted, self._submitted = self._submitted, []
                cancelled, self._cancelled = self._cancelled, []
                for request, sequences in submitted:
                    self._scheduler.add(request, sequences)
                for request in cancelled:
                    self._forget(request)
                if self._end is not None:
                    return None
                batch = self._scheduler.schedule() if self._scheduler.has_unfinished else None
                self._num_queued = self._scheduler.num_waiting
                self._room.notify_all()
                if batch is not None:
                    return batch
                self._work.wait()

    def _publish_progress(self, batch: Batch, output: BatchOutput, finished: list[Sequence]) -> None:
        for sequence, error in output.errors:
            self._statistics.record_failed(len(self._scheduler.cancel(sequence.request)))
            self._publish(sequence.request, error)
        for sequence in batch.sequences:
            if sequence.request.is_stream and (delta := sequence.take_delta()) is not None:
                self._publish(sequence.request, delta)
        for sequence in finished:
            if not sequence.request.is_stream:
                self._publish(sequence.request, sequence)

    def _publish(self, request: Request, event: Sequence | Delta | BaseException) -> None:
        try:
            request.publish(event)
        except Exception as error:  # such as a closed event loop: nobody listens any more
            logger.debug("a request's results have nowhere to go: %s", error)
            self._forget(request)

    def _forget(self, request: Request) -> None:
        self._statistics.record_cancelled(len(self._scheduler.cancel(request)))

    def _tell_end(self, reason: str, cause: BaseException | None = None) -> None:
        with self._lock:
            self._end = self._end or (reason, cause)
            requests = {request for request, _ in self._submitted} | {*self._scheduler.line}
            requests |= {sequence.request for sequence in self._scheduler.running}
            self._room.notify_all()
        for request in requests:
            self._statistics.record_failed(len(self._scheduler.cancel(request)))
            self._publish(request, self._end_error())

    def _end_error(self) -> EngineError:
        """One for each caller: raising the same one in several threads would mix up tracebacks."""
        assert self._end is not None
        error = EngineError(self._end[0])
        error.__cause__ = self._end[1]
        return error

    def _record(self, batch: Batch, finished: list[Sequence], start_s: float) -> None:
        end_s = time.perf_counter()
        statistics, num_rows = self._statistics, len(batch.sequences)
        if batch.is_prefill:
            statistics.record_prefill(end_s - start_s, num_rows * batch.num_tokens)
        else:
            first = [s for s in batch.sequences if len(s.output_token_ids) == 1]
            num_feeding = sum(not s.output_token_ids for s in batch.sequences)
            for sequence in first:
                statistics.record_first_token(end_s - sequence.submitted_s)
            statistics.record_tokens(end_s - self._last_step_s, num_rows - num_feeding - len(first))
            statistics.record_step(
                end_s - start_s,
                num_rows=num_rows,
                num_slots=self._scheduler.num_slots,
                is_anyone_waiting=self._scheduler.num_waiting > 0,
                num_prompt_tokens=num_feeding + len(first),
            )
            self._last_step_s = end_s
        statistics.record_finished(len(finished))

    # Any thread.

    def submit(self, request: Request, sequences: Collection[Sequence]) -> None:
        """Queue all of the sequences at once.

        Raises:
            QueueFullError: the queue has no room for them; none is queued.
            EngineError: the device failed, the engine was closed, or this is a fork of its process.
        """
        with self._lock:
            self.check_room(len(sequences))
            self._queue(request, sequences)

    def check_room(self, num_sequences: int) -> None:
        """Raise as submit would for so many sequences, before they are made."""
        self._check_caller()
        with self._lock:
            if num_sequences > self._num_free():
                raise QueueFullError(
                    f"{self._num_queued} sequences wait already: no room for {num_sequences} more "
                    f"(max_queued_sequences is {self.max_queued_sequences})"
                )

    def feed(self, request: Request, sequences: list[Sequence]) -> int:
        """Queue as many of the sequences as there is room for, after waiting for room for one.

        Returns how many. A request may be fed again while its sequences run.

        Raises:
            EngineError: see submit.
        """
        self._check_caller()
        with self._lock:
            while (num_free := self._num_free()) == 0:
                self._room.wait()
            fitting = sequences[:num_free]
            self._queue(request, fitting)
            return len(fitting)

    def _num_free(self) -> int:
        if self._end is not None:
            raise self._end_error()
        return self.max_queued_sequences - self._num_queued

    def _queue(self, request: Request, sequences: Collection[Sequence]) -> None:
        now_s = time.perf_counter()
        for sequence in sequences:
            sequence.submitted_s = now_s
        self._num_queued += len(sequences)
        self._submitted.append((request, sequences))
        self._work.notify()

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise EngineError(
                f"this generator was made in process {self._pid}, which then forked: "
                "make one in each process that uses it"
            )

    def _check_caller(self) -> None:
        self._check_process()
        if threading.current_thread() is self._thread:
            raise EngineError("a logits_processor cannot wait for the generator that called it")

    def cancel(self, request: Request) -> None:
        """Forget what a request still has waiting or running; its slots are free before the next run."""
        if os.getpid() == self._pid:
            with self._lock:
                self._cancelled.append(request)
                self._work.notify()

    def stats(self) -> Stats:
        """Counts and times since the start; EngineError in a fork."""
        self._check_process()
        scheduler = self._scheduler
        return self._statistics.snapshot(running=len(scheduler.running), waiting=self._num_queued)

    def close(self) -> None:
        """End the engine's thread, after the run that it is in. Whoever waits gets an EngineError."""
        if os.getpid() != self._pid:
            return  # a fork has no such thread, and the lock may be held for ever
        with self._lock:
            self._end = self._end or ("the generator was closed", None)
            self._work.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()
