"""Where a model runs: the execution provider, arrays in its memory, and copies to and from them."""

from __future__ import annotations

import ctypes
import logging
import mmap
import re
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import DTypeLike, NDArray

from hgt_infer.errors import DeviceUnavailableError, ParameterError
from hgt_infer.sampling_params import shown

logger = logging.getLogger(__name__)


class DeviceArray(Protocol):
    """An array in the device's memory, allocated once, whose address never changes.

    host mirrors the leading rows on the host: write there and `upload`, or `download` and read there.
    """

    host: NDArray[Any]
    address: int

    def upload(self, stop: int, first_row: int = 0) -> None:
        """Copy the rows first_row … stop - 1 of `host` to the device."""

    def download(self, num_rows: int) -> None:
        """Copy the first rows of the device's array to `host`."""


class CacheArray(Protocol):
    """One layer's keys or values [slots, heads, max_length, head_size]; it lives on the device alone."""

    address: int

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of slot `source` to slot `target`."""


class Device(Protocol):
    """What the runner and the cache need to know of a device."""

    kind: str
    device_id: int
    provider: tuple[str, dict[str, Any]]

    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceArray:
        """A zeroed array with a mirror on the host."""

    def cache_array(self, shape: tuple[int, ...], dtype: DTypeLike) -> CacheArray:
        """A zeroed array without a mirror."""

    def synchronize(self) -> None:
        """Wait until every upload has arrived."""


class CpuArray:
    """Host memory: the mirror is the array itself, and copies to it are nothing."""

    def __init__(self, host: NDArray[Any]) -> None:
        self.host = host
        self.address = host.ctypes.data

    def upload(self, stop: int, first_row: int = 0) -> None:
        """Nothing to do."""

    def download(self, num_rows: int) -> None:
        """Nothing to do."""

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """See CacheArray."""
        self.host[target, :, :length] = self.host[source, :, :length]


class CpuDevice:
    """The CPU provider over NumPy arrays."""

    kind = "cpu"
    device_id = 0
    provider: tuple[str, dict[str, Any]] = ("CPUExecutionProvider", {})

    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> CpuArray:
        """See Device."""
        return CpuArray(np.zeros(shape, dtype))

    def cache_array(self, shape: tuple[int, ...], dtype: DTypeLike) -> CpuArray:
        """See Device. Pages that no sequence has reached are not resident.

        NumPy would ask for huge pages, and one of 2 MB holds the first positions of several heads: a
        few short sequences would make the whole cache resident.
        """
        memory = mmap.mmap(-1, _num_bytes(shape, dtype))
        return CpuArray(np.frombuffer(memory, dtype).reshape(shape))

    def synchronize(self) -> None:
        """Nothing to do."""


HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE = 1, 2, 3  # cudaMemcpyKind


class CudaArray:
    """Memory that ONNX Runtime allocated on a GPU; copies go through the CUDA runtime that it loaded."""

    def __init__(
        self, shape: tuple[int, ...], dtype: DTypeLike, device: CudaDevice, *, mirrored: bool
    ) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.device = device
        self.value = device.allocate(shape, self.dtype)
        self.address = int(self.value.data_ptr())
        self.host = np.zeros(shape if mirrored else 0, self.dtype)

    def upload(self, stop: int, first_row: int = 0) -> None:
        """See DeviceArray."""
        rows = self.host[first_row:stop]
        address = self.address + first_row * self.host.strides[0]
        self.device.copy(address, rows.ctypes.data, rows.nbytes, HOST_TO_DEVICE)

    def download(self, num_rows: int) -> None:
        """See DeviceArray."""
        rows = self.host[:num_rows]
        self.device.copy(rows.ctypes.data, self.address, rows.nbytes, DEVICE_TO_HOST)

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """See CacheArray."""
        _, num_heads, max_length, head_size = self.shape
        pitch = max_length * head_size * self.dtype.itemsize  # from a head to the next
        self.device.copy_2d(
            self.address + target * num_heads * pitch,
            self.address + source * num_heads * pitch,
            pitch=pitch,
            width=length * head_size * self.dtype.itemsize,
            height=num_heads,
        )


class CudaDevice:
    """The CUDA provider on one GPU."""

    kind = "cuda"

    def __init__(self, device_id: int = 0) -> None:
        num_devices = count_cuda_devices()
        if device_id >= num_devices:
            raise DeviceUnavailableError(
                f"device 'cuda:{device_id}' was asked for, but the driver shows {num_devices} GPU(s)"
            )
        if "CUDAExecutionProvider" not in ort.get_available_providers():
            raise DeviceUnavailableError(
                "the installed ONNX Runtime has no CUDA provider: "
                "install onnxruntime-gpu in place of onnxruntime"
            )
        ort.preload_dlls()  # finds the CUDA libraries inside the nvidia-* wheels
        try:
            self.cudart: Any = ctypes.CDLL("libcudart.so.13")
        except OSError as error:
            raise DeviceUnavailableError(
                f"the CUDA 13 runtime is missing ({error}): pip install 'hgt-infer[cuda]'"
            ) from error
        self.device_id = device_id
        # Grow by what is asked for, not by powers of two: the cache is allocated once, beside it.
        self.provider: tuple[str, dict[str, Any]] = (
            "CUDAExecutionProvider",
            {"device_id": device_id, "arena_extend_strategy": "kSameAsRequested"},
        )

    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> CudaArray:
        """See Device."""
        array = CudaArray(shape, dtype, self, mirrored=True)
        array.upload(shape[0])
        return array

    def cache_array(self, shape: tuple[int, ...], dtype: DTypeLike) -> CudaArray:
        """See Device. Masked positions are multiplied by 0, so they must not hold NaN: zeroed."""
        array = CudaArray(shape, dtype, self, mirrored=False)
        self._check(
            self.cudart.cudaMemset(
                ctypes.c_void_p(array.address), 0, ctypes.c_size_t(_num_bytes(shape, dtype))
            )
        )
        return array

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Uninitialized device memory, as an OrtValue that owns it."""
        return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype.type, "cuda", self.device_id)

    def copy(self, target: int, source: int, num_bytes: int, kind: int) -> None:
        """cudaMemcpy."""
        self._check(
            self.cudart.cudaMemcpy(
                ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(num_bytes), kind
            )
        )

    def copy_2d(self, target: int, source: int, *, pitch: int, width: int, height: int) -> None:
        """cudaMemcpy2D within the device: `height` rows of `width` bytes, `pitch` bytes apart."""
        self._check(
            self.cudart.cudaMemcpy2D(
                ctypes.c_void_p(target),
                ctypes.c_size_t(pitch),
                ctypes.c_void_p(source),
                ctypes.c_size_t(pitch),
                ctypes.c_size_t(width),
                ctypes.c_size_t(height),
                DEVICE_TO_DEVICE,
            )
        )

    def synchronize(self) -> None:
        """Wait for the copies: cudaMemcpy from pageable memory may return before the data has arrived."""
        self._check(self.cudart.cudaDeviceSynchronize())

    @staticmethod
    def _check(status: int) -> None:
        if status:
            raise RuntimeError(f"CUDA error {status}")


def _num_bytes(shape: tuple[int, ...], dtype: DTypeLike) -> int:
    return int(np.prod(shape)) * np.dtype(dtype).itemsize


def count_cuda_devices() -> int:
    """GPUs that the driver shows; 0 where there is no driver.

    onnxruntime-gpu lists its CUDA provider on machines without a GPU too, so the driver is asked.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def open_device(name: str) -> Device:
    """The device called "cpu", "cuda", "cuda:N" or "auto" (CUDA where there is a GPU, the CPU elsewhere).

    Raises:
        ParameterError: another name.
        DeviceUnavailableError: CUDA was asked for and cannot be used.
    """
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d{1,3}))?", name) if isinstance(name, str) else None
    if match is None:
        raise ParameterError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N'; got {shown(name)}")
    if name == "auto":
        name = "cuda" if count_cuda_devices() else "cpu"
        logger.info("device='auto' took %s", name)
    return CpuDevice() if name == "cpu" else CudaDevice(int(match[1] or 0))
