"""What the CPU at hand can do."""

from __future__ import annotations

import platform
from pathlib import Path

from hgt_infer.errors import DeviceUnavailableError

_CPUINFO = Path("/proc/cpuinfo")
_VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}


def cpu_flags() -> frozenset[str]:
    """Names of the CPU's features as Linux has them; none where it does not say."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return frozenset()
    found = (line.partition(":")[2] for line in lines if line.startswith("flags"))
    return frozenset(next(found, "").split())


def check_int8() -> None:
    """Check that products of 8-bit integers add up here.

    Before VNNI, x86 added pairs of them in 16 bits that saturate, and ONNX Runtime uses that. Where the
    operating system does not tell, nothing is checked.

    Raises:
        DeviceUnavailableError: they do not.
    """
    flags = cpu_flags()
    if platform.machine() in ("x86_64", "AMD64") and flags and not flags & _VNNI:
        raise DeviceUnavailableError(
            "precision 'int8' needs a CPU with VNNI (AVX-512 VNNI, AVX-VNNI or AMX); here 'fp32' is right"
        )
