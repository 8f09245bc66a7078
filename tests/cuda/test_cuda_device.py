"""CudaDevice: memory, what is freed, and sessions."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
from support.fake_cuda import FakeCudaDevice
from support.fake_cudart import FakeCudart

from hgt_infer.cuda import cudart as cuda
from hgt_infer.cuda.device import PROVIDER_OPTIONS, SESSION_ENTRIES, CudaDevice
from hgt_infer.errors import DeviceMemoryError, DeviceUnavailableError, ModelFormatError


def test_a_stream_that_cannot_be_made_makes_the_device_unavailable() -> None:
    cudart = FakeCudart(0, total_bytes=1)
    cudart.fail("cudaStreamCreateWithFlags", status=999)
    with pytest.raises(DeviceUnavailableError, match=r"cuda:0 cannot be used: cudaErrorUnknown \(999\)"):
        CudaDevice(cudart=cudart)
    gc.collect()
    assert "cudaStreamDestroy" not in cudart.calls


def test_fresh_memory_is_zeroed_and_aligned() -> None:
    device = FakeCudaDevice()
    address = device.allocate(1000)
    assert address % 256 == 0
    host = device.pinned((1000,), np.uint8)
    host[:] = 7
    with device.at_work():
        device.stream.copy_to_host(host, address)
        device.stream.synchronize()
    assert (host == 0).all()
    assert not device.pinned((3, 2), np.float16).any()
    assert device.pinned((0, 2), np.float16).shape == (0, 2)


def test_memory_tells_what_is_free_and_what_there_is() -> None:
    device = FakeCudaDevice(total_bytes=10_000)
    device.allocate(4_000)
    assert device.memory() == (6_000, 10_000)


def test_too_much_memory_says_what_was_asked_for_and_what_is_free() -> None:
    device = FakeCudaDevice(total_bytes=10_000)
    device.cudart.other_bytes = 7_000  # another process's
    with pytest.raises(
        DeviceMemoryError, match=r"5,000 bytes do not fit on cuda:0: 3,000 of its 10,000 .*other processes"
    ):
        device.allocate(5_000)
    assert device.cudart.last_error == 0  # ONNX Runtime would take it for its own
    device.allocate(3_000)


def test_host_memory_that_cannot_be_locked_is_a_memory_error() -> None:
    device = FakeCudaDevice()
    device.cudart.fail("cudaHostAlloc", status=cuda.OUT_OF_MEMORY)
    with pytest.raises(DeviceMemoryError, match="20 bytes of host memory"):
        device.pinned((5,), np.float32)
    with pytest.raises(MemoryError):
        device.cudart.fail("cudaMalloc", at=1, status=cuda.OUT_OF_MEMORY)
        device.allocate(1)


@pytest.mark.parametrize("how", ["closed", "collected"])
def test_everything_is_freed_when_a_device_is(how: str) -> None:
    device = FakeCudaDevice()
    cudart = device.cudart
    device.array((4,), np.float32)
    device.cache((2, 1, 1, 4, 2), np.float16)
    event = device.event()
    with device.at_work():
        event.record()
    assert len(cudart.device_memory) == 2
    if how == "closed":
        device.close()
    del device, event
    gc.collect()
    assert not cudart.device_memory
    assert not cudart.pinned_memory
    for function in ("cudaStreamSynchronize", "cudaEventDestroy", "cudaFree", "cudaStreamDestroy"):
        assert function in cudart.calls


@pytest.mark.parametrize("has_failed", [False, True])
def test_sessions_of_a_gpu_that_has_failed_are_never_destroyed(has_failed: bool) -> None:
    """ONNX Runtime's destructor would end the process."""

    class Session:
        pass

    device = FakeCudaDevice()
    session = Session()
    device._owned.sessions.append(session)  # type: ignore[arg-type]
    is_alive = weakref.ref(session)
    del session
    if has_failed:
        device.cudart.fail("cudaStreamSynchronize")
    device.close()
    gc.collect()
    assert (is_alive() is not None) == has_failed


def test_a_pinned_array_outlives_its_device() -> None:
    device = FakeCudaDevice()
    array = device.pinned((4,), np.int32)[1:]
    device.close()
    assert len(device.cudart.pinned_memory) == 1
    array[:] = 3
    del array
    assert not device.cudart.pinned_memory


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("CUDA failure 2: out of memory ; GPU=0", DeviceMemoryError),
        ("Failed to allocate memory for requested buffer of size 154389504", DeviceMemoryError),
        ("Available memory of 5 is smaller than requested bytes of 9", DeviceMemoryError),
        ("Protobuf parsing failed", ModelFormatError),
    ],
)
def test_weights_that_do_not_fit_are_told_from_a_broken_file(
    monkeypatch: pytest.MonkeyPatch, message: str, expected: type[Exception], tmp_path: Any
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(message)

    monkeypatch.setattr("hgt_infer.cuda.device.ort.InferenceSession", fail)
    with pytest.raises(expected, match=message) as caught:
        CudaDevice.open_session(FakeCudaDevice(), tmp_path / "model.onnx", memory_limit=1_000)
    assert ("does not fit in 1,000 bytes on cuda:0" in str(caught.value)) == (expected is DeviceMemoryError)


def test_a_session_gets_the_stream_the_device_and_the_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    given: dict[str, Any] = {}

    class Session:
        def __init__(self, path: str, options: Any, *, providers: Any) -> None:
            given.update(providers[0][1], path=path, provider=providers[0][0], options=options)

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    monkeypatch.setattr("hgt_infer.cuda.device.ort.InferenceSession", Session)
    monkeypatch.setitem(SESSION_ENTRIES, "session.some_entry", "7")
    device = FakeCudaDevice(3)
    CudaDevice.open_session(device, tmp_path / "m.onnx", captured=True, memory_limit=12345)
    assert len(device._owned.sessions) == 1  # ends with the device
    assert given["device_id"] == "3"
    assert given["user_compute_stream"] == str(device.stream.handle)
    assert given["enable_cuda_graph"] == "1"
    assert given["gpu_mem_limit"] == "12345"
    assert given.items() >= PROVIDER_OPTIONS.items()
    assert given["options"].get_session_config_entry("session.some_entry") == "7"
    assert not given["options"].enable_mem_pattern
    given.clear()
    CudaDevice.open_session(device, tmp_path / "m.onnx")
    assert given["enable_cuda_graph"] == "0"
    assert "gpu_mem_limit" not in given


def test_a_session_that_fell_back_to_the_cpu_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    class Session:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            pass

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr("hgt_infer.cuda.device.ort.InferenceSession", Session)
    with pytest.raises(DeviceUnavailableError, match=r"on cuda:0 and fell back to \['CPUExec"):
        CudaDevice.open_session(FakeCudaDevice(), tmp_path / "m.onnx")
