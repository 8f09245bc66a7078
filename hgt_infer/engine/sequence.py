"""Sequence: a completion in flight, changed by the scheduler, read by the runner; Request: a call's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hgt_infer.engine.output_text import OutputText
from hgt_infer.outputs import Delta, FinishReason, TokenLogprobs


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceParams:
    """Settings of a sequence with every default resolved; meaning and ranges as in SamplingParams.

    Attributes:
        bad_words_ids: token ids of each word that must not come; its last token is what is banned.
        logit_bias: (token id, bias) pairs.
        allowed_token_ids: None allows all.
        eos_token_ids: end the sequence; empty where end-of-text is ignored.
        logprobs, prompt_logprobs: how many of the likeliest tokens to report; None reports nothing.
        max_tokens: 0 only computes the prompt, for its log-probabilities.
    """

    max_tokens: int
    seed: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    logits_processor: Callable[[list[int], Any], Any] | None = None
    min_tokens: int = 0
    eos_token_ids: frozenset[int] = frozenset()
    stop_token_ids: frozenset[int] = frozenset()
    include_stop_str_in_output: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None


class Request:
    """What one call submitted: its sequences that wait for a slot, and who hears of the others.

    Args:
        publish: called on the engine's thread with each finished Sequence, or with each Delta where
            is_stream, or once with the exception that ended the request.
        is_stream: whether to publish deltas; the sequences have an output_text then.
    """

    def __init__(
        self, publish: Callable[[Sequence | Delta | BaseException], object], *, is_stream: bool = False
    ) -> None:
        self.publish = publish
        self.is_stream = is_stream
        self.waiting: deque[Sequence] = deque()


@dataclass(eq=False, slots=True)
class Sequence:
    """One sample of one prompt, or a text to score.

    Attributes:
        prompt_token_ids: at least one id; siblings of one prompt share the tuple.
        params: resolved settings; prompt and max_tokens together fit the cache.
        sample_index: which of the n samples; with the seed it selects the stream of random numbers.
        prompt_index: which prompt of its call.
        output_text: decodes the output as it comes, where it is streamed or has stop strings.
        num_unscored: leading positions whose next token's log-probability nobody asked for.
        submitted_s: when it was submitted, on the clock time.perf_counter.
        slot: row of the cache, or None while waiting and after the end.
        output_token_ids: what was generated so far.
        num_computed: tokens of prompt and output whose keys and values are in the cache.
        logprobs: of the output tokens, as far as params ask for them.
        prompt_logprobs: of the prompt tokens behind num_unscored, as far as params ask for them.
        num_taken: output tokens that take_delta() has given out.
        request: what it was submitted with.
    """

    prompt_token_ids: tuple[int, ...]
    params: SequenceParams
    sample_index: int = 0
    prompt_index: int = 0
    output_text: OutputText | None = None
    num_unscored: int = 0
    submitted_s: float = 0.0
    slot: int | None = None
    output_token_ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    num_taken: int = 0
    request: Request = field(init=False)

    @property
    def next_input_id(self) -> int:
        """The first token that is not in the cache yet."""
        num_beyond_prompt = self.num_computed - len(self.prompt_token_ids)
        if num_beyond_prompt < 0:
            return self.prompt_token_ids[num_beyond_prompt]
        return self.output_token_ids[num_beyond_prompt]

    @property
    def has_cached_prompt(self) -> bool:
        """Whether all of the prompt but the token that samples is in the cache, to be copied by a sibling."""
        return self.num_computed >= len(self.prompt_token_ids) - 1

    @property
    def num_prompt_left(self) -> int:
        """Tokens that a prefill has to compute: all of the prompt but the token that samples."""
        return len(self.prompt_token_ids) - 1 - self.num_computed

    @property
    def scores_prompt(self) -> bool:
        """Whether the prompt has to be computed here, for its log-probabilities."""
        return self.params.prompt_logprobs is not None and self.num_unscored < len(self.prompt_token_ids) - 1

    def extend(self, token_ids: list[int]) -> None:
        """Take sampled tokens in their order, as far as the sequence goes; at least one."""
        params, output = self.params, self.output_token_ids
        *others, last = token_ids
        if (
            self.output_text is None
            and len(output) + len(token_ids) <= params.max_tokens
            and params.eos_token_ids.isdisjoint(others)
            and params.stop_token_ids.isdisjoint(others)
        ):  # none but the last can end it
            output += others
            self.append(last)
            return
        for token_id in token_ids:
            self.append(token_id)
            if self.finish_reason is not None:
                return

    def append(self, token_id: int) -> None:
        """Take a sampled token and set finish_reason where it ends the sequence."""
        params, output = self.params, self.output_token_ids
        output.append(token_id)
        if token_id in params.eos_token_ids:
            self.finish_reason = "stop"
        elif token_id in params.stop_token_ids:
            self.finish_reason, self.stop_reason = "stop", token_id
        elif len(output) == params.max_tokens:
            self.finish_reason = "length"
        if self.output_text is not None:
            self._append_text(token_id)

    def _append_text(self, token_id: int) -> None:
        """A stop string ends the sequence too; a stop token has no text unless that was asked for."""
        text, params = self.output_text, self.params
        assert text is not None
        if self.stop_reason is None or params.include_stop_str_in_output:
            may_stop = len(self.output_token_ids) >= params.min_tokens
            stop = text.append(token_id, may_stop=may_stop)
            if stop is not None and self.stop_reason is None:
                self.finish_reason, self.stop_reason = "stop", stop
        if self.finish_reason is not None:
            text.finish()

    def take_delta(self) -> Delta | None:
        """What the output has grown by; None while its text is held back."""
        assert self.output_text is not None
        text = self.output_text.take()
        if not text and self.finish_reason is None:
            return None
        new = slice(self.num_taken, len(self.output_token_ids))
        self.num_taken = new.stop
        return Delta(
            prompt_index=self.prompt_index,
            sample_index=self.sample_index,
            text=text,
            token_ids=tuple(self.output_token_ids[new]),
            seed=self.params.seed,
            logprobs=None if self.params.logprobs is None else tuple(self.logprobs[new]),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )
