"""What this machine can do at most: bytes read, and multiply-adds, in a second; and what a step needs of it.

The bound of a step is the larger of what it has to read at that rate and what it has to compute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from benchmarks.measure.checkpoints import GPT2_124M

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


def step_bytes(
    weights_bytes: int, bytes_per_token: int, context_lengths: Sequence[float], logits_bytes: int = 0
) -> float:
    """Bytes that a step must move: all weights once, the cache of every row, and its logits where they count.

    Args:
        weights_bytes: of the matrices in the precision at hand.
        bytes_per_token: keys and values of a token, see cache_bytes_per_token.
        context_lengths: tokens in each row's cache.
        logits_bytes: of a row.

    >>> step_bytes(1000, 10, [3, 3], logits_bytes=7)
    1074
    """
    return weights_bytes + sum(bytes_per_token * length + logits_bytes for length in context_lengths)


def cache_bytes_per_token(num_layers: int, width: int, itemsize: int) -> int:
    """Bytes of keys and values of one token: 36,864 for GPT-2 124M in fp16.

    >>> cache_bytes_per_token(12, 768, 2)
    36864
    """
    return 2 * num_layers * width * itemsize


def memory_budget_mb(weights_mb: float, *, num_positions: int) -> float:
    """What a process of GPT-2 124M may take: 1.25 × (weights + fp32 cache), and 150 MB for all else."""
    cache_mb = cache_bytes_per_token(GPT2_124M["n_layer"], GPT2_124M["n_embd"], 4) * num_positions / 1e6
    return 1.25 * (weights_mb + cache_mb) + 150


def _best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of the runs that fit into a second, after a first one."""
    work()
    seconds: list[float] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or not seconds:
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
