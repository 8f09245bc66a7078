"""CudaDevice: one GPU: its memory, sessions and kernels, and the stream that they all use.

ONNX Runtime computes on the same stream, so that runs and copies happen in the order of their calls. What is
queued there, and what CUDA's errors mean, is in stream.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from ctypes import c_char, c_int, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import DTypeLike, NDArray

from hgt_infer.cuda.capture_gate import GATE
from hgt_infer.cuda.cudart import (
    COMPUTE_CAPABILITY_MAJOR,
    COMPUTE_CAPABILITY_MINOR,
    DEVICE_TO_DEVICE,
    OUT_OF_MEMORY,
    Copy3D,
    Extent,
    PitchedPointer,
    load_cuda,
)
from hgt_infer.cuda.kernel import CudaKernel
from hgt_infer.cuda.stream import CudaEvent, CudaStream
from hgt_infer.errors import DeviceMemoryError, DeviceUnavailableError, EngineError, ModelFormatError

PROVIDER_OPTIONS: dict[str, str] = {
    # Grow by what is asked for, not by powers of two: the cache is allocated beside it.
    "arena_extend_strategy": "kSameAsRequested",
    # TensorFloat-32 keeps 10 bits: cumulative sums of probabilities need float32's 23.
    "use_tf32": "0",
    # Flash attention (1) or, where the GPU is too old for it, the memory-efficient kernel (2). By default
    # GroupQueryAttention prefers cuDNN from compute capability 9.0, which builds a plan for each new (batch,
    # length, capacity); the provider keeps them all: as prompts are not padded, nearly every prefill would
    # build one, and memory would grow without bound. Single tokens take XQA all the same.
    "sdpa_kernel": "3",
    # Nothing else in the graphs takes cuDNN, so a session needs no handle of it. Without sdpa_kernel this
    # fails where cuDNN is installed: attention still chooses cuDNN, and has no handle.
    "enable_cudnn": "0",
}
"""Options of the CUDA provider that every session has, whatever it is for."""

# What ONNX Runtime, which has no type for it, says where memory is short.
_OUT_OF_MEMORY = ("failed to allocate memory", "out of memory", "smaller than requested")

SESSION_ENTRIES: dict[str, str] = {}
"""Configuration entries that every session on CUDA has."""


def session_settings(device_id: int) -> tuple[ort.SessionOptions, dict[str, str]]:
    """Options of a session and of its CUDA provider, as every session on a GPU has them."""
    options = ort.SessionOptions()
    for name, value in SESSION_ENTRIES.items():
        options.add_session_config_entry(name, value)
    return options, PROVIDER_OPTIONS | {"device_id": str(device_id)}


class _Section:
    """`with device.at_work():`, made once per device."""

    def __init__(self, set_device: Callable[[int], int], device_id: int) -> None:
        self._set_device = set_device
        self._device_id = device_id

    def __enter__(self) -> None:
        GATE.enter()
        self._set_device(self._device_id)  # the current device is each thread's own

    def __exit__(self, *_: object) -> None:
        GATE.leave()


class _Owned:
    """What a device has allocated, freed when the device is closed or collected."""

    def __init__(self, cudart: Any, device_id: int, stream: CudaStream) -> None:
        self.cudart = cudart
        self.device_id = device_id
        self.stream = stream
        self.sessions: list[ort.InferenceSession] = []  # which free memory and graphs when they end
        self.kernels: list[CudaKernel] = []
        self.addresses: list[int] = []
        self.pinned: list[Any] = []  # keeps page-locked memory until nothing queued can refer to it

    def release(self) -> None:
        """Wait for the stream, and free everything."""
        cudart = self.cudart
        cudart.cudaSetDevice(self.device_id)
        if cudart.cudaStreamSynchronize(self.stream.handle):
            # ONNX Runtime's destructor of a captured graph throws then, which ends the process.
            for session in self.sessions:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
        self.sessions.clear()
        while self.kernels:
            with contextlib.suppress(EngineError):  # of a GPU that has failed
                self.kernels.pop().close()
        while self.addresses:
            cudart.cudaFree(self.addresses.pop())
        self.stream.destroy()
        cudart.cudaGetLastError()  # ONNX Runtime would take it for its own
        self.pinned.clear()


class CudaArray:
    """Device memory with a page-locked mirror; see DeviceArray."""

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike, device: CudaDevice) -> None:
        self._device = device
        self.host: NDArray[Any] = device.pinned(shape, dtype)
        self.address = device.allocate(self.host.nbytes)

    def upload(self, num_rows: int) -> None:
        """See DeviceArray."""
        rows = self.host[:num_rows]
        if rows.size:
            with self._device.at_work():
                self._device.stream.copy_to_device(self.address, rows)
                self._device.stream.synchronize()

    def download(self, num_rows: int) -> None:
        """See DeviceArray."""
        rows = self.host[:num_rows]
        if rows.size:
            with self._device.at_work():
                self._device.stream.copy_to_host(rows, self.address)
                self._device.stream.synchronize()


class CudaCache:
    """Device memory of shape [2 · layers, slots, heads, max_length, head_size]; see CacheArray."""

    def __init__(self, shape: tuple[int, int, int, int, int], dtype: DTypeLike, device: CudaDevice) -> None:
        num_arrays, num_slots, num_heads, max_length, head_size = shape
        self._stream = device.stream
        self._position_bytes = head_size * np.dtype(dtype).itemsize
        self._num_heads = num_heads
        pitch = max_length * self._position_bytes  # from a head to the next
        self.address = device.allocate(num_arrays * num_slots * num_heads * pitch)
        # Rows are heads, slices are arrays.
        memory = PitchedPointer(self.address, pitch, pitch, num_slots * num_heads)
        self._copy = Copy3D(
            srcPtr=memory,
            dstPtr=memory,
            extent=Extent(0, num_heads, num_arrays),
            kind=DEVICE_TO_DEVICE,
        )

    def copy_prefix(self, source_slot: int, target_slot: int, length: int) -> None:
        """See CacheArray; asynchronous."""
        copy = self._copy
        copy.srcPos.y = source_slot * self._num_heads
        copy.dstPos.y = target_slot * self._num_heads
        copy.extent.width = length * self._position_bytes
        self._stream.copy_3d(copy)


class CudaDevice:
    """The CUDA provider on one GPU.

    Runs with the run option disable_synchronize_execution_providers are queued on the stream, as copies
    are. What a thread queues and waits for belongs into `with device.at_work():`.

    Args:
        device_id: the GPU's number, as the driver counts.
        cache_dir: where compiled kernels are kept; see cache_folder.
        cudart: what stands in for the CUDA runtime in tests.

    Attributes:
        stream: where all work is queued.
        cudart: the CUDA runtime's functions.

    Raises:
        DeviceUnavailableError: there is no such GPU, or CUDA cannot be used here.
    """

    kind = "cuda"

    def __init__(
        self, device_id: int = 0, *, cache_dir: str | os.PathLike[str] | None = None, cudart: Any = None
    ) -> None:
        self.device_id = device_id
        self.name = f"cuda:{device_id}"
        self.cudart: Any = load_cuda(device_id) if cudart is None else cudart
        self._cache_dir = cache_dir
        self._section = _Section(self.cudart.cudaSetDevice, device_id)
        with self.at_work():
            self.stream = CudaStream(self.cudart, device_id)
        self._owned = _Owned(self.cudart, device_id, self.stream)
        # Not at the interpreter's exit: threads may still run, and the driver frees everything anyway.
        self._finalizer = weakref.finalize(self, GATE.run_or_put_off, self._owned.release)
        self._finalizer.atexit = False

    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> CudaArray:
        """See Device."""
        return CudaArray(shape, dtype, self)

    def cache(self, shape: tuple[int, int, int, int, int], dtype: DTypeLike) -> CudaCache:
        """See Device. Masked positions are multiplied by 0, so they must not hold NaN: zeroed."""
        return CudaCache(shape, dtype, self)

    def open_session(
        self, path: Path, *, captured: bool = False, memory_limit: int | None = None
    ) -> ort.InferenceSession:
        """See Device. The session ends with the device: not amid a capture, and before its stream."""
        options, provider_options = session_settings(self.device_id)
        # Prompts come in any shape; a memory plan kept for each of them would grow without bound.
        options.enable_mem_pattern = False
        provider_options |= {
            "user_compute_stream": str(self.stream.handle),
            "enable_cuda_graph": "1" if captured else "0",
        }
        if memory_limit is not None:
            provider_options["gpu_mem_limit"] = str(memory_limit)
        provider = "CUDAExecutionProvider"
        with self.at_work():
            try:
                session = ort.InferenceSession(str(path), options, providers=[(provider, provider_options)])
            except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
                if any(phrase in str(error).lower() for phrase in _OUT_OF_MEMORY):
                    limit = "" if memory_limit is None else f" in {memory_limit:,} bytes"
                    raise DeviceMemoryError(f"{path} does not fit{limit} {self._room()}: {error}") from error
                raise ModelFormatError(f"{path}: ONNX Runtime cannot load it: {error}") from error
        if session.get_providers()[0] != provider:
            raise DeviceUnavailableError(
                f"ONNX Runtime could not start {provider} on {self.name} and fell back to "
                f"{session.get_providers()}; its log has the reason"
            )
        self._owned.sessions.append(session)
        return session

    def kernel(
        self,
        path: Path,
        name: str,
        *,
        block_size: int,
        defines: Mapping[str, int],
        addresses: Sequence[int],
    ) -> CudaKernel:
        """A kernel compiled for this GPU, whose launches are queued on the stream; see CudaKernel."""
        major, minor = map(self.attribute, (COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR))
        with self.at_work():
            kernel = CudaKernel(
                f"sm_{major}{minor}",
                self.stream.handle,
                path,
                name,
                block_size=block_size,
                defines=defines,
                addresses=addresses,
                cache_dir=self._cache_dir,
            )
        self._owned.kernels.append(kernel)
        return kernel

    def attribute(self, attribute: int) -> int:
        """What the GPU can do: an attribute of cudaDeviceAttr, by its number."""
        value = c_int()
        with self.at_work():
            status = self.cudart.cudaDeviceGetAttribute(ctypes.byref(value), attribute, self.device_id)
            self.stream.check(status, "cudaDeviceGetAttribute")
        return value.value

    def memory(self) -> tuple[int, int]:
        """Bytes of the GPU's memory that are free, other processes considered, and in all."""
        free, total = c_size_t(), c_size_t()
        with self.at_work():
            status = self.cudart.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
            self.stream.check(status, "cudaMemGetInfo")
        return free.value, total.value

    def allocate(self, num_bytes: int) -> int:
        """The address of num_bytes of device memory, zeroed on the stream; freed by close.

        Raises:
            DeviceMemoryError: so much is not free.
        """
        address = c_void_p()
        with self.at_work():
            status = self.cudart.cudaMalloc(ctypes.byref(address), max(num_bytes, 1))
            if status == OUT_OF_MEMORY:
                self.cudart.cudaGetLastError()  # ONNX Runtime would take it for its own
                raise DeviceMemoryError(f"{num_bytes:,} bytes do not fit {self._room()}")
            self.stream.check(status, "cudaMalloc")
            assert address.value
            self._owned.addresses.append(address.value)
            self.stream.fill_zero(address.value, num_bytes)
        return address.value

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """A zeroed array in page-locked host memory; it stays while an array over it is referred to.

        Raises:
            DeviceMemoryError: the system locks no more.
        """
        dtype = np.dtype(dtype)
        num_bytes = max(int(np.prod(shape)) * dtype.itemsize, 1)
        address = c_void_p()
        with self.at_work():
            status = self.cudart.cudaHostAlloc(ctypes.byref(address), num_bytes, 0)
            if status == OUT_OF_MEMORY:
                self.cudart.cudaGetLastError()  # ONNX Runtime would take it for its own
                raise DeviceMemoryError(f"{num_bytes:,} bytes of host memory could not be page-locked")
            self.stream.check(status, "cudaHostAlloc")
        assert address.value
        memory = (c_char * num_bytes).from_address(address.value)
        free_host, pinned_address = self.cudart.cudaFreeHost, address.value
        finalizer = weakref.finalize(memory, GATE.run_or_put_off, lambda: free_host(pinned_address))
        finalizer.atexit = False
        array: NDArray[Any] = np.frombuffer(memoryview(memory), np.uint8)
        array.fill(0)
        self._owned.pinned.append(array)
        return array[: int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)

    def event(self) -> CudaEvent:
        """An event of the stream, freed by close."""
        with self.at_work():
            return self.stream.event()

    def at_work(self) -> AbstractContextManager[None]:
        """The section in which a thread queues work and waits for it, with this GPU as its current one.

        It waits while another thread captures. Sections may be nested, and a capture may be inside.
        """
        return self._section

    @contextlib.contextmanager
    def capturing(self) -> Iterator[None]:
        """The section in which a thread captures: it waits until no other thread is at work on any GPU.

        Whatever this thread does meanwhile belongs to the capture or to the runs that lead to it.
        """
        with GATE.alone(), self.at_work():
            yield

    def close(self) -> None:
        """See Device."""
        if self._finalizer.detach() is not None:
            with self.at_work():
                self._owned.release()

    def _room(self) -> str:
        free, total = self.memory()
        return (
            f"on {self.name}: {free:,} of its {total:,} bytes are free "
            "(other processes may hold a part of them)"
        )
