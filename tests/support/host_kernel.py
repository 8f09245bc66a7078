"""The project's CUDA kernels, compiled by g++ and run on the host."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

import pytest
from support.paths import ROOT

_HEADER = Path(__file__).with_name("cuda_on_host.h")
_FOLDER = ROOT / ".pytest_cache" / "host_kernels"
_OPTIONS = ("-std=c++17", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-pthread")


class HostKernel(Protocol):
    def __call__(
        self, num_rows: int, addresses: Sequence[int], *, cluster_size: int, shared_bytes: int
    ) -> None:
        """Run a cluster of blocks for each row; addresses are the kernel's arguments."""


def host_kernel(path: Path, name: str, *, block_size: int = 1, defines: Mapping[str, int]) -> HostKernel:
    """A kernel as a function; skips the test where there is no g++.

    Compiled code is kept for other processes and later sessions, by all that it is made of.
    """
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
    command = [compiler, *_OPTIONS, *(f"-D{key}={value}" for key, value in defines), "-x", "c++", "-"]
    made_of = repr((command, source)).encode() + _HEADER.read_bytes() + path.read_bytes()
    library = _FOLDER / f"{path.stem}-{hashlib.sha256(made_of).hexdigest()}.so"
    if not library.exists():
        _FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_FOLDER) as folder:
            partial = Path(folder) / library.name
            subprocess.run([*command, "-o", str(partial)], input=source, text=True, check=True)
            partial.replace(library)
    run = ctypes.CDLL(str(library)).run
    run.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p]

    def launch(num_rows: int, addresses: Sequence[int], *, cluster_size: int, shared_bytes: int) -> None:
        run(num_rows, cluster_size, shared_bytes, (ctypes.c_void_p * len(addresses))(*addresses))

    return launch
