"""Sampler: the sampler kernel over a device's memory, with as many blocks for a row as can run at once.

What the compiler is told of what sampler.cu shares with Python is told here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from hgt_infer.cuda.cudart import COMPUTE_CAPABILITY_MAJOR, MAX_SHARED_BYTES_OPTIN
from hgt_infer.cuda.device import CudaDevice
from hgt_infer.cuda.slot_record import (
    HOST_CONTROLLED,
    IDLE,
    MAX_EOS_TOKENS,
    MAX_FED_TOKENS,
    NOT_FINITE,
    PROMPT_TOKEN,
    PROPOSED,
)
from hgt_infer.errors import ModelFormatError
from hgt_infer.sampling.random_numbers import UNIFORMS_PER_STEP

SOURCE = Path(__file__).with_name("sampler.cu")
NAME = "sample"
BLOCK_SIZE = 1024
"""Threads of a block."""

CLUSTER_SIZES = (1, 2, 4, 8)
"""Blocks that sample one row together; more than one from compute capability 9.0 on, more than 8 nowhere."""

MIN_CLUSTER_CAPABILITY = 9

MAX_TOP_P_TEMPERATURE = 1_000.0
"""Above it the host samples a row with top_p: the kernel takes logits that differ by less than
temperature · 2^-27 for equally likely, and keeps the lowest ids of them.
"""

_VECTOR_BYTES = 16
_CHUNK = 256  # places that a warp sums up at once
_NUM_BINS = 256  # of a histogram: a digit has 8 bits
_NUM_READ = 8  # logits that a thread reads at once


class Sampler:
    """The kernel, ready to be launched.

    Args:
        device: a GPU.
        vocab_size: V.
        logits_dtype: float16 or float32.
        addresses: the kernel's arguments, in the order of sampler.cu; arrays [rows, V] start at multiples of
            16 bytes.
        cluster_sizes: of which one is chosen by the number of rows; increasing.

    Attributes:
        keeps_levels: whether a block keeps the levels of its places in shared memory.

    Raises:
        ModelFormatError: the vocabulary is too large for the GPU's shared memory.
    """

    def __init__(
        self,
        device: CudaDevice,
        vocab_size: int,
        logits_dtype: DTypeLike,
        addresses: Sequence[int],
        *,
        cluster_sizes: Sequence[int] = CLUSTER_SIZES,
    ) -> None:
        logits, _, _, _, logit_bias, repetition_penalty, *_ = addresses
        assert not any(address % _VECTOR_BYTES for address in (logits, logit_bias, repetition_penalty))
        max_bytes = device.attribute(MAX_SHARED_BYTES_OPTIN)
        has_clusters = device.attribute(COMPUTE_CAPABILITY_MAJOR) >= MIN_CLUSTER_CAPABILITY
        sizes = [size for size in cluster_sizes if size == 1 or has_clusters]
        # Where levels do not fit the shared memory of any number of blocks, each pass computes them again.
        for keeps_levels in (True, False):
            needed = {size: shared_bytes(vocab_size, size, keeps_levels=keeps_levels) for size in sizes}
            fitting = {size: number for size, number in needed.items() if number <= max_bytes}
            if not fitting:
                continue
            kernel = device.kernel(
                SOURCE,
                NAME,
                block_size=BLOCK_SIZE,
                defines=sampler_defines(vocab_size, logits_dtype, keeps_levels=keeps_levels),
                addresses=addresses,
            )
            # Rows up to which so many blocks a row all run at once; the smallest size serves any number.
            with device.at_work():
                max_rows = {
                    size: kernel.max_active_clusters(size, number) if size > 1 else 0
                    for size, number in fitting.items()
                }
            max_rows = {size: number for size, number in max_rows.items() if number or size == 1}
            if max_rows:
                break
        else:
            raise ModelFormatError(f"a vocabulary of {vocab_size:,} tokens is too large for {device.name}")
        self.keeps_levels = keeps_levels
        self._kernel = kernel
        self._shared_bytes = fitting
        self._max_rows = max_rows
        self._launches: dict[int, Callable[[], None]] = {}

    def cluster_size(self, num_rows: int) -> int:
        """Blocks that sample a row where so many rows are sampled; no result depends on it."""
        fitting = [size for size, max_rows in self._max_rows.items() if num_rows <= max_rows]
        return max(fitting, default=min(self._max_rows))

    def launch(self, num_rows: int) -> None:
        """Queue the sampling of the rows 0 … num_rows - 1."""
        if num_rows not in self._launches:
            size = self.cluster_size(num_rows)
            shape = {"cluster_size": size, "shared_bytes": self._shared_bytes[size]}
            self._launches[num_rows] = partial(self._kernel.launch, num_rows, **shape)
        self._launches[num_rows]()


def shared_bytes(vocab_size: int, cluster_size: int, *, keeps_levels: bool = True) -> int:
    """Shared memory of a block: struct Shared of sampler.cu, and 4 bytes for each of its places.

    >>> shared_bytes(50257, 1), shared_bytes(50257, 8)
    (209744, 33616)
    """
    num_chunks = -(-(vocab_size + _NUM_READ - 1) // _CHUNK)
    bins, warps, found = 2 * 2 * 4 * _NUM_BINS, 32 * 8, 32
    shared = bins + 8 * max(num_chunks, _NUM_BINS) + 8 * num_chunks + warps + 8 + found
    shared = -(-shared // 16) * 16
    num_own = -(-num_chunks // cluster_size)
    return shared + 4 * _CHUNK * num_own * keeps_levels


def sampler_defines(vocab_size: int, logits_dtype: DTypeLike, *, keeps_levels: bool) -> dict[str, int]:
    """The source's macros but for BLOCK, which no result depends on."""
    return {
        "VOCAB_SIZE": vocab_size,
        "NUM_READ": _NUM_READ,
        "CHUNK": _CHUNK,
        "NUM_BINS": _NUM_BINS,
        "LOGIT_BYTES": np.dtype(logits_dtype).itemsize,
        "KEEPS_LEVELS": int(keeps_levels),
        "SHARED_BYTES": shared_bytes(vocab_size, 1, keeps_levels=False),
        "NUM_FED_TOKENS": MAX_FED_TOKENS + 1,
        "NUM_EOS_TOKENS": MAX_EOS_TOKENS,
        "WORDS_PER_STEP": UNIFORMS_PER_STEP,
        "HOST_CONTROLLED": HOST_CONTROLLED,
        "IDLE": IDLE,
        "PROMPT_TOKEN": PROMPT_TOKEN,
        "NOT_FINITE": NOT_FINITE,
        "PROPOSED": PROPOSED,
    }
