"""FakeCudaDevice: a CudaDevice over a stand-in for the CUDA runtime in host memory.

It is as treacherous as a GPU: what is queued runs late (or early, or in between: `pace`), fresh memory
is garbage, a capture runs the graph three times and keeps what was bound. What a GPU would answer with
wrong numbers or a crash (pageable memory, a foreign address, work outside `at_work`) is an AssertionError.
Sessions are the CPU provider's.
"""

from __future__ import annotations

import ctypes
import random
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from support.host_kernel import HostKernel, host_kernel

from hgt_infer.cuda import runtime as cuda
from hgt_infer.cuda.capture_gate import GATE
from hgt_infer.cuda.device import CudaDevice
from hgt_infer.runtime.device import CpuDevice

POISON = 0xFF  # NaN as a float of any width, -1 as an integer
ALIGNMENT = 256  # of cudaMalloc
MAX_SHARED_BYTES = 227 << 10  # of a block, as an H100 has it
HOST_INPUTS = ("total_sequence_length", "first_output")
ILLEGAL_ADDRESS = 700  # cudaErrorIllegalAddress: every later call fails as well

_ERRORS = {
    cuda.OUT_OF_MEMORY: ("cudaErrorMemoryAllocation", "out of memory"),
    cuda.NOT_READY: ("cudaErrorNotReady", "device not ready"),
    ILLEGAL_ADDRESS: ("cudaErrorIllegalAddress", "an illegal memory access was encountered"),
}
_current = threading.local()  # .device: the number of this thread's current device


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
        assert GATE.is_open, f"{function} outside of at_work()"
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
        block = np.full(num_bytes + ALIGNMENT, POISON, np.uint8)
        offset = -block.ctypes.data % ALIGNMENT
        block = block[offset : offset + num_bytes]
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
        self.device_memory.pop(address).fill(POISON)
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
        if not status:
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

    def cudaEventQuery(self, event: int) -> int:  # noqa: N802
        if status := self._status("cudaEventQuery"):
            return status
        if self._queue:  # the device goes on while it is asked
            self.run_until(self._num_done + 1)
        if self._num_done >= self._marks[event]:
            return 0
        self.last_error = cuda.NOT_READY
        return cuda.NOT_READY

    def cudaGetLastError(self) -> int:  # noqa: N802
        status, self.last_error = self.last_error, self._sticky
        return status

    def cudaGetErrorName(self, status: int) -> bytes:  # noqa: N802
        return _ERRORS.get(status, ("cudaErrorUnknown", ""))[0].encode()

    def cudaGetErrorString(self, status: int) -> bytes:  # noqa: N802
        return _ERRORS.get(status, ("", "unknown error"))[1].encode()


def _contains(memory: dict[int, NDArray[np.uint8]], address: int, num_bytes: int) -> bool:
    return any(
        start <= address and address + num_bytes <= start + block.nbytes for start, block in memory.items()
    )


class FakeCudaDevice(CudaDevice):
    """A CudaDevice in host memory; its bindings are of kind "cpu".

    Args:
        device_id: its number; several of them are several GPUs.
        total_bytes: of its memory.
        pace: when queued work runs: "late", "early", or a seed for something in between.

    Attributes:
        cudart: the stand-in: `cudart.fail("cudaMalloc", at=2, status=2)`, `cudart.calls`, …
        sessions: all that were opened.
    """

    kind = "cpu"

    def __init__(self, device_id: int = 0, *, total_bytes: int = 1 << 32, pace: str | int = "late") -> None:
        super().__init__(device_id, cudart=FakeCudart(device_id, total_bytes=total_bytes, pace=pace))
        self.sessions: list[FakeSession] = []

    @property
    def is_open(self) -> bool:
        """Whether it is not closed yet."""
        return self._finalizer.alive

    def open_session(self, path: Path, *, captured: bool = False, memory_limit: int | None = None) -> Any:
        """A session of the CPU provider that runs on the fake's stream; see FakeSession."""
        with self.at_work():
            self.sessions.append(FakeSession(self, CpuDevice().open_session(path), captured=captured))
        return self.sessions[-1]

    def kernel(
        self,
        path: Path,
        name: str,
        *,
        block_size: int,
        defines: Mapping[str, int],
        addresses: Sequence[int],
    ) -> FakeKernel:
        """See CudaDevice; block_size is 1: a kernel's results do not depend on it."""
        for address in addresses:
            assert self.cudart.is_device(address, 1), "an argument that is no device memory"
        return FakeKernel(self, host_kernel(path, name, defines=defines), list(addresses))


class FakeKernel:
    """A kernel that g++ compiled for the host, launched on the fake's stream.

    The fake runs clusters of one block alone: more threads on the host are slower, and change no result.
    """

    def __init__(self, device: FakeCudaDevice, run: HostKernel, addresses: list[int]) -> None:
        self._device: FakeCudaDevice = weakref.proxy(device)
        self._run = run
        self._addresses = addresses

    def max_active_clusters(self, cluster_size: int, shared_bytes: int) -> int:
        """See Kernel."""
        assert GATE.is_open, "a call of the driver outside of at_work()"
        return int(cluster_size == 1)

    def launch(self, num_rows: int, *, cluster_size: int, shared_bytes: int) -> None:
        """Queue a run."""
        assert GATE.is_open, "a launch outside of at_work()"
        assert shared_bytes <= MAX_SHARED_BYTES
        run = partial(
            self._run, num_rows, self._addresses, cluster_size=cluster_size, shared_bytes=shared_bytes
        )
        self._device.cudart.queue(run)

    def close(self) -> None:
        """See Kernel."""
        assert self._device.cudart.num_pending == 0, "unloaded while it may run"


class FakeBinding:
    """What was bound; a run binds it anew to the CPU provider's session."""

    def __init__(self, session: FakeSession) -> None:
        self._session = session
        self.inputs: dict[str, tuple[Any, tuple[int, ...], int]] = {}
        self.outputs: dict[str, tuple[Any, tuple[int, ...], int]] = {}
        self._frozen: FrozenRun | None = None

    def bind_input(self, name: str, kind: str, device_id: int, dtype: Any, shape: Any, address: int) -> None:
        self._bind(self.inputs, name, (kind, device_id), dtype, shape, address)

    def bind_output(self, name: str, kind: str, device_id: int, dtype: Any, shape: Any, address: int) -> None:
        self._bind(self.outputs, name, (kind, device_id), dtype, shape, address)

    def _bind(
        self,
        bound: dict[str, Any],
        name: str,
        place: tuple[str, int],
        dtype: Any,
        shape: Any,
        address: int,
    ) -> None:
        device = self._session.device
        on_host = name in HOST_INPUTS
        expected = ("cpu", 0) if on_host else (device.kind, device.device_id)
        assert place == expected, f"{name} is bound to {place}, not to {expected}"
        num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        is_device = device.cudart.is_device(address, num_bytes)
        assert not num_bytes or is_device != on_host, (
            f"{name} ({num_bytes} bytes) {'is' if is_device else 'is not'} in this device's memory"
        )
        bound[name] = (dtype, tuple(shape), address)
        self._frozen = None

    def freeze(self) -> FrozenRun:
        """The run as bound now: addresses are fixed, values in CPU memory are not yet."""
        if self._frozen is None:
            self._frozen = FrozenRun(self._session.real, dict(self.inputs), dict(self.outputs))
        return self._frozen


class FrozenRun:
    """A run over fixed addresses, with the values in CPU memory given to it each time."""

    def __init__(self, session: Any, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        self._session = session
        self._addresses = {name: inputs[name][2] for name in HOST_INPUTS if name in inputs}
        self._copies = {name: np.zeros(inputs[name][1], inputs[name][0]) for name in self._addresses}
        self._binding = session.io_binding()
        for name, (dtype, shape, address) in inputs.items():
            if name in self._copies:
                address = self._copies[name].ctypes.data
            self._binding.bind_input(name, "cpu", 0, dtype, shape, address)
        for name, (dtype, shape, address) in outputs.items():
            self._binding.bind_output(name, "cpu", 0, dtype, shape, address)

    def host_values(self) -> dict[str, bytes]:
        """What stands in CPU memory now."""
        return {
            name: ctypes.string_at(address, self._copies[name].nbytes)
            for name, address in self._addresses.items()
        }

    def run(self, host_values: dict[str, bytes]) -> None:
        for name, value in host_values.items():
            ctypes.memmove(self._copies[name].ctypes.data, value, len(value))
        self._session.run_with_iobinding(self._binding)


class FakeSession:
    """Runs on the fake's stream, captured ones as ONNX Runtime's CUDA provider does it.

    The run option gpu_graph_id counts where the session is a captured one: -1 runs as bound, another id
    (0 without the option) runs three times and captures, the first time, and is replayed afterwards. A
    replay reads nothing of the binding given, nor of CPU memory. With the run option
    disable_synchronize_execution_providers "1" runs and replays are queued, and so is a capture's third.
    """

    def __init__(self, device: FakeCudaDevice, real: Any, *, captured: bool) -> None:
        self.device: FakeCudaDevice = weakref.proxy(device)
        self.real = real
        self.captured = captured
        self.captures: dict[int, tuple[FrozenRun, dict[str, bytes]]] = {}
        self.num_runs = 0  # that were asked for
        self._thread: int | None = None  # the one that captures and replays
        self._failures: list[int] = []

    def fail(self, *, at: int = 1) -> None:
        """Let the at-th run from now on fail."""
        self._failures.append(self.num_runs + at)

    def io_binding(self) -> FakeBinding:
        return FakeBinding(self)

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def get_inputs(self) -> Any:
        return self.real.get_inputs()

    def get_outputs(self) -> Any:
        return self.real.get_outputs()

    def run_with_iobinding(self, binding: FakeBinding, run_options: Any = None) -> None:
        assert GATE.is_open, "a run outside of at_work()"
        assert binding._session is self, "a binding of another session"
        assert self.device.is_open, "a run on a device that is closed"
        self.num_runs += 1
        if self.num_runs in self._failures:
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered (injected)")
        graph_id = int(_option(run_options, "gpu_graph_id", "0")) if self.captured else -1
        if graph_id == -1:
            frozen = binding.freeze()
            host_values = frozen.host_values()
        else:
            assert self._thread in (None, threading.get_ident()), "captured on another thread"
            if graph_id not in self.captures:
                self._capture(graph_id, binding)
            frozen, host_values = self.captures[graph_id]
        self.device.cudart.queue(lambda: frozen.run(host_values))
        if _option(run_options, "disable_synchronize_execution_providers", "0") != "1":
            self.device.cudart.run_all()

    def _capture(self, graph_id: int, binding: FakeBinding) -> None:
        assert GATE.is_alone, f"gpu_graph_id {graph_id} is captured outside of capturing()"
        self._thread = threading.get_ident()
        frozen = binding.freeze()
        host_values = frozen.host_values()
        for _ in range(2):
            self.device.cudart.queue(lambda: frozen.run(host_values))
        self.device.cudart.run_all()  # a capture begins on an idle stream, and itself runs nothing
        self.captures[graph_id] = (frozen, host_values)


def _option(run_options: Any, name: str, default: str) -> str:
    if run_options is None:
        return default
    try:
        return str(run_options.get_run_config_entry(name))
    except RuntimeError:  # not set
        return default
