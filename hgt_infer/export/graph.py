"""GPT-2's forward pass as one fused ONNX graph over a static KV cache, with the sampler at its end.

One graph serves prompts and single steps: a run takes S tokens per row, writes their keys and values
into the cache in place, and samples one token per row from the logits at the row's last real token.
S > 1 starts a row at position 0, padded on the right; S = 1 continues it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript import GraphBuilder

from hgt_infer.export.precision import convert, float_type
from hgt_infer.export.sampling_graph import SamplingInputs, sample
from hgt_infer.model_config import ModelConfig
from hgt_infer.sampling import GRAPH_UNIFORMS

OPSET = 21
IR_VERSION = 10

Value = Any  # ir.Value, which onnxscript leaves untyped


def build_graph(
    config: ModelConfig,
    weights: Mapping[str, NDArray[np.float32]],
    *,
    precision: str,
    eos_token_ids: Sequence[int],
) -> ir.Model:
    """Build the graph of one checkpoint.

    Inputs (B rows, S tokens a row, M cache positions, H heads of size D):
        input_ids int64 [B, S], position_ids int64 [B, S]
        seqlens_k int32 [B]: last real position of each row
        total_sequence_length int32 []: largest seqlens_k + 1, in CPU memory
        past_key.i, past_value.i [B, H, M, D]: bind the same buffer as present_key.i, present_value.i
        temperature, top_p float [B]; top_k int64 [B]; min_length int32 [B]; uniforms float [B, 4]
    Outputs: token_ids int64 [B], unresolved bool [B], logits float [B, V], present_key.i, present_value.i.
    """
    return _GraphBuild(config, weights, precision).build(eos_token_ids)


class _GraphBuild:
    def __init__(
        self, config: ModelConfig, weights: Mapping[str, NDArray[np.float32]], precision: str
    ) -> None:
        self.config = config
        self.weights = weights
        self.precision = precision
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET, "com.microsoft": 1}, name="gpt2")
        self.builder = GraphBuilder(self.graph)
        self.op = self.builder.op
        self.fused = self.builder.opset("com.microsoft", 1)
        self.parameters: dict[str, Value] = {}

    def build(self, eos_token_ids: Sequence[int]) -> ir.Model:
        op = self.op
        input_ids = self.input("input_ids", ir.DataType.INT64, ["batch", "sequence"])
        position_ids = self.input("position_ids", ir.DataType.INT64, ["batch", "sequence"])
        self.seqlens_k = self.input("seqlens_k", ir.DataType.INT32, ["batch"])
        self.total_sequence_length = self.input("total_sequence_length", ir.DataType.INT32, [])

        hidden = self.decoder(input_ids, position_ids)  # [B, 1, E]
        logits = self.lm_head(hidden)  # [B, V]

        with self.scope("sampler"):
            length = op.Add(self.seqlens_k, 1)
            rows = SamplingInputs(
                temperature=self.column("temperature", ir.DataType.FLOAT),
                top_k=self.column("top_k", ir.DataType.INT64),
                top_p=self.column("top_p", ir.DataType.FLOAT),
                too_short=op.Less(op.Unsqueeze(length, [1]), self.column("min_length", ir.DataType.INT32)),
                uniforms=self.input("uniforms", ir.DataType.FLOAT, ["batch", GRAPH_UNIFORMS]),
            )
            token_ids, unresolved = sample(
                self.builder, logits, rows, vocab_size=self.config.vocab_size, eos_token_ids=eos_token_ids
            )

        self.output(token_ids, "token_ids", ir.DataType.INT64, ["batch"])
        self.output(unresolved, "unresolved", ir.DataType.BOOL, ["batch"])
        self.output(logits, "logits", ir.DataType.FLOAT, ["batch", self.config.vocab_size])
        for name, present in self.presents.items():
            self.output(present, name, self.float_type, self.cache_shape)
        return ir.Model(self.graph, ir_version=IR_VERSION, producer_name="hgt_infer")

    def decoder(self, input_ids: Value, position_ids: Value) -> Value:
        """The transformer: ids [B, S] → normalized hidden state [B, 1, E] of each row's last real token."""
        op, config = self.op, self.config
        self.presents: dict[str, Value] = {}
        # Where the row's last real token lies among the S tokens of this run: [B, 1, 1].
        first_position = op.Cast(op.Slice(position_ids, [0], [1], [1]), to=ir.DataType.INT32)
        last_index = op.Unsqueeze(op.Sub(op.Unsqueeze(self.seqlens_k, [1]), first_position), [2])

        hidden, residual = self.embed(input_ids, position_ids)
        for layer in range(config.n_layer):
            with self.scope(f"h.{layer}"):
                hidden = self.attention(hidden, layer)
                if layer == config.n_layer - 1:  # nothing after here looks at other positions
                    hidden, residual = (self.at(last_index, x) for x in (hidden, residual))
                hidden, residual = self.project(hidden, residual, f"h.{layer}.attn.c_proj", f"h.{layer}.ln_2")
                hidden = self.activate(hidden, f"h.{layer}.mlp.c_fc")
                next_norm = f"h.{layer + 1}.ln_1" if layer + 1 < config.n_layer else "ln_f"
                hidden, residual = self.project(hidden, residual, f"h.{layer}.mlp.c_proj", next_norm)
        return hidden

    def embed(self, input_ids: Value, position_ids: Value) -> tuple[Value, Value]:
        """wte + wpe and the first LayerNorm: ids [B, S] → hidden, residual [B, S, E]."""
        tokens = self.op.Gather(self.parameter("wte.weight"), input_ids)
        positions = self.op.Gather(self.parameter("wpe.weight"), position_ids)
        return self.add_and_norm(tokens, positions, "h.0.ln_1")

    def attention(self, hidden: Value, layer: int) -> Value:
        """Causal self-attention over the cache, without its output projection: [B, S, E] → [B, S, E]."""
        past_key = self.input(f"past_key.{layer}", self.float_type, self.cache_shape)
        past_value = self.input(f"past_value.{layer}", self.float_type, self.cache_shape)
        prefix = f"h.{layer}.attn.c_attn"
        # c_attn is stored [in, out] and gives queries, keys, values side by side: the packed form.
        packed_qkv = self.op.Add(
            self.op.MatMul(hidden, self.parameter(f"{prefix}.weight")), self.parameter(f"{prefix}.bias")
        )
        output, key, value = self.fused.GroupQueryAttention(
            packed_qkv,
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
        return output

    def project(self, hidden: Value, residual: Value, linear: str, norm: str) -> tuple[Value, Value]:
        """Linear layer back to E, residual sum, LayerNorm: → hidden, residual [B, S, E]."""
        projected = self.op.MatMul(hidden, self.parameter(f"{linear}.weight"))
        return self.add_and_norm(projected, residual, norm, bias=self.parameter(f"{linear}.bias"))

    def activate(self, hidden: Value, linear: str) -> Value:
        """Linear layer to n_inner and gelu_new: [B, S, E] → [B, S, n_inner]. FastGelu is the tanh form."""
        return self.fused.FastGelu(
            self.op.MatMul(hidden, self.parameter(f"{linear}.weight")), self.parameter(f"{linear}.bias")
        )

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

    def at(self, index: Value, hidden: Value) -> Value:
        """One token per row: hidden [B, S, X] at index [B, 1, 1] → [B, 1, X]."""
        indices = self.op.Expand(index, [1, 1, self.config.n_embd])
        return self.op.GatherElements(hidden, indices, axis=1)

    def lm_head(self, hidden: Value) -> Value:
        """Logits in fp32: [B, 1, E] → [B, V]. The matrix is wte itself unless the checkpoint unties it."""
        name = "lm_head.weight" if "lm_head.weight" in self.weights else "wte.weight"
        flat = self.op.Reshape(hidden, [-1, self.config.n_embd])
        logits = self.op.Gemm(flat, self.parameter(name), transB=1)
        if self.precision != "fp32":
            logits = self.op.Cast(logits, to=ir.DataType.FLOAT)
        logits.dtype = ir.DataType.FLOAT  # shape inference ends at the fused operators
        return logits

    # Naming and bookkeeping

    @property
    def float_type(self) -> ir.DataType:
        return ir.DataType.from_numpy(float_type(self.precision))

    @property
    def cache_shape(self) -> list[str | int]:
        return ["batch", self.config.n_head, "max_length", self.config.head_size]

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> Value:
        return self.builder.input(name, dtype, shape)

    def column(self, name: str, dtype: ir.DataType) -> Value:
        """An input of shape [B], as [B, 1]."""
        return self.op.Unsqueeze(self.input(name, dtype, ["batch"]), [1])

    def output(self, value: Value, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> None:
        value.type = ir.TensorType(dtype)
        value.shape = ir.Shape(shape)
        self.builder.add_output(value, name)

    def parameter(self, name: str) -> Value:
        """A weight of the checkpoint under its own name, one initializer however often it is used."""
        if name not in self.parameters:
            tensor = ir.tensor(convert(name, self.weights[name], self.precision), name=name)
            self.parameters[name] = self.builder.initializer(tensor, name, qualify=False)
        return self.parameters[name]

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        self.builder.push_module(name)
        yield
        self.builder.pop_module()
