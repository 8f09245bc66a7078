"""Kernel: CUDA C++ that NVRTC compiles for the GPU at hand, launched on a device's stream."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_void_p
from pathlib import Path
from typing import Any, Protocol

from hgt_infer.errors import DeviceUnavailableError, EngineError

NVRTC = "libnvrtc.so.13"
DRIVER = "libcuda.so.1"

# enum CUdevice_attribute
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76


class Kernel(Protocol):
    """A function of the device, compiled, with its arguments."""

    def launch(self, num_blocks: int) -> None:
        """Queue a run of so many blocks."""

    def close(self) -> None:
        """Unload it; nothing of it may be queued any more."""


class CudaKernel:
    """A kernel whose arguments are addresses that never change.

    Args:
        device_id: the GPU, current on the calling thread.
        stream: where it is launched.
        path: the source, in CUDA C++.
        name: of the function in it, which is extern "C".
        block_size: threads of a block; the source knows it as BLOCK.
        defines: more macros, and their values.
        addresses: the function's arguments.

    Raises:
        DeviceUnavailableError: NVRTC is not installed.
        EngineError: the source cannot be compiled or loaded.
    """

    def __init__(
        self,
        device_id: int,
        stream: int,
        path: Path,
        name: str,
        *,
        block_size: int,
        defines: Mapping[str, int],
        addresses: Sequence[int],
    ) -> None:
        # A launch only queues: PyDLL keeps the interpreter's lock, which takes longer to get back.
        self._driver: Any = ctypes.PyDLL(DRIVER)
        architecture = f"sm_{self._attribute(device_id, _COMPUTE_CAPABILITY_MAJOR)}"
        architecture += f"{self._attribute(device_id, _COMPUTE_CAPABILITY_MINOR)}"
        code = compile_kernel(path, architecture, {"BLOCK": block_size, **defines})
        self._module, self._function = c_void_p(), c_void_p()
        self._call("cuModuleLoadData", byref(self._module), code)
        self._call("cuModuleGetFunction", byref(self._function), self._module, name.encode())
        self._values = [c_void_p(address) for address in addresses]
        pointers = [ctypes.addressof(value) for value in self._values]
        self._arguments = (c_void_p * len(pointers))(*pointers)
        self._shape_and_stream = (1, 1, block_size, 1, 1, 0, stream)
        self._launch = self._driver.cuLaunchKernel
        self._launch.argtypes = [c_void_p, *[c_uint] * 7, c_void_p, c_void_p, c_void_p]

    def launch(self, num_blocks: int) -> None:
        """See Kernel."""
        status = self._launch(self._function, num_blocks, *self._shape_and_stream, self._arguments, None)
        self._check(status, "cuLaunchKernel")

    def close(self) -> None:
        """See Kernel."""
        self._call("cuModuleUnload", self._module)

    def _attribute(self, device_id: int, attribute: int) -> int:
        device, value = c_int(), c_int()
        self._call("cuDeviceGet", byref(device), device_id)
        self._call("cuDeviceGetAttribute", byref(value), attribute, device)
        return value.value

    def _call(self, function: str, *arguments: Any) -> None:
        self._check(getattr(self._driver, function)(*arguments), function)

    def _check(self, status: int, function: str) -> None:
        if status:
            name = c_char_p()
            self._driver.cuGetErrorName(status, byref(name))
            raise EngineError(f"{function}: {(name.value or b'unknown error').decode()} ({status})")


def compile_kernel(path: Path, architecture: str, defines: Mapping[str, int]) -> bytes:
    """Machine code for an architecture such as "sm_90", from a file of CUDA C++.

    Raises:
        DeviceUnavailableError: NVRTC is not installed.
        EngineError: the source cannot be compiled; the message has the compiler's.
    """
    try:
        nvrtc = ctypes.CDLL(NVRTC)
    except OSError as error:
        raise DeviceUnavailableError(
            f"the CUDA compiler library is missing ({error}): pip install 'hgt-infer[cuda]'"
        ) from error
    options = [f"--gpu-architecture={architecture}", *(f"-D{key}={value}" for key, value in defines.items())]
    encoded = (c_char_p * len(options))(*(option.encode() for option in options))
    program = c_void_p()
    status = nvrtc.nvrtcCreateProgram(byref(program), path.read_bytes(), path.name.encode(), 0, None, None)
    if status:
        raise EngineError(f"nvrtcCreateProgram: error {status}")
    try:
        if nvrtc.nvrtcCompileProgram(program, len(options), encoded):
            raise EngineError(
                f"{path.name} for {architecture}: {_read(nvrtc, 'ProgramLog', program).decode()}"
            )
        return _read(nvrtc, "CUBIN", program)
    finally:
        nvrtc.nvrtcDestroyProgram(byref(program))


def _read(nvrtc: Any, what: str, program: c_void_p) -> bytes:
    size = c_size_t()
    size_function = getattr(nvrtc, f"nvrtcGet{what}Size")
    size_function.argtypes = [c_void_p, POINTER(c_size_t)]
    size_function(program, byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, buffer)
    return buffer.raw
