"""An ONNX graph under construction: its builder, its inputs and outputs by name, type and shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from onnxscript import GraphBuilder

OPSET = 21
IR_VERSION = 10

Value = Any  # ir.Value, which onnxscript leaves untyped

Dim = int | str
"""A size, or the name of one that is known at run time only."""


class OnnxGraph:
    """A graph to which `op` and `fused` (ONNX's operators and com.microsoft's) add nodes."""

    def __init__(self, name: str) -> None:
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET, "com.microsoft": 1}, name=name)
        self.builder = GraphBuilder(self.graph)
        self.op = self.builder.op
        self.fused = self.builder.opset("com.microsoft", 1)

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
