"""CaptureGate: no thread of the process does device work while another one captures a graph."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections import deque
from collections.abc import Callable, Iterator


class CaptureGate:
    """Lets threads do device work side by side, or one of them alone while it captures.

    ONNX Runtime captures in global mode: a cudaMalloc, cudaFree or cudaEventQuery of any other thread
    would end the capture.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._depths: dict[int, int] = {}  # of the threads at work: sections that they are in
        self._num_waiting = 0  # threads that want to be alone
        self._alone: int | None = None  # the thread that is
        self._put_off: deque[Callable[[], None]] = deque()

    def enter(self) -> None:
        """Begin a section of device work; within another one of the same thread at once."""
        thread = threading.get_ident()
        with self._changed:
            if thread not in self._depths and self._alone != thread:
                while self._alone is not None or self._num_waiting:
                    self._changed.wait()
            self._depths[thread] = self._depths.get(thread, 0) + 1

    def leave(self) -> None:
        """End the section."""
        thread = threading.get_ident()
        with self._changed:
            self._depths[thread] -= 1
            if not self._depths[thread]:
                del self._depths[thread]
                if self._num_waiting:
                    self._changed.notify_all()
        if self._put_off and self._alone is None:
            self._run_put_off()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other thread is at work, and let none begin; a section of this thread's own is open.

        Two threads that are both in a section and want to be alone are so one after the other.
        """
        thread = threading.get_ident()
        with self._changed:
            assert self._alone != thread, "a capture inside a capture"
            depth = self._depths.pop(thread, 0)
            self._num_waiting += 1
            try:
                self._changed.notify_all()
                while self._alone is not None or self._depths:
                    self._changed.wait()
                self._alone = thread
            finally:
                self._num_waiting -= 1
                if depth:
                    self._depths[thread] = depth
                self._changed.notify_all()
        collects = gc.isenabled()
        gc.disable()  # a session that is collected frees device memory
        try:
            yield
        finally:
            if collects:
                gc.enable()
            with self._changed:
                self._alone = None
                self._changed.notify_all()
            self._run_put_off()

    def run_or_put_off(self, release: Callable[[], None]) -> None:
        """Free something now or, during a capture, after it. Never waits: called by the garbage collector."""
        self._put_off.append(release)
        self._run_put_off()

    def _run_put_off(self) -> None:
        if not self._changed.acquire(blocking=False):
            return  # whoever holds it comes here later, or the next section's end does
        thread = threading.get_ident()
        depth = self._depths.get(thread, 0)
        try:
            self._depths[thread] = depth + 1
            while self._put_off and self._alone is None:
                self._put_off.popleft()()
        finally:
            if depth:
                self._depths[thread] = depth
            else:
                del self._depths[thread]
            self._changed.release()


GATE = CaptureGate()
"""One for all devices of the process."""
