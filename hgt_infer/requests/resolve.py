"""Settles the settings of one prompt: the caller's, else the checkpoint's, within vocabulary and context."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TypeVar, cast

from hgt_infer.artifact.config import GenerationDefaults
from hgt_infer.checks import shown
from hgt_infer.engine.sequence import SequenceParams
from hgt_infer.errors import ParameterError, PromptError
from hgt_infer.sampling_params import SamplingParams

T = TypeVar("T")


def resolve(
    params: SamplingParams,
    defaults: GenerationDefaults,
    prompt: str,
    prompt_length: int,
    max_length: int,
    *,
    vocab_size: int,
    encode: Callable[[str], list[int]],
) -> SequenceParams:
    """Settle every setting of one prompt.

    Args:
        params: what the caller gave.
        defaults: what the checkpoint says.
        prompt: the text, for the message of an error.
        prompt_length: its tokens, prefix included.
        max_length: tokens that a slot of the cache holds.
        vocab_size: token ids must be below it.
        encode: text → token ids, for bad_words.

    Returns:
        The settings, with a seed drawn anew where params has none.

    Raises:
        PromptError: the prompt has no tokens, or leaves no room for one more.
        ParameterError: a token id outside the vocabulary, or no token that may be sampled.
    """
    max_tokens = _max_tokens(params, defaults, prompt, prompt_length, max_length)
    min_tokens = _given(params.min_tokens, defaults.min_new_tokens)
    if min_tokens is None:
        min_tokens = max(0, defaults.min_length - prompt_length)
    resolved = SequenceParams(
        max_tokens=max_tokens,
        seed=secrets.randbits(64) if params.seed is None else params.seed,
        temperature=_given(params.temperature, defaults.temperature if defaults.do_sample else 0.0),
        top_k=_given(params.top_k, defaults.top_k),
        top_p=_given(params.top_p, defaults.top_p),
        min_p=_given(params.min_p, defaults.min_p),
        typical_p=_given(params.typical_p, defaults.typical_p),
        repetition_penalty=_given(params.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=_given(params.presence_penalty, 0.0),
        frequency_penalty=_given(params.frequency_penalty, 0.0),
        no_repeat_ngram_size=_given(params.no_repeat_ngram_size, defaults.no_repeat_ngram_size),
        bad_words_ids=_bad_words_ids(tuple(params.bad_words or ()), encode),
        # SamplingParams keeps ids in ascending order, logit_bias as pairs.
        logit_bias=cast("tuple[tuple[int, float], ...]", params.logit_bias or ()),
        allowed_token_ids=None if params.allowed_token_ids is None else tuple(params.allowed_token_ids),
        logits_processor=params.logits_processor,
        min_tokens=min(min_tokens, max_tokens),
        eos_token_ids=frozenset(() if params.ignore_eos else defaults.eos_token_ids),
        stop_token_ids=frozenset(params.stop_token_ids or ()),
        include_stop_str_in_output=params.include_stop_str_in_output,
        # best_of compares the log-probabilities of the sampled tokens.
        logprobs=0 if params.logprobs is None and params.best_of is not None else params.logprobs,
        prompt_logprobs=params.prompt_logprobs,
    )
    _check_token_ids(resolved, vocab_size)
    return resolved


def _given(value: T | None, default: T) -> T:
    return default if value is None else value


def _max_tokens(
    params: SamplingParams, defaults: GenerationDefaults, prompt: str, prompt_length: int, max_length: int
) -> int:
    if prompt_length == 0:
        raise PromptError("the prompt is empty, and this checkpoint has no prefix to start from")
    room = max_length - prompt_length
    if room < 1:
        raise PromptError(
            f"prompt {shown(prompt)} has {prompt_length} tokens: "
            f"no room to generate in a context of {max_length}"
        )
    max_tokens = params.max_tokens or defaults.max_new_tokens
    if max_tokens is None and defaults.max_length is not None:
        max_tokens = defaults.max_length - prompt_length
        if max_tokens < 1:
            raise PromptError(
                f"prompt {shown(prompt)} has {prompt_length} tokens: no room to generate in a "
                f"max_length of {defaults.max_length} (prefix included)"
            )
    return min(max_tokens or room, room)


def _bad_words_ids(words: tuple[str, ...], encode: Callable[[str], list[int]]) -> tuple[tuple[int, ...], ...]:
    """Ids of each word at the start of a text and after a space, as vLLM takes them.

    vLLM leaves out a form with the space that has another number of tokens than the one without; here each
    word is kept out in both.
    """
    encoded: dict[tuple[int, ...], None] = {}  # in order, each once
    for word in words:
        bare = word.lstrip(" ") or word
        encoded |= dict.fromkeys((tuple(encode(bare)), tuple(encode(" " + bare))))
    single = {ids[0] for ids in encoded if len(ids) == 1}
    # What ends in a token that never comes never comes either.
    return tuple(ids for ids in encoded if len(ids) == 1 or (ids and ids[-1] not in single))


def _check_token_ids(params: SequenceParams, vocab_size: int) -> None:
    """Raise ParameterError for an id outside the vocabulary, or where no token is left to sample."""
    largest = {
        "logit_bias": params.logit_bias[-1][0] if params.logit_bias else 0,
        "allowed_token_ids": params.allowed_token_ids[-1] if params.allowed_token_ids else 0,
        "stop_token_ids": max(params.stop_token_ids, default=0),
        "bad_words": max((max(ids) for ids in params.bad_words_ids), default=0),
    }
    for name, token_id in largest.items():
        if token_id >= vocab_size:
            raise ParameterError(
                f"{name} must have token ids of the vocabulary, 0 … {vocab_size - 1}; got {token_id}"
            )
    forbidden = {ids[0] for ids in params.bad_words_ids if len(ids) == 1}
    if params.min_tokens > 0:
        forbidden |= params.eos_token_ids | params.stop_token_ids
    allowed = range(vocab_size) if params.allowed_token_ids is None else params.allowed_token_ids
    if all(token_id in forbidden for token_id in allowed):
        name = "bad_words" if params.allowed_token_ids is None else "allowed_token_ids"
        raise ParameterError(
            f"{name} must leave a token that bad_words and min_tokens ({params.min_tokens}) do not forbid; "
            "got none"
        )
