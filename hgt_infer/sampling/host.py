"""Filters and exact sampling on the host, one row at a time; the other samplers follow this one.

The host samples the rows that the device does not. Filters, their order and their borders are transformers'.
process_logits works in float32, as transformers and the graph do, filtered_probs in float64.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
from numpy.typing import NDArray

from hgt_infer.engine.sequence import SequenceParams
from hgt_infer.errors import EngineError, ParameterError
from hgt_infer.sampling.settings import MIN_TEMPERATURE

_LOWEST = np.finfo(np.float32).min  # above -inf alone, which no filter lets through


def process_logits(
    logits: NDArray[np.float32],
    logit_bias: NDArray[np.float32] | None,
    repetition_penalty: NDArray[np.float32] | None,
    params: SequenceParams,
    token_ids: Seq[int],
    num_output_tokens: int,
) -> NDArray[np.float32]:
    """A row's logits [V] behind every filter that comes before temperature, as a new array.

    Args:
        logits: the model's own [V].
        logit_bias, repetition_penalty: as `adjustment` returns them, or None for a row that needs none.
        params: the row's settings.
        token_ids: of prompt and output.
        num_output_tokens: how many of them are output.

    Raises:
        ParameterError: params.logits_processor returned something else than logits.
        Exception: whatever params.logits_processor raised.
    """
    logits = logits.copy() if logit_bias is None else logits + logit_bias
    if repetition_penalty is not None:
        seen = np.flatnonzero(repetition_penalty != 1)
        values, penalties = logits[seen], repetition_penalty[seen]
        logits[seen] = np.where(values < 0, values * penalties, values / penalties)
    logits[_repeated_ngram_ends(params.no_repeat_ngram_size, token_ids)] = -np.inf
    for ids in params.bad_words_ids:
        # A word that begins with the first token of all is let through, as in transformers.
        if 1 < len(ids) <= len(token_ids) and tuple(token_ids[1 - len(ids) :]) == ids[:-1]:
            logits[ids[-1]] = -np.inf
    if num_output_tokens < params.min_tokens:
        logits[list(params.eos_token_ids | params.stop_token_ids)] = -np.inf
    if params.logits_processor is not None:
        logits = _checked_logits(params.logits_processor(list(token_ids), logits), len(logits))
    return logits


def _repeated_ngram_ends(size: int, token_ids: Seq[int]) -> NDArray[np.int64]:
    """The tokens that would end an n-gram of this size which is in token_ids already."""
    if not 0 < size <= len(token_ids):
        return np.empty(0, np.int64)
    ids = np.asarray(token_ids, np.int64)
    ngrams = np.lib.stride_tricks.sliding_window_view(ids, size)  # [len(ids) - size + 1, size]
    begins_alike = (ngrams[:, :-1] == ids[len(ids) - size + 1 :]).all(axis=1)
    ends: NDArray[np.int64] = ngrams[begins_alike, -1]
    return ends


def _checked_logits(result: object, vocab_size: int) -> NDArray[np.float32]:
    """What a logits_processor returned, as float32 [V] without NaN and +infinity."""
    expected = f"logits_processor must return a float array of shape [{vocab_size}]"
    if not isinstance(result, np.ndarray) or result.dtype.kind != "f" or result.shape != (vocab_size,):
        found = type(result).__name__
        if isinstance(result, np.ndarray):
            found = f"{result.dtype} {list(result.shape)}"
        raise ParameterError(f"{expected}; got {found:.60}")
    with np.errstate(over="ignore"):
        logits = result.astype(np.float32)
    if not (logits < np.inf).all():  # NaN is not below it either
        raise ParameterError(f"{expected} without NaN and without +infinity; got one at {logits.argmax()}")
    return logits


def filtered_probs(logits: NDArray[np.float32], params: SequenceParams) -> NDArray[np.float64]:
    """The distribution [V] that a row is sampled from; logits [V] as from process_logits.

    Order and borders as in transformers: ties with the k-th logit stay; a token stays while the mass of
    likelier ones is below top_p, and of ties at that border those with the lowest ids.

    Raises:
        ParameterError: no logit is above -infinity.
        EngineError: a logit is NaN or +infinity.
    """
    ids, weights = _candidates(logits, params)
    probs = np.zeros(len(logits))
    probs[ids] = weights / weights.sum()
    return probs


def sample_row(logits: NDArray[np.float32], uniform: float, params: SequenceParams) -> int:
    """Draw one token id by inverse CDF; logits [V] as from process_logits, uniform in [0, 1).

    Greedy is the first of the largest logits. Raises as filtered_probs does.
    """
    ids, weights = _candidates(logits, params)
    cumulative = np.cumsum(weights)
    return int(ids[np.searchsorted(cumulative, uniform * cumulative[-1], side="right")])


def _candidates(
    logits: NDArray[np.float32], params: SequenceParams
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids of the tokens that the filters leave, ascending, and their probabilities but for a factor."""
    peak = logits.max()
    if peak == -np.inf:
        raise ParameterError("the filters leave no token: every logit is -infinity")
    if not np.isfinite(peak):
        raise EngineError(f"the model's logits are not finite: the largest is {peak}")
    if params.temperature < MIN_TEMPERATURE:
        return np.array([logits.argmax()]), np.ones(1)
    lowest = _LOWEST
    if 0 < params.top_k < len(logits):
        lowest = max(lowest, np.partition(logits, -params.top_k)[-params.top_k])
    ids = np.flatnonzero(logits >= lowest)
    scaled = (logits[ids].astype(np.float64) - peak) / params.temperature
    weights = np.exp(scaled)  # the likeliest token's is 1
    if params.top_p < 1:
        keys = -weights
        last, rank = _reach(keys, weights, params.top_p * weights.sum())
        kept = np.flatnonzero(keys <= last)
        surplus = len(kept) - (rank + 1)  # ties with the last one
        if surplus:
            kept = np.delete(kept, np.flatnonzero(keys[kept] == last)[-surplus:])
        ids, scaled, weights = ids[kept], scaled[kept], weights[kept]
    if params.min_p > 0:
        kept = np.flatnonzero(weights >= params.min_p)
        ids, scaled, weights = ids[kept], scaled[kept], weights[kept]
    if params.typical_p < 1:
        total = weights.sum()
        information = np.log(total) - scaled
        entropy = (weights * information).sum() / total
        distance = np.abs(information - entropy)
        last, _ = _reach(distance, weights, params.typical_p * total)
        kept = np.flatnonzero(distance <= last)
        ids, weights = ids[kept], weights[kept]
    return ids, weights


def _reach(keys: NDArray[np.float64], weights: NDArray[np.float64], mass: float) -> tuple[float, int]:
    """The smallest key up to which the weights reach mass, and how many come before where they reach it.

    Weights are added up in ascending order of their keys. Only as many as it takes are sorted.
    """
    nearest = np.arange(len(keys))
    size = 512
    while size < len(keys):
        part = np.argpartition(keys, size)[:size]
        if weights[part].sum() >= mass:
            nearest = part
            break
        size *= 4
    order = nearest[np.argsort(keys[nearest])]
    reached = np.searchsorted(np.cumsum(weights[order]), mass)
    rank = min(int(reached), len(order) - 1)  # rounding may leave the whole sum short of the mass
    return float(keys[order[rank]]), rank


def sample_on_host(
    logits: NDArray[np.float32],
    adjustment_rows: tuple[NDArray[np.float32], NDArray[np.float32]] | None,
    params: SequenceParams,
    prompt_token_ids: Seq[int],
    output_token_ids: Seq[int],
    uniform: float,
) -> int:
    """Draw the next token of a sequence from the model's logits [V], with all that its settings ask for.

    adjustment_rows: what `adjustment` returns for it, or None where it needs none. Raises as process_logits
    and filtered_probs do, and whatever a logits_processor raises.
    """
    bias, penalty = adjustment_rows or (None, None)
    token_ids = [*prompt_token_ids, *output_token_ids]
    processed = process_logits(logits, bias, penalty, params, token_ids, len(output_token_ids))
    return sample_row(processed, uniform, params)
