"""The project's CUDA kernels, compiled by g++ and run on the host."""

from __future__ import annotations

import atexit
import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

import pytest

_HEADER = Path(__file__).with_name("cuda_on_host.h")


class HostKernel(Protocol):
    def __call__(
        self, num_rows: int, addresses: Sequence[int], *, cluster_size: int, shared_bytes: int
    ) -> None:
        """Run a cluster of blocks for each row; addresses are the kernel's arguments."""


def host_kernel(path: Path, name: str, *, block_size: int = 1, defines: Mapping[str, int]) -> HostKernel:
    """A kernel as a function; skips the test where there is no g++."""
    return _compile(path, name, tuple(sorted({"BLOCK": block_size, **defines}.items())))


@cache
def _compile(path: Path, name: str, defines: tuple[tuple[str, int], ...]) -> HostKernel:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is needed to run CUDA kernels on the host")
    source = (
        f'#include "{_HEADER}"\n#include "{path}"\n'
        'extern "C" void run(int num_rows, int cluster_size, size_t shared_bytes, void** arguments) {\n'
        f"    launch(num_rows, cluster_size, shared_bytes, {name}, arguments);\n}}\n"
    )
    library = _folder() / f"{path.stem}-{'-'.join(f'{key}{value}' for key, value in defines)}.so"
    macros = [f"-D{key}={value}" for key, value in defines]
    options = ["-std=c++17", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-pthread", *macros]
    subprocess.run(
        [compiler, *options, "-x", "c++", "-", "-o", str(library)], input=source, text=True, check=True
    )
    run = ctypes.CDLL(str(library)).run
    run.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p]

    def launch(num_rows: int, addresses: Sequence[int], *, cluster_size: int, shared_bytes: int) -> None:
        run(num_rows, cluster_size, shared_bytes, (ctypes.c_void_p * len(addresses))(*addresses))

    return launch


@cache
def _folder() -> Path:
    folder = tempfile.mkdtemp(prefix="host_kernel")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
