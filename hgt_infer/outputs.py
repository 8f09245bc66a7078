"""What a caller gets back: one GenerationOutput per prompt, one Completion per sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]
"""stop: the model ended the text. length: max_tokens was reached or the context was full."""


@dataclass(frozen=True)
class Completion:
    """One sample.

    Attributes:
        index: which of the n samples, 0 … n - 1.
        text: the generated text without the prompt and without special tokens.
        token_ids: the generated ids; the end-of-text id is the last one where finish_reason is "stop".
        finish_reason: "stop" or "length".
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason


@dataclass(frozen=True)
class GenerationOutput:
    """The samples of one prompt.

    Attributes:
        prompt: the text as the caller gave it.
        prompt_token_ids: its ids, the checkpoint's prefix included.
        completions: n samples in order of their index.
        seed: the seed that reproduces them; drawn when the caller gave none.
    """

    prompt: str
    prompt_token_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    seed: int
