"""Compiled kernels: what is kept on disk, what the compiler says, and the structs of a launch.

The compiler is a stand-in (`stub_cuda`), in a process of its own.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
from support.stub_cuda import Call, run_code

from hgt_infer.cuda.kernel import LaunchAttribute, LaunchConfig, compile_kernel
from hgt_infer.cuda.sampler import SOURCE
from hgt_infer.errors import DeviceUnavailableError

COMPILE = """
from pathlib import Path
from hgt_infer.cuda.kernel import compile_kernel

def compiled(cache_dir=None):
    mark()
    return compile_kernel(Path(sys.argv[1]), "sm_90", {"BLOCK": 32}, cache_dir=cache_dir)
"""


def num_compiled(parts: list[list[Call]]) -> list[int]:
    """How often each call of `compiled` compiled."""
    return [sum(call.name == "nvrtcCompileProgram" for call in calls) for calls in parts[1:]]


def test_compiled_code_is_kept_on_disk_and_made_again_where_it_is_damaged(
    libraries: Path, tmp_path: Path
) -> None:
    code = """
first, kept = compiled(), compiled()
[file] = Path(sys.argv[2], "kernels").iterdir()
file.write_bytes(file.read_bytes()[:-3])
print(first == kept == compiled() == compiled() != b"")
"""
    environment = {"HGT_INFER_CACHE": str(tmp_path)}
    printed, parts = run_code(libraries, COMPILE + code, SOURCE, tmp_path, **environment)
    assert printed == "True\n"
    assert num_compiled(parts) == [1, 0, 1, 0]
    _, parts = run_code(libraries, COMPILE + "compiled()", SOURCE, **environment)
    assert num_compiled(parts) == [0]


def test_a_cache_that_cannot_be_written_costs_the_compilation_alone(libraries: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code = 'print(compiled(sys.argv[2]) == compiled(sys.argv[2]) != b"")'
    printed, parts = run_code(libraries, COMPILE + code, SOURCE, tmp_path / "file")
    assert printed == "True\n"
    assert num_compiled(parts) == [1, 1]


def test_what_the_compiler_says_is_in_the_error(libraries: Path) -> None:
    code = """
from hgt_infer import EngineError
try:
    compiled()
except EngineError as error:
    print(error)
"""
    printed, _ = run_code(libraries, COMPILE + code, SOURCE, STUB_NVRTC_FAILS="1")
    assert printed.startswith("sampler.cu for sm_90: line 3: ?")


def test_a_missing_compiler_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hgt_infer.cuda.kernel.NVRTC", "libnvrtc-that-is-not-there.so")
    with pytest.raises(DeviceUnavailableError, match=r"libnvrtc-that-is-not.*hgt-infer\[cuda\]"):
        compile_kernel(SOURCE, "sm_90", {})


def test_a_launch_has_the_layout_of_the_header() -> None:
    """CUDA 13.0's cuda.h."""
    assert ctypes.sizeof(LaunchConfig) == 56
    fields = (LaunchConfig.stream, LaunchConfig.attributes, LaunchConfig.num_attributes)
    assert [field.offset for field in fields] == [32, 40, 48]
    assert (ctypes.sizeof(LaunchAttribute), LaunchAttribute.cluster.offset) == (72, 8)
