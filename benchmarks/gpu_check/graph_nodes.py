"""Which nodes a CUDA graph has: a run is captured by hand, and its nodes are counted by their type."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from ctypes import POINTER, byref, c_int, c_size_t, c_void_p
from typing import Any

from hgt_infer.cuda.cudart import LIBRARIES

RELAXED = 2  # cudaStreamCaptureModeRelaxed: other calls of the thread are not refused
NODE_TYPES = {0: "kernel", 1: "memcpy", 2: "memset", 3: "host", 10: "allocation", 11: "free"}
"""enum cudaGraphNodeType, as far as it is expected."""

_SIGNATURES = {
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cudaGraphGetNodes": (c_void_p, c_void_p, POINTER(c_size_t)),
    "cudaGraphNodeGetType": (c_void_p, POINTER(c_int)),
    "cudaGraphDestroy": (c_void_p,),
    "cudaGetLastError": (),
}


def open_runtime() -> Any:
    """The CUDA runtime, with the signatures of what is called here."""
    library = ctypes.CDLL(LIBRARIES[0])
    for name, argument_types in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = argument_types, c_int
    return library


def count_nodes(library: Any, stream: int, run: Callable[[], object]) -> dict[str, int]:
    """Capture what `run` queues on the stream; the number of its nodes by type. Nothing of it is run.

    The capture is ended in any case.

    Raises:
        RuntimeError: a call of the CUDA runtime failed.
    """
    graph = c_void_p()
    _check(library, "cudaStreamBeginCapture", stream, RELAXED)
    try:
        run()
    finally:
        status = library.cudaStreamEndCapture(stream, byref(graph))
        library.cudaGetLastError()
    if status or not graph.value:
        raise RuntimeError(f"cudaStreamEndCapture: error {status}")
    try:
        return _count(library, graph)
    finally:
        library.cudaGraphDestroy(graph)


def _count(library: Any, graph: c_void_p) -> dict[str, int]:
    number = c_size_t()
    _check(library, "cudaGraphGetNodes", graph, None, byref(number))
    nodes = (c_void_p * number.value)()
    _check(library, "cudaGraphGetNodes", graph, nodes, byref(number))
    counts: Counter[str] = Counter()
    for node in nodes:
        kind = c_int()
        _check(library, "cudaGraphNodeGetType", node, byref(kind))
        counts[NODE_TYPES.get(kind.value, f"type {kind.value}")] += 1
    return dict(counts)


def _check(library: Any, function: str, *arguments: Any) -> None:
    status = getattr(library, function)(*arguments)
    if status:
        library.cudaGetLastError()  # ONNX Runtime would take it for its own
        raise RuntimeError(f"{function}: error {status}")
