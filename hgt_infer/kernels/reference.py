"""What the operators compute, in NumPy: one plain function for each, in float64 but for the int8 sums.

The operators round to float32 after each operation and add in the order that `source/` says; how near they
come to these functions, and that a row's bits depend on nothing else, is tested in `tests/kernels`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32] | NDArray[np.float64]


def layer_norm(x: Floats, weight: Floats, bias: Floats, epsilon: float) -> NDArray[np.float64]:
    """(x - mean) / √(variance + epsilon) · weight + bias over the last axis: Ba et al. (2016)."""
    centered = x.astype(np.float64) - x.mean(-1, keepdims=True, dtype=np.float64)
    variance = np.square(centered).mean(-1, keepdims=True)
    scaled: NDArray[np.float64] = centered / np.sqrt(variance + epsilon) * weight + bias
    return scaled


def gelu(x: Floats) -> NDArray[np.float64]:
    """transformers' gelu_new: x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))."""
    x = x.astype(np.float64)
    result: NDArray[np.float64] = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return result


def quantize_rows(x: Floats, shift: float = 0.0) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Integers [rows, inputs] and a scale for each row [rows, 1]: x + shift ≈ integers · scale.

    Without a shift they are -127 … 127, and the largest magnitude of a row becomes 127; with one, for
    rows above -shift, they are 0 … 255.
    """
    steps = 255 if shift else 127
    shifted = x.astype(np.float64) + shift
    scale = np.abs(shifted).max(-1, keepdims=True, initial=0) / steps
    return np.rint(shifted / np.where(scale > 0, scale, 1)).astype(np.int64), scale


def linear_int8(
    x: Floats, weight: NDArray[np.int8], scale: Floats, bias: Floats, shift: float = 0.0
) -> NDArray[np.float64]:
    """x [rows, inputs] · (weight [inputs, outputs] · scale [outputs]) + bias, with rows quantized.

    The product of the shift is in the result: a bias takes it back (see `export.int8_decoder.unsigned_bias`).
    """
    integers, row_scale = quantize_rows(x, shift)
    result: NDArray[np.float64] = (integers @ weight.astype(np.int64)) * (row_scale * scale) + bias
    return result


def attention(query: Floats, keys: Floats, values: Floats) -> NDArray[np.float64]:
    """softmax(query · keys / √size) · values: [size], [positions, size] twice → [size]."""
    scores = keys.astype(np.float64) @ query.astype(np.float64) / np.sqrt(len(query))
    weights = np.exp(scores - scores.max())
    result: NDArray[np.float64] = weights @ values.astype(np.float64) / weights.sum()
    return result
