"""FakeCudart: the CUDA runtime's functions over host memory, as treacherous as a GPU.

What is queued runs late (or early, or in between: `pace`), and fresh memory is garbage. What a GPU would
answer with wrong numbers or a crash (pageable memory, a foreign address, work outside `at_work`) is an
AssertionError.
"""

from __future__ import annotations

import ctypes
import random
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgt_infer.cuda import cudart as cuda
from hgt_infer.cuda.capture_gate import GATE

POISON = 0xFF  # NaN as a float of any width, -1 as an integer
BALLAST_BYTES = 256 << 20  # so large a block only takes room: nobody reads it, and it stays as it is
ALIGNMENT = 256  # of cudaMalloc
MAX_SHARED_BYTES = 227 << 10  # of a block, as an H100 has it
ILLEGAL_ADDRESS = 700  # cudaErrorIllegalAddress: every later call fails as well

_ERRORS = {
    cuda.OUT_OF_MEMORY: ("cudaErrorMemoryAllocation", "out of memory"),
    ILLEGAL_ADDRESS: ("cudaErrorIllegalAddress", "an illegal memory access was encountered"),
}
_current = threading.local()  # .device: the number of this thread's current device


def is_at_work() -> bool:
    """Whether this thread is in a section of device work, or captures."""
    return threading.get_ident() in GATE._depths or is_capturing()


def is_capturing() -> bool:
    """Whether this thread captures: no other one is at work."""
    return GATE._alone == threading.get_ident()


class FakeCudart:
    """The CUDA runtime's functions for one device of `total_bytes`, with one stream.

    pace: when queued work runs. "late": when it is waited for. "early": at once. A number seeds
    something in between. What was injected by `fail` is the answer of a later call.
    """

    def __init__(self, device_id: int, *, total_bytes: int, pace: str | int = "late") -> None:
        self.device_id = device_id
        self.total_bytes = total_bytes
        self.other_bytes = 0  # taken by another process
        self.device_memory: dict[int, NDArray[np.uint8]] = {}
        self.pinned_memory: dict[int, NDArray[np.uint8]] = {}
        self.calls: list[str] = []  # every function called, in order
        self._pace = pace
        self._random = random.Random(pace)
        self._queue: deque[Callable[[], None]] = deque()
        self._num_queued = 0  # ever
        self._num_done = 0
        self._marks: dict[int, int] = {}  # of each event: what was queued before it
        self._next_handle = 1
        self._streams: set[int] = set()
        self._failures: list[tuple[str | None, int, int]] = []
        self._sticky = 0
        self.last_error = 0

    def fail(self, function: str | None = None, *, at: int = 1, status: int = ILLEGAL_ADDRESS) -> None:
        """Let the at-th call from now on, of one function or of any that returns a status, fail."""
        self._failures.append((function, at, status))

    # What a call does first and last.

    def _status(self, function: str, *, needs_current: bool = False) -> int:
        self.calls.append(function)
        assert is_at_work(), f"{function} outside of at_work()"
        if needs_current:
            current = getattr(_current, "device", 0)
            assert current == self.device_id, f"{function}: this thread's device is {current}"
        if self._sticky:
            return self._sticky
        status = 0
        for i, (name, at, failure) in enumerate(self._failures):
            if name in (None, function):
                self._failures[i] = (name, at - 1, failure)
                status = status or (failure if at == 1 else 0)
        self._failures = [failure for failure in self._failures if failure[1] > 0]
        if status:
            self.last_error = status
            if status != cuda.OUT_OF_MEMORY:
                self._sticky = status
        return status

    # The stream.

    def queue(self, work: Callable[[], None]) -> None:
        """Put work behind what is queued; it runs according to the pace."""
        self._queue.append(work)
        self._num_queued += 1
        if self._pace == "early":
            self.run_until(self._num_queued)
        elif self._pace != "late":
            self.run_until(self._num_done + self._random.randint(0, len(self._queue)))

    def run_until(self, num_done: int) -> None:
        """Run queued work until so much of it is done."""
        while self._num_done < num_done:
            self._num_done += 1
            self._queue.popleft()()

    def run_all(self) -> None:
        """Run all that is queued."""
        self.run_until(self._num_queued)

    @property
    def num_pending(self) -> int:
        """Work that has not run yet."""
        return len(self._queue)

    # Memory.

    def is_device(self, address: int, num_bytes: int) -> bool:
        """Whether a range of addresses lies in one piece of device memory."""
        return _contains(self.device_memory, address, num_bytes)

    def _check_device(self, address: int, num_bytes: int) -> None:
        assert self.is_device(address, num_bytes), f"{num_bytes} bytes at {address:#x} are no device memory"

    def _check_pinned(self, address: int, num_bytes: int) -> None:
        assert _contains(self.pinned_memory, address, num_bytes), "host memory that is not page-locked"

    def _allocate(self, memory: dict[int, NDArray[np.uint8]], out: Any, num_bytes: int) -> None:
        block = np.empty(num_bytes + ALIGNMENT, np.uint8)
        offset = -block.ctypes.data % ALIGNMENT
        block = block[offset : offset + num_bytes]
        _poison(block)
        memory[block.ctypes.data] = block
        out._obj.value = block.ctypes.data

    def _handle(self, out: Any) -> int:
        out._obj.value = self._next_handle
        self._next_handle += 1
        return out._obj.value

    # The functions.

    def cudaSetDevice(self, device_id: int) -> int:  # noqa: N802
        _current.device = device_id
        return self._status("cudaSetDevice")

    def cudaDeviceGetAttribute(self, out: Any, attribute: int, device_id: int) -> int:  # noqa: N802
        out._obj.value = {
            cuda.COMPUTE_CAPABILITY_MAJOR: 9,
            cuda.COMPUTE_CAPABILITY_MINOR: 0,
            cuda.MAX_SHARED_BYTES_OPTIN: MAX_SHARED_BYTES,
        }[attribute]
        return self._status("cudaDeviceGetAttribute")

    def cudaMemGetInfo(self, free: Any, total: Any) -> int:  # noqa: N802
        used = sum(block.nbytes for block in self.device_memory.values())
        free._obj.value = self.total_bytes - self.other_bytes - used
        total._obj.value = self.total_bytes
        return self._status("cudaMemGetInfo", needs_current=True)

    def cudaMalloc(self, out: Any, num_bytes: int) -> int:  # noqa: N802
        if status := self._status("cudaMalloc", needs_current=True):
            return status
        used = sum(block.nbytes for block in self.device_memory.values())
        if used + self.other_bytes + num_bytes > self.total_bytes:
            self.last_error = cuda.OUT_OF_MEMORY
            return cuda.OUT_OF_MEMORY
        self._allocate(self.device_memory, out, num_bytes)
        return 0

    def cudaFree(self, address: int) -> int:  # noqa: N802
        status = self._status("cudaFree", needs_current=True)
        self.run_all()
        _poison(self.device_memory.pop(address))
        return status

    def cudaHostAlloc(self, out: Any, num_bytes: int, flags: int) -> int:  # noqa: N802
        if status := self._status("cudaHostAlloc"):
            return status
        self._allocate(self.pinned_memory, out, num_bytes)
        return 0

    def cudaFreeHost(self, address: int) -> int:  # noqa: N802
        # Of an array that the garbage collector found: on any thread, outside of any section.
        self.calls.append("cudaFreeHost")
        self.run_all()
        self.pinned_memory.pop(address)
        return 0

    def cudaStreamCreateWithFlags(self, out: Any, flags: int) -> int:  # noqa: N802
        assert flags == 1, "a stream that waits for the default stream"
        if status := self._status("cudaStreamCreateWithFlags", needs_current=True):
            return status
        self._streams.add(self._handle(out))
        return 0

    def cudaStreamDestroy(self, stream: int) -> int:  # noqa: N802
        self._streams.remove(stream)
        return self._status("cudaStreamDestroy")

    def cudaStreamSynchronize(self, stream: int) -> int:  # noqa: N802
        assert stream in self._streams
        status = self._status("cudaStreamSynchronize")
        self.run_all()
        return status

    def cudaMemcpyAsync(self, target: int, source: int, num_bytes: int, kind: int, stream: int) -> int:  # noqa: N802
        return self._copy("cudaMemcpyAsync", target, 0, source, 0, num_bytes, 1, kind, stream)

    def cudaMemcpy2DAsync(  # noqa: N802
        self,
        target: int,
        target_pitch: int,
        source: int,
        source_pitch: int,
        width: int,
        height: int,
        kind: int,
        stream: int,
    ) -> int:
        assert width <= target_pitch
        assert width <= source_pitch
        return self._copy(
            "cudaMemcpy2DAsync", target, target_pitch, source, source_pitch, width, height, kind, stream
        )

    def _copy(
        self,
        function: str,
        target: int,
        target_pitch: int,
        source: int,
        source_pitch: int,
        width: int,
        height: int,
        kind: int,
        stream: int,
    ) -> int:
        assert stream in self._streams
        for address, pitch, is_host in (
            (target, target_pitch, kind == cuda.DEVICE_TO_HOST),
            (source, source_pitch, kind == cuda.HOST_TO_DEVICE),
        ):
            check = self._check_pinned if is_host else self._check_device
            check(address, (height - 1) * pitch + width)

        def copy() -> None:
            for row in range(height):
                ctypes.memmove(target + row * target_pitch, source + row * source_pitch, width)

        status = self._status(function)
        if not status:
            self.queue(copy)
        return status

    def cudaMemcpy3DAsync(self, reference: Any, stream: int) -> int:  # noqa: N802
        copy: cuda.Copy3D = reference._obj
        assert stream in self._streams
        assert copy.kind == cuda.DEVICE_TO_DEVICE
        extent = (copy.extent.depth, copy.extent.height, copy.extent.width)
        views = [
            self._view3d(pointer, position, extent)
            for pointer, position in ((copy.dstPtr, copy.dstPos), (copy.srcPtr, copy.srcPos))
        ]
        status = self._status("cudaMemcpy3DAsync")
        if not status:
            self.queue(lambda: np.copyto(*views))
        return status

    def _view3d(
        self, pointer: cuda.PitchedPointer, position: cuda.Position, extent: tuple[int, int, int]
    ) -> NDArray[np.uint8]:
        depth, height, width = extent
        assert position.x + width <= pointer.pitch
        assert position.y + height <= pointer.ysize
        slice_bytes = pointer.pitch * pointer.ysize
        first = pointer.ptr + position.z * slice_bytes + position.y * pointer.pitch + position.x
        num_bytes = (depth - 1) * slice_bytes + (height - 1) * pointer.pitch + width
        self._check_device(first, num_bytes)
        memory = np.frombuffer((ctypes.c_uint8 * num_bytes).from_address(first), np.uint8)
        return np.lib.stride_tricks.as_strided(memory, extent, (slice_bytes, pointer.pitch, 1))

    def cudaMemsetAsync(self, address: int, value: int, num_bytes: int, stream: int) -> int:  # noqa: N802
        assert stream in self._streams
        self._check_device(address, num_bytes)
        status = self._status("cudaMemsetAsync")
        if not status and num_bytes < BALLAST_BYTES:
            self.queue(lambda: ctypes.memset(address, value, num_bytes) and None)
        return status

    def cudaEventCreateWithFlags(self, out: Any, flags: int) -> int:  # noqa: N802
        assert flags == 2, "an event that takes the time, or sleeps"
        if status := self._status("cudaEventCreateWithFlags", needs_current=True):
            return status
        self._marks[self._handle(out)] = 0  # never recorded: nothing to wait for
        return 0

    def cudaEventDestroy(self, event: int) -> int:  # noqa: N802
        del self._marks[event]
        return self._status("cudaEventDestroy")

    def cudaEventRecord(self, event: int, stream: int) -> int:  # noqa: N802
        assert stream in self._streams
        status = self._status("cudaEventRecord")
        if not status:
            self._marks[event] = self._num_queued
        return status

    def cudaEventSynchronize(self, event: int) -> int:  # noqa: N802
        status = self._status("cudaEventSynchronize")
        self.run_until(self._marks[event])
        return status

    def cudaGetLastError(self) -> int:  # noqa: N802
        status, self.last_error = self.last_error, self._sticky
        return status

    def cudaGetErrorName(self, status: int) -> bytes:  # noqa: N802
        return _ERRORS.get(status, ("cudaErrorUnknown", ""))[0].encode()

    def cudaGetErrorString(self, status: int) -> bytes:  # noqa: N802
        return _ERRORS.get(status, ("", "unknown error"))[1].encode()


def _poison(block: NDArray[np.uint8]) -> None:
    if block.nbytes < BALLAST_BYTES:
        block.fill(POISON)


def _contains(memory: dict[int, NDArray[np.uint8]], address: int, num_bytes: int) -> bool:
    return any(
        start <= address and address + num_bytes <= start + block.nbytes for start, block in memory.items()
    )
