"""Numeric types of an artifact: what the weights, the activations and the cache are stored in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hgt_infer.errors import ModelFormatError, ParameterError

PRECISIONS: dict[str, np.dtype[np.floating]] = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16)}
"""fp32 runs on a CPU, fp16 on CUDA; logits and sampling are fp32 in both."""


def float_type(precision: str) -> np.dtype[np.floating]:
    """The NumPy type of a precision's weights, activations and cache."""
    if precision not in PRECISIONS:
        raise ParameterError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
    return PRECISIONS[precision]


def convert(name: str, weight: NDArray[np.float32], precision: str) -> NDArray[np.floating]:
    """Weight in the precision's type; ModelFormatError where a finite value would overflow."""
    dtype = float_type(precision)
    largest, limit = float(np.abs(weight).max(initial=0.0)), float(np.finfo(dtype).max)
    if largest > limit:
        raise ModelFormatError(
            f"{name}: largest magnitude {largest:g} does not fit {precision}, which ends at {limit:g}"
        )
    return weight.astype(dtype, copy=False)
