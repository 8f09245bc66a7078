"""GPT-2's forward pass as one fused ONNX graph over a static KV cache, with the sampler at its end.

One graph serves prompts and single steps: a run takes S tokens per row, writes their keys and values
into the cache in place, and samples one token for each of P tokens per row, which the caller selects.
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
        input_ids int64 [B, S], position_ids int64 [B, S]: S = 1, or from position 0, or B = 1
        output_index int64 [B, P]: which of a row's S tokens give logits; none, some or all
        seqlens_k int32 [B]: last position of each row
        total_sequence_length int32 []: largest seqlens_k + 1, in CPU memory
        past_key.i, past_value.i [B, H, M, D]: bind the same buffer as present_key.i, present_value.i
    for each of R = B · P output rows:
        temperature, top_p, min_p float [R]; top_k int64 [R]; uniforms float [R, 4]
        min_length int32 [R]: end-of-text is suppressed while position + 1 is below
        is_adjusted bool [R]; logit_bias, repetition_penalty float [R, V]: read where any row is adjusted
    Outputs: token_ids int64 [R], unresolved bool [R], logits float [R, V] before any adjustment,
        present_key.i, present_value.i.
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
        output_index = self.input("output_index", ir.DataType.INT64, ["batch", "outputs"])
        self.seqlens_k = self.input("seqlens_k", ir.DataType.INT32, ["batch"])
        self.total_sequence_length = self.input("total_sequence_length", ir.DataType.INT32, [])

        hidden = self.decoder(input_ids, position_ids, output_index)  # [B, P, E]
        logits = self.lm_head(hidden)  # [R, V]

        with self.scope("sampler"):
            positions = op.Reshape(op.GatherElements(position_ids, output_index, axis=1), [-1, 1])
            length = op.Add(op.Cast(positions, to=ir.DataType.INT32), 1)
            vocab_shape: list[int | str] = ["rows", self.config.vocab_size]
            rows = SamplingInputs(
                temperature=self.column("temperature", ir.DataType.FLOAT),
                top_k=self.column("top_k", ir.DataType.INT64),
                top_p=self.column("top_p", ir.DataType.FLOAT),
                min_p=self.column("min_p", ir.DataType.FLOAT),
                too_short=op.Less(length, self.column("min_length", ir.DataType.INT32)),
                uniforms=self.input("uniforms", ir.DataType.FLOAT, ["rows", GRAPH_UNIFORMS]),
                is_adjusted=self.column("is_adjusted", ir.DataType.BOOL),
                logit_bias=self.input("logit_bias", ir.DataType.FLOAT, vocab_shape),
                repetition_penalty=self.input("repetition_penalty", ir.DataType.FLOAT, vocab_shape),
            )
            token_ids, unresolved = sample(
                self.builder, logits, rows, vocab_size=self.config.vocab_size, eos_token_ids=eos_token_ids
            )

        self.output(token_ids, "token_ids", ir.DataType.INT64, ["rows"])
        self.output(unresolved, "unresolved", ir.DataType.BOOL, ["rows"])
        self.output(logits, "logits", ir.DataType.FLOAT, vocab_shape)
        for name, present in self.presents.items():
            self.output(present, name, self.float_type, self.cache_shape)
        return ir.Model(self.graph, ir_version=IR_VERSION, producer_name="hgt_infer")

    def decoder(self, input_ids: Value, position_ids: Value, output_index: Value) -> Value:
        """The transformer: ids [B, S] → normalized hidden state [B, P, E] of the tokens that give logits."""
        op, config = self.op, self.config
        self.presents: dict[str, Value] = {}
        index = op.Expand(op.Unsqueeze(output_index, [2]), [1, 1, config.n_embd])  # [B, P, E]

        hidden, residual = self.embed(input_ids, position_ids)
        for layer in range(config.n_layer):
            with self.scope(f"h.{layer}"):
                hidden = self.attention(hidden, layer)
                if layer == config.n_layer - 1:  # nothing after here looks at other positions
                    hidden, residual = (op.GatherElements(x, index, axis=1) for x in (hidden, residual))
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

    def lm_head(self, hidden: Value) -> Value:
        """Logits in fp32: [B, P, E] → [R, V]. The matrix is wte itself unless the checkpoint unties it."""
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
        """An input of shape [R], as [R, 1]."""
        return self.op.Unsqueeze(self.input(name, dtype, ["rows"]), [1])

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
