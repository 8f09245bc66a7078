"""What this machine can do at most: bytes read, and multiply-adds, in a second.

The bound of a step is the larger of what it has to read at that rate and what it has to compute.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

READ_MB = 512  # far more than any cache
GEMM_SIZE = 1536
SECONDS = 1.0


def measure_bounds(num_threads: int) -> dict[str, float]:
    """Measure with torch's threads: reading (a sum over 512 MB), fp32 products of large matrices.

    Returns:
        read_gb_s, fp32_gflop_s: the best of about a second each.
    """
    import torch

    torch.set_num_threads(num_threads)
    values = torch.ones(READ_MB << 18, dtype=torch.float32)
    square = torch.ones((GEMM_SIZE, GEMM_SIZE), dtype=torch.float32)
    read_s = _best(lambda: values.sum())
    product_s = _best(lambda: square @ square)
    return {"read_gb_s": values.nbytes / read_s / 1e9, "fp32_gflop_s": 2 * GEMM_SIZE**3 / product_s / 1e9}


def step_bytes(weights_bytes: int, *, batch_size: int, mean_context: float, cache_bytes: int) -> float:
    """Bytes that a step reads: all weights once, and the cache of every row.

    Args:
        weights_bytes: of the matrices in the precision at hand.
        batch_size: rows.
        mean_context: positions in a row's cache.
        cache_bytes: a position of one row.

    >>> step_bytes(1000, batch_size=2, mean_context=3, cache_bytes=10)
    1060
    """
    return weights_bytes + batch_size * mean_context * cache_bytes


def _best(work: Any) -> float:
    """Seconds of the fastest of the runs that fit into a second, after a first one."""
    work()
    seconds, end = [], time.perf_counter() + SECONDS
    while time.perf_counter() < end or not seconds:
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return float(np.min(seconds))
