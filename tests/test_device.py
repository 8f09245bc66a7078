"""Devices: names, and the CUDA device's copies over a stand-in for the CUDA runtime in host memory."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from hgt_infer.device import CpuDevice, CudaArray, CudaDevice, open_device
from hgt_infer.errors import DeviceUnavailableError, ParameterError


class HostCudart:
    """The calls of the CUDA runtime that the device makes, done in host memory."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.num_synchronized = 0

    def cudaMemcpy(self, target: Any, source: Any, num_bytes: Any, kind: int) -> int:  # noqa: N802
        ctypes.memmove(target, source, num_bytes.value)
        return self.status

    def cudaMemset(self, target: Any, value: int, num_bytes: Any) -> int:  # noqa: N802
        ctypes.memset(target, value, num_bytes.value)
        return self.status

    def cudaMemcpy2D(  # noqa: N802
        self,
        target: Any,
        target_pitch: Any,
        source: Any,
        source_pitch: Any,
        width: Any,
        height: Any,
        kind: int,
    ) -> int:
        for row in range(height.value):
            ctypes.memmove(
                target.value + row * target_pitch.value, source.value + row * source_pitch.value, width.value
            )
        return self.status

    def cudaDeviceSynchronize(self) -> int:  # noqa: N802
        self.num_synchronized += 1
        return self.status


class HostCudaDevice(CudaDevice):
    """A CudaDevice whose memory is the host's."""

    def __init__(self, status: int = 0) -> None:
        self.cudart = HostCudart(status)
        self.device_id = 0

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        class Value:
            memory = np.full(shape, 7, dtype)

            def data_ptr(self) -> int:
                return self.memory.ctypes.data

        return Value()


@pytest.mark.parametrize("device", [CpuDevice(), HostCudaDevice()], ids=["cpu", "cuda"])
def test_uploaded_rows_come_back_by_download(device: CpuDevice | HostCudaDevice) -> None:
    array = device.array((4, 3), np.float32)
    assert (array.host == 0).all()
    array.host[:] = np.arange(12).reshape(4, 3)
    array.upload(4)
    if isinstance(array, CudaArray):
        array.host[:] = -1
    array.download(2)
    assert array.host[:2].tolist() == [[0, 1, 2], [3, 4, 5]]
    if isinstance(array, CudaArray):
        assert (array.host[2:] == -1).all()


def test_cuda_copies_the_same_prefix_as_the_cpu() -> None:
    shape = (3, 2, 5, 4)  # slots, heads, positions, head size
    values = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    cpu = CpuDevice().cache_array(shape, np.float16)
    cuda = HostCudaDevice().cache_array(shape, np.float16)
    assert (cuda.value.memory == 0).all()
    assert cuda.host.size == 0
    for memory in (cpu.host, cuda.value.memory):
        memory[:] = values
    for array in (cpu, cuda):
        array.copy_prefix(source=2, target=0, length=3)
    assert (cpu.host == cuda.value.memory).all()
    assert (cpu.host[0, :, :3] == values[2, :, :3]).all()
    assert (cpu.host[0, :, 3:] == values[0, :, 3:]).all()


def test_an_error_of_the_cuda_runtime_is_raised() -> None:
    with pytest.raises(RuntimeError, match="CUDA error 700"):
        HostCudaDevice(status=700).array((2,), np.int64)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "CPU", "", "cuda:0 ", 3])
def test_an_unknown_device_is_named(name: Any) -> None:
    with pytest.raises(ParameterError, match="device must be"):
        open_device(name)


def test_a_gpu_beyond_those_that_the_driver_shows_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hgt_infer.device.count_cuda_devices", lambda: 2)
    with pytest.raises(DeviceUnavailableError, match=r"'cuda:2'.*shows 2"):
        open_device("cuda:2")


def test_a_missing_cuda_runtime_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("hgt_infer.device.count_cuda_devices", lambda: 1)
    monkeypatch.setattr("hgt_infer.device.ctypes.CDLL", missing)
    monkeypatch.setattr("hgt_infer.device.ort.preload_dlls", lambda: None)
    with pytest.raises(DeviceUnavailableError, match=r"libcudart.so.13.*hgt-infer\[cuda\]"):
        open_device("cuda")
