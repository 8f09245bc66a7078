"""What a caller gets back: completions, pieces of them while they come, and scores."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

FinishReason = Literal["stop", "length"]
"""stop: end-of-text, a stop token or a stop string. length: max_tokens, or the context was full."""


class TokenLogprobs(NamedTuple):
    """Log-probabilities at one position, of the model's own distribution: before any filter or temperature.

    Attributes:
        token_id: the token that stands there.
        logprob: its natural log-probability, ≤ 0.
        top: the N likeliest tokens and their log-probabilities, likeliest first; N as asked for.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """One sample.

    Attributes:
        index: which of the samples, 0 … n - 1 (0 … best_of - 1 where that was asked for).
        text: the generated text without the prompt and without special tokens.
        token_ids: the generated ids; the last one is what ended them where finish_reason is "stop".
        finish_reason: "stop" or "length".
        stop_reason: the stop string or the id out of stop_token_ids that ended it, else None.
        logprobs: of each token, where logprobs was asked for.
        cumulative_logprob: their sum, where logprobs or best_of was asked for.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: str | int | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    cumulative_logprob: float | None = None


@dataclass(frozen=True, slots=True)
class GenerationOutput:
    """The samples of one prompt.

    Attributes:
        prompt: the text as the caller gave it.
        prompt_token_ids: its ids, the checkpoint's prefix included.
        completions: n samples in order of their index; with best_of the best one first.
        seed: the seed that reproduces them; drawn when the caller gave none.
        prompt_logprobs: of each prompt token given those before it, where asked for; None for the first.
    """

    prompt: str
    prompt_token_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    seed: int
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None

    def _repr_html_(self) -> str:
        """As a notebook shows it: the prompt, and a row for each sample."""
        rows = "".join(
            f"<tr><td>{sample.index}</td>"
            f"<td style='text-align: left; white-space: pre-wrap'>{html.escape(sample.text)}</td>"
            f"<td>{len(sample.token_ids)}</td><td>{sample.finish_reason}</td></tr>"
            for sample in self.completions
        )
        return (
            f"<table><caption>{html.escape(self.prompt)} (seed {self.seed})</caption>"
            f"<tr><th></th><th>text</th><th>tokens</th><th>ended by</th></tr>{rows}</table>"
        )


class Delta(NamedTuple):
    """What one sample has grown by since its last delta.

    Attributes:
        prompt_index: which of the prompts, 0 for the first.
        sample_index: which of its samples; Completion's index.
        text: whole characters that no later token changes; all deltas of a sample joined are its text.
        token_ids: the ids since the last delta; those whose text is still held back are among them.
        logprobs: of these tokens, where asked for.
        finish_reason, stop_reason: as in Completion, in the last delta of the sample; else None.
        seed: as in GenerationOutput.
    """

    prompt_index: int
    sample_index: int
    text: str
    token_ids: tuple[int, ...]
    seed: int
    logprobs: tuple[TokenLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """How likely the model finds a text.

    Attributes:
        text: the text as the caller gave it.
        token_ids: its ids, the checkpoint's prefix included.
        logprobs: natural log-probability of each token given those before it; None for the prefix's
            tokens, or for the first token where the checkpoint has no prefix.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float | None, ...]

    @property
    def logprob(self) -> float:
        """Log-probability of the text: the sum over its tokens."""
        return math.fsum(x for x in self.logprobs if x is not None)

    @property
    def perplexity(self) -> float:
        """exp(-mean log-probability of a token)."""
        return math.exp(-self.logprob / sum(x is not None for x in self.logprobs))
