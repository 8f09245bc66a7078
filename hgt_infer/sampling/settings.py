"""A sequence's settings as a device takes them: numbers, two rows of adjustments, and what it cannot do.

Applying them to logits is done in `sampling.host`, `export.sampling_graph` and `cuda/sampler.cu`.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hgt_infer.engine.sequence import SequenceParams

GRAPH_MAX_TOP_K = 256
"""Widest top_k that the graph samples itself."""

MIN_TEMPERATURE = 1e-5
"""Below, sampling is greedy."""

MAX_TEMPERATURE = 1e30
"""The largest that float32 logits are divided by; above it sampling is uniform either way."""


class GraphSettings(NamedTuple):
    """A row's settings as the graph takes them.

    Greedy is top_k 1: of the largest logit and its ties, a tiny nucleus keeps the first. top_p 2 is off,
    beyond any rounding of the whole mass. min_length is prompt and output together.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    min_length: int


def graph_settings(params: SequenceParams, prompt_length: int, vocab_size: int) -> GraphSettings:
    """What the graph is given of a sequence's settings.

    >>> graph_settings(SequenceParams(max_tokens=1, seed=0, top_k=50), prompt_length=3, vocab_size=50_257)
    GraphSettings(temperature=1.0, top_k=50, top_p=2.0, min_p=0.0, min_length=0)
    """
    min_length = prompt_length + params.min_tokens if params.eos_token_ids else 0
    if params.temperature < MIN_TEMPERATURE:
        return GraphSettings(1.0, 1, 1e-6, params.min_p, min_length)
    return GraphSettings(
        min(params.temperature, MAX_TEMPERATURE),
        min(params.top_k if params.top_k < vocab_size else 0, GRAPH_MAX_TOP_K),
        params.top_p if params.top_p < 1 else 2.0,
        params.min_p,
        min_length,
    )


def is_adjusted(params: SequenceParams) -> bool:
    """Whether the row needs what `adjustment` returns."""
    return bool(
        params.logit_bias
        or params.presence_penalty
        or params.frequency_penalty
        or params.allowed_token_ids is not None
        or params.repetition_penalty != 1
        or any(len(ids) == 1 for ids in params.bad_words_ids)
    )


def needs_host(params: SequenceParams, vocab_size: int, *, max_top_k: int | None = GRAPH_MAX_TOP_K) -> bool:
    """Whether the row has a filter that the device has not, and is sampled by `sample_row`.

    max_top_k: the largest that the device takes; None takes any.
    """
    is_wide = max_top_k is not None and max_top_k < params.top_k < vocab_size
    if params.temperature >= MIN_TEMPERATURE and (params.typical_p < 1 or is_wide):
        return True
    return bool(
        params.no_repeat_ngram_size
        or params.logits_processor is not None
        or (params.stop_token_ids and params.min_tokens)
        or any(len(ids) > 1 for ids in params.bad_words_ids)
    )


def adjustment(
    params: SequenceParams,
    prompt_token_ids: Seq[int],
    output_token_ids: Seq[int],
    vocab_size: int,
    out: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What the graph does to a row's logits l first: l + logit_bias, then · or / repetition_penalty.

    Returns logit_bias [V], in which presence_penalty, frequency_penalty, bad words of one token and
    allowed_token_ids are too, and repetition_penalty [V], 1 where a token has not occurred; in the memory
    of `out` [2, V] where it is given.
    """
    logit_bias, repetition_penalty = np.empty((2, vocab_size), np.float32) if out is None else out
    logit_bias.fill(0.0)
    repetition_penalty.fill(1.0)
    if params.logit_bias:
        ids, biases = zip(*params.logit_bias, strict=True)
        logit_bias[list(ids)] = biases
    if params.allowed_token_ids is not None:
        is_allowed = np.zeros(vocab_size, np.bool_)
        is_allowed[list(params.allowed_token_ids)] = True
        logit_bias[~is_allowed] = -np.inf
    logit_bias[[ids[0] for ids in params.bad_words_ids if len(ids) == 1]] = -np.inf
    repetition_penalty[list(prompt_token_ids)] = params.repetition_penalty
    seen = set()
    for token_id in output_token_ids:
        add_token(logit_bias, repetition_penalty, params, token_id, token_id not in seen)
        seen.add(token_id)
    return logit_bias, repetition_penalty


def add_token(
    logit_bias: NDArray[np.float32],
    repetition_penalty: NDArray[np.float32],
    params: SequenceParams,
    token_id: int,
    is_first: bool,
) -> None:
    """Bring what `adjustment` returned up to date with one more output token, in place.

    is_first: whether the token was not among the output tokens before.
    """
    logit_bias[token_id] -= params.frequency_penalty + (params.presence_penalty if is_first else 0)
    repetition_penalty[token_id] = params.repetition_penalty
