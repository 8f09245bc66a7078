"""GPT-2's forward pass with matrix products of 8-bit integers, for a CPU.

Weights have a scale per output column, activations one per token, taken from the token's own values: what a
token gives does not depend on what else is in the batch. LayerNorm, attention, GELU and the cache are fp32.
This is the vector-wise quantization of Dettmers et al., "LLM.int8()" (2022), section 3.1.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hgt_infer.export.decoder import Decoder
from hgt_infer.export.onnx_graph import Value

LARGEST = 127  # of a quantized magnitude; ±127, so that nothing has to be known of a zero point
ZERO_POINT = 128  # activations are uint8: VNNI multiplies uint8 by int8
GELU_SHIFT = 0.1701  # gelu_new is at least -0.17005: with this on top it is quantized without a sign


def quantize(weight: NDArray[np.float32], *, axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return int8 of the same shape, and scales along the other axis: weight ≈ int8 · scale.

    Args:
        weight: a matrix.
        axis: the one that is summed over in the product.

    >>> integers, scales = quantize(np.array([[1.0, -4.0], [0.5, 2.0]], np.float32), axis=0)
    >>> integers.tolist(), (scales * 127).tolist()
    ([[127, -127], [64, 64]], [1.0, 4.0])
    """
    scales = np.abs(weight).max(axis) / np.float32(LARGEST)
    divisors = np.expand_dims(np.where(scales == 0, np.float32(1), scales), axis)
    integers = np.rint(weight / divisors).clip(-LARGEST, LARGEST)  # a subnormal scale is rounded itself
    return integers.astype(np.int8), scales


def unsigned_bias(
    bias: NDArray[np.float32], integers: NDArray[np.int8], scales: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The bias behind a product with gelu_new's result plus GELU_SHIFT, without the share of the shift.

    (x + shift) · W = x · W + shift · (sums of W's columns).
    """
    shares: NDArray[np.float32] = np.float32(GELU_SHIFT) * (integers.sum(0, dtype=np.float32) * scales)
    return bias - shares


class Int8Decoder(Decoder):
    """A Decoder whose hidden states are [tokens, E] between attentions: B · S, then B · P tokens.

    Its matrices, scales and biases are those of the kernels' graph.
    """

    def embed(self, input_ids: Value, position_ids: Value) -> tuple[Value, Value]:
        """The embedding is lm_head's matrix: [V, E] in int8, a scale for each token of the vocabulary."""
        op, config = self.op, self.config
        self.one = self.initializer("one", np.array(1, np.float32))
        self.step = self.initializer("step", np.array(1 / LARGEST, np.float32))
        self.unsigned_step = self.initializer("unsigned_step", np.array(1 / 255, np.float32))
        self.shift = self.initializer("shift", np.array(GELU_SHIFT, np.float32))
        self.zero_point = self.initializer("zero_point", np.array(ZERO_POINT, np.uint8))
        shape = op.Shape(input_ids)
        self.sequence_shapes = {
            size: op.Concat(shape, [size], axis=0) for size in (config.n_embd, 3 * config.n_embd)
        }
        input_ids = op.Reshape(input_ids, [-1])
        self.zero_points = self.zero_points_of(input_ids)
        rows = op.Cast(op.Gather(self.columns("wte.weight.int8"), input_ids), to=ir.DataType.FLOAT)
        scales_of_rows = op.Unsqueeze(op.Gather(self.constant("wte.weight.scale"), input_ids), [1])
        positions = op.Gather(self.parameter("wpe.weight"), op.Reshape(position_ids, [-1]))
        return self.add_and_norm(op.Mul(rows, scales_of_rows), positions, "h.0.ln_1")

    def outputs_of(self, hidden: Value) -> Value:
        """The tokens that give logits: [B · S, E] → [B · P, E]."""
        kept = self.by_token(super().outputs_of(self.by_sequence(hidden, self.config.n_embd)))
        self.zero_points = self.zero_points_of(kept)
        return kept

    def by_sequence(self, hidden: Value, size: int) -> Value:
        """[B · S, size] → [B, S, size]."""
        return self.op.Reshape(hidden, self.sequence_shapes[size])

    def by_token(self, hidden: Value) -> Value:
        """[B, S, E] → [B · S, E]."""
        return self.op.Reshape(hidden, [-1, self.config.n_embd])

    def add_and_norm(
        self, hidden: Value, residual: Value, norm: str, bias: Value | None = None
    ) -> tuple[Value, Value]:
        """As in Decoder. SkipLayerNormalization takes four times as long on a CPU as these operators."""
        op = self.op
        total = op.Add(hidden if bias is None else op.Add(hidden, bias), residual)
        weights = self.parameter(f"{norm}.weight"), self.parameter(f"{norm}.bias")
        return op.LayerNormalization(total, *weights, epsilon=self.config.layer_norm_epsilon), total

    def activate(self, hidden: Value, linear: str) -> Value:
        """Linear layer to n_inner and gelu_new, shifted by GELU_SHIFT, which `project` takes back."""
        return self.op.Add(super().activate(hidden, linear), self.shift)

    def project(self, hidden: Value, residual: Value, linear: str, norm: str) -> tuple[Value, Value]:
        """As in Decoder. The bias of mlp.c_proj makes up for `activate`'s shift."""
        if not linear.endswith("mlp.c_proj"):
            return super().project(hidden, residual, linear, norm)
        product = self.multiply_unsigned(hidden, f"{linear}.weight", self.config.n_inner)
        return self.add_and_norm(product, residual, norm, bias=self.constant(f"{linear}.unsigned_bias"))

    def linear(self, hidden: Value, name: str) -> Value:
        """A linear layer without its bias: [tokens, in] → [tokens, out]."""
        return self.multiply(hidden, f"{name}.weight", self.config.n_embd)

    def lm_head(self, hidden: Value) -> Value:
        """Logits: [B · P, E] → [B · P, V]."""
        return self.multiply(hidden, self.head, self.config.n_embd)

    def multiply(self, hidden: Value, weight: str, num_inputs: int) -> Value:
        """[tokens, in] · [in, out], with each token quantized by a scale of its own."""
        op = self.op
        # A token of zeros has scale 0: whatever integers it gets are multiplied by 0.
        token_scales = op.Mul(op.ReduceMax(op.Abs(hidden), [1]), self.step)  # [tokens, 1]
        quantized = op.QuantizeLinear(hidden, token_scales, self.zero_points, axis=1, block_size=num_inputs)
        return self.product(quantized, token_scales, weight, self.zero_point)

    def multiply_unsigned(self, hidden: Value, weight: str, num_inputs: int) -> Value:
        """As multiply, for a hidden state that has nothing negative: all 8 bits are for its magnitude."""
        op = self.op
        token_scales = op.Mul(op.ReduceMax(hidden, [1]), self.unsigned_step)
        quantized = op.QuantizeLinear(hidden, token_scales, axis=1, block_size=num_inputs)  # to uint8
        return self.product(quantized, token_scales, weight)

    def product(self, quantized: Value, token_scales: Value, weight: str, *zero_point: Value) -> Value:
        """Integers by integers, scaled back by the columns' and the tokens' scales."""
        integers, scales = self.matrix(f"{weight}.int8"), self.constant(f"{weight}.scale")
        product = self.fused.MatMulIntegerToFloat(quantized, integers, self.one, scales, *zero_point)
        return self.op.Mul(product, token_scales)

    def zero_points_of(self, tokens: Value) -> Value:
        """The zero point of each token: uint8 [tokens, 1]."""
        op = self.op
        shape = op.Concat(op.Shape(tokens, end=1), [1], axis=0)
        return op.ConstantOfShape(shape, value=ir.tensor(np.array([ZERO_POINT], np.uint8)))
