"""GPT-2's forward pass in fused operators, with weights and activations in one floating-point type."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hgt_infer.artifact.config import ModelConfig
from hgt_infer.artifact.folder import PRECISIONS
from hgt_infer.export.onnx_graph import Dim, OnnxGraph, Value
from hgt_infer.export.panels import GROUP, PANEL
from hgt_infer.export.weights import convert


class Decoder:
    """The graph that `build_graph` describes."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, NDArray[np.float32]],
        precision: str,
        stored: Mapping[str, Any],
    ) -> None:
        self.config = config
        self.weights = weights
        self.precision = precision
        self.stored = stored
        self.graph = OnnxGraph("gpt2")
        self.op = self.graph.op
        self.fused = self.graph.fused
        self.constants: dict[str, Value] = {}
        # The output layer's matrix is the embedding unless the checkpoint unties it.
        self.head = "lm_head.weight" if "lm_head.weight" in weights else "wte.weight"

    def build(self) -> ir.Model:
        """Declare inputs and outputs, and all between."""
        graph, int32 = self.graph, ir.DataType.INT32
        input_ids = graph.input("input_ids", int32, ["batch", "sequence"])
        position_ids = graph.input("position_ids", int32, ["batch", "sequence"])
        self.seqlens_k = graph.input("seqlens_k", int32, ["batch"])
        self.total_sequence_length = graph.input("total_sequence_length", int32, [])
        self.first_output = graph.input("first_output", ir.DataType.INT64, [1])

        hidden = self.decoder(input_ids, position_ids)  # [B, P, E]
        logits = self.lm_head(hidden)  # [B · P, V]

        graph.output(logits, "logits", self.float_type, ["rows", self.config.vocab_size])
        for name, present in self.presents.items():
            graph.output(present, name, self.float_type, self.cache_shape)
        return graph.model()

    def decoder(self, input_ids: Value, position_ids: Value) -> Value:
        """The transformer: ids [B, S] → normalized hidden state [B, P, E] of the tokens that give logits."""
        config = self.config
        self.presents: dict[str, Value] = {}

        hidden, residual = self.embed(input_ids, position_ids)
        for layer in range(config.n_layer):
            with self.scope(f"h.{layer}"):
                hidden = self.attention(hidden, layer)
                if layer == config.n_layer - 1:  # nothing after here looks at other positions
                    hidden, residual = self.outputs_of(hidden), self.outputs_of(residual)
                hidden, residual = self.project(hidden, residual, f"h.{layer}.attn.c_proj", f"h.{layer}.ln_2")
                hidden = self.activate(hidden, f"h.{layer}.mlp.c_fc")
                next_norm = f"h.{layer + 1}.ln_1" if layer + 1 < config.n_layer else "ln_f"
                hidden, residual = self.project(hidden, residual, f"h.{layer}.mlp.c_proj", next_norm)
        return hidden

    def outputs_of(self, hidden: Value) -> Value:
        """The tokens that give logits: [B, S, E] → [B, P, E]."""
        return self.op.Slice(hidden, self.first_output, [sys.maxsize], [1])

    def embed(self, input_ids: Value, position_ids: Value) -> tuple[Value, Value]:
        """wte + wpe and the first LayerNorm: ids [B, S] → hidden, residual [B, S, E]."""
        tokens = self.op.Gather(self.columns("wte.weight"), input_ids)
        positions = self.op.Gather(self.parameter("wpe.weight"), position_ids)
        return self.add_and_norm(tokens, positions, "h.0.ln_1")

    def attention(self, hidden: Value, layer: int) -> Value:
        """Causal self-attention over the cache, without its output projection: [B, S, E] → [B, S, E]."""
        past_key = self.graph.input(f"past_key.{layer}", self.float_type, self.cache_shape)
        past_value = self.graph.input(f"past_value.{layer}", self.float_type, self.cache_shape)
        prefix = f"h.{layer}.attn.c_attn"
        # c_attn is stored [in, out] and gives queries, keys, values side by side: the packed form.
        packed_qkv = self.op.Add(self.linear(hidden, prefix), self.parameter(f"{prefix}.bias"))
        output, key, value = self.fused.GroupQueryAttention(
            self.by_sequence(packed_qkv, 3 * self.config.n_embd),
            None,
            None,
            past_key,
            past_value,
            self.seqlens_k,
            self.total_sequence_length,
            num_heads=self.config.n_head,
            kv_num_heads=self.config.n_head,
            _outputs=3,
        )
        self.presents[f"present_key.{layer}"] = key
        self.presents[f"present_value.{layer}"] = value
        return self.by_token(output)

    def project(self, hidden: Value, residual: Value, linear: str, norm: str) -> tuple[Value, Value]:
        """Linear layer back to E, residual sum, LayerNorm: → hidden, residual [B, S, E]."""
        bias = self.parameter(f"{linear}.bias")
        return self.add_and_norm(self.linear(hidden, linear), residual, norm, bias=bias)

    def activate(self, hidden: Value, linear: str) -> Value:
        """Linear layer to n_inner and gelu_new: [B, S, E] → [B, S, n_inner]. FastGelu is the tanh form."""
        return self.fused.FastGelu(self.linear(hidden, linear), self.parameter(f"{linear}.bias"))

    def linear(self, hidden: Value, name: str) -> Value:
        """A linear layer without its bias."""
        return self.op.MatMul(hidden, self.matrix(f"{name}.weight"))

    def by_sequence(self, hidden: Value, size: int) -> Value:
        """What attention takes, [B, S, size], out of the form that everything else works on."""
        return hidden

    def by_token(self, hidden: Value) -> Value:
        """Attention's result in the form that everything else works on."""
        return hidden

    def add_and_norm(
        self, hidden: Value, residual: Value, norm: str, bias: Value | None = None
    ) -> tuple[Value, Value]:
        """LayerNorm(hidden + residual + bias) and the sum itself, the next residual: [B, S, E] each."""
        normalized, _, _, total = self.fused.SkipLayerNormalization(
            hidden,
            residual,
            self.parameter(f"{norm}.weight"),
            self.parameter(f"{norm}.bias"),
            bias,
            epsilon=self.config.layer_norm_epsilon,
            _outputs=4,
        )
        return normalized, total

    def lm_head(self, hidden: Value) -> Value:
        """Logits: [B, P, E] → [B · P, V]."""
        flat = self.op.Reshape(hidden, [-1, self.config.n_embd])
        if self.head in self.stored:
            return self.op.MatMul(flat, self.matrix(self.head))
        return self.op.Gemm(flat, self.parameter(self.head), transB=1)

    # Naming and bookkeeping

    @property
    def float_type(self) -> ir.DataType:
        """Of activations and cache."""
        return ir.DataType.from_numpy(np.dtype(PRECISIONS[self.precision]))

    @property
    def cache_shape(self) -> list[Dim]:
        """Of the keys, and of the values, of one layer."""
        return ["batch", self.config.n_head, "max_length", self.config.head_size]

    def matrix(self, name: str) -> Value:
        """A linear layer's matrix [in, out]; ONNX Runtime takes panels apart, once, when it loads."""
        if name not in self.stored:
            return self.parameter(name)
        num_inputs, num_outputs = self.matrix_shape(name)
        packed = self.constant(name)
        is_grouped = len(self.stored[name].shape) == 4  # [panels, in / 4, 32, 4] instead of [panels, in, 32]
        rows_first = self.op.Transpose(packed, perm=[1, 3, 0, 2] if is_grouped else [1, 0, 2])
        num_columns = self.stored[name].shape[0] * PANEL
        matrix = self.op.Reshape(rows_first, [-1, num_columns])
        return self.op.Slice(matrix, [0, 0], [num_inputs, num_outputs])

    def columns(self, name: str) -> Value:
        """Columns of the output layer's matrix, the tokens' embeddings: [V or a few more, E]."""
        if name not in self.stored:
            return self.parameter(name)
        is_grouped = len(self.stored[name].shape) == 4
        columns_first = self.op.Transpose(self.constant(name), perm=[0, 2, 1, 3] if is_grouped else [0, 2, 1])
        groups = self.stored[name].shape[1] * (GROUP if is_grouped else 1)
        return self.op.Slice(self.op.Reshape(columns_first, [-1, groups]), [0], [self.config.n_embd], [1])

    def matrix_shape(self, name: str) -> tuple[int, int]:
        """Inputs and outputs of a linear layer."""
        config = self.config
        H = config.n_embd
        shapes = {
            "c_attn": (H, 3 * H),
            "c_fc": (H, config.n_inner),
            "wte": (H, config.vocab_size),
            "lm_head": (H, config.vocab_size),
            "attn.c_proj": (H, H),
            "mlp.c_proj": (config.n_inner, H),
        }
        layer = name.partition(".weight")[0]
        return next(shape for end, shape in shapes.items() if layer.endswith(end))

    def parameter(self, name: str) -> Value:
        """A weight of the checkpoint under its own name, one initializer however often it is used."""
        if name in self.stored:
            return self.constant(name)
        return self.constant(name, lambda: convert(name, self.weights[name], self.precision))

    def constant(self, name: str, make: Callable[[], NDArray[Any]] | None = None) -> Value:
        """The initializer of this very name: stored, or made where it is used first."""
        if name not in self.constants:
            tensor = self.stored[name] if make is None else ir.tensor(make(), name=name)
            self.constants[name] = self.graph.builder.initializer(tensor, name, qualify=False)
        return self.constants[name]

    def initializer(self, name: str, array: NDArray[Any]) -> Value:
        """A constant of the graph, under this very name."""
        return self.constant(name, lambda: array)

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Name the nodes of the block after a part of the model."""
        self.graph.builder.push_module(name)
        yield
        self.graph.builder.pop_module()
