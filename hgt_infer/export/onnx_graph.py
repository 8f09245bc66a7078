"""An ONNX graph under construction: inputs and outputs by name, type and shape; If and Loop as functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
from onnxscript import GraphBuilder

OPSET = 21
IR_VERSION = 10
KERNEL_DOMAIN = "hgt_infer"
"""Of the operators of `hgt_infer.kernels`."""

Value = Any  # ir.Value, which onnxscript leaves untyped

Dim = int | str
"""A size, or the name of one that is known at run time only."""


class OnnxGraph:
    """A graph to which `op`, `fused` and `own` (ONNX's operators, com.microsoft's, ours) add nodes."""

    def __init__(self, name: str) -> None:
        opsets = {"": OPSET, "com.microsoft": 1}
        self.graph = ir.Graph([], [], nodes=[], opset_imports=opsets, name=name)
        self.builder = GraphBuilder(self.graph)
        self.op = self.builder.op
        self.fused = self.builder.opset("com.microsoft", 1)
        self.own = self.builder.opset(KERNEL_DOMAIN, 1)

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[Dim]) -> Value:
        """A new input of the graph."""
        return self.builder.input(name, dtype, shape)

    def output(self, value: Value, name: str, dtype: ir.DataType, shape: Sequence[Dim]) -> None:
        """Give value as an output of the graph."""
        value.type = ir.TensorType(dtype)
        value.shape = ir.Shape(shape)
        self.builder.add_output(value, name)

    def model(self) -> ir.Model:
        """The finished model."""
        return ir.Model(self.graph, ir_version=IR_VERSION, producer_name="hgt_infer")


Branch = tuple[str, Callable[[Any], Sequence[Value]]]
"""A name, and a function of `op` that gives values."""


def if_else(
    op: Any, condition: Value, then: Branch, otherwise: Branch, dtypes: Sequence[ir.DataType]
) -> Sequence[Value]:
    """The values, of these types, that one of two branches gives."""

    def branch(name: str, function: Callable[[Any], Sequence[Value]]) -> ir.Graph:
        def trace(op: Any) -> Sequence[Value]:
            op.builder.push_module(name)  # names must differ from the enclosing graph's
            return function(op)

        return op.builder.subgraph(trace, [], [ir.Value(type=ir.TensorType(x)) for x in dtypes], name=name)

    results: Sequence[Value] = op.If(
        condition, then_branch=branch(*then), else_branch=branch(*otherwise), _outputs=len(dtypes)
    )
    for result, dtype in zip(results, dtypes, strict=True):
        result.dtype = dtype
    return results


def loop(
    op: Any,
    max_rounds: int,
    condition: Value,
    function: Callable[..., Sequence[Value]],
    state: Sequence[Value],
) -> Sequence[Value]:
    """The state after up to max_rounds of function(op, *state), which gives a new condition and state."""

    def trace(op: Any, _round: Value, _condition: Value, *state: Value) -> Sequence[Value]:
        op.builder.push_module("loop")
        return function(op, *state)

    prefix, dtypes = state[0].name, [x.dtype for x in state]
    inputs = [
        ir.val(f"{prefix}.round", ir.DataType.INT64, []),
        ir.val(f"{prefix}.go_on", ir.DataType.BOOL, []),
    ]
    inputs += [ir.val(f"{prefix}.state_{i}", dtype) for i, dtype in enumerate(dtypes)]
    outputs = [ir.Value(type=ir.TensorType(dtype)) for dtype in (ir.DataType.BOOL, *dtypes)]
    body = op.builder.subgraph(trace, inputs, outputs, name="loop")
    results: Sequence[Value] = op.Loop(max_rounds, condition, *state, body=body, _outputs=len(state))
    return results
