"""CudaStream: copies, fills, events, and what CUDA's errors become."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.fake_cuda import FakeCudaDevice

from hgt_infer.cuda import cudart as cuda
from hgt_infer.errors import DeviceMemoryError, EngineError


def test_columns_go_a_pitch_apart() -> None:
    device = FakeCudaDevice()
    table, host = device.array((3, 5), np.float32), device.pinned((3, 2), np.float32)
    host[:] = [[1, 2], [3, 4], [5, 6]]
    with device.at_work():
        device.stream.copy_columns_to_device(table.address + 4, 20, host)
        device.stream.synchronize()
    table.download(3)
    assert table.host.tolist() == [[0, 1, 2, 0, 0], [0, 3, 4, 0, 0], [0, 5, 6, 0, 0]]


def test_copies_within_the_device_and_fills_keep_their_order() -> None:
    device = FakeCudaDevice()
    array = device.array((6,), np.int32)
    array.host[:] = range(6)
    array.upload(6)
    with device.at_work():
        device.stream.copy_within(array.address, array.address + 12, 12)
        device.stream.fill_zero(array.address + 12, 8)
    array.download(6)
    assert array.host.tolist() == [3, 4, 5, 0, 0, 5]


def test_an_event_tells_when_what_was_queued_before_it_is_done() -> None:
    device = FakeCudaDevice()
    source, target = device.array((2,), np.int32), device.pinned((2,), np.int32)
    source.host[:] = 9
    source.upload(2)
    event = device.event()
    with device.at_work():
        device.stream.copy_to_host(target, source.address)
        event.record()
        device.stream.fill_zero(source.address, 8)
        device.cudart._pace = "late"
        event.wait()
        assert target.tolist() == [9, 9]
        assert device.cudart.num_pending == 1  # what was queued behind it


@pytest.mark.parametrize(
    "call",
    [
        lambda device, address, host, event: device.stream.copy_to_device(address, host),
        lambda device, address, host, event: device.stream.copy_to_host(host, address),
        lambda device, address, host, event: device.stream.copy_columns_to_device(
            address, 8, host.reshape(2, 2)
        ),
        lambda device, address, host, event: device.stream.copy_within(address, address + 8, 8),
        lambda device, address, host, event: device.stream.fill_zero(address, 8),
        lambda device, address, host, event: device.stream.synchronize(),
        lambda device, address, host, event: device.event(),
        lambda device, address, host, event: device.memory(),
        lambda device, address, host, event: device.allocate(8),
        lambda device, address, host, event: device.pinned((1,), np.int8),
        lambda device, address, host, event: event.record(),
        lambda device, address, host, event: event.wait(),
    ],
)
def test_an_error_in_mid_run_names_the_function_and_what_cuda_says(call: Callable[..., Any]) -> None:
    device = FakeCudaDevice(1)
    address, host, event = device.allocate(16), device.pinned((4,), np.int32), device.event()
    with device.at_work():
        device.cudart.fail(status=700)
        with pytest.raises(
            EngineError, match=r"^cuda\w+ on cuda:1, or work .*cudaErrorIllegalAddress \(700\)"
        ):
            call(device, address, host, event)
        with pytest.raises(EngineError, match="cudaErrorIllegalAddress"):  # nothing works afterwards
            device.stream.synchronize()
    device.close()


def test_out_of_memory_in_any_function_is_a_memory_error() -> None:
    device = FakeCudaDevice()
    device.cudart.fail("cudaStreamSynchronize", status=cuda.OUT_OF_MEMORY)
    with device.at_work(), pytest.raises(DeviceMemoryError, match="cudaErrorMemoryAllocation"):
        device.stream.synchronize()
