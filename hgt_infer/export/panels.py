"""Weights as the kernels read them: panels of 32 columns, one behind the other.

`hgt_infer/kernels/source/kernels.h` describes the same layout.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

PANEL = 32
"""Columns of a panel. The last panel is filled up with zeros."""

GROUP = 4
"""Rows of an int8 panel that lie together: one instruction multiplies them."""

_Number = TypeVar("_Number", np.float32, np.int8)


def pack(matrix: NDArray[_Number]) -> NDArray[_Number]:
    """Return the panels of a matrix [in, out]: float32 [panels, in, 32] or int8 [panels, in / 4, 32, 4].

    >>> pack(np.arange(6, dtype=np.float32).reshape(2, 3))[0, :, :4].tolist()
    [[0.0, 1.0, 2.0, 0.0], [3.0, 4.0, 5.0, 0.0]]
    >>> pack(np.arange(6, dtype=np.int8).reshape(2, 3)).shape
    (1, 1, 32, 4)
    """
    num_inputs, num_outputs = matrix.shape
    group = GROUP if matrix.dtype == np.int8 else 1
    groups, panels = -(-num_inputs // group), -(-num_outputs // PANEL)
    filled = np.zeros((groups * group, panels * PANEL), matrix.dtype)
    filled[:num_inputs, :num_outputs] = matrix
    packed = filled.reshape(groups, group, panels, PANEL).transpose(2, 0, 3, 1)
    if group == 1:
        packed = packed.squeeze(3)
    return np.ascontiguousarray(packed)
