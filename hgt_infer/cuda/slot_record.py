"""The record of a slot: all that a step on the device reads of the slot's sequence, written when it enters.

Steps advance the slot from there. The layout is that of `Record` in sampler.cu. A slot's modes, and
what a step reports of it, are told here; sampler.cu has the same names.
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
        ("mode", np.int32),
        ("is_adjusted", np.int32),
        ("repetition_penalty", np.float32),
        ("frequency_penalty", np.float32),
        ("first_penalty", np.float32),  # frequency and presence penalty together: of a first occurrence
        ("eos_token_ids", np.int32, MAX_EOS_TOKENS),  # -1 behind them
        ("fed_tokens", np.int32, MAX_FED_TOKENS + 1),  # by position; -1 where none is fed
        ("unused", np.int32),
    ]
)

# Modes of a slot: the field `mode` of its record.
RUNNING = 0
"""Each step samples a token and takes it as the slot's next input."""
HOST_CONTROLLED = 1
"""A step samples and stays where it is: the host reads the logits, and writes the slot's next input."""
IDLE = 2
"""A step does nothing: the slot has no sequence, or one whose prompt is not prefilled yet."""

# What a step reports of a slot. A number from 0 on is the token id that it sampled.
PROMPT_TOKEN = -1
"""It took the prompt's next token as the slot's next input."""
NOT_FINITE = -2
"""It did nothing: the largest logit is not finite, as no token is left or one logit is not a number."""
PROPOSED = -3
"""PROPOSED - token_id: it sampled token_id of a slot that the host controls. An idle slot reports it too."""
