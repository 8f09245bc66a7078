"""Libraries that stand in for CUDA's: with them ONNX Runtime's real CUDA provider runs without a GPU.

Memory is host memory, kernels do nothing, and every call that would put work on a stream is written down:
which node runs where, what a run launches, and what it copies, are the provider's own doing.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hgt_infer.cuda.device import PROVIDER_OPTIONS, SESSION_ENTRIES

NVRTC_BUILTINS = "libnvrtc-builtins.so.0.0"
"""What NVRTC opens by its name when it compiles."""

TOOLS = ("gcc", "nm", "readelf", "c++filt")

_SOURCE = Path(__file__).with_suffix(".c")

# Offsets in CUDA 13's cudaDeviceProp, and its size.
_PROPERTIES = {
    "TOTAL_GLOBAL_MEM": 288,
    "SHARED_MEM_PER_BLOCK": 296,
    "REGS_PER_BLOCK": 304,
    "WARP_SIZE": 308,
    "MAX_THREADS_PER_BLOCK": 320,
    "MAX_THREADS_DIM": 324,
    "MAX_GRID_SIZE": 336,
    "MAJOR": 360,
    "MULTI_PROCESSOR_COUNT": 384,
    "MAX_THREADS_PER_MULTI_PROCESSOR": 604,
    "SHARED_MEM_PER_MULTIPROCESSOR": 624,
    "COOPERATIVE_LAUNCH": 668,
    "SHARED_MEM_PER_BLOCK_OPTIN": 672,
    "PROPERTIES_SIZE": 1008,
}


def why_not() -> str | None:
    """Why the libraries cannot be built here, or None."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"needs {' and '.join(missing)}"
    return None if _provider() else "the installed ONNX Runtime has no CUDA provider"


def build(folder: Path) -> None:
    """Build what the CUDA provider needs, cuDNN, and our compiler, to be found by LD_LIBRARY_PATH."""
    provider = _provider()
    assert provider is not None
    needed = re.findall(
        r"\(NEEDED\).*\[(lib(?:cu|nv)[^]]+)\]", _output("readelf", "--dynamic", "--wide", str(provider))
    )
    undefined = _output("nm", "--dynamic", "--undefined-only", str(provider))
    symbols = re.findall(r" ((?:__)?cu\w+)(?:@\S+)?$", undefined, re.MULTILINE)
    own = _SOURCE.read_text()
    given = set(re.findall(r"^[\w ]+?\W(\w+)\(", own, re.MULTILINE))
    source = folder / "stub.c"
    source.write_text(
        own
        + "".join(
            f"Status {name}(void) {{ {_note(name)}return 0; }}\n" for name in symbols if name not in given
        )
    )
    stub = str(source.with_suffix(".o"))
    options = [f"-D{name}={value}" for name, value in _PROPERTIES.items()]
    _output("gcc", "-c", "-fPIC", "-w", *options, str(source), "-o", stub)
    for library in [*needed, "libnvrtc.so.13", NVRTC_BUILTINS, "libcudnn.so.9"]:
        versions = folder / f"{library}.versions"
        versions.write_text(f"{library.replace('-', '_')} {{ *; }};\n")
        output = ["-o", str(folder / library), f"-Wl,--version-script={versions},-soname,{library}"]
        _output("gcc", "-shared", stub, *output)


@dataclass(frozen=True)
class Call:
    """A call that was written down.

    name: of the function; "kernel" for a kernel, whatever launched it.
    detail: the kernel's name; of a copy, cudaMemcpyKind and bytes.
    """

    name: str
    detail: str


@dataclass(frozen=True)
class Result:
    """What a session did.

    Attributes:
        placed: operators by provider, as ONNX Runtime's log has them.
        runs: the calls of each run.
    """

    placed: dict[str, list[str]]
    runs: list[list[Call]]


def run(
    libraries: Path,
    graph: Path,
    *,
    num_rows: int,
    num_runs: int,
    num_tokens: int = 1,
    num_outputs: int = 1,
    length: int = 64,
    is_captured: bool = True,
    provider_options: Mapping[str, str] = PROVIDER_OPTIONS,
) -> Result:
    """Open a graph with the CUDA provider, in a process of its own, and run it num_runs times.

    Every `present` is bound to the memory of its `past`.
    num_tokens and num_outputs are those of each row, and length what total_sequence_length is, for a decoder.
    provider_options: those that hgt_infer gives, if none are named.
    """
    log = libraries / f"{graph.stem}.{num_rows}.log"
    log.unlink(missing_ok=True)
    environment = os.environ | {"LD_LIBRARY_PATH": str(libraries), "STUB_CUDA_LOG": str(log)}
    child = subprocess.run(
        [
            *(sys.executable, __file__, str(graph), json.dumps({**provider_options})),
            *map(str, (num_rows, num_runs, num_tokens, num_outputs, length, int(is_captured))),
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    placed: dict[str, list[str]] = {}
    provider = ""
    for line in child.stderr.splitlines():
        if match := re.search(r"placed on \[(\w+)\]", line):
            provider = match[1]
            placed[provider] = []
        elif match := re.search(r"VerifyEachNodeIsAssignedToAnEp\]   (\w+) \(", line):
            placed[provider].append(match[1])
    names = subprocess.run(["c++filt"], input=log.read_text(), check=True, capture_output=True, text=True)
    calls = [Call(*line.split("\t", 1)) for line in names.stdout.splitlines()]
    marks = [i for i, call in enumerate(calls) if call.name == "mark"]
    assert len(marks) == num_runs + 1
    return Result(placed, [calls[i + 1 : j] for i, j in itertools.pairwise(marks)])


_START = """
import ctypes, sys
write = ctypes.CDLL("libcudart.so.13").stub_write
mark = lambda: write(b"mark", b"")
"""


def run_code(
    libraries: Path, code: str, *arguments: object, **environment: str
) -> tuple[str, list[list[Call]]]:
    """Run Python code over the libraries, in a process of its own; `mark()` there begins a new list of calls.

    Returns:
        What it printed, and its calls. None of them is cuDNN's, which is there.
    """
    log = libraries / "run.log"
    log.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", _START + code, *map(str, arguments)],
        env={
            **os.environ,
            "LD_LIBRARY_PATH": str(libraries),
            "STUB_CUDA_LOG": str(log),
            "HGT_INFER_CACHE": tempfile.mkdtemp(dir=libraries),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    parts: list[list[Call]] = [[]]
    for line in log.read_text().splitlines():
        call = Call(*line.split("\t", 1))
        if call.name == "mark":
            parts.append([])
        else:
            parts[-1].append(call)
    assert not [call for calls in parts for call in calls if call.name.startswith("cudnn")]
    return done.stdout, parts


def _child(
    path: str,
    provider_options: dict[str, str],
    num_rows: int,
    num_runs: int,
    num_tokens: int,
    num_outputs: int,
    length: int,
    is_captured: int,
) -> None:
    import numpy as np
    import onnxruntime as ort

    write = ctypes.CDLL("libcudart.so.13").stub_write
    options = ort.SessionOptions()
    options.log_severity_level = 0
    for name, value in SESSION_ENTRIES.items():
        options.add_session_config_entry(name, value)
    provider = ("CUDAExecutionProvider", provider_options | {"enable_cuda_graph": "1"})
    session = ort.InferenceSession(path, options, providers=[provider])
    assert session.get_providers()[0] == "CUDAExecutionProvider"
    types = {"float": np.float32, "float16": np.float16, "int32": np.int32, "int64": np.int64}
    sizes = {
        "batch": num_rows,
        "rows": num_rows * num_outputs,
        "sequence": num_tokens,
        "max_length": 64,
    }
    values_of = {"total_sequence_length": length, "first_output": num_tokens - num_outputs}
    arrays: dict[str, Any] = {}
    binding = session.io_binding()
    for kind, values in (("input", session.get_inputs()), ("output", session.get_outputs())):
        for value in values:
            name = value.name.replace("present", "past")
            shape = [sizes.get(size, size) for size in value.shape]
            dtype = types[value.type.removeprefix("tensor(").removesuffix(")")]
            array = arrays.setdefault(name, np.zeros(shape, dtype))
            array[...] = values_of.get(name, 0)
            place = "cpu" if name in values_of else "cuda"
            getattr(binding, f"bind_{kind}")(value.name, place, 0, dtype, shape, array.ctypes.data)
    run_options = ort.RunOptions()
    run_options.add_run_config_entry("gpu_graph_id", str(num_rows if is_captured else -1))
    run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    for _ in range(num_runs):
        write(b"mark", b"")
        session.run_with_iobinding(binding, run_options)
    write(b"mark", b"")


def _note(name: str) -> str:
    """Calls of cuBLAS that compute something are written down."""
    return f'stub_write("kernel", "{name}"); ' if re.match(r"cublas\w*(gemm|Gemm|Matmul$|geam)", name) else ""


def _provider() -> Path | None:
    spec = importlib.util.find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "capi" / "libonnxruntime_providers_cuda.so"
    return path if path.exists() else None


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    _child(sys.argv[1], json.loads(sys.argv[2]), *map(int, sys.argv[3:]))
