"""Random numbers of a sequence, and its logits and tokens on the host, one row at a time.

The host samples, exactly, the rows that the graph does not, and keeps for all of them the two rows of
adjustments that the graph reads. Filters, their order and their borders are transformers'. process_logits
works in float32, as transformers and the graph do, filtered_probs and token_logprobs in float64.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence as Seq
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hgt_infer.engine.sequence import Sequence, SequenceParams
from hgt_infer.errors import EngineError, ParameterError
from hgt_infer.outputs import TokenLogprobs

GRAPH_UNIFORMS = 4
"""Uniforms per step that the graph takes, a candidate each; one more is the host's."""

UNIFORMS_PER_STEP = GRAPH_UNIFORMS + 1
"""CUDA's kernel takes the first word of a step, whole."""

GRAPH_MAX_TOP_K = 256
"""Widest top_k that the graph samples itself."""

MIN_TEMPERATURE = 1e-5
"""Below, sampling is greedy."""

MAX_TEMPERATURE = 1e30
"""The largest that float32 logits are divided by; above it sampling is uniform either way."""

_LOWEST = np.finfo(np.float32).min  # above -inf alone, which no filter lets through
_UNUSED_BITS, _UNIT = np.uint64(40), np.float32(2**-24)
_generators = threading.local()  # making one takes longer than all the numbers of a sequence


def uniforms(seed: int, sample_index: int, num_steps: int) -> NDArray[np.float32]:
    """The random numbers of one sequence, [num_steps, UNIFORMS_PER_STEP] in [0, 1).

    They depend on the seed, the sample's index and the step alone. Generator: Philox4x64-10 (Salmon et
    al., "Parallel random numbers: as easy as 1, 2, 3", 2011) keyed by (seed, sample index), whose raw
    output NumPy guarantees to keep; the upper 24 bits of each word, all that a float32 holds.

    >>> bool((uniforms(1, 0, 10)[:4] == uniforms(1, 0, 4)).all())
    True
    """
    if not hasattr(_generators, "philox"):
        _generators.philox = np.random.Philox(key=0)
    _generators.philox.state = {
        "bit_generator": "Philox",
        "state": {"counter": (0, 0, 0, 0), "key": (seed, sample_index)},
        "buffer": (0, 0, 0, 0),
        "buffer_pos": 4,  # nothing is buffered
        "has_uint32": 0,
        "uinteger": 0,
    }
    words = _generators.philox.random_raw(num_steps * UNIFORMS_PER_STEP)
    words >>= _UNUSED_BITS
    numbers: NDArray[np.float32] = words.astype(np.float32)
    numbers *= _UNIT
    return numbers.reshape(num_steps, UNIFORMS_PER_STEP)


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


def token_logprobs(logits: NDArray[np.float32], token_id: int, num_top: int) -> TokenLogprobs:
    """The log-probability of a token and of the num_top likeliest ones; logits [V], the model's own.

    The likeliest come first, of equally likely ones that with the lowest id.

    >>> token_logprobs(np.zeros(4, np.float32), 3, 1)
    TokenLogprobs(token_id=3, logprob=-1.3862943611198906, top=((0, -1.3862943611198906),))
    """
    peak = logits.max()
    log_total = np.log(np.exp(logits.astype(np.float64) - peak).sum())

    def logprob(token_id: int) -> float:
        return float(np.float64(logits[token_id]) - peak - log_total)

    top = _largest(logits, min(num_top, len(logits))) if num_top else []
    return TokenLogprobs(token_id, logprob(token_id), tuple((id_, logprob(id_)) for id_ in top))


def num_scored(sequences: Seq[Sequence], start: int, stop: int) -> int:
    """How many of the prompt tokens start … stop - 1, the last ones, must give logits for scores."""
    firsts = [max(start, s.num_unscored) for s in sequences if s.scores_prompt]
    return max(0, stop - min(firsts, default=stop))


def score_prompts(
    sequences: Seq[Sequence], logits: NDArray[np.float32], stop: int
) -> list[tuple[Sequence, list[TokenLogprobs]]]:
    """score_prompt of those that ask for it; logits [B · P, V] of P tokens before `stop` of each sequence."""
    return [
        (sequence, score_prompt(sequence, rows, stop))
        for sequence, rows in zip(sequences, np.split(logits, len(sequences)), strict=True)
        if sequence.scores_prompt
    ]


def score_prompt(sequence: Sequence, logits: NDArray[np.float32], stop: int) -> list[TokenLogprobs]:
    """Log-probabilities of the prompt's tokens that are asked for; logits [P, V] of those before `stop`."""
    num_top = sequence.params.prompt_logprobs
    assert num_top is not None
    return [
        token_logprobs(row, sequence.prompt_token_ids[position + 1], num_top)
        for position, row in enumerate(logits, stop - len(logits))
        if position >= sequence.num_unscored
    ]


def _largest(values: NDArray[np.float32], count: int) -> list[int]:
    """Indices of the count largest values in descending order, of equal ones the lowest index first."""
    last = np.partition(values, -count)[-count]
    above = np.flatnonzero(values > last)
    ids = np.concatenate([above, np.flatnonzero(values == last)[: count - len(above)]])
    indices: list[int] = ids[np.argsort(-values[ids], kind="stable")].tolist()
    return indices
