"""Texts in: every prompt and every text to score is checked and encoded here, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from hgt_infer.artifact.config import GenerationDefaults
from hgt_infer.artifact.tokenizer import Tokenizer
from hgt_infer.checks import shown
from hgt_infer.errors import ParameterError, PromptError
from hgt_infer.requests.prompt_group import PromptGroup
from hgt_infer.requests.resolve import resolve
from hgt_infer.sampling_params import SamplingParams, checked_params

Params = SamplingParams | Seq[SamplingParams] | None
"""Settings of every prompt, or of each one."""

MAX_SCORED_CHARACTERS = 10_000_000
"""Longest text to score."""


@dataclass(eq=False, slots=True)
class ScoredText:
    """A text to score.

    Attributes:
        text: as the caller gave it.
        token_ids: its ids, the prefix included.
        num_given: leading ids that are not scored: the prefix, or the first one; fewer than all.
    """

    text: str
    token_ids: tuple[int, ...]
    num_given: int


class PromptReader:
    """Makes PromptGroups of prompts, and ScoredTexts of texts to score.

    Args:
        tokenizer: encodes them.
        defaults: what the checkpoint says, its prefix among it.
        vocab_size: token ids are below it.
        max_length: tokens that a slot of the cache holds.
    """

    def __init__(
        self, tokenizer: Tokenizer, defaults: GenerationDefaults, *, vocab_size: int, max_length: int
    ) -> None:
        self.tokenizer = tokenizer
        self.defaults = defaults
        self.vocab_size = vocab_size
        self.max_length = max_length
        self.prefix_length = len(tokenizer.encode(defaults.prefix))
        self._encode_word = lru_cache(4096)(tokenizer.encode)  # bad_words come with every prompt of a call

    def groups(
        self, prompts: str | Seq[str], params: Params, defaults: GenerationDefaults | None = None
    ) -> list[PromptGroup]:
        """Check every prompt of a call and its settings.

        Args:
            prompts: one text, or several.
            params: settings of all, or of each.
            defaults: what to take instead of the checkpoint's own.

        Raises:
            ParameterError, PromptError: see Generator.generate.
        """
        texts = _as_list("prompts", prompts)
        if params is None or isinstance(params, SamplingParams):
            each = [checked_params(params)] * len(texts)
        elif isinstance(params, Seq) and not isinstance(params, str) and len(params) == len(texts):
            each = [checked_params(item) for item in islice(params, len(texts))]
        else:
            raise ParameterError(
                f"params must be a SamplingParams, or one for each of the {len(texts)} prompts; "
                f"got {shown(params)}"
            )
        self._check_sizes(texts)
        defaults = defaults or self.defaults
        encoded = self.tokenizer.encode_batch([defaults.prefix + text for text in texts])
        return [
            self._group(index, text, tuple(token_ids), own, defaults)
            for index, (text, token_ids, own) in enumerate(zip(texts, encoded, each, strict=True))
        ]

    def group(self, index: int, prompt: str, params: SamplingParams) -> PromptGroup:
        """Check one prompt of many; see groups."""
        if not isinstance(prompt, str):
            raise ParameterError(f"prompts must be strings; got {shown(prompt)}")
        self._check_sizes([prompt])
        token_ids = tuple(self.tokenizer.encode(self.defaults.prefix + prompt))
        return self._group(index, prompt, token_ids, params, self.defaults)

    def _check_sizes(self, prompts: list[str]) -> None:
        """Refuse what no encoding makes short enough, without encoding it."""
        for prompt in prompts:
            if (
                len(prompt) > self.max_length
                and len(prompt) > self.max_length * self.tokenizer.max_token_length
            ):
                raise PromptError(
                    f"a prompt of {len(prompt):,} characters leaves no room to generate "
                    f"in a context of {self.max_length} tokens"
                )

    def _group(
        self,
        index: int,
        prompt: str,
        token_ids: tuple[int, ...],
        params: SamplingParams,
        defaults: GenerationDefaults,
    ) -> PromptGroup:
        resolved = resolve(
            params,
            defaults,
            prompt,
            len(token_ids),
            self.max_length,
            vocab_size=self.vocab_size,
            encode=self._encode_word,
        )
        return PromptGroup(index, prompt, token_ids, params, resolved, self.tokenizer)

    def stream_groups(self, prompts: str | Seq[str], params: Params) -> list[PromptGroup]:
        """As groups, for a stream: which of best_of samples are the best is known too late for it."""
        groups = self.groups(prompts, params)
        for group in groups:
            if group.num_samples > group.params.n:
                raise ParameterError(
                    f"best_of must be n ({group.params.n}) in a stream; got {group.params.best_of}"
                )
        return groups

    def scored_texts(self, texts: str | Seq[str]) -> list[ScoredText]:
        """Check and encode texts to score; see Generator.score."""
        texts = _as_list("texts", texts)
        for text in texts:
            if len(text) > MAX_SCORED_CHARACTERS:
                raise PromptError(
                    f"a text to score must have at most {MAX_SCORED_CHARACTERS:,} characters; "
                    f"got {len(text):,}"
                )
        encoded = self.tokenizer.encode_batch([self.defaults.prefix + text for text in texts])
        num_given = max(1, self.prefix_length)
        scored = []
        for text, token_ids in zip(texts, encoded, strict=True):
            if len(token_ids) <= num_given:
                raise PromptError(f"text {shown(text)} has no token to score")
            scored.append(ScoredText(text, tuple(token_ids), num_given))
        return scored


def _as_list(name: str, texts: str | Seq[str]) -> list[str]:
    if isinstance(texts, str):
        return [texts]
    # No more than its length: a sequence may have no end.
    items = list(islice(texts, len(texts))) if isinstance(texts, Seq) else [None]
    if not all(isinstance(text, str) for text in items):
        raise ParameterError(f"{name} must be a string or a sequence of strings; got {shown(texts)}")
    return items
