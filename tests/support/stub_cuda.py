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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hgt_infer.cuda.device import PROVIDER_OPTIONS, SESSION_ENTRIES

NVRTC_BUILTINS = "libnvrtc-builtins.so.0.0"
"""What NVRTC opens by its name when it compiles."""

TOOLS = ("gcc", "nm", "readelf", "c++filt")

# Calls that have to give something; all others return 0, success. Sizes are those of CUDA 13.
_SOURCE = r"""
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef int Status;
typedef void *Handle;
typedef struct { unsigned x, y, z; } Dim3;

static FILE *log_file(void) {
    static FILE *file;
    if (!file) file = fopen(getenv("STUB_CUDA_LOG"), "a");
    return file;
}
void stub_write(const char *call, const char *detail) {
    fprintf(log_file(), "%s\t%s\n", call, detail);
    fflush(log_file());
}
static void write_size(const char *call, int kind, size_t num_bytes) {
    char detail[64];
    snprintf(detail, sizeof detail, "%d %zu", kind, num_bytes);
    stub_write(call, detail);
}
static char room[64];  // what handles point to
static Status give(Handle *handle) { *handle = room; return 0; }

// Device
Status cudaGetDevice(int *device) { *device = 0; return 0; }
Status cudaGetDeviceCount(int *count) { *count = 1; return 0; }
Status cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
Status cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
Status cudaMemGetInfo(size_t *free, size_t *total) { *free = *total = 1ul << 37; return 0; }
Status cudaDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 9 : attribute == 76 ? 0 : attribute == 16 ? 132 : 1024;
    if (attribute == 97) *value = 227 << 10;  // shared memory of a block
    return 0;
}
Status cudaGetDeviceProperties(char *properties, int device) {
    memset(properties, 0, PROPERTIES_SIZE);
    strcpy(properties, "stub");
#define SET(type, offset, value) *(type *)(properties + (offset)) = (value)
    SET(size_t, TOTAL_GLOBAL_MEM, 1ul << 37);
    SET(size_t, SHARED_MEM_PER_BLOCK, 48 << 10);
    SET(int, REGS_PER_BLOCK, 65536);
    SET(int, WARP_SIZE, 32);
    SET(int, MAX_THREADS_PER_BLOCK, 1024);
    for (int i = 0; i < 3; i++) {
        SET(int, MAX_THREADS_DIM + 4 * i, i == 2 ? 64 : 1024);
        SET(int, MAX_GRID_SIZE + 4 * i, i ? 65535 : 2147483647);
    }
    SET(int, MAJOR, 9);
    SET(int, MULTI_PROCESSOR_COUNT, 132);
    SET(int, MAX_THREADS_PER_MULTI_PROCESSOR, 2048);
    SET(size_t, SHARED_MEM_PER_MULTIPROCESSOR, 228 << 10);
    SET(size_t, SHARED_MEM_PER_BLOCK_OPTIN, 227 << 10);
    SET(int, COOPERATIVE_LAUNCH, 1);
    return 0;
}
const char *cudaGetErrorName(Status status) { return "stub"; }
const char *cudaGetErrorString(Status status) { return "stub"; }
Status cudaFuncGetAttributes(void *attributes, const void *function) { memset(attributes, 0, 144); return 0; }
Status cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *num, const void *f, int b, size_t s,
                                                              unsigned flags) { *num = 4; return 0; }
Status cudaGetDriverEntryPointByVersion(const char *n, Handle *f, unsigned v, unsigned long u, int *found) {
    *f = 0; *found = 1; return 0;
}

// Memory
static Status allocate(Handle *address, size_t num_bytes) {
    *address = aligned_alloc(4096, (num_bytes + 8191) / 4096 * 4096);
    return 0;
}
Status cudaMalloc(Handle *address, size_t num_bytes) {
    write_size("cudaMalloc", 0, num_bytes);
    return allocate(address, num_bytes);
}
Status cudaMallocHost(Handle *address, size_t num_bytes) { return allocate(address, num_bytes); }
Status cudaHostAlloc(Handle *address, size_t num_bytes, unsigned f) { return allocate(address, num_bytes); }
Status cudaMallocFromPoolAsync(Handle *address, size_t num_bytes, Handle pool, Handle stream) {
    return allocate(address, num_bytes);
}
Status cudaPointerGetAttributes(void *attributes, const void *p) { memset(attributes, 0, 64); return 0; }
Status cudaMemcpy(void *target, const void *source, size_t num_bytes, int kind) {
    memcpy(target, source, num_bytes);
    write_size("cudaMemcpy", kind, num_bytes);
    return 0;
}
Status cudaMemcpyAsync(void *target, const void *source, size_t num_bytes, int kind, Handle stream) {
    memcpy(target, source, num_bytes);
    write_size("cudaMemcpyAsync", kind, num_bytes);
    return 0;
}
Status cudaMemcpyFromSymbol(void *target, const void *symbol, size_t num_bytes, size_t offset, int kind) {
    memset(target, 0, num_bytes);
    return 0;
}
Status cudaMemset(void *target, int value, size_t num_bytes) { memset(target, value, num_bytes); return 0; }
Status cudaMemsetAsync(void *target, int value, size_t num_bytes, Handle stream) {
    memset(target, value, num_bytes);
    write_size("cudaMemsetAsync", 0, num_bytes);
    return 0;
}

// Streams, events, graphs
Status cudaStreamCreate(Handle *stream) { return give(stream); }
Status cudaStreamCreateWithFlags(Handle *stream, unsigned flags) { return give(stream); }
Status cudaEventCreate(Handle *event) { return give(event); }
Status cudaEventCreateWithFlags(Handle *event, unsigned flags) { return give(event); }
Status cudaEventElapsedTime(float *ms, Handle start, Handle stop) { *ms = 1; return 0; }
static int is_capturing;
Status cudaStreamIsCapturing(Handle stream, int *status) { *status = is_capturing; return 0; }
Status cudaStreamBeginCapture(Handle stream, int mode) {
    is_capturing = 1;
    stub_write("cudaStreamBeginCapture", "");
    return 0;
}
Status cudaStreamEndCapture(Handle stream, Handle *graph) {
    is_capturing = 0;
    stub_write("cudaStreamEndCapture", "");
    return give(graph);
}
Status cudaGraphGetNodes(Handle graph, Handle *nodes, size_t *number) { *number = 1; return 0; }
Status cudaGraphNodeGetType(Handle node, int *type) { *type = 0; return 0; }
Status cudaGraphInstantiate(Handle *executable, Handle graph, unsigned long f) { return give(executable); }
Status cudaGraphLaunch(Handle executable, Handle stream) { stub_write("cudaGraphLaunch", ""); return 0; }
Status cudaStreamSynchronize(Handle stream) { stub_write("cudaStreamSynchronize", ""); return 0; }
Status cudaDeviceSynchronize(void) { stub_write("cudaDeviceSynchronize", ""); return 0; }
Status cudaEventSynchronize(Handle event) { stub_write("cudaEventSynchronize", ""); return 0; }
Status cudaLaunchHostFunc(Handle stream, void (*function)(void *), void *argument) {
    stub_write("cudaLaunchHostFunc", "");
    function(argument);
    return 0;
}
Status cudaMemPoolCreate(Handle *pool, const void *properties) { return give(pool); }

// Kernels, by the names under which they were registered
static struct Kernel { const void *symbol; const char *name; } *kernels;
static size_t num_kernels;
Handle *__cudaRegisterFatBinary(void *binary) { static Handle handle; return &handle; }
void __cudaRegisterFunction(Handle *binary, const char *symbol, char *function, const char *name, int limit,
                            void *a, void *b, void *c, void *d, int *e) {
    if (num_kernels % 1024 == 0) kernels = realloc(kernels, (num_kernels + 1024) * sizeof *kernels);
    kernels[num_kernels++] = (struct Kernel){symbol, name};
}
static Status launch(const void *symbol) {
    for (size_t i = 0; i < num_kernels; i++)
        if (kernels[i].symbol == symbol) { stub_write("kernel", kernels[i].name); return 0; }
    stub_write("kernel", "?");
    return 0;
}
Status __cudaPopCallConfiguration(Dim3 *grid, Dim3 *block, size_t *shared, void *stream) {
    *grid = *block = (Dim3){1, 1, 1};
    *shared = 0;
    *(Handle *)stream = 0;
    return 0;
}
Status __cudaGetKernel(Handle *kernel, const void *symbol) { *kernel = (Handle)symbol; return 0; }
Status __cudaLaunchKernel(Handle kernel, Dim3 grid, Dim3 block, void **arguments, size_t n, Handle stream) {
    return launch(kernel);
}
Status cudaLaunchKernel(const void *symbol, Dim3 grid, Dim3 block, void **arguments, size_t n, Handle s) {
    return launch(symbol);
}
Status cudaLaunchCooperativeKernel(const void *symbol, Dim3 g, Dim3 b, void **arguments, size_t n, Handle s) {
    return launch(symbol);
}
Status cudaLaunchKernelExC(const void *config, const void *symbol, void **a) { return launch(symbol); }

// cuBLAS
Status cublasCreate_v2(Handle *handle) { return give(handle); }
Status cublasLtCreate(Handle *handle) { return give(handle); }
Status cublasGetMathMode(Handle handle, int *mode) { *mode = 0; return 0; }
const char *cublasGetStatusName(Status status) { return "stub"; }
const char *cublasGetStatusString(Status status) { return "stub"; }

// cuDNN, as far as attention calls it: of whatever is asked for there is one, and every size is 0
static Status note(const char *call) { stub_write(call, ""); return 0; }
size_t cudnnGetVersion(void) { return 91600; }
const char *cudnnGetErrorString(Status status) { return "stub"; }
void cudnnGetLastErrorString(char *text, size_t size) { *text = 0; }
Status cudnnCreate(Handle *handle) { give(handle); return note(__func__); }
Status cudnnDestroy(Handle handle) { return note(__func__); }
Status cudnnSetStream(Handle handle, Handle stream) { return note(__func__); }
Status cudnnGetStream(Handle handle, Handle *stream) { give(stream); return note(__func__); }
Status cudnnBackendCreateDescriptor(int type, Handle *made) { give(made); return note(__func__); }
Status cudnnBackendDestroyDescriptor(Handle descriptor) { return note(__func__); }
Status cudnnBackendSetAttribute(Handle descriptor, int name, int type, long count, const void *values) {
    return note(__func__);
}
Status cudnnBackendGetAttribute(Handle descriptor, int name, int type, long size, long *count, void *values) {
    enum { INT64 = 3, KNOB_TYPE = 9, DESCRIPTOR = 15, INT32 = 23 };
    if (count) *count = type == DESCRIPTOR;  // which the caller has made
    if (values && size && (type == INT64 || type == INT32 || type == KNOB_TYPE))
        memset(values, 0, type == INT64 ? 8 : 4);
    return note(__func__);
}
Status cudnnBackendFinalize(Handle descriptor) { return note(__func__); }
Status cudnnBackendExecute(Handle handle, Handle plan, Handle arguments) { return note(__func__); }

// Driver
Status cuInit(unsigned flags) { return 0; }
Status cuDeviceGetCount(int *count) { *count = 1; return 0; }
Status cuDriverGetVersion(int *version) { *version = 13000; return 0; }
Status cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
Status cuDeviceGetAttribute(int *value, int attribute, int device) {
    return cudaDeviceGetAttribute(value, attribute, device);
}
Status cuModuleLoadData(Handle *module, const char *code) {
    stub_write("cuModuleLoadData", code);
    return give(module);
}
Status cuModuleUnload(Handle module) { stub_write("cuModuleUnload", ""); return 0; }
Status cuModuleGetFunction(Handle *function, Handle module, const char *name) {
    stub_write("cuModuleGetFunction", name);
    return give(function);
}
typedef struct { int id, pad; unsigned cluster[3], rest[13]; } Attribute;
typedef struct {
    Dim3 grid, block;
    unsigned shared_bytes;
    Handle stream;
    Attribute *attributes;
    unsigned num_attributes;
} Config;
Status cuLaunchKernelEx(const Config *config, Handle function, Handle *arguments, Handle *extra) {
    char detail[99];
    int has_cluster = config->num_attributes && config->attributes->id == 4;
    unsigned cluster = has_cluster ? config->attributes->cluster[0] : 1;
    snprintf(detail, sizeof detail, "%u %u of %u, clusters of %u, %u bytes", config->grid.x, config->grid.y,
             config->block.x, cluster, config->shared_bytes);
    stub_write("cuLaunchKernelEx", detail);
    return 0;
}
Status cuOccupancyMaxActiveClusters(int *number, Handle function, const Config *config) {
    *number = 132 / config->attributes->cluster[0];
    return 0;
}
Status cuFuncSetAttribute(Handle function, int attribute, int value) { return 0; }
Status cuGetErrorName(Status status, const char **name) { *name = "stub"; return 0; }

// What hgt_infer calls of the runtime and ONNX Runtime does not
Status cudaMemcpy2DAsync(char *target, size_t step, const char *source, size_t pitch, size_t width,
                         size_t height, int kind, Handle stream) {
    for (size_t row = 0; row < height; row++) memcpy(target + row * step, source + row * pitch, width);
    write_size("cudaMemcpy2DAsync", kind, width * height);
    return 0;
}
Status cudaMemcpy3DAsync(const void *p, Handle stream) { stub_write("cudaMemcpy3DAsync", ""); return 0; }
Status cudaEventQuery(Handle event) { return 0; }
Status cudaStreamDestroy(Handle stream) { return 0; }
Status cudaFree(Handle address) { stub_write("cudaFree", ""); free(address); return 0; }
Status cudaFreeHost(Handle address) { free(address); return 0; }

// NVRTC, of a version that never was: its machine code is the options and the size of the source
static char program[4096];
Status nvrtcVersion(int *major, int *minor) { *major = *minor = 0; return 0; }
Status nvrtcCreateProgram(Handle *handle, const char *source, const char *name, int n, Handle *h, Handle *i) {
    snprintf(program, sizeof program, "%s %zu", name, strlen(source));
    return give(handle);
}
Status nvrtcCompileProgram(Handle handle, int num_options, const char **options) {
    stub_write("nvrtcCompileProgram", "");
    // The real one does not look beside itself either.
    if (!dlopen("libnvrtc-builtins.so.0.0", RTLD_NOW)) return 7;
    for (int i = 0; i < num_options; i++) {
        strcat(program, " ");
        strcat(program, options[i]);
    }
    return getenv("STUB_NVRTC_FAILS") ? 6 : 0;
}
Status nvrtcGetCUBINSize(Handle handle, size_t *size) { *size = strlen(program) + 1; return 0; }
Status nvrtcGetCUBIN(Handle handle, char *code) { strcpy(code, program); return 0; }
Status nvrtcGetProgramLogSize(Handle handle, size_t *size) { *size = 9; return 0; }
Status nvrtcGetProgramLog(Handle handle, char *log) { strcpy(log, "line 3: ?"); return 0; }
Status nvrtcDestroyProgram(Handle *handle) { return 0; }
"""

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
    given = set(re.findall(r"^[\w ]+?\W(\w+)\(", _SOURCE, re.MULTILINE))
    source = folder / "stub.c"
    source.write_text(
        _SOURCE
        + "".join(
            f"Status {name}(void) {{ {_note(name)}return 0; }}\n" for name in symbols if name not in given
        )
    )
    options = [f"-D{name}={value}" for name, value in _PROPERTIES.items()]
    for library in [*needed, "libnvrtc.so.13", NVRTC_BUILTINS, "libcudnn.so.9"]:
        versions = folder / f"{library}.versions"
        versions.write_text(f"{library.replace('-', '_')} {{ *; }};\n")
        output = ["-o", str(folder / library), f"-Wl,--version-script={versions},-soname,{library}"]
        _output("gcc", "-shared", "-fPIC", "-w", *options, str(source), *output)


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
