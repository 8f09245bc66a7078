"""CudaDevice: what can be missing, its structs, memory, copies, errors, and work of several threads."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fake_cuda import FakeCudaDevice
from support.fake_cudart import FakeCudart

from hgt_infer.cuda import runtime as cuda
from hgt_infer.cuda.device import PROVIDER_OPTIONS, SESSION_ENTRIES, CudaDevice
from hgt_infer.cuda.runtime import LIBRARIES, Copy3D, CudaRuntime
from hgt_infer.errors import DeviceMemoryError, DeviceUnavailableError, EngineError, ModelFormatError

# What is there and what is not.


class Driver:
    """libcuda.so.1 of a machine, and any other library of it."""

    def __init__(self, version: int, num_devices: int) -> None:
        self.version = version
        self.num_devices = num_devices

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return 0

    def cuDeviceGetCount(self, out: Any) -> int:  # noqa: N802
        out._obj.value = self.num_devices
        return 0

    def cuDriverGetVersion(self, out: Any) -> int:  # noqa: N802
        out._obj.value = self.version
        return 0

    def nvrtcVersion(self, major: Any, minor: Any) -> int:  # noqa: N802
        major._obj.value, minor._obj.value = 13, 2
        return 0


def machine(
    monkeypatch: pytest.MonkeyPatch,
    *,
    version: int = 13000,
    num_devices: int = 1,
    provider: bool = True,
    missing: str | None = None,
) -> None:
    """A machine's driver and libraries; version 0 is no driver."""

    def load(name: str) -> Any:
        if name == missing or (name == "libcuda.so.1" and not version):
            raise OSError(f"{name}: cannot open shared object file")
        return Driver(version, num_devices)

    providers = ["CUDAExecutionProvider"] * provider + ["CPUExecutionProvider"]
    monkeypatch.setattr("hgt_infer.cuda.runtime.ort.get_available_providers", lambda: providers)
    monkeypatch.setattr("hgt_infer.cuda.runtime.ort.preload_dlls", lambda: print("Failed to load"))
    monkeypatch.setattr("hgt_infer.cuda.runtime.ctypes.CDLL", load)


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, version=0)
    assert cuda.count_cuda_devices() == 0
    with pytest.raises(DeviceUnavailableError, match=r"'cuda:0'.*no NVIDIA driver"):
        CudaDevice()


def test_an_old_driver_is_named_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, version=12080)
    with pytest.raises(DeviceUnavailableError, match=r"supports CUDA up to 12\.8: .* CUDA 13\.0 or newer"):
        CudaDevice()


def test_a_gpu_beyond_those_that_the_driver_shows_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, num_devices=2)
    assert cuda.count_cuda_devices() == 2
    with pytest.raises(DeviceUnavailableError, match=r"'cuda:2'.*shows 2"):
        CudaDevice(2)


def test_an_onnx_runtime_without_cuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, provider=False)
    with pytest.raises(DeviceUnavailableError, match="install onnxruntime-gpu in place of onnxruntime"):
        CudaDevice()


@pytest.mark.parametrize("library", [*LIBRARIES, "libnvrtc-builtins.so.13.2"])
def test_a_missing_library_is_named_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], library: str
) -> None:
    machine(monkeypatch, missing=library)
    with pytest.raises(DeviceUnavailableError, match=rf"{library} cannot be loaded.*hgt-infer\[cuda\]"):
        CudaDevice()
    assert capsys.readouterr().out == ""


def test_where_a_missing_library_was_looked_for_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine(monkeypatch, missing=LIBRARIES[0])
    wheel = tmp_path / "nvidia" / "cu13" / "lib"
    wheel.mkdir(parents=True)
    monkeypatch.setattr("sys.path", ["/nothing", str(tmp_path)])
    with pytest.raises(DeviceUnavailableError, match=rf"{LIBRARIES[0]} .*; looked in {wheel} too\).*pip"):
        CudaDevice()


def test_a_copy_that_cannot_be_loaded_gives_way_to_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried: list[str] = []

    def load(path: str) -> None:
        tried.append(path)
        if path != str(tmp_path / "b" / "nvidia" / "cu13" / "lib" / "libx.so"):
            raise OSError(f"{path}: no")

    monkeypatch.setattr("hgt_infer.cuda.runtime.ctypes.CDLL", load)
    folders = [tmp_path / site / "nvidia" / "cu13" / "lib" for site in "eab"]
    for folder in folders[1:]:
        folder.mkdir(parents=True)
        (folder / "libx.so").touch()
    cuda.load_library("libx.so", folders)
    assert tried == ["libx.so", *(str(folder / "libx.so") for folder in folders[1:])]
    with pytest.raises(OSError, match=r"a/nvidia/cu13/lib/libx\.so: no"):
        cuda.load_library("libx.so", folders[:2])


def test_a_stream_that_cannot_be_made_makes_the_device_unavailable() -> None:
    cudart = FakeCudart(0, total_bytes=1)
    cudart.fail("cudaStreamCreateWithFlags", status=999)
    with pytest.raises(DeviceUnavailableError, match=r"cuda:0 cannot be used: cudaErrorUnknown \(999\)"):
        CudaDevice(cudart=cudart)
    gc.collect()
    assert "cudaStreamDestroy" not in cudart.calls


# The library's functions.


def test_the_3d_copys_parameters_have_the_layout_of_the_header() -> None:
    offsets = {name: getattr(Copy3D, name).offset for name, _ in Copy3D._fields_}
    assert offsets == {
        "srcArray": 0,
        "srcPos": 8,
        "srcPtr": 32,
        "dstArray": 64,
        "dstPos": 72,
        "dstPtr": 96,
        "extent": 128,
        "kind": 152,
    }
    assert ctypes.sizeof(Copy3D) == 160


def test_every_function_that_is_used_has_its_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    class Function:
        argtypes: Any = None
        restype: Any = None

    class Library:
        def __init__(self, name: str) -> None:
            assert name == "libcudart.so.13"

        def __getattr__(self, name: str) -> Function:
            function = Function()
            setattr(self, name, function)
            return function

    monkeypatch.setattr("hgt_infer.cuda.runtime.ctypes.CDLL", Library)
    monkeypatch.setattr("hgt_infer.cuda.runtime.ctypes.PyDLL", Library)
    runtime = CudaRuntime()
    fake = {name for name in dir(FakeCudaDevice().cudart) if name.startswith("cuda")}
    assert fake == {name for name in vars(runtime) if name.startswith("cuda")}
    assert all(getattr(runtime, name).restype is not None for name in fake)
    assert runtime.cudaMemcpyAsync.argtypes[2] is ctypes.c_size_t  # not an int of 32 bits
    with pytest.raises(AttributeError):
        _ = runtime.cudaNothing


# Memory.


def test_fresh_memory_is_zeroed_and_aligned() -> None:
    device = FakeCudaDevice()
    address = device.allocate(1000)
    assert address % 256 == 0
    host = device.pinned((1000,), np.uint8)
    host[:] = 7
    with device.at_work():
        device.stream.copy_to_host(host, address)
        device.synchronize()
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


# Copies.


def test_columns_go_a_pitch_apart() -> None:
    device = FakeCudaDevice()
    table, host = device.array((3, 5), np.float32), device.pinned((3, 2), np.float32)
    host[:] = [[1, 2], [3, 4], [5, 6]]
    with device.at_work():
        device.stream.copy_columns_to_device(table.address + 4, 20, host)
        device.synchronize()
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


# Errors.


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
        lambda device, address, host, event: device.synchronize(),
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
            device.synchronize()
    device.close()


def test_out_of_memory_in_any_function_is_a_memory_error() -> None:
    device = FakeCudaDevice()
    device.cudart.fail("cudaStreamSynchronize", status=cuda.OUT_OF_MEMORY)
    with device.at_work(), pytest.raises(DeviceMemoryError, match="cudaErrorMemoryAllocation"):
        device.synchronize()


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


# Sections of work across threads.


def in_thread(target: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def test_a_section_makes_its_device_the_threads_current_one() -> None:
    first, second = FakeCudaDevice(0), FakeCudaDevice(1)
    with second.at_work(), first.at_work():
        first.memory()
    with second.at_work():
        second.memory()
    thread = in_thread(lambda: second.allocate(8) and None)
    thread.join(10)
    assert len(second.cudart.device_memory) == 1


def test_two_threads_work_side_by_side() -> None:
    both = threading.Barrier(2, timeout=10)

    def work(device: CudaDevice) -> None:
        with device.at_work():
            both.wait()

    devices = [FakeCudaDevice(i) for i in range(2)]
    threads = [in_thread(partial(work, device)) for device in devices]
    for thread in threads:
        thread.join(10)
    assert not both.broken


def test_nobody_works_during_a_capture() -> None:
    device, other = FakeCudaDevice(0), FakeCudaDevice(1)
    at_work, go_on, seen = threading.Event(), threading.Event(), []

    def work() -> None:
        with other.at_work():
            at_work.set()
            go_on.wait(10)
            seen.append("first section ends")
        with other.at_work():
            seen.append("second section")

    thread = in_thread(work)
    assert at_work.wait(10)
    threading.Timer(0.05, go_on.set).start()
    with device.capturing():  # waits for the first section, and keeps the second one waiting
        seen.append("capture begins")
        with device.at_work():
            device.synchronize()
        thread.join(0.05)
        seen.append("capture ends")
    thread.join(10)
    assert seen == ["first section ends", "capture begins", "capture ends", "second section"]


def test_two_threads_that_want_to_capture_amid_their_work_do_so_in_turn() -> None:
    both, log = threading.Barrier(2, timeout=10), []

    def work(device: CudaDevice, name: str) -> None:
        with device.at_work():
            both.wait()
            with device.capturing():
                log.append(name)
                threading.Event().wait(0.01)
                log.append(name)
            device.synchronize()

    threads = [in_thread(partial(work, FakeCudaDevice(i), str(i))) for i in range(2)]
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert log in (["0", "0", "1", "1"], ["1", "1", "0", "0"])


def test_memory_that_is_let_go_of_during_a_capture_is_freed_behind_it() -> None:
    device, other = FakeCudaDevice(0), FakeCudaDevice(1)
    cudart = other.cudart
    other.allocate(8)
    assert gc.isenabled()
    with device.capturing():
        assert not gc.isenabled()
        del other
        assert cudart.device_memory
    assert gc.isenabled()
    assert not cudart.device_memory


def test_captures_and_work_of_many_threads_never_meet() -> None:
    working, capturing, seen = set(), set(), []

    def work(device: CudaDevice, seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(100):
            with device.at_work():
                working.add(seed)
                seen.append(bool(capturing))
                if random.random() < 0.1:
                    working.remove(seed)
                    with device.capturing():
                        capturing.add(seed)
                        seen.append(bool(working) or len(capturing) > 1)
                        time.sleep(0)
                        capturing.remove(seed)
                    working.add(seed)
                time.sleep(0)
                working.remove(seed)

    threads = [in_thread(partial(work, FakeCudaDevice(seed), seed)) for seed in range(4)]
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert len(seen) > 400
    assert not any(seen)


def test_an_error_in_a_capture_lets_the_others_go_on() -> None:
    device, other = FakeCudaDevice(0), FakeCudaDevice(1)
    with pytest.raises(ZeroDivisionError), device.capturing():
        _ = 1 / 0
    thread = in_thread(lambda: other.allocate(8) and None)
    thread.join(10)
    assert not thread.is_alive()
