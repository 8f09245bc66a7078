"""Graphs of one operator of `hgt_infer.kernels`, for tests of the operators alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from hgt_infer.errors import DeviceUnavailableError
from hgt_infer.export.onnx_graph import OnnxGraph
from hgt_infer.export.panels import pack
from hgt_infer.kernels.library import INSTRUCTION_SETS, VARIABLE, load_kernels

Array = NDArray[Any]


def instruction_sets_here() -> list[str]:
    """Those that the library has on this processor; none without a library."""
    return [name for name in INSTRUCTION_SETS if _is_here(name)]


def _is_here(name: str) -> bool:
    try:
        with chosen(name):
            return True
    except DeviceUnavailableError:
        return False


@contextmanager
def chosen(instruction_set: str) -> Iterator[str]:
    """The library's path, with this instruction set for the sessions that are opened in the block."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = instruction_set
    try:
        kernels = load_kernels()
        assert kernels is not None
        yield str(kernels.path)
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


class Node:
    """One operator on a number of threads, with its constants; called with its other inputs by name."""

    def __init__(
        self,
        operator: str,
        inputs: Mapping[str, Array | None],
        instruction_set: str,
        *,
        num_threads: int = 1,
        num_results: int = 1,
        **attributes: Any,
    ) -> None:
        """inputs: constants by name, in the operator's order; None leaves one out.

        One with a leading * is given in each call: its array has the type and the number of dimensions.
        """
        graph = OnnxGraph("node")
        values: list[Any] = []
        for name, array in inputs.items():
            if array is None:
                values.append(None)
            elif name.startswith("*"):
                dtype = ir.DataType.from_numpy(array.dtype)
                shape = [f"{name[1:]}_{i}" for i in range(array.ndim)]
                values.append(graph.input(name[1:], dtype, shape))
            else:
                values.append(graph.builder.initializer(ir.tensor(array, name=name), name, qualify=False))
        results = getattr(graph.own, operator)(*values, **attributes, _outputs=num_results)
        types = (ir.DataType.FLOAT, ir.DataType.INT64)
        outputs = [results] if num_results == 1 else results
        for name, result, dtype in zip(("output", "places"), outputs, types, strict=False):
            graph.output(result, name, dtype, ["rows", "columns"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 4
        with chosen(instruction_set) as library:
            options.register_custom_ops_library(library)
            self.session = ort.InferenceSession(
                ir.to_proto(graph.model()).SerializeToString(), options, providers=["CPUExecutionProvider"]
            )

    def __call__(self, **inputs: Array) -> Array:
        output: Array = self.session.run(None, inputs)[0]
        return output


def linear(
    weight: Array,
    instruction_set: str,
    *,
    scale: Array | None = None,
    bias: Array | None = None,
    norm: tuple[Array, Array] | None = None,
    residual: bool = False,
    gelu: bool = False,
    shift: float = 0.0,
    num_threads: int = 1,
) -> Node:
    """Linear over a matrix [inputs, outputs], int8 where it has scales."""
    inputs: dict[str, Array | None] = {
        "*input": np.zeros((1, 1), np.float32),
        "weight": pack(weight),
        "scale": scale,
        "column_sums": None if scale is None else weight.sum(0, dtype=np.int32),
        "bias": bias,
        "norm_weight": norm[0] if norm else None,
        "norm_bias": norm[1] if norm else None,
        "*residual": np.zeros((1, 1), np.float32) if residual else None,
    }
    return Node(
        *("Linear", inputs, instruction_set),
        num_threads=num_threads,
        num_outputs=weight.shape[1],
        gelu=int(gelu),
        shift=shift,
        epsilon=1e-5,
    )
