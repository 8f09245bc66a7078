"""Engine: a thread per device that owns its runner. Any number of threads submit and share the batches."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from functools import partial
from typing import Protocol

from hgt_infer.engine.scheduler import Batch, BatchOutput, Scheduler
from hgt_infer.engine.sequence import Request, Sequence
from hgt_infer.engine.stats import Histogram, Statistics, Stats
from hgt_infer.errors import EngineError, QueueFullError
from hgt_infer.outputs import Delta

logger = logging.getLogger(__name__)


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
        """Let go of what it holds on its device; nothing else is called afterwards."""


class DeviceWorker:
    """A device's runner and slots, and what the engine's thread for it has to do."""

    def __init__(self, runner: Runner, scheduler: Scheduler) -> None:
        self.runner = runner
        self.scheduler = scheduler
        self.in_flight: deque[tuple[Batch, float]] = deque()  # with the time of the launch
        self.last_output_s = 0.0
        self.cancelled: list[Request] = []
        self.warmups: list[Future[None]] = []


class Engine:
    """Runs the sequences that are submitted to it until each has ended.

    Args:
        lanes: one per device; their schedulers share one line.
        max_queued_sequences: most sequences that wait for a slot at once, ≥ 1.
    """

    def __init__(self, lanes: Seq[DeviceWorker], *, max_queued_sequences: int) -> None:
        self.max_queued_sequences = max_queued_sequences
        self._statistics = Statistics()
        self._lanes = lanes
        # Guards the line and what follows. Reentrant: the thread that holds it may be the one that collects
        # an abandoned stream or generator, which cancels or closes.
        self._lock = threading.RLock()
        self._line = lanes[0].scheduler.line
        self._work = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._end: tuple[str, BaseException | None] | None = None  # why there is nothing more to come
        self._pid = os.getpid()
        self._threads = [
            threading.Thread(target=self._loop, args=(lane,), name=f"hgt_infer engine {i}", daemon=True)
            for i, lane in enumerate(lanes)
        ]
        for thread in self._threads:
            thread.start()

    def _loop(self, lane: DeviceWorker) -> None:
        """All that a thread of the engine does, a job at a time."""
        try:
            while (job := self._next_job(lane)) is not None:
                job()
        except BaseException as error:
            logger.exception("the device failed")
            self._tell_end(lane, f"the device failed: {error}", error)
        else:
            self._tell_end(lane, "the generator was closed")
        try:
            lane.runner.close()
        except Exception:  # of a device that has failed already
            logger.exception("the device's memory may not be free yet")

    def _run(self, lane: DeviceWorker, batch: Batch) -> None:
        """Launch a batch, and look at those before it while it runs.

        A batch that is scored is looked at before the next one: it may be all that was asked of a sequence.
        """
        lane.runner.launch(batch)
        lane.scheduler.launched(batch)
        lane.in_flight.append((batch, time.perf_counter()))
        while len(lane.in_flight) >= (1 if batch.is_scored else lane.runner.max_in_flight):
            self._collect(lane)

    def _collect(self, lane: DeviceWorker) -> None:
        """Wait for the oldest batch in flight, update its sequences, tell the callers."""
        batch, launch_s = lane.in_flight.popleft()
        output = lane.runner.collect()
        finished = lane.scheduler.update(batch, output)
        self._record(lane, batch, output, finished, launch_s)
        self._publish_progress(lane, output, finished)

    def _next_job(self, lane: DeviceWorker) -> Callable[[], None] | None:
        """Wait while there is nothing to do, and choose what to do; None where the engine was closed."""
        with self._lock:
            while self._end is None:
                cancelled, lane.cancelled = lane.cancelled, []
                for request in cancelled:
                    self._statistics.record_cancelled(len(lane.scheduler.cancel(request)))
                if lane.warmups:
                    return partial(_warm_up, lane)
                batch = lane.scheduler.schedule()
                self._room.notify_all()
                if batch is not None:
                    return partial(self._run, lane, batch)
                if lane.in_flight:
                    return partial(self._collect, lane)
                self._work.wait()
            return None

    def _publish_progress(self, lane: DeviceWorker, output: BatchOutput, finished: list[Sequence]) -> None:
        for sequence, error in output.errors:
            self._statistics.record_failed(self._forget(lane, sequence.request))
            self._publish(lane, sequence.request, error)
        for sequence, _ in output.new_tokens:
            if sequence.request.is_stream and (delta := sequence.take_delta()) is not None:
                self._publish(lane, sequence.request, delta)
        for sequence in finished:
            if not sequence.request.is_stream:
                self._publish(lane, sequence.request, sequence)

    def _publish(self, lane: DeviceWorker, request: Request, event: Sequence | Delta | BaseException) -> None:
        try:
            request.publish(event)
        except Exception as error:  # such as a closed event loop: nobody listens any more
            logger.debug("a request's results have nowhere to go: %s", error)
            self._statistics.record_cancelled(self._forget(lane, request))

    def _forget(self, lane: DeviceWorker, request: Request) -> int:
        """Forget a request; return how many sequences waited or ran here. Other devices' follow."""
        with self._lock:
            for other in self._lanes:
                if other is not lane:
                    other.cancelled.append(request)
            self._work.notify_all()
            return len(lane.scheduler.cancel(request))

    def _tell_end(self, lane: DeviceWorker, reason: str, cause: BaseException | None = None) -> None:
        """End the engine, and tell those who wait or run here; each lane does."""
        with self._lock:
            self._end = self._end or (reason, cause)
            requests = {*self._line.requests} | {sequence.request for sequence in lane.scheduler.running}
            for request in requests:
                self._statistics.record_failed(len(lane.scheduler.cancel(request)))
            warmups, lane.warmups = lane.warmups, []
            self._work.notify_all()
            self._room.notify_all()
        for request in requests:
            self._publish(lane, request, self._end_error())
        for warmup in warmups:
            warmup.set_exception(self._end_error())

    def _end_error(self) -> EngineError:
        """One for each caller: raising the same one in several threads would mix up tracebacks."""
        assert self._end is not None
        error = EngineError(self._end[0])
        error.__cause__ = self._end[1]
        return error

    def _record(
        self, lane: DeviceWorker, batch: Batch, output: BatchOutput, finished: list[Sequence], launch_s: float
    ) -> None:
        end_s = time.perf_counter()
        statistics, num_rows = self._statistics, len(batch.sequences)
        seconds = end_s - max(launch_s, lane.last_output_s)  # batches in flight run one behind the other
        if batch.is_prefill:
            statistics.record_prefill(seconds, num_rows * batch.num_tokens)
        else:
            first = [s for s, ids in output.new_tokens if 0 < len(s.output_token_ids) <= len(ids)]
            for sequence in first:
                statistics.record_first_token(end_s - sequence.submitted_s)
            statistics.record_tokens(
                (end_s - lane.last_output_s) / output.num_steps, output.num_sampled - len(first)
            )
            statistics.record_step(
                seconds,
                num_steps=output.num_steps,
                num_rows=num_rows,
                num_slots=lane.scheduler.num_slots,
                is_anyone_waiting=self._line.num_waiting > 0,
                num_prompt_tokens=output.num_fed + len(first),
                num_wasted=output.num_wasted,
            )
        lane.last_output_s = end_s
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
                    f"{self._line.num_waiting} sequences wait already: no room for {num_sequences} more "
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
        return self.max_queued_sequences - self._line.num_waiting

    def _queue(self, request: Request, sequences: Collection[Sequence]) -> None:
        now_s = time.perf_counter()
        for sequence in sequences:
            sequence.submitted_s = now_s
        self._line.add(request, sequences)
        self._work.notify_all()

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise EngineError(
                f"this generator was made in process {self._pid}, which then forked: "
                "make one in each process that uses it"
            )

    def _check_caller(self) -> None:
        self._check_process()
        if threading.current_thread() in self._threads:
            raise EngineError("a logits_processor cannot wait for the generator that called it")

    def cancel(self, request: Request) -> None:
        """Forget what a request still has waiting or running; its slots are free before the next run."""
        if os.getpid() == self._pid:
            with self._lock:
                for lane in self._lanes:
                    lane.cancelled.append(request)
                self._work.notify_all()

    def warmup(self) -> None:
        """Let every device do now what its first batches would have to wait for.

        Raises:
            EngineError: see submit.
        """
        self._check_caller()
        futures: list[Future[None]] = []
        with self._lock:
            if self._end is not None:
                raise self._end_error()
            for lane in self._lanes:
                futures.append(Future())
                lane.warmups.append(futures[-1])
            self._work.notify_all()
        for future in futures:
            future.result()

    def stats(self) -> Stats:
        """Counts and times since the start; EngineError in a fork."""
        self._check_process()
        num_running = sum(lane.scheduler.num_running for lane in self._lanes)
        return self._statistics.snapshot(running=num_running, waiting=self._line.num_waiting)

    def histograms(self) -> dict[str, Histogram]:
        """Of the same times, since the start."""
        return self._statistics.histograms()

    @property
    def is_alive(self) -> bool:
        """Whether it takes sequences: nothing failed, and nobody closed it."""
        return self._end is None

    @property
    def num_slots(self) -> int:
        """Sequences that can run at once, on all devices."""
        return sum(lane.scheduler.num_slots for lane in self._lanes)

    def close(self) -> None:
        """End the engine's threads, after the runs that they are in. Whoever waits gets an EngineError."""
        if os.getpid() != self._pid:
            return  # a fork has no such thread, and the lock may be held for ever
        with self._lock:
            self._end = self._end or ("the generator was closed", None)
            self._work.notify_all()
        if threading.current_thread() not in self._threads:  # one of them may collect the generator
            for thread in self._threads:
                thread.join()


def _warm_up(lane: DeviceWorker) -> None:
    lane.runner.warmup()
    warmups, lane.warmups = lane.warmups, []
    for warmup in warmups:
        warmup.set_result(None)
