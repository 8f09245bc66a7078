"""What this machine reads and multiplies in a second at most, and what a step needs of it.

The bound of a step is the larger of what it has to read at that rate and what it has to compute.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np

from benchmarks.measure.checkpoints import GPT2_124M

READ_MB = 512  # far more than any cache
GEMM_SIZE = 1536
SECONDS = 1.0


def measure_bounds(num_threads: int) -> dict[str, float]:
    """Measure reading and products of square matrices, each for about a second, and take the best.

    NumPy reads in num_threads threads: its bitwise or of int64 uses the widest vectors of the machine, and
    reads as fast as a C program with AVX-512 loads. torch multiplies fp32 with its BLAS, and the others with
    oneDNN, which uses AVX512-BF16, VNNI or AMX where they are. torch._int_mm is the fastest of the int8
    products that torch and ONNX Runtime have, by a few percent on a Zen 4 with VNNI.

    Returns:
        read_gb_s, read_huge_gb_s: bytes read in a second from ordinary and from huge pages, in 1e9.
        Both are of ordinary pages where the kernel has no transparent huge ones.
        fp32_gflop_s, bf16_gflop_s, int8_gop_s: operations in a second, two for each multiply-add, in 1e9.
    """
    import torch

    torch.set_num_threads(num_threads)
    ones = torch.ones((GEMM_SIZE, GEMM_SIZE), dtype=torch.float32)
    halves, integers = ones.to(torch.bfloat16), ones.to(torch.int8)
    products: dict[str, Callable[[], object]] = {
        "fp32_gflop_s": lambda: ones @ ones,
        "bf16_gflop_s": lambda: halves @ halves,
        "int8_gop_s": lambda: torch._int_mm(integers, integers),
    }
    return {
        "read_gb_s": _read_gb_s(num_threads, mmap.MADV_NOHUGEPAGE),
        "read_huge_gb_s": _read_gb_s(num_threads, mmap.MADV_HUGEPAGE),
        **{name: 2 * GEMM_SIZE**3 / _best(product) / 1e9 for name, product in products.items()},
    }


def best_bounds(readings: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Take the largest of each bound over several readings, since other work only lowers a reading.

    >>> best_bounds([{"read_gb_s": 30.0, "fp32_gflop_s": 190.0}, {"read_gb_s": 33.0, "fp32_gflop_s": 170.0}])
    {'read_gb_s': 33.0, 'fp32_gflop_s': 190.0}

    Raises:
        ValueError: there is no reading.
    """
    if not readings:
        raise ValueError("best_bounds needs at least one reading")
    return {name: max(reading[name] for reading in readings) for name in readings[0]}


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


def _read_gb_s(num_threads: int, advice: int) -> float:
    """Bytes that the threads read in a second, each its own part of READ_MB, in 1e9.

    Args:
        num_threads: that read at once.
        advice: of madvise about the size of pages.
    """
    memory = mmap.mmap(-1, READ_MB << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without transparent huge pages has ordinary ones alone
        memory.madvise(advice)
    values = np.frombuffer(memory, dtype=np.int64)
    parts = np.array_split(values, num_threads)
    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(lambda part: part.fill(1), parts))  # a page that was never written has no memory
        return values.nbytes / _best(lambda: list(pool.map(np.bitwise_or.reduce, parts))) / 1e9


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
