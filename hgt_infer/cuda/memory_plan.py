"""How much of a GPU's memory slots take, and how many of them fit.

All of this is arithmetic over shapes, rounded up where kernels choose their own working space; none of
it is measured.
"""

from __future__ import annotations

import bisect

import numpy as np
from numpy.typing import DTypeLike

from hgt_infer.artifact.config import ModelConfig
from hgt_infer.cuda.slot_record import RECORD
from hgt_infer.engine.batch import MAX_PREFILL_TOKENS
from hgt_infer.errors import DeviceMemoryError
from hgt_infer.runtime.kv_cache import KVCache

BUCKETS = tuple(1 << i for i in range(9))
"""Numbers of rows that a captured step can have: 1, 2, 4 … 256."""

RESERVE_BYTES = 1 << 30
"""What is left to CUDA itself: kernels that are loaded when they are first used, workspaces of cuBLAS
(32 MiB a session on Hopper), captured graphs, and other processes' ups and downs."""

_FLOAT_BYTES = 4
_SLOT_STATE_BYTES = 1024  # ids, positions, reports of the blocks in flight; arrays start at multiples of 256
_NUM_VOCABULARY_ROWS = 3  # of each slot: logit_bias, repetition_penalty, token_counts
_MAX_SPLITS = 32  # pieces of a context that attention kernels compute apart, and then add up in float32


def bytes_per_slot(config: ModelConfig, max_length: int, dtype: DTypeLike) -> int:
    """Device memory of one more slot: its cache, its record, and its rows of the vocabulary's size."""
    logits_bytes = np.dtype(dtype).itemsize
    vocabulary_rows = config.vocab_size * (_NUM_VOCABULARY_ROWS * _FLOAT_BYTES + logits_bytes)
    cache = KVCache.bytes_per_slot(config, max_length, dtype)
    return cache + vocabulary_rows + RECORD.itemsize + _SLOT_STATE_BYTES


def model_memory_limit(
    config: ModelConfig, dtype: DTypeLike, *, num_slots: int, max_length: int, weight_bytes: int
) -> int:
    """Bytes that a session of model.onnx may take (gpu_mem_limit): weights, activations, working space.

    Args:
        config: the model.
        dtype: of weights and activations.
        num_slots: rows of a step at most.
        max_length: positions of a slot.
        weight_bytes: size of model.onnx.data.
    """
    itemsize = np.dtype(dtype).itemsize
    num_tokens = max(num_slots, MAX_PREFILL_TOKENS)  # of a run
    # As if nothing of a layer were freed before its end: c_attn and its bias 3 + 3, the kernel's own
    # q, k, v 3, attention and c_proj 2, two LayerNormalizations 2 + 2, c_proj of the MLP 1, all times
    # n_embd; c_fc and gelu.
    layer = (16 * config.n_embd + 2 * config.n_inner) * itemsize
    # Partial sums of split contexts (float32, with a maximum and a sum each); scores where no fused
    # kernel applies.
    split = _MAX_SPLITS * (config.n_embd + 2 * config.n_head) * _FLOAT_BYTES
    scores = config.n_head * max_length * (itemsize + _FLOAT_BYTES)
    head = config.vocab_size * itemsize  # of every token where a prompt is scored
    # Twice: pieces of other shapes lie in between. A quarter of the weights: copies while they are loaded.
    return weight_bytes + weight_bytes // 4 + 2 * num_tokens * (layer + split + scores + head) + (256 << 20)


def plan_slots(
    config: ModelConfig,
    dtype: DTypeLike,
    *,
    max_length: int,
    free_bytes: int,
    weight_bytes: int = 0,
    num_slots: int | None = None,
) -> int:
    """The largest bucket of slots that fits, or the bucket of `num_slots` if that fits.

    Args:
        config: the model.
        dtype: of weights, activations and cache.
        max_length: positions of a slot.
        free_bytes: of the device's memory (CudaDevice.memory).
        weight_bytes: size of model.onnx.data; 0 where the weights are loaded already.
        num_slots: what was asked for, 1 … 256; None for as many as fit.

    Raises:
        DeviceMemoryError: it does not fit; the message says what would.
    """

    def needed(num_slots: int, max_length: int) -> int:
        return (
            num_slots * bytes_per_slot(config, max_length, dtype)
            + model_memory_limit(
                config, dtype, num_slots=num_slots, max_length=max_length, weight_bytes=weight_bytes
            )
            + RESERVE_BYTES
        )

    fitting = [bucket for bucket in BUCKETS if needed(bucket, max_length) <= free_bytes]
    if num_slots is None and fitting:
        return fitting[-1]
    bucket = BUCKETS[bisect.bisect_left(BUCKETS, num_slots or 1)]
    if bucket in fitting:
        return bucket
    if fitting:
        remedy = f"num_slots={fitting[-1]} would fit"
    else:
        longest = bisect.bisect_right(
            range(1, max_length + 1), free_bytes, key=lambda length: needed(1, length)
        )
        remedy = f"one slot of max_length={longest} would fit" if longest else "nothing of it fits"
    raise DeviceMemoryError(
        f"{bucket} slot(s) of max_length={max_length} need about {needed(bucket, max_length):,} bytes of the "
        f"GPU's memory, model and reserve included, and {free_bytes:,} are free: {remedy} "
        "(other processes may hold a part of the GPU's memory)"
    )
