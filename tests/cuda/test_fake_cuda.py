"""The fake GPU is as treacherous as a real one: each mistake that it must show, made here on purpose."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, save
from support.fake_cuda import FakeCudaDevice
from support.fake_session import FakeSession

from hgt_infer.errors import DeviceMemoryError, EngineError
from hgt_infer.runtime.device import DeviceArray


@pytest.fixture
def device() -> FakeCudaDevice:
    return FakeCudaDevice()


# Memory and copies.


def test_what_is_read_without_waiting_is_stale(device: FakeCudaDevice) -> None:
    array, host = device.array((2,), np.int32), device.pinned((2,), np.int32)
    array.host[:] = 5
    array.upload(2)
    event = device.event()
    with device.at_work():
        device.stream.copy_to_host(host, array.address)
        event.record()
        assert host.tolist() == [0, 0]
        event.wait()
        assert host.tolist() == [5, 5]


def test_an_event_brings_nothing_that_was_queued_behind_it(device: FakeCudaDevice) -> None:
    array, host = device.array((2,), np.int32), device.pinned((2,), np.int32)
    array.host[:] = 5
    array.upload(2)
    event = device.event()
    with device.at_work():
        event.record()
        device.stream.copy_to_host(host, array.address)
        event.wait()
        assert host.tolist() == [0, 0]
        device.stream.synchronize()
        assert host.tolist() == [5, 5]


def test_pinned_memory_that_is_overwritten_too_early_arrives_wrong(device: FakeCudaDevice) -> None:
    array, host = device.array((1,), np.int32), device.pinned((1,), np.int32)
    with device.at_work():
        host[:] = 1
        device.stream.copy_to_device(array.address, host)
        host[:] = 2
    array.download(1)
    assert array.host.tolist() == [2]


def test_an_early_device_writes_where_the_host_still_reads() -> None:
    device = FakeCudaDevice(pace="early")
    array, host = device.array((1,), np.int32), device.pinned((1,), np.int32)
    host[:] = 7
    with device.at_work():
        device.stream.copy_to_host(host, array.address)
    assert host.tolist() == [0]


def test_a_seed_gives_a_pace_of_its_own_again_and_again() -> None:
    def arrivals(seed: int) -> list[int]:
        device = FakeCudaDevice(pace=seed)
        array, host = device.array((1,), np.int32), device.pinned((1,), np.int32)
        pending = []
        with device.at_work():
            for _ in range(20):
                device.stream.copy_to_host(host, array.address)
                pending.append(device.cudart.num_pending)
        return pending

    assert arrivals(1) == arrivals(1) != arrivals(2)
    assert 0 in arrivals(1)
    assert max(arrivals(1)) > 0


def test_fresh_device_memory_is_poisoned_until_it_is_zeroed(device: FakeCudaDevice) -> None:
    address = device.allocate(8)
    block = device.cudart.device_memory[address].view(np.float32)
    assert np.isnan(block).all()
    with device.at_work():
        device.stream.synchronize()
    assert (block == 0).all()


def test_what_would_crash_a_gpu_is_refused(device: FakeCudaDevice) -> None:
    address, host = device.allocate(16), device.pinned((4,), np.int32)
    with device.at_work():
        with pytest.raises(AssertionError, match="not page-locked"):
            device.stream.copy_to_device(address, np.zeros(4, np.int32))
        with pytest.raises(AssertionError, match="no device memory"):
            device.stream.copy_to_host(host, address + 4)
        with pytest.raises(AssertionError, match="no device memory"):
            device.stream.fill_zero(address, 17)
        with pytest.raises((TypeError, ValueError)):
            device.stream.copy_to_device(address, host[::2])  # not contiguous
        with pytest.raises(AssertionError):
            device.stream.copy_columns_to_device(address, 4, host.reshape(2, 2))  # rows that overlap
        cache = device.cache((2, 2, 1, 4, 2), np.float16)
        with pytest.raises(AssertionError):
            cache.copy_prefix(0, 2, 1)  # no such slot
        with pytest.raises(AssertionError):
            cache.copy_prefix(0, 1, 5)


def test_work_outside_of_its_section_is_refused(device: FakeCudaDevice) -> None:
    address, host, event = device.allocate(16), device.pinned((4,), np.int32), device.event()
    for call in (
        lambda: device.stream.copy_to_device(address, host),
        lambda: device.stream.copy_to_host(host, address),
        event.record,
        event.wait,
        device.stream.synchronize,
    ):
        with pytest.raises(AssertionError, match="outside of at_work"):
            call()


def test_the_gpu_of_another_device_is_not_this_ones() -> None:
    first, second = FakeCudaDevice(0), FakeCudaDevice(1)
    address, host = first.allocate(4), second.pinned((1,), np.int32)
    with second.at_work():
        with pytest.raises(AssertionError, match="no device memory"):
            second.stream.copy_to_device(address, host)
        first.cudart.cudaSetDevice(0)
        with pytest.raises(AssertionError, match="this thread's device is 0"):
            second.cudart.cudaMalloc(ctypes.byref(ctypes.c_void_p()), 4)


def test_the_nth_allocation_or_call_can_fail(device: FakeCudaDevice) -> None:
    device.cudart.fail("cudaMalloc", at=2, status=2)
    address = device.allocate(4)
    with pytest.raises(DeviceMemoryError):
        device.allocate(4)
    device.allocate(4)
    with device.at_work():
        device.cudart.fail(at=3)
        device.stream.fill_zero(address, 4)
        device.stream.fill_zero(address, 4)
        with pytest.raises(EngineError):
            device.stream.synchronize()


# Sessions. The graph adds a number in CPU memory to the state, in place.


class Counter:
    """A session over state [2], of which `next_state` is the same memory, and what it is bound to."""

    def __init__(self, device: FakeCudaDevice, folder: Path, *, captured: bool) -> None:
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            [
                helper.make_node("Cast", ["total_sequence_length"], ["amount"], to=TensorProto.FLOAT),
                helper.make_node("Add", ["state", "amount"], ["next_state"]),
            ],
            "counter",
            [value("state", TensorProto.FLOAT, ["B"]), value("total_sequence_length", TensorProto.INT32, [])],
            [value("next_state", TensorProto.FLOAT, ["B"])],
        )
        path = folder / "counter.onnx"
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
        self.device = device
        self.session: FakeSession = device.open_session(path, captured=captured)
        self.amount = np.array(1, np.int32)
        self.state = device.array((2,), np.float32)
        self.binding = self.bind(self.state)

    def bind(self, state: DeviceArray) -> Any:
        binding = self.session.io_binding()
        kind, device_id = self.device.kind, self.device.device_id
        for bind, name in ((binding.bind_input, "state"), (binding.bind_output, "next_state")):
            bind(name, kind, device_id, np.float32, (2,), state.address)
        binding.bind_input("total_sequence_length", "cpu", 0, np.int32, (), self.amount.ctypes.data)
        return binding

    def run(self, graph_id: int | None = None, *, waits: bool = True, binding: Any = None) -> None:
        options = ort.RunOptions()
        if graph_id is not None:
            options.add_run_config_entry("gpu_graph_id", str(graph_id))
        options.add_run_config_entry("disable_synchronize_execution_providers", "0" if waits else "1")
        with self.device.at_work():
            self.session.run_with_iobinding(binding or self.binding, options)

    @property
    def count(self) -> float:
        self.state.download(2)
        assert self.state.host[0] == self.state.host[1]
        return float(self.state.host[0])

    @property
    def count_now(self) -> float:
        """What stands in the device's memory, without waiting."""
        return float(self.device.cudart.device_memory[self.state.address].view(np.float32)[0])


@pytest.fixture
def counter(device: FakeCudaDevice, tmp_path: Path) -> Counter:
    counter = Counter(device, tmp_path, captured=True)
    with device.capturing():
        counter.run(4)
    assert counter.count == 3  # the run that captures runs three times
    return counter


def test_a_replay_runs_once(counter: Counter) -> None:
    counter.run(4)
    assert counter.count == 4


def test_a_run_is_queued_where_providers_are_not_synchronized(counter: Counter) -> None:
    counter.run(4, waits=False)
    counter.run(-1, waits=False)
    assert counter.count_now == 3
    counter.run(4)
    assert counter.count_now == 6


def test_a_replay_reads_nothing_of_cpu_memory(counter: Counter) -> None:
    counter.amount[...] = 100
    counter.run(4)
    assert counter.count == 4


def test_an_eager_run_reads_cpu_memory_when_it_is_launched(counter: Counter) -> None:
    counter.amount[...] = 100
    counter.run(-1, waits=False)
    counter.amount[...] = 10_000
    assert counter.count == 103


def test_a_replay_ignores_what_is_bound_now(counter: Counter) -> None:
    other = counter.device.array((2,), np.float32)
    counter.run(4, binding=counter.bind(other))
    counter.binding.bind_input("state", "cpu", 0, np.float32, (2,), other.address)
    counter.run(4)
    assert counter.count == 5
    other.download(2)
    assert other.host.tolist() == [0, 0]


def test_a_capture_waits_for_all_but_its_last_run(counter: Counter) -> None:
    with counter.device.capturing():
        counter.run(8, waits=False)
        assert counter.count_now == 5
    assert counter.count == 6


def test_each_graph_id_is_captured_for_itself(counter: Counter) -> None:
    counter.amount[...] = 10
    with counter.device.capturing():
        counter.run(8)
    assert counter.count == 33
    counter.run(4)
    counter.run(8)
    assert counter.count == 44


def test_a_captured_session_captures_without_the_option_too(counter: Counter) -> None:
    with pytest.raises(AssertionError, match="gpu_graph_id 0 is captured outside of capturing"):
        counter.run()
    with counter.device.at_work(), pytest.raises(AssertionError, match="gpu_graph_id 0"):
        counter.session.run_with_iobinding(counter.binding)


def test_capturing_outside_of_its_section_is_refused(counter: Counter) -> None:
    with pytest.raises(AssertionError, match="captured outside of capturing"):
        counter.run(5)


def test_a_replay_on_another_thread_is_refused(counter: Counter) -> None:
    errors: list[BaseException] = []

    def replay() -> None:
        try:
            counter.run(4)
        except AssertionError as error:
            errors.append(error)

    thread = threading.Thread(target=replay)
    thread.start()
    thread.join()
    assert "captured on another thread" in str(errors[0])


def test_a_session_that_is_not_captured_knows_no_graphs(device: FakeCudaDevice, tmp_path: Path) -> None:
    counter = Counter(device, tmp_path, captured=False)
    counter.run(4)
    counter.run(4)
    counter.run()
    assert counter.count == 3


def test_what_is_bound_must_lie_where_it_is_said_to_lie(counter: Counter) -> None:
    binding, host = counter.session.io_binding(), np.zeros(2, np.float32)
    with pytest.raises(AssertionError, match="is not in this device's memory"):
        binding.bind_input("state", "cpu", 0, np.float32, (2,), host.ctypes.data)
    with pytest.raises(AssertionError, match="is in this device's memory"):
        binding.bind_input("total_sequence_length", "cpu", 0, np.int32, (), counter.state.address)
    with pytest.raises(AssertionError, match="is not in this device's memory"):
        binding.bind_output("next_state", "cpu", 0, np.float32, (3,), counter.state.address)
    with pytest.raises(AssertionError, match=r"bound to \('cpu', 1\)"):
        binding.bind_input("state", "cpu", 1, np.float32, (2,), counter.state.address)


def test_a_run_outside_of_its_section_or_on_a_closed_device_is_refused(counter: Counter) -> None:
    with pytest.raises(AssertionError, match="outside of at_work"):
        counter.session.run_with_iobinding(counter.binding)
    counter.device.close()
    with pytest.raises(AssertionError, match="closed"):
        counter.run(4)


def test_the_nth_run_can_fail(counter: Counter) -> None:
    counter.session.fail(at=2)
    counter.run(4)
    with pytest.raises(RuntimeError, match="CUDA failure 700"):
        counter.run(4)
