"""CudaKernel: CUDA C++ that NVRTC compiles for the GPU at hand, launched on a device's stream.

Compiled code is kept on disk, by source, architecture, macros and NVRTC's version.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_void_p
from pathlib import Path
from typing import Any

from hgt_infer.cache_folder import cache_folder
from hgt_infer.cuda.cudart import NVRTC, OUT_OF_MEMORY, nvrtc_version
from hgt_infer.errors import DeviceMemoryError, DeviceUnavailableError, EngineError

logger = logging.getLogger(__name__)

DRIVER = "libcuda.so.1"

_CLUSTER_DIMENSION = 4  # enum CUlaunchAttributeID
_MAX_DYNAMIC_SHARED_BYTES = 8  # enum CUfunction_attribute
_DIGEST_BYTES = 32


class LaunchAttribute(ctypes.Structure):
    """struct CUlaunchAttribute with clusterDim as its value, 72 bytes, as CUDA 13.0's cuda.h lays it out."""

    _fields_ = (("id", c_int), ("pad", c_int), ("cluster", c_uint * 3), ("rest", c_uint * 13))


class LaunchConfig(ctypes.Structure):
    """struct CUlaunchConfig, 56 bytes."""

    _fields_ = (
        ("grid", c_uint * 3),
        ("block", c_uint * 3),
        ("shared_bytes", c_uint),
        ("stream", c_void_p),  # at 32
        ("attributes", POINTER(LaunchAttribute)),
        ("num_attributes", c_uint),
    )


class CudaKernel:
    """A function of the device, compiled, whose arguments are addresses that never change.

    A launch has a cluster of blocks for each row.

    Args:
        architecture: of the GPU that is current on the calling thread: "sm_90".
        stream: where it is launched.
        path: the source, in CUDA C++.
        name: of the function in it, which is extern "C".
        block_size: threads of a block; the source knows it as BLOCK.
        defines: more macros, and their values.
        addresses: the function's arguments.
        cache_dir: where compiled code is kept; see cache_folder.

    Raises:
        DeviceUnavailableError: NVRTC is not installed.
        DeviceMemoryError: the code does not fit.
        EngineError: the source cannot be compiled or loaded.
    """

    def __init__(
        self,
        architecture: str,
        stream: int,
        path: Path,
        name: str,
        *,
        block_size: int,
        defines: Mapping[str, int],
        addresses: Sequence[int],
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        # A launch only queues: PyDLL keeps the interpreter's lock, which takes longer to get back.
        self._driver: Any = ctypes.PyDLL(DRIVER)
        code = compile_kernel(path, architecture, {"BLOCK": block_size, **defines}, cache_dir=cache_dir)
        self._module, self._function = c_void_p(), c_void_p()
        self._call("cuModuleLoadData", byref(self._module), code)
        self._call("cuModuleGetFunction", byref(self._function), self._module, name.encode())
        self._values = [c_void_p(address) for address in addresses]
        pointers = [ctypes.addressof(value) for value in self._values]
        self._arguments = (c_void_p * len(pointers))(*pointers)
        self._block_size = block_size
        self._stream = stream
        self._max_shared_bytes = 0
        self._configs: dict[tuple[int, int, int], Any] = {}
        self._launch = self._driver.cuLaunchKernelEx
        self._launch.argtypes = [c_void_p] * 4

    def max_active_clusters(self, cluster_size: int, shared_bytes: int) -> int:
        """How many clusters of so many blocks the device runs at once; 0 where it cannot run any."""
        number = c_int()
        config = self._config(1, cluster_size, shared_bytes)
        status = self._driver.cuOccupancyMaxActiveClusters(byref(number), self._function, config)
        if status:
            logger.warning("clusters of %d blocks cannot run: %s", cluster_size, self._error_name(status))
        return 0 if status else number.value

    def launch(self, num_rows: int, *, cluster_size: int, shared_bytes: int) -> None:
        """Queue a run of cluster_size × num_rows blocks, each with so many bytes of shared memory."""
        key = num_rows, cluster_size, shared_bytes
        config = self._configs.get(key)
        if config is None:
            config = self._configs[key] = self._config(*key)
        status = self._launch(config, self._function, self._arguments, None)
        self._check(status, "cuLaunchKernelEx")

    def close(self) -> None:
        """Unload it; nothing of it may be queued any more."""
        self._call("cuModuleUnload", self._module)

    def _config(self, num_rows: int, cluster_size: int, shared_bytes: int) -> Any:
        """A reference to a launch's shape; the function may take so much shared memory from then on."""
        if shared_bytes > self._max_shared_bytes:
            self._call("cuFuncSetAttribute", self._function, _MAX_DYNAMIC_SHARED_BYTES, shared_bytes)
            self._max_shared_bytes = shared_bytes
        config = LaunchConfig(
            grid=(cluster_size, num_rows, 1),
            block=(self._block_size, 1, 1),
            shared_bytes=shared_bytes,
            stream=self._stream,
        )
        if cluster_size > 1:
            attribute = LaunchAttribute(id=_CLUSTER_DIMENSION, cluster=(cluster_size, 1, 1))
            config.attributes = ctypes.pointer(attribute)
            config.num_attributes = 1
        return byref(config)

    def _call(self, function: str, *arguments: Any) -> None:
        self._check(getattr(self._driver, function)(*arguments), function)

    def _check(self, status: int, function: str) -> None:
        if status:
            kind = DeviceMemoryError if status == OUT_OF_MEMORY else EngineError
            raise kind(f"{function}: {self._error_name(status)}")

    def _error_name(self, status: int) -> str:
        name = c_char_p()
        self._driver.cuGetErrorName(status, byref(name))
        return f"{(name.value or b'unknown error').decode()} ({status})"


def compile_kernel(
    path: Path,
    architecture: str,
    defines: Mapping[str, int],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
) -> bytes:
    """Machine code for an architecture such as "sm_90", from a file of CUDA C++ or from the cache on disk.

    The cache is the folder "kernels" of cache_folder(cache_dir).

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
    source = path.read_bytes()
    options = [f"--gpu-architecture={architecture}", *(f"-D{key}={value}" for key, value in defines.items())]
    made_of = f"nvrtc {nvrtc_version(nvrtc)} {' '.join(options)}\n".encode() + source
    try:
        folder = cache_folder(cache_dir)
    except RuntimeError:  # the user has no home
        return _compile(nvrtc, path.name, source, architecture, options)
    cached = folder / "kernels" / f"{path.stem}-{hashlib.sha256(made_of).hexdigest()}.cubin"
    code = _read_cached(cached)
    if code is None:
        code = _compile(nvrtc, path.name, source, architecture, options)
        _write_cached(cached, code)
    return code


def _compile(nvrtc: Any, name: str, source: bytes, architecture: str, options: list[str]) -> bytes:
    encoded = (c_char_p * len(options))(*(option.encode() for option in options))
    program = c_void_p()
    status = nvrtc.nvrtcCreateProgram(byref(program), source, name.encode(), 0, None, None)
    if status:
        raise EngineError(f"nvrtcCreateProgram: error {status}")
    try:
        if nvrtc.nvrtcCompileProgram(program, len(options), encoded):
            log = _read(nvrtc, "ProgramLog", program).rstrip(b"\0").decode(errors="replace")
            raise EngineError(f"{name} for {architecture}: {log}")
        return _read(nvrtc, "CUBIN", program)
    finally:
        nvrtc.nvrtcDestroyProgram(byref(program))


def _read(nvrtc: Any, what: str, program: c_void_p) -> bytes:
    size = c_size_t()
    size_function = getattr(nvrtc, f"nvrtcGet{what}Size")
    size_function.argtypes = [c_void_p, POINTER(c_size_t)]
    status = size_function(program, byref(size))
    buffer = ctypes.create_string_buffer(max(size.value, 1))
    status = status or getattr(nvrtc, f"nvrtcGet{what}")(program, buffer)
    if status or not size.value:
        raise EngineError(f"nvrtcGet{what} gave {size.value} bytes: error {status}")
    return buffer.raw


def _read_cached(path: Path) -> bytes | None:
    """The code in a file of the cache, if it is whole: it begins with its SHA-256."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, code = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if code and hashlib.sha256(code).digest() == digest:
        return code
    logger.warning("%s is damaged; the kernel is compiled again", path)
    return None


def _write_cached(path: Path, code: bytes) -> None:
    """Keep code in a file of the cache; where that is not possible, it is compiled again next time."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(hashlib.sha256(code).digest() + code)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        logger.warning("%s cannot be kept: %s", path, error)
