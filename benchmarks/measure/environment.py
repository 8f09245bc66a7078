"""Where a figure was measured: `python -m benchmarks.measure.environment` prints it as JSON."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.measure.paths import REPOSITORY

LIBRARIES = (
    "onnxruntime-gpu", "onnxruntime", "numpy", "tokenizers", "torch", "transformers",
    "nvidia-cuda-runtime", "nvidia-cuda-nvrtc", "nvidia-cublas", "nvidia-cudnn-cu13",
)  # fmt: skip
GPU_FIELDS = {
    "name": "name",
    "driver_version": "driver_version",
    "memory.total": "memory_mib",
    "memory.used": "memory_used_mib",
    "clocks.sm": "sm_mhz",
    "clocks.max.sm": "max_sm_mhz",
    "clocks.mem": "memory_mhz",
    "power.limit": "power_limit_w",
    "temperature.gpu": "temperature_c",
    "utilization.gpu": "utilization_percent",
    "compute_cap": "compute_capability",
}
"""What nvidia-smi calls it, and what it is called here."""
# What the matrix kernels of either side choose by.
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")
# What changes how threads wait and memory is laid out.
VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GLIBC_TUNABLES", "LD_PRELOAD", "CUBLAS_WORKSPACE_CONFIG")


def capture_environment() -> dict[str, Any]:
    """Machine, versions and commit. The load says whether the machine was quiet.

    What nothing here can tell is left out: cores without psutil, GPUs without a driver.
    """
    from hgt_infer.runtime.cpu_features import cpu_flags  # a peer's environment may lack what it imports

    flags = cpu_flags()
    gpus, cuda = read_gpus(), cuda_versions()
    return {
        "cpu": _model_name() or platform.processor() or platform.machine(),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in flags],
        "physical_cores": _physical_cores(),
        "usable_cpus": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: number for name in LIBRARIES if (number := _version(name))},
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "commit": _commit(),
        **({"gpus": gpus} if gpus else {}),
        **({"cuda": cuda} if cuda else {}),
    }


def num_physical_cores() -> int:
    """What ONNX Runtime takes by default for its threads, so that every side gets as many."""
    return min(_physical_cores() or 1, len(os.sched_getaffinity(0)))


def _physical_cores() -> int | None:
    """Of the machine; None without psutil."""
    try:
        import psutil
    except ImportError:
        return None
    cores: int | None = psutil.cpu_count(logical=False)
    return cores


def read_gpus() -> list[dict[str, str]]:
    """Name, driver, memory and clocks of every GPU, as nvidia-smi says; none where it is not there."""
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_gpus(result.stdout)


def parse_gpus(lines: str) -> list[dict[str, str]]:
    """A line of nvidia-smi for each GPU; what a GPU does not say is left out.

    >>> parse_gpus("NVIDIA H200, 580.1, 143771, 4, 345, 1980, 3201, 700.00, 30, 0, 9.0")[0]["memory_mib"]
    '143771'
    """
    gpus = []
    for line in filter(None, map(str.strip, lines.splitlines())):
        values = [value.strip() for value in line.split(",")]
        pairs = zip(GPU_FIELDS.values(), values, strict=False)
        gpus.append({name: value for name, value in pairs if value and not value.startswith("[")})
    return gpus


def cuda_versions() -> dict[str, str]:
    """The newest CUDA that the driver supports, and the first GPU's name, as the driver itself says."""
    version, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
            return {}
        versions = {"driver": f"{version.value // 1000}.{version.value % 1000 // 10}"}
        if not driver.cuInit(0) and not driver.cuDeviceGet(ctypes.byref(device), 0):
            driver.cuDeviceGetName(name, len(name), device)
    except (OSError, AttributeError):  # no driver, or not a whole one
        return {}
    return versions | ({"gpu": name.value.decode(errors="replace")} if name.value else {})


def _model_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit, with "+" behind it where files differ from it; None outside a clone."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return f"{head}+" if _git("status", "--porcelain") else head
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


if __name__ == "__main__":
    print(json.dumps(capture_environment(), indent=2))
