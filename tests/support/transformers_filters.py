"""transformers' own filters for SequenceParams, and rows of logits and settings to hold them against."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from hgt_infer.engine.sequence import SequenceParams

V = 12  # of the property tests


def params_of(**options: Any) -> SequenceParams:
    return SequenceParams(**{"max_tokens": 100, "seed": 0, **options})


def processors(params: SequenceParams, prompt_length: int) -> LogitsProcessorList:
    """transformers' own, up to min_tokens, in its order; the additive ones and masks first."""
    chain = LogitsProcessorList()
    if params.logit_bias:
        chain.append(SequenceBiasLogitsProcessor({(id_,): bias for id_, bias in params.logit_bias}))
    if (allowed := params.allowed_token_ids) is not None:
        chain.append(PrefixConstrainedLogitsProcessor(lambda _, ids: list(allowed), 1))
    if params.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.no_repeat_ngram_size:
        chain.append(NoRepeatNGramLogitsProcessor(params.no_repeat_ngram_size))
    if params.bad_words_ids:
        chain.append(NoBadWordsLogitsProcessor([list(ids) for ids in params.bad_words_ids]))
    ending = sorted(params.eos_token_ids | params.stop_token_ids)
    if params.min_tokens and ending:
        chain.append(MinNewTokensLengthLogitsProcessor(prompt_length, params.min_tokens, ending))
    return chain


def warpers(params: SequenceParams) -> LogitsProcessorList:
    """transformers' own, from temperature on."""
    chain = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        chain.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        chain.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        chain.append(MinPLogitsWarper(params.min_p))
    if params.typical_p < 1:
        chain.append(TypicalLogitsWarper(params.typical_p))
    return chain


def theirs(chain: LogitsProcessorList, logits: torch.Tensor, token_ids: list[int]) -> torch.Tensor:
    scores = chain(torch.tensor([token_ids]), logits[None])[0]
    assert isinstance(scores, torch.Tensor)
    return scores


def exact_probs(logits: NDArray[np.float32], params: SequenceParams) -> NDArray[np.float64]:
    scores = theirs(warpers(params), torch.tensor(logits, dtype=torch.float64), [0])
    probs: NDArray[np.float64] = torch.softmax(scores, -1).numpy()
    return probs


def normal_logits(seed: int, size: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 2, size).astype(np.float32)


token_ids = st.integers(0, V - 1)
id_sets = st.frozensets(token_ids, max_size=4)
# Of few values, there are ties.
rows = st.lists(st.integers(-3, 3) | st.floats(-30, 30, width=32), min_size=V, max_size=V).map(
    lambda values: np.array(values, np.float32)
)
ADDITIVE: dict[str, st.SearchStrategy[Any]] = {
    "logit_bias": st.dictionaries(token_ids, st.floats(-100, 100)).map(lambda b: tuple(sorted(b.items()))),
    "allowed_token_ids": st.none() | st.frozensets(token_ids, min_size=1).map(lambda ids: tuple(sorted(ids))),
}
PENALTIES = {
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
}
PROCESSORS: dict[str, st.SearchStrategy[Any]] = {
    **ADDITIVE,
    "repetition_penalty": st.floats(0.1, 10),
    "no_repeat_ngram_size": st.integers(0, 4),
    "bad_words_ids": st.lists(
        st.lists(token_ids, min_size=1, max_size=3).map(tuple), max_size=4, unique=True
    ).map(tuple),
    "min_tokens": st.integers(0, 5),
}
# No share of n equal tokens is one of these masses: borders of rounding are not what is tested.
FILTERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 50, "top_p": 0.9501},  # the model card's
    {"top_k": 50, "top_p": 0.8001, "min_p": 0.02},
    {"top_k": 200, "temperature": 1.5, "min_p": 0.05},
    {"top_p": 0.0101},
    {"temperature": 0.7, "top_p": 0.9001},
    {"temperature": 3.0, "top_p": 0.9501},
    {"min_p": 0.1},
    {"temperature": 1.5, "min_p": 0.01},
    {"temperature": 1.5, "top_p": 0.8001, "min_p": 0.001},
    {"temperature": 1.5, "top_p": 0.9001, "min_p": 0.01},
    {"top_k": 256},  # the largest of the graph
]
"""What a device samples itself: every way through its sampler, for any row of logits."""

WARPERS: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.sampled_from([1.0, 0.3, 0.7, 1.9, 1e10]),
    "top_k": st.integers(0, V + 2),
    "top_p": st.sampled_from([1.0, 0.0101, 0.3101, 0.5501, 0.9201]),
    "min_p": st.sampled_from([0.0, 0.01, 0.21, 1.0]),
    "typical_p": st.sampled_from([1.0, 0.0101, 0.3101, 0.5501, 0.9201]),
}
