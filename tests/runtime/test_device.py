"""Devices: their names, arrays and caches, the same on the CPU and on CUDA (over the fake)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, save
from support.fake_cuda import FakeCudaDevice, synchronize

from hgt_infer.cuda.device import CudaDevice
from hgt_infer.errors import ModelFormatError
from hgt_infer.runtime.device import CpuDevice, Device

CACHE_SHAPE = (4, 3, 2, 5, 4)  # 2 · layers, slots, heads, positions, head size


@pytest.fixture(params=["cpu", "late", "early", 7])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """The CPU, and a fake GPU of each pace."""
    device: Device = CpuDevice() if request.param == "cpu" else FakeCudaDevice(pace=request.param)
    yield device
    device.close()


def test_uploaded_rows_come_back_by_download(device: Device) -> None:
    array = device.array((4, 3), np.float32)
    assert (array.host == 0).all()
    array.host[:] = np.arange(12).reshape(4, 3)
    array.upload(4)
    if isinstance(device, CudaDevice):
        array.host[:] = -1
    array.download(2)
    assert array.host[:2].tolist() == [[0, 1, 2], [3, 4, 5]]
    if isinstance(device, CudaDevice):
        assert (array.host[2:] == -1).all()


def test_the_first_rows_are_uploaded_alone(device: Device) -> None:
    array = device.array((4,), np.int64)
    array.host[:] = 5
    array.upload(3)
    if isinstance(device, CudaDevice):
        array.download(4)
        assert array.host.tolist() == [5, 5, 5, 0]
    array.upload(0)  # nothing happens
    array.download(0)


def test_a_cache_copies_a_prefix_in_every_array_and_head_by_one_call(device: Device) -> None:
    cache = device.cache(CACHE_SHAPE, np.float16)
    memory = view(cache.address, CACHE_SHAPE, np.float16)
    with device.at_work():
        synchronize(device)
        assert (memory == 0).all()
        values = np.random.default_rng(0).normal(size=CACHE_SHAPE).astype(np.float16)
        memory[:] = values
        if isinstance(device, FakeCudaDevice):
            device.cudart.calls.clear()
        cache.copy_prefix(2, 0, 3)
        if isinstance(device, FakeCudaDevice):
            assert device.cudart.calls == ["cudaMemcpy3DAsync"]
        synchronize(device)
    values[:, 0, :, :3] = values[:, 2, :, :3]
    assert (memory == values).all()


def test_copies_of_two_prefixes_in_a_row_do_not_share_their_parameters(device: Device) -> None:
    cache = device.cache(CACHE_SHAPE, np.float32)
    memory = view(cache.address, CACHE_SHAPE, np.float32)
    with device.at_work():
        synchronize(device)
        memory[:] = np.arange(3).reshape(3, 1, 1, 1)
        cache.copy_prefix(1, 0, 2)
        cache.copy_prefix(2, 1, 4)
        synchronize(device)
    assert memory[3, :, 1, :, 0].tolist() == [[1, 1, 0, 0, 0], [2, 2, 2, 2, 1], [2, 2, 2, 2, 2]]


def test_sections_of_work_can_be_nested(device: Device) -> None:
    with device.at_work(), device.at_work():
        synchronize(device)


def test_closing_twice_is_closing_once(device: Device) -> None:
    device.array((2,), np.float32)
    device.close()
    device.close()


def test_pages_of_a_cpu_cache_that_nothing_reached_are_not_resident() -> None:
    shape = (2, 64, 12, 1024, 64)  # 384 MiB
    before = resident_bytes()
    cache = CpuDevice().cache(shape, np.float32)
    assert view(cache.address, shape, np.float32)[1, 63, 11, 0, 0] == 0
    assert resident_bytes() - before < 32 << 20


def test_a_file_that_is_no_graph_is_named(device: Device, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(ModelFormatError, match=r"model\.onnx: ONNX Runtime cannot load it"):
        device.open_session(path)


def test_a_session_of_the_cpu_runs(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "negation",
        [value("x", TensorProto.FLOAT, [2])],
        [value("y", TensorProto.FLOAT, [2])],
    )
    path = tmp_path / "model.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    session = CpuDevice().open_session(path, memory_limit=1)  # which is a GPU's
    assert session.run(None, {"x": np.array([1, -2], np.float32)})[0].tolist() == [-1, 2]


def view(address: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Memory at an address, as an array."""
    num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * num_bytes).from_address(address), dtype).reshape(shape)


def resident_bytes() -> int:
    """This process's resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
