"""Numeric types of an artifact: what the weights, the activations and the cache are stored in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hgt_infer.artifact.folder import PRECISIONS, check_precision
from hgt_infer.errors import ModelFormatError


def float_type(precision: str) -> np.dtype[np.floating]:
    """The NumPy type of a precision's weights, activations and cache."""
    check_precision(precision)
    dtype: np.dtype[np.floating] = np.dtype(PRECISIONS[precision])
    return dtype


def convert(name: str, weight: NDArray[np.float32], precision: str) -> NDArray[np.floating]:
    """Weight in the precision's type; ModelFormatError where a finite value would overflow."""
    dtype = float_type(precision)
    largest, limit = float(np.abs(weight).max(initial=0.0)), float(np.finfo(dtype).max)
    if largest > limit:
        raise ModelFormatError(
            f"{name}: largest magnitude {largest:g} does not fit {precision}, which ends at {limit:g}"
        )
    return weight.astype(dtype, copy=False)
