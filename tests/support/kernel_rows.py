"""The sampler's kernel, run on the host over rows in host memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from support.host_kernel import host_kernel

from hgt_infer.cuda.sampler import NAME, SOURCE, sampler_defines, shared_bytes
from hgt_infer.cuda.slot_record import RECORD


class Rows:
    """What a launch works on, in host memory."""

    def __init__(self, logits: Any, dtype: Any = np.float32, **fields: Any) -> None:
        self.logits = np.ascontiguousarray(np.atleast_2d(logits), dtype)
        self.num_rows, self.vocab_size = self.logits.shape
        self.records = np.zeros(self.num_rows, RECORD)
        defaults: dict[str, Any] = {
            "temperature": 1.0,
            "top_p": 1.0,
            "prompt_length": 1,
            "last_position": 1000,
            "eos_token_ids": -1,
            "fed_tokens": -1,
            "sample_index": np.arange(self.num_rows),
        }
        for name, value in (defaults | fields).items():
            self.records[name] = value
        self.input_ids = np.zeros(self.num_rows, np.int32)
        self.positions = np.zeros(self.num_rows, np.int32)
        self.logit_bias = np.zeros(self.logits.shape, np.float32)
        self.repetition_penalty = np.ones(self.logits.shape, np.float32)
        self.token_counts = np.zeros(self.logits.shape, np.uint32)
        self.token_ids = np.full(self.num_rows, -99, np.int32)

    def step(
        self, block_size: int = 1, cluster_size: int = 1, *, keeps_levels: bool = True
    ) -> NDArray[np.int32]:
        arrays = (
            self.logits,
            self.input_ids,
            self.positions,
            self.records,
            self.logit_bias,
            self.repetition_penalty,
            self.token_counts,
            self.token_ids,
        )
        defines = sampler_defines(self.vocab_size, self.logits.dtype, keeps_levels=keeps_levels)
        host_kernel(SOURCE, NAME, block_size=block_size, defines=defines)(
            self.num_rows,
            [array.ctypes.data for array in arrays],
            cluster_size=cluster_size,
            shared_bytes=shared_bytes(self.vocab_size, cluster_size, keeps_levels=keeps_levels),
        )
        return self.token_ids.copy()
