"""Batch: what a scheduler tells a runner to run; BatchOutput: what the runner gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from hgt_infer.engine.sequence import Sequence
from hgt_infer.outputs import TokenLogprobs

MAX_PREFILL_TOKENS = 256
"""Most tokens of prompts in one run; a longer prompt takes several runs."""


class Copy(NamedTuple):
    """The first `length` cache positions of slot `source`, and its settings, go to slot `target`."""

    source: int
    target: int
    length: int


@dataclass(frozen=True, slots=True)
class Batch:
    """One run. A prefill only fills the cache (and scores prompts where asked); a step samples.

    copies happen first, in order; then admitted sequences' settings are written.

    Attributes:
        sequences: of a prefill, in consecutive slots; of a step, all that run, in the order of their slots.
        num_tokens: of each sequence of a prefill; 1 in a step.
        num_scheduled_tokens: of each sequence of a step that mixes pieces of prompts with single tokens, so
            that num_tokens is not read; None in any other batch.
        admitted: sequences that got their slots since the batch before.
        released: slots that lost their sequences since then and have none now.
    """

    sequences: list[Sequence]
    num_tokens: int
    is_prefill: bool
    copies: list[Copy]
    admitted: list[Sequence]
    released: list[int] = field(default_factory=list)
    num_scheduled_tokens: list[int] | None = None

    @property
    def is_scored(self) -> bool:
        """Whether it is a prefill that reports log-probabilities of prompts."""
        return self.is_prefill and any(sequence.scores_prompt for sequence in self.sequences)


@dataclass(slots=True)
class BatchOutput:
    """What a run gave.

    Attributes:
        new_tokens: output tokens of sequences, as many as each has grown by since it was last listed; an
            empty list where a token of its prompt was computed. A runner may leave out sequences as long
            as they can neither end nor stream.
        num_sampled: output tokens that the run drew, those of sequences left out included.
        num_fed: prompt tokens that a step computed.
        num_steps: how many steps the run had.
        num_wasted: rows, over all steps, that ran on behind the end of their sequences.
        logprobs, prompt_logprobs, errors: of the sequences that asked for them, or that failed.
    """

    new_tokens: list[tuple[Sequence, list[int]]] = field(default_factory=list)
    num_sampled: int = 0
    num_fed: int = 0
    num_steps: int = 1
    num_wasted: int = 0
    logprobs: list[tuple[Sequence, TokenLogprobs]] = field(default_factory=list)
    prompt_logprobs: list[tuple[Sequence, list[TokenLogprobs]]] = field(default_factory=list)
    errors: list[tuple[Sequence, BaseException]] = field(default_factory=list)
