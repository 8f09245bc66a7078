"""What runners need of a device, and a CPU as one; `cuda.device` is a GPU."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import DTypeLike, NDArray

from hgt_infer.errors import ModelFormatError
from hgt_infer.kernels.library import load_kernels


class DeviceArray(Protocol):
    """An array in the device's memory, allocated once, whose address never changes.

    host mirrors it on the host: write there and `upload`, or `download` and read there.
    """

    host: NDArray[Any]
    address: int

    def upload(self, num_rows: int) -> None:
        """Copy the first rows of `host` to the device; returns when they have arrived."""

    def download(self, num_rows: int) -> None:
        """Copy the first rows of the device's array to `host`; returns when they have arrived."""


class CacheArray(Protocol):
    """All keys and values [2 · layers, slots, heads, max_length, head_size], on the device alone."""

    address: int

    def copy_prefix(self, source_slot: int, target_slot: int, length: int) -> None:
        """Copy the first `length` positions of a slot to another one, in all layers and heads at once."""


class Device(Protocol):
    """What the runners and the cache need to know of a device.

    Attributes:
        kind: "cpu" or "cuda", as an IOBinding calls it.
        device_id: number of the device among those of its kind, as an IOBinding takes it.
        name: as `open_devices` takes it: "cpu", "cuda:0".
    """

    kind: str
    device_id: int
    name: str

    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceArray:
        """A zeroed array with a mirror on the host."""

    def cache(self, shape: tuple[int, int, int, int, int], dtype: DTypeLike) -> CacheArray:
        """A zeroed cache of `shape` [2 · layers, slots, heads, max_length, head_size]."""

    def open_session(
        self, path: Path, *, captured: bool = False, memory_limit: int | None = None
    ) -> ort.InferenceSession:
        """A session that runs the graph at `path` here.

        Args:
            path: an ONNX file.
            captured: runs are captured as CUDA graphs and replayed, by their run option gpu_graph_id
                (-1 runs as bound; without the option it is 0, which captures).
            memory_limit: bytes that ONNX Runtime may take for weights and activations; None for no limit.

        Raises:
            ModelFormatError: ONNX Runtime cannot load the file.
            DeviceUnavailableError: ONNX Runtime cannot use the device.
            DeviceMemoryError: the weights do not fit.
        """

    def at_work(self) -> AbstractContextManager[None]:
        """The section in which a thread makes runs, copies and waits; others may be in theirs meanwhile."""

    def close(self) -> None:
        """Free what was allocated; nothing of the device may be used afterwards. Twice is once."""


OpenDevice = Callable[[str], AbstractContextManager[Device | None]]
"""Opens a device that computes in a precision, for the time of a context; gives None where there is none."""


def no_device(precision: str) -> AbstractContextManager[Device | None]:
    """An OpenDevice that has none."""
    return contextlib.nullcontext()


class CpuArray:
    """Host memory: the mirror is the array itself, and copies to it are nothing."""

    def __init__(self, host: NDArray[Any]) -> None:
        self.host = host
        self.address: int = host.ctypes.data

    def upload(self, num_rows: int) -> None:
        """Nothing to do."""

    def download(self, num_rows: int) -> None:
        """Nothing to do."""

    def copy_prefix(self, source_slot: int, target_slot: int, length: int) -> None:
        """See CacheArray."""
        self.host[:, target_slot, :, :length] = self.host[:, source_slot, :, :length]


class CpuDevice:
    """The CPU provider over NumPy arrays.

    Args:
        num_threads: of each session that it opens; 0 is one for each physical core.
        with_kernels: whether sessions can run our own operators, where their library is there.

    Attributes:
        kernels: the library; None for ONNX Runtime's operators alone.

    Raises:
        ParameterError, DeviceUnavailableError: see `load_kernels`.
    """

    kind = "cpu"
    device_id = 0
    name = "cpu"

    def __init__(self, num_threads: int = 0, *, with_kernels: bool = True) -> None:
        self.num_threads = num_threads
        self.kernels = load_kernels() if with_kernels else None

    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> CpuArray:
        """See Device."""
        return CpuArray(np.zeros(shape, dtype))

    def cache(self, shape: tuple[int, int, int, int, int], dtype: DTypeLike) -> CpuArray:
        """See Device. Pages that no sequence has reached are not resident.

        NumPy would ask for huge pages, and one of 2 MB holds the first positions of several heads: a
        few short sequences would make the whole cache resident.
        """
        memory = mmap.mmap(-1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        return CpuArray(np.frombuffer(memory, dtype).reshape(shape))

    def open_session(
        self, path: Path, *, captured: bool = False, memory_limit: int | None = None
    ) -> ort.InferenceSession:
        """See Device. Memory is not limited here."""
        assert not captured, "there is nothing to capture on a CPU"
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.num_threads
        # Prompts come in any shape; a memory plan kept for each of them would grow without bound.
        options.enable_mem_pattern = False
        # Two sessions take turns in a step: the threads of one would spin against those of the other.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self.kernels is not None:
            options.register_custom_ops_library(str(self.kernels.path))
        try:
            return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
            raise ModelFormatError(f"{path}: ONNX Runtime cannot load it: {error}") from error

    def at_work(self) -> AbstractContextManager[None]:
        """See Device: nothing to keep apart."""
        return contextlib.nullcontext()

    def close(self) -> None:
        """Nothing to do: arrays free themselves."""
