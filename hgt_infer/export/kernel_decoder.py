"""GPT-2's forward pass in the operators of `hgt_infer.kernels`, for a CPU.

The tokens of a run are rows, whatever sequences they belong to. Matrices are panels of float32, or of int8
with a scale per output; the operators give each token of an int8 product a scale of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hgt_infer.artifact.config import ModelConfig
from hgt_infer.artifact.folder import CACHE_BLOCK, KERNEL_CACHE_TYPES
from hgt_infer.export.int8_decoder import GELU_SHIFT, quantize, unsigned_bias
from hgt_infer.export.onnx_graph import Dim, OnnxGraph, Value
from hgt_infer.export.panels import pack


class KernelDecoder:
    """The graph that `build_kernel_graph` describes."""

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, NDArray[np.float32]], precision: str
    ) -> None:
        self.config = config
        self.weights = weights
        self.precision = precision
        self.is_int8 = precision == "int8"
        self.graph = OnnxGraph("gpt2")
        self.op = self.graph.op
        self.own = self.graph.own
        self.constants: dict[str, Value] = {}

    def build(self) -> ir.Model:
        """Declare inputs and outputs, and all between."""
        graph, config, int32 = self.graph, self.config, ir.DataType.INT32
        input_ids = graph.input("input_ids", int32, ["tokens"])
        position_ids = graph.input("position_ids", int32, ["tokens"])
        slots = graph.input("slots", int32, ["tokens"])
        output_tokens = graph.input("output_tokens", int32, ["rows"])
        cache_type = ir.DataType.from_numpy(np.dtype(KERNEL_CACHE_TYPES[self.precision]))
        cache_block: list[Dim] = [config.n_layer, 2, config.n_head, CACHE_BLOCK, config.head_size]
        cache = graph.input("cache", cache_type, ["num_slots", "num_blocks", *cache_block])

        embedding, scales, _ = self.matrix("wte.weight")
        hidden = self.own.Embedding(
            input_ids,
            position_ids,
            embedding,
            scales,
            self.constant("wpe.weight"),
            vocabulary=config.vocab_size,
        )
        for layer in range(config.n_layer):
            block = f"h.{layer}"
            qkv = self.linear(hidden, f"{block}.attn.c_attn", norm=f"{block}.ln_1")
            attended = self.own.Attention(qkv, cache, slots, position_ids, layer=layer)
            if layer == config.n_layer - 1:  # nothing after here looks at other tokens
                attended, hidden = (self.op.Gather(x, output_tokens, axis=0) for x in (attended, hidden))
            hidden = self.linear(attended, f"{block}.attn.c_proj", residual=hidden)
            inner = self.linear(hidden, f"{block}.mlp.c_fc", norm=f"{block}.ln_2", has_gelu=True)
            hidden = self.linear(inner, f"{block}.mlp.c_proj", residual=hidden, is_behind_gelu=True)
        head = "lm_head" if "lm_head.weight" in self.weights else "wte"
        logits = self.linear(hidden, head, norm="ln_f")
        graph.output(logits, "logits", ir.DataType.FLOAT, ["rows", config.vocab_size])
        return graph.model()

    def linear(
        self,
        hidden: Value,
        name: str,
        *,
        norm: str | None = None,
        residual: Value | None = None,
        has_gelu: bool = False,
        is_behind_gelu: bool = False,
    ) -> Value:
        """A linear layer [tokens, in] → [tokens, out], with what goes before and behind it.

        Args:
            hidden: its input.
            name: of the layer.
            norm: name of the LayerNorm that `hidden` goes through first.
            residual: [tokens, out], added to the result.
            has_gelu: whether the result, before that, goes through gelu_new.
            is_behind_gelu: whether `hidden` has gone through it: int8 then needs no sign.
        """
        is_unsigned = self.is_int8 and is_behind_gelu
        weight, scales, sums = self.matrix(f"{name}.weight")
        bias = None
        if f"{name}.bias" in self.weights:
            bias = self.unsigned_bias(name) if is_unsigned else self.constant(f"{name}.bias")
        return self.own.Linear(
            hidden,
            weight,
            scales,
            sums,
            bias,
            self.constant(f"{norm}.weight") if norm else None,
            self.constant(f"{norm}.bias") if norm else None,
            residual,
            num_outputs=self.num_outputs(name),
            gelu=int(has_gelu),
            shift=GELU_SHIFT if is_unsigned else 0.0,
            epsilon=self.config.layer_norm_epsilon,
        )

    def num_outputs(self, name: str) -> int:
        """Of a linear layer."""
        bias = self.weights.get(f"{name}.bias")
        return self.config.vocab_size if bias is None else len(bias)

    def matrix(self, name: str) -> tuple[Value, Value | None, Value | None]:
        """Panels of a matrix [in, out], and in int8 the scales and the sums of its columns."""
        if not self.is_int8:
            return self.constant(name, lambda: pack(self.float_matrix(name))), None, None
        if f"{name}.int8" not in self.constants:
            integers, scales = quantize(self.float_matrix(name), axis=0)
            self.constant(f"{name}.int8", lambda: pack(integers))
            self.constant(f"{name}.scale", lambda: scales)
            self.constant(f"{name}.sums", lambda: integers.sum(0, dtype=np.int32))
        return tuple(self.constants[f"{name}.{part}"] for part in ("int8", "scale", "sums"))

    def float_matrix(self, name: str) -> NDArray[np.float32]:
        """A matrix [in, out]; embeddings are stored the other way round."""
        weight = self.weights[name]
        return weight.T if name in ("wte.weight", "lm_head.weight") else weight

    def unsigned_bias(self, name: str) -> Value:
        """The bias behind a product with gelu_new's shifted result."""
        return self.constant(
            f"{name}.unsigned_bias",
            lambda: unsigned_bias(
                self.weights[f"{name}.bias"], *quantize(self.float_matrix(f"{name}.weight"), axis=0)
            ),
        )

    def constant(self, name: str, make: Callable[[], NDArray[Any]] | None = None) -> Value:
        """An initializer, made where it is used first; without `make` the checkpoint's of this name."""
        if name not in self.constants:
            array = self.weights[name] if make is None else make()
            self.constants[name] = self.graph.builder.initializer(
                ir.tensor(array, name=name), name, qualify=False
            )
        return self.constants[name]
