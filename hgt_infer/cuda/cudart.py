"""The CUDA runtime through ctypes: its functions with their C signatures, and whether CUDA is usable here."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import sys
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_void_p
from pathlib import Path
from typing import Any

import onnxruntime as ort

from hgt_infer.errors import DeviceUnavailableError

logger = logging.getLogger(__name__)

MIN_DRIVER = 13000
"""CUDA version, 1000 · major + 10 · minor, that the driver must support: what ONNX Runtime is built with."""

NVRTC = "libnvrtc.so.13"
LIBRARIES = ("libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", NVRTC)
"""What ONNX Runtime's CUDA provider is linked with, besides the driver, and our kernel's compiler. A library
comes behind those that it needs."""

# enum cudaMemcpyKind
HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE = 1, 2, 3
# enum cudaError
OUT_OF_MEMORY = 2
# enum cudaDeviceAttr
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR, MAX_SHARED_BYTES_OPTIN = 75, 76, 97


class Extent(ctypes.Structure):
    """struct cudaExtent: bytes, rows, slices."""

    _fields_ = (("width", c_size_t), ("height", c_size_t), ("depth", c_size_t))


class Position(ctypes.Structure):
    """struct cudaPos: bytes, rows, slices."""

    _fields_ = (("x", c_size_t), ("y", c_size_t), ("z", c_size_t))


class PitchedPointer(ctypes.Structure):
    """struct cudaPitchedPtr: rows `pitch` bytes apart, slices of `ysize` rows."""

    _fields_ = (("ptr", c_void_p), ("pitch", c_size_t), ("xsize", c_size_t), ("ysize", c_size_t))


class Copy3D(ctypes.Structure):
    """struct cudaMemcpy3DParms, 160 bytes, as CUDA 13.0's driver_types.h lays it out on x86-64."""

    _fields_ = (
        ("srcArray", c_void_p),  # at 0
        ("srcPos", Position),  # 8
        ("srcPtr", PitchedPointer),  # 32
        ("dstArray", c_void_p),  # 64
        ("dstPos", Position),  # 72
        ("dstPtr", PitchedPointer),  # 96
        ("extent", Extent),  # 128
        ("kind", c_int),  # 152
    )


_WAITING = {
    "cudaSetDevice": (c_int,),
    "cudaDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cudaMemGetInfo": (POINTER(c_size_t), POINTER(c_size_t)),
    "cudaMalloc": (POINTER(c_void_p), c_size_t),
    "cudaFree": (c_void_p,),
    "cudaHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cudaFreeHost": (c_void_p,),
    "cudaStreamCreateWithFlags": (POINTER(c_void_p), c_uint),
    "cudaStreamSynchronize": (c_void_p,),
    "cudaStreamDestroy": (c_void_p,),
    "cudaEventCreateWithFlags": (POINTER(c_void_p), c_uint),
    "cudaEventSynchronize": (c_void_p,),
    "cudaEventDestroy": (c_void_p,),
}
_QUEUEING = {
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaMemcpy2DAsync": (c_void_p, c_size_t, c_void_p, c_size_t, c_size_t, c_size_t, c_int, c_void_p),
    "cudaMemcpy3DAsync": (POINTER(Copy3D), c_void_p),
    "cudaMemsetAsync": (c_void_p, c_int, c_size_t, c_void_p),
    "cudaEventRecord": (c_void_p, c_void_p),
    "cudaGetLastError": (),
}


class CudaRuntime:
    """The CUDA runtime library's functions, under their own names and with their C signatures.

    Functions that can wait let other Python threads run meanwhile. Those that only queue work do not:
    a thread that gives up the interpreter's lock for a microsecond may get it back after milliseconds.
    """

    def __init__(self, library: str = LIBRARIES[0]) -> None:
        waiting, queueing = ctypes.CDLL(library), ctypes.PyDLL(library)
        for source, signatures in ((waiting, _WAITING), (queueing, _QUEUEING)):
            for name, argtypes in signatures.items():
                function = getattr(source, name)
                function.argtypes, function.restype = argtypes, c_int
                setattr(self, name, function)
        for name in ("cudaGetErrorName", "cudaGetErrorString"):
            function = getattr(queueing, name)
            function.argtypes, function.restype = (c_int,), c_char_p
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:  # for the type checker: every function is an attribute
        raise AttributeError(name)


def count_cuda_devices() -> int:
    """GPUs that the driver shows; 0 where there is no driver.

    onnxruntime-gpu lists its CUDA provider on machines without a GPU too, so the driver is asked.
    """
    driver = _open_driver()
    count = c_int()
    if driver is None or driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def _open_driver() -> Any:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def load_cuda(device_id: int) -> CudaRuntime:
    """The CUDA runtime, after a check that a GPU, a driver and every library are there.

    Raises:
        DeviceUnavailableError: one of them is not.
    """
    device = f"device 'cuda:{device_id}' was asked for, but"
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise DeviceUnavailableError(
            f"{device} the installed ONNX Runtime has no CUDA provider: "
            "install onnxruntime-gpu in place of onnxruntime"
        )
    driver, supported = _open_driver(), c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(supported)) or not supported.value:
        raise DeviceUnavailableError(f"{device} there is no NVIDIA driver (libcuda.so.1)")
    if supported.value < MIN_DRIVER:
        raise DeviceUnavailableError(
            f"{device} the NVIDIA driver supports CUDA up to {_shown_version(supported.value)}: "
            f"ONNX Runtime needs a driver for CUDA {_shown_version(MIN_DRIVER)} or newer"
        )
    num_devices = count_cuda_devices()
    if device_id >= num_devices:
        raise DeviceUnavailableError(f"{device} the driver shows {num_devices} GPU(s)")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        # Finds libraries inside the nvidia-* wheels beside ONNX Runtime, and prints what it does not find.
        ort.preload_dlls()
    logger.debug("%s", printed.getvalue())
    folders = library_folders()
    searched = f"; looked in {', '.join(map(str, folders))} too" if folders else ""

    def load(library: str) -> None:
        try:
            load_library(library, folders)
        except OSError as error:
            raise DeviceUnavailableError(
                f"{device} {library} cannot be loaded ({error}{searched}): "
                "pip install 'hgt-infer[cuda]' brings it"
            ) from error

    for library in LIBRARIES:
        load(library)
    # NVRTC opens it by its name when it compiles, and does not look for it beside itself.
    load(f"libnvrtc-builtins.so.{nvrtc_version(ctypes.CDLL(NVRTC))}")
    return CudaRuntime()


def nvrtc_version(nvrtc: Any) -> str:
    """The version of the compiler library, such as "13.0"."""
    major, minor = c_int(), c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def library_folders() -> list[Path]:
    """Where nvidia-* wheels keep libraries, in every folder that modules are imported from.

    The wheels may lie in another one than ONNX Runtime, and some in one and some in another.
    """
    return [folder for entry in sys.path for folder in sorted(Path(entry, "nvidia").glob("*/lib"))]


def load_library(name: str, folders: list[Path]) -> None:
    """Load a library by its name, or else from the first of the folders whose copy can be loaded.

    Libraries that need it, and whoever opens it by its name, find it in the process afterwards.

    Raises:
        OSError: it is not there, or no copy can be loaded; says why the last one cannot.
    """
    copies = (folder / name for folder in folders)
    for path in (name, *(str(copy) for copy in copies if copy.is_file())):
        try:
            ctypes.CDLL(path)
        except OSError as error:
            failure = error
        else:
            return
    raise failure


def _shown_version(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"
