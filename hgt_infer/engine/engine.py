"""Engine: runs sequences on devices, a thread for each. Any number of threads submit sequences to it.

What runs next is `scheduler`'s decision; how a batch runs is the runner's.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Collection
from collections.abc import Sequence as Seq
from concurrent.futures import Future

from hgt_infer.engine.device_worker import CollectedBatch, DeviceWorker
from hgt_infer.engine.sequence import Request, Sequence
from hgt_infer.engine.stats import Statistics, Stats
from hgt_infer.errors import EngineError, QueueFullError
from hgt_infer.outputs import Delta

logger = logging.getLogger(__name__)


class Engine:
    """Runs the sequences that are submitted to it until each has ended.

    Args:
        workers: one per device; their schedulers share one waiting queue.
        max_queued_sequences: most sequences that wait for a slot at once, ≥ 1.
    """

    def __init__(self, workers: Seq[DeviceWorker], *, max_queued_sequences: int) -> None:
        self.max_queued_sequences = max_queued_sequences
        self._statistics = Statistics()
        self.workers = workers
        # Guards the waiting queue and what follows. Reentrant: the garbage collector may run in the thread
        # that holds it, and an abandoned stream or generator then cancels or closes.
        self._lock = threading.RLock()
        self._waiting = workers[0].scheduler.waiting
        self._has_work = threading.Condition(self._lock)
        self._has_room = threading.Condition(self._lock)
        self._end: tuple[str, BaseException | None] | None = None  # why no more sequences are run
        self._pid = os.getpid()
        self._threads = [
            threading.Thread(target=self._serve, args=(worker,), name=f"hgt_infer engine {i}", daemon=True)
            for i, worker in enumerate(workers)
        ]
        for thread in self._threads:
            thread.start()

    # The thread of a device.

    def _serve(self, worker: DeviceWorker) -> None:
        """Take steps as long as there is something to run, until the engine ends."""
        try:
            while self._wait_for_work(worker):
                worker.warm_up()
                self.step(worker)
        except BaseException as error:
            logger.exception("the device failed")
            self._fail_requests(worker, f"the device failed: {error}", error)
        else:
            self._fail_requests(worker, "the generator was closed")
        try:
            worker.runner.close()
        except Exception:  # of a device that has failed already
            logger.exception("the device's memory may not be free yet")

    def step(self, worker: DeviceWorker) -> None:
        """Schedule a batch, launch it, collect what is due, and publish the results."""
        with self._lock:
            if self._end is not None:  # since it woke up
                return
            self._drop_cancelled(worker)
            batch = worker.scheduler.schedule()  # admits waiting sequences to the free slots
            self._has_room.notify_all()
        if batch is not None:
            worker.launch(batch)
        for _ in range(worker.num_due(batch)):
            collected = worker.collect()
            self._record(worker, collected)
            self._publish_results(worker, collected)

    def _wait_for_work(self, worker: DeviceWorker) -> bool:
        """Wait until a device has something to do; return False where the engine has ended."""
        with self._lock:
            while self._end is None and not worker.has_work:
                self._has_work.wait()
            return self._end is None

    def _drop_cancelled(self, worker: DeviceWorker) -> None:
        cancelled, worker.cancelled = worker.cancelled, []
        for request in cancelled:
            self._statistics.record_cancelled(self._cancel_here(worker, request))

    def _cancel_here(self, worker: DeviceWorker, request: Request) -> int:
        """Free what a request has waiting, or running on a device; return how many sequences that were."""
        num_cancelled = len(worker.scheduler.cancel(request))
        self._has_room.notify_all()
        return num_cancelled

    def _record(self, worker: DeviceWorker, collected: CollectedBatch) -> None:
        batch, output = collected.batch, collected.output
        statistics, num_rows = self._statistics, len(batch.sequences)
        if batch.is_prefill:
            statistics.record_prefill(collected.seconds, num_rows * batch.num_tokens)
        else:
            first = [s for s, ids in output.new_tokens if 0 < len(s.output_token_ids) <= len(ids)]
            for sequence in first:
                statistics.record_first_token(collected.end_s - sequence.submitted_s)
            statistics.record_tokens(collected.gap_s / output.num_steps, output.num_sampled - len(first))
            statistics.record_step(
                collected.seconds,
                num_steps=output.num_steps,
                num_rows=num_rows,
                num_slots=worker.scheduler.num_slots,
                is_anyone_waiting=self._waiting.num_waiting > 0,
                num_prompt_tokens=output.num_fed + len(first),
                num_wasted=output.num_wasted,
            )
        statistics.record_finished(len(collected.finished))

    def _publish_results(self, worker: DeviceWorker, collected: CollectedBatch) -> None:
        for sequence, error in collected.output.errors:
            self._statistics.record_failed(self._cancel_everywhere(worker, sequence.request))
            self._publish(worker, sequence.request, error)
        for sequence, _ in collected.output.new_tokens:
            if sequence.request.is_stream and (delta := sequence.take_delta()) is not None:
                self._publish(worker, sequence.request, delta)
        for sequence in collected.finished:
            if not sequence.request.is_stream:
                self._publish(worker, sequence.request, sequence)

    def _publish(
        self, worker: DeviceWorker, request: Request, event: Sequence | Delta | BaseException
    ) -> None:
        try:
            request.publish(event)
        except Exception as error:  # such as a closed event loop: nobody listens any more
            logger.debug("a request's results have nowhere to go: %s", error)
            self._statistics.record_cancelled(self._cancel_everywhere(worker, request))

    def _cancel_everywhere(self, worker: DeviceWorker, request: Request) -> int:
        """Cancel a request; return how many sequences waited or ran here. Other devices' threads follow."""
        with self._lock:
            for other in self.workers:
                if other is not worker:
                    other.cancelled.append(request)
            self._has_work.notify_all()
            return self._cancel_here(worker, request)

    def _fail_requests(self, worker: DeviceWorker, reason: str, cause: BaseException | None = None) -> None:
        """End the engine, and tell those whose sequences wait or run here; each device's thread does."""
        with self._lock:
            self._end = self._end or (reason, cause)
            running = {sequence.request for sequence in worker.scheduler.running}
            requests = {*self._waiting.requests} | running
            for request in requests:
                self._statistics.record_failed(self._cancel_here(worker, request))
            warmups, worker.warmups = worker.warmups, []
            self._has_work.notify_all()
            self._has_room.notify_all()
        for request in requests:
            self._publish(worker, request, self._end_error())
        for warmup in warmups:
            warmup.set_exception(self._end_error())

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
            if num_sequences > self._room():
                raise QueueFullError(
                    f"{self._waiting.num_waiting} sequences wait already: no room for {num_sequences} more "
                    f"(max_queued_sequences is {self.max_queued_sequences})"
                )

    def submit_some(self, request: Request, sequences: list[Sequence]) -> int:
        """Queue as many of the sequences as there is room for, after waiting for room for one.

        Returns how many. More can be submitted for a request while its sequences run.

        Raises:
            EngineError: see submit.
        """
        self._check_caller()
        with self._lock:
            while (room := self._room()) == 0:
                self._has_room.wait()
            fitting = sequences[:room]
            self._queue(request, fitting)
            return len(fitting)

    def _room(self) -> int:
        """Sequences that the queue has room for; EngineError where the engine has ended."""
        if self._end is not None:
            raise self._end_error()
        return self.max_queued_sequences - self._waiting.num_waiting

    def _queue(self, request: Request, sequences: Collection[Sequence]) -> None:
        now_s = time.perf_counter()
        for sequence in sequences:
            sequence.submitted_s = now_s
        self._waiting.add(request, sequences)
        self._has_work.notify_all()

    def cancel(self, request: Request) -> None:
        """Forget what a request still has waiting or running; its slots are free before the next batch."""
        if os.getpid() == self._pid:
            with self._lock:
                for worker in self.workers:
                    worker.cancelled.append(request)
                self._has_work.notify_all()

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
            for worker in self.workers:
                futures.append(Future())
                worker.warmups.append(futures[-1])
            self._has_work.notify_all()
        for future in futures:
            future.result()

    def stats(self) -> Stats:
        """Counts and times since the start; EngineError in a fork."""
        self._check_process()
        num_running = sum(worker.scheduler.num_running for worker in self.workers)
        return self._statistics.snapshot(running=num_running, waiting=self._waiting.num_waiting)

    @property
    def is_alive(self) -> bool:
        """Whether it takes sequences: nothing failed, and nobody closed it."""
        return self._end is None

    @property
    def num_slots(self) -> int:
        """Sequences that can run at once, on all devices."""
        return sum(worker.scheduler.num_slots for worker in self.workers)

    def close(self) -> None:
        """End the engine's threads, after the steps that they are in. Whoever waits gets an EngineError."""
        if os.getpid() != self._pid:
            return  # a fork has no such thread, and the lock may be held for ever
        with self._lock:
            self._end = self._end or ("the generator was closed", None)
            self._has_work.notify_all()
        if threading.current_thread() not in self._threads:  # one of them may collect the generator
            for thread in self._threads:
                thread.join()

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

    def _end_error(self) -> EngineError:
        """One for each caller: raising the same one in several threads would mix up tracebacks."""
        assert self._end is not None
        error = EngineError(self._end[0])
        error.__cause__ = self._end[1]
        return error
