"""CudaStream: copies, fills and waits on a GPU in the order of their calls, and events between them.

Every call belongs into `with device.at_work():` of the stream's device. What CUDA's status codes mean is told
here too, for all functions of the runtime.
"""

from __future__ import annotations

import ctypes
from ctypes import addressof, c_char, c_void_p
from typing import Any, NoReturn

from numpy.typing import NDArray

from hgt_infer.cuda.cudart import (
    DEVICE_TO_DEVICE,
    DEVICE_TO_HOST,
    HOST_TO_DEVICE,
    OUT_OF_MEMORY,
    Copy3D,
)
from hgt_infer.errors import DeviceMemoryError, DeviceUnavailableError, EngineError

_NON_BLOCKING_STREAM = 1  # cudaStreamNonBlocking: does not wait for the default stream
_EVENT_WITHOUT_TIMING = 2  # cudaEventDisableTiming; cudaEventBlockingSync is off: waiting spins


class CudaStream:
    """A stream of a GPU, which becomes the calling thread's current one.

    Args:
        cudart: the CUDA runtime's functions.
        device_id: the GPU's number.

    Attributes:
        handle: the cudaStream_t.

    Raises:
        DeviceUnavailableError: CUDA gives none.
    """

    def __init__(self, cudart: Any, device_id: int) -> None:
        self._cudart = cudart
        self._device_name = f"cuda:{device_id}"
        self._memcpy_async = cudart.cudaMemcpyAsync
        self._memcpy_2d_async = cudart.cudaMemcpy2DAsync
        self._events: list[int] = []
        handle = c_void_p()
        status = cudart.cudaSetDevice(device_id) or cudart.cudaStreamCreateWithFlags(
            ctypes.byref(handle), _NON_BLOCKING_STREAM
        )
        if status:
            cudart.cudaGetLastError()  # ONNX Runtime would take it for its own
            raise DeviceUnavailableError(f"{self._device_name} cannot be used: {self._describe(status)}")
        assert handle.value
        self.handle: int = handle.value

    def copy_to_device(self, address: int, host: NDArray[Any]) -> None:
        """Queue a copy of a C-contiguous page-locked array, unchanged until the stream has passed."""
        status = self._memcpy_async(address, _address(host), host.nbytes, HOST_TO_DEVICE, self.handle)
        if status:
            self.fail(status, "cudaMemcpyAsync")

    def copy_columns_to_device(self, address: int, pitch: int, host: NDArray[Any]) -> None:
        """Queue a copy of a C-contiguous page-locked array [height, width]: rows go `pitch` bytes apart."""
        height, width = host.shape[0], host.shape[1] * host.itemsize
        status = self._memcpy_2d_async(
            address, pitch, _address(host), width, width, height, HOST_TO_DEVICE, self.handle
        )
        self.check(status, "cudaMemcpy2DAsync")

    def copy_to_host(self, host: NDArray[Any], address: int) -> None:
        """Queue a copy into a C-contiguous page-locked array, to be read when the stream has passed."""
        status = self._memcpy_async(_address(host), address, host.nbytes, DEVICE_TO_HOST, self.handle)
        if status:
            self.fail(status, "cudaMemcpyAsync")

    def copy_within(self, target: int, source: int, num_bytes: int) -> None:
        """Queue a copy from one device address to another; the two do not overlap."""
        status = self._memcpy_async(target, source, num_bytes, DEVICE_TO_DEVICE, self.handle)
        self.check(status, "cudaMemcpyAsync")

    def copy_3d(self, copy: Copy3D) -> None:
        """Queue a copy between pitched memory; the struct is read before this returns."""
        status = self._cudart.cudaMemcpy3DAsync(ctypes.byref(copy), self.handle)
        self.check(status, "cudaMemcpy3DAsync")

    def fill_zero(self, address: int, num_bytes: int) -> None:
        """Queue a fill of device memory by zeros."""
        status = self._cudart.cudaMemsetAsync(address, 0, num_bytes, self.handle)
        self.check(status, "cudaMemsetAsync")

    def event(self) -> CudaEvent:
        """An event of the stream, destroyed with it."""
        event = c_void_p()
        status = self._cudart.cudaEventCreateWithFlags(ctypes.byref(event), _EVENT_WITHOUT_TIMING)
        self.check(status, "cudaEventCreateWithFlags")
        assert event.value
        self._events.append(event.value)
        return CudaEvent(self, self._cudart, event.value)

    def synchronize(self) -> None:
        """Wait until the stream has passed everything that was queued."""
        self.check(self._cudart.cudaStreamSynchronize(self.handle), "cudaStreamSynchronize")

    def destroy(self) -> None:
        """Destroy the stream and its events; their work is done before. Errors are ignored."""
        while self._events:
            self._cudart.cudaEventDestroy(self._events.pop())
        self._cudart.cudaStreamDestroy(self.handle)

    def check(self, status: int, function: str) -> None:
        """Raise what a CUDA function's status says, if anything.

        Raises:
            DeviceMemoryError: out of memory.
            EngineError: any other error, perhaps of work that was queued earlier.
        """
        if status:
            self.fail(status, function)

    def fail(self, status: int, function: str) -> NoReturn:
        """Raise what a CUDA function's status says; see check."""
        self._cudart.cudaGetLastError()  # ONNX Runtime would take it for its own
        message = f"{function} on {self._device_name}, or work queued before it: {self._describe(status)}"
        raise DeviceMemoryError(message) if status == OUT_OF_MEMORY else EngineError(message)

    def _describe(self, status: int) -> str:
        name, text = self._cudart.cudaGetErrorName(status), self._cudart.cudaGetErrorString(status)
        return f"{name.decode()} ({status}): {text.decode()}"


class CudaEvent:
    """A mark in a stream; see CudaStream.event."""

    def __init__(self, stream: CudaStream, cudart: Any, event: int) -> None:
        self._stream = stream
        self._event = event
        self._record = cudart.cudaEventRecord
        self._synchronize = cudart.cudaEventSynchronize

    def record(self) -> None:
        """Put the mark behind everything that was queued so far; asynchronous."""
        status = self._record(self._event, self._stream.handle)
        if status:
            self._stream.fail(status, "cudaEventRecord")

    def wait(self) -> None:
        """Wait until the stream has passed the mark."""
        self._stream.check(self._synchronize(self._event), "cudaEventSynchronize")


def _address(array: NDArray[Any]) -> int:
    """The address of a C-contiguous array that is not empty; `ctypes.data` takes three times as long."""
    buffer: Any = array
    return addressof(c_char.from_buffer(buffer))
