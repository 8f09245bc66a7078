"""Sequence: one completion in flight. The scheduler changes it, the runner reads it."""

from __future__ import annotations

from dataclasses import dataclass, field

from hgt_infer.outputs import FinishReason


@dataclass(frozen=True)
class SequenceParams:
    """Settings of a sequence with every default resolved; ranges as in SamplingParams."""

    temperature: float
    top_k: int
    top_p: float
    max_tokens: int
    min_tokens: int
    eos_token_ids: frozenset[int]
    seed: int


@dataclass(eq=False)
class Sequence:
    """One sample of one prompt.

    Attributes:
        prompt_token_ids: at least one id; siblings of one request share the tuple.
        params: resolved settings; prompt and max_tokens together fit the cache.
        sample_index: which of the n samples; with the seed it selects the stream of random numbers.
        slot: row of the cache, or None while waiting and after the end.
        output_token_ids: what was generated so far.
        num_computed: tokens of prompt and output whose keys and values are in the cache.
    """

    prompt_token_ids: tuple[int, ...]
    params: SequenceParams
    sample_index: int = 0
    slot: int | None = None
    output_token_ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    finish_reason: FinishReason | None = None

    def __len__(self) -> int:
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def next_input_id(self) -> int:
        """The first token that is not in the cache yet."""
        num_beyond_prompt = self.num_computed - len(self.prompt_token_ids)
        if num_beyond_prompt < 0:
            return self.prompt_token_ids[num_beyond_prompt]
        return self.output_token_ids[num_beyond_prompt]

    @property
    def has_cached_prompt(self) -> bool:
        """Whether a sibling can copy this sequence's prompt: all of it but the token that samples."""
        return self.num_computed >= len(self.prompt_token_ids) - 1

    def append(self, token_id: int) -> None:
        """Take a sampled token and set finish_reason where it ends the sequence."""
        self.output_token_ids.append(token_id)
        if token_id in self.params.eos_token_ids:
            self.finish_reason = "stop"
        elif len(self.output_token_ids) == self.params.max_tokens:
            self.finish_reason = "length"
