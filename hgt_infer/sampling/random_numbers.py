"""The random numbers of a sequence: a function of its seed, its sample's index and the step alone."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

GRAPH_UNIFORMS = 4
"""Uniforms per step that the graph takes, a candidate each; one more is the host's."""

UNIFORMS_PER_STEP = GRAPH_UNIFORMS + 1
"""CUDA's kernel takes the first word of a step, whole."""

_UNUSED_BITS, _UNIT = np.uint64(40), np.float32(2**-24)
_generators = threading.local()  # making one takes longer than all the numbers of a sequence


def uniforms(seed: int, sample_index: int, num_steps: int) -> NDArray[np.float32]:
    """The random numbers of one sequence, [num_steps, UNIFORMS_PER_STEP] in [0, 1).

    They depend on the seed, the sample's index and the step alone. Generator: Philox4x64-10 (Salmon et
    al., "Parallel random numbers: as easy as 1, 2, 3", 2011) keyed by (seed, sample index), whose raw
    output NumPy guarantees to keep; the upper 24 bits of each word, all that a float32 holds.

    >>> bool((uniforms(1, 0, 10)[:4] == uniforms(1, 0, 4)).all())
    True
    """
    if not hasattr(_generators, "philox"):
        _generators.philox = np.random.Philox(key=0)
    _generators.philox.state = {
        "bit_generator": "Philox",
        "state": {"counter": (0, 0, 0, 0), "key": (seed, sample_index)},
        "buffer": (0, 0, 0, 0),
        "buffer_pos": 4,  # nothing is buffered
        "has_uint32": 0,
        "uinteger": 0,
    }
    words = _generators.philox.random_raw(num_steps * UNIFORMS_PER_STEP)
    words >>= _UNUSED_BITS
    numbers: NDArray[np.float32] = words.astype(np.float32)
    numbers *= _UNIT
    return numbers.reshape(num_steps, UNIFORMS_PER_STEP)
