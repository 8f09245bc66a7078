"""The CUDA runtime's library: what can be missing on a machine, and the layout of structs and calls."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest
from support.fake_cuda import FakeCudaDevice

from hgt_infer.cuda import cudart as cuda
from hgt_infer.cuda.cudart import LIBRARIES, Copy3D, CudaRuntime
from hgt_infer.cuda.device import CudaDevice
from hgt_infer.errors import DeviceUnavailableError


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
    monkeypatch.setattr("hgt_infer.cuda.cudart.ort.get_available_providers", lambda: providers)
    monkeypatch.setattr("hgt_infer.cuda.cudart.ort.preload_dlls", lambda: print("Failed to load"))
    monkeypatch.setattr("hgt_infer.cuda.cudart.ctypes.CDLL", load)


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

    monkeypatch.setattr("hgt_infer.cuda.cudart.ctypes.CDLL", load)
    folders = [tmp_path / site / "nvidia" / "cu13" / "lib" for site in "eab"]
    for folder in folders[1:]:
        folder.mkdir(parents=True)
        (folder / "libx.so").touch()
    cuda.load_library("libx.so", folders)
    assert tried == ["libx.so", *(str(folder / "libx.so") for folder in folders[1:])]
    with pytest.raises(OSError, match=r"a/nvidia/cu13/lib/libx\.so: no"):
        cuda.load_library("libx.so", folders[:2])


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

    monkeypatch.setattr("hgt_infer.cuda.cudart.ctypes.CDLL", Library)
    monkeypatch.setattr("hgt_infer.cuda.cudart.ctypes.PyDLL", Library)
    runtime = CudaRuntime()
    fake = {name for name in dir(FakeCudaDevice().cudart) if name.startswith("cuda")}
    assert fake == {name for name in vars(runtime) if name.startswith("cuda")}
    assert all(getattr(runtime, name).restype is not None for name in fake)
    assert runtime.cudaMemcpyAsync.argtypes[2] is ctypes.c_size_t  # not an int of 32 bits
    with pytest.raises(AttributeError):
        _ = runtime.cudaNothing
