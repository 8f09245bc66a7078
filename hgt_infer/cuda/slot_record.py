"""The record of a slot: all that a step on the device reads of the slot's sequence, written when it enters.

The device advances by itself from there. The layout is that of `Record` in sampler.cu; what its fields
mean to a step is told there and here, nowhere else.
"""

from __future__ import annotations

import numpy as np

MAX_FED_TOKENS = 64
"""Longest prompt that steps compute token by token on CUDA, beside running sequences."""

MAX_EOS_TOKENS = 8
RECORD = np.dtype(
    [
        ("seed", np.uint64),
        ("sample_index", np.uint64),
        ("temperature", np.float32),  # 0: greedy
        ("top_k", np.int32),  # 0: off
        ("top_p", np.float32),  # 1: off
        ("min_p", np.float32),
        ("min_length", np.int32),  # end-of-text is suppressed while position + 1 is below
        ("prompt_length", np.int32),
        ("last_position", np.int32),  # of the last token that the sequence may compute
        ("holds", np.int32),
        ("is_adjusted", np.int32),
        ("repetition_penalty", np.float32),
        ("frequency_penalty", np.float32),
        ("first_penalty", np.float32),  # frequency and presence penalty together: of a first occurrence
        ("eos_token_ids", np.int32, MAX_EOS_TOKENS),  # -1 behind them
        ("fed_tokens", np.int32, MAX_FED_TOKENS + 1),  # by position; -1 where none is fed
        ("unused", np.int32),
    ]
)

# Of `holds`.
RUNS = 0
WAITS = 1  # at each sampled token, for the host, which reads the logits and puts the row one step on
STANDS = 2  # still: nobody's row, or one whose prompt is not computed yet

# What a step reports of a row besides a token id that it sampled.
FED = -1  # took the prompt's next token
UNRESOLVED = -2  # stands: nothing is left to draw, or a logit is not a number
HELD = -3  # stands: HELD - token_id is reported of a row that waits
