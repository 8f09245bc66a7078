"""What is run: prompts, settings and lengths, and the method that a side runs them by."""

from __future__ import annotations

import hashlib
import json
import random
import string
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Protocol, TypeVar

from benchmarks.measure.checkpoints import byte_characters

SEED = 0
PROMPT_LENGTH = 4

NUM_TWEETS = 256
TWEET_PROMPT_LENGTHS = range(3, 9)
TWEET_LENGTHS = (
    (0, 4), (0.05, 11), (0.25, 22), (0.5, 31), (0.75, 49), (0.9, 60), (0.95, 65), (0.99, 74), (1, 110),
)  # fmt: skip
"""(quantile, GPT-2 tokens) as measured over real tweets, cleaned; their mean is 34.8.

Both ends are chosen, not measured: with them the lengths that `tweet_length` gives have that mean too.
"""
TWEETS_SHA256 = "8c6d3382a22d1825e310f4ce52eb19e4a20366f8ffae00a2d87c4c0c3d31f8a9"
"""Of the tweets workload's canonical JSON. One that differs is another benchmark."""


@dataclass(frozen=True, kw_only=True)
class _Sampled:
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 0.95

    @property
    def sampling(self) -> dict[str, Any]:
        """The settings that every side takes, by the names that most have for them."""
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}


@dataclass(frozen=True, kw_only=True)
class Workload(_Sampled):
    """One call: `n` samples of each prompt, `num_new_tokens` tokens each, since end-of-text is suppressed.

    prompt_token_ids are those of `prompts`, the checkpoint's prefix included; all of one length, so that
    nothing is padded.
    """

    prompts: tuple[str, ...]
    prompt_token_ids: tuple[tuple[int, ...], ...]
    n: int = 1
    num_new_tokens: int = 64

    def part(self, number: int) -> Workload:
        """The call with one of the prompts alone."""
        stop = number + 1
        return replace(
            self,
            prompts=self.prompts[number:stop],
            prompt_token_ids=self.prompt_token_ids[number:stop],
        )

    @property
    def batch_size(self) -> int:
        return len(self.prompts) * self.n

    @property
    def lengths(self) -> tuple[int, ...]:
        return (self.num_new_tokens,) * len(self.prompts)

    @property
    def num_tokens(self) -> int:
        return self.batch_size * self.num_new_tokens


@dataclass(frozen=True, kw_only=True)
class MixedWorkload(_Sampled):
    """One call: a sample of each prompt, each of a length of its own, in order of arrival.

    Nobody knows the `lengths` (new tokens, end-of-text suppressed) beforehand: they stand for where the
    model would have ended. prompt_token_ids as in Workload, but of different lengths.
    """

    prompts: tuple[str, ...]
    prompt_token_ids: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]

    @property
    def n(self) -> int:
        return 1

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    def batches(self, batch_size: int) -> Iterator[MixedWorkload]:
        """The requests in order of arrival, batch_size at a time."""
        for start in range(0, len(self.prompts), batch_size):
            yield self.part(start, start + batch_size)

    def part(self, start: int, stop: int) -> MixedWorkload:
        """The requests start … stop - 1."""
        return replace(
            self,
            prompts=self.prompts[start:stop],
            prompt_token_ids=self.prompt_token_ids[start:stop],
            lengths=self.lengths[start:stop],
        )

    def head(self, num_requests: int, *, max_tokens: int) -> MixedWorkload:
        """The first requests, none longer than max_tokens, to warm up."""
        first = next(self.batches(num_requests))
        return replace(first, lengths=tuple(min(length, max_tokens) for length in first.lengths))

    def useful_share(self, batch_size: int) -> float:
        """Of the tokens that static batches generate, each run until its longest row ends."""
        batches = [batch.lengths for batch in self.batches(batch_size)]
        return self.num_tokens / sum(len(lengths) * max(lengths) for lengths in batches)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


TokenIds = list[tuple[int, ...]]
AnyWorkload = TypeVar("AnyWorkload", Workload, MixedWorkload, contravariant=True)


class Backend(Protocol[AnyWorkload]):
    """A side of a comparison."""

    name: str

    def generate(self, workload: AnyWorkload, *, greedy: bool = False) -> TokenIds:
        """The new tokens of each sample, in the order of the prompts."""


def random_prompts(batch_size: int, number: int = 0) -> Workload:
    """Different prompts of four letters, each a token of `byte_tokenizer`; a larger batch begins alike.

    Each number gives other prompts: hgt_infer finds those that it has just seen in its cache.
    """
    rng = random.Random(f"{SEED} {number}" if number else SEED)
    prompts = different_prompts(batch_size, rng, lambda: PROMPT_LENGTH)
    return Workload(prompts=prompts, prompt_token_ids=_letter_ids(prompts))


def one_prompt(n: int, number: int = 0, *, num_new_tokens: int) -> Workload:
    """n samples of one prompt of four letters; each number gives another prompt."""
    return replace(random_prompts(1, number), n=n, num_new_tokens=num_new_tokens)


def long_prompt(num_tokens: int, number: int) -> Workload:
    """One prompt of that many letters, each a token, and a single new token: nearly all is prefill.

    Each number is another prompt: one that was seen before might be found in a cache.
    """
    rng = random.Random(f"{SEED} {number}")
    prompt = "".join(rng.choices(string.ascii_letters, k=num_tokens))
    return Workload(prompts=(prompt,), prompt_token_ids=_letter_ids([prompt]), num_new_tokens=1)


def arrivals(workload: MixedWorkload, *, rate: float) -> tuple[float, ...]:
    """Seconds from the start at which each request arrives: a Poisson process of `rate` requests a second.

    The same random numbers at every rate: twice the rate is the same traffic in half the time.
    """
    rng = random.Random(SEED)
    return tuple(accumulate(rng.expovariate(1.0) / rate for _ in workload.prompts))


def tweets() -> MixedWorkload:
    """256 requests as long as real tweets, with prompts of 3 to 8 letters, each a token of `byte_tokenizer`.

    Each 1/256 of the lengths' distribution gives one length, so that mean and quantiles are those of the
    tweets and not of a seed; then they are shuffled.

    Raises:
        ValueError: it is not the workload that TWEETS_SHA256 names.
    """
    rng = random.Random(SEED)
    lengths = tweet_lengths(NUM_TWEETS, rng)
    prompts = different_prompts(NUM_TWEETS, rng, lambda: rng.choices(TWEET_PROMPT_LENGTHS)[0])
    workload = MixedWorkload(prompts=prompts, prompt_token_ids=_letter_ids(prompts), lengths=lengths)
    if workload.sha256 != TWEETS_SHA256:
        raise ValueError(f"the tweets workload has SHA-256 {workload.sha256}, not {TWEETS_SHA256}")
    return workload


def offline(num_requests: int) -> MixedWorkload:
    """The tweets workload as often as it takes."""
    workload, times = tweets(), -(-num_requests // NUM_TWEETS)
    repeated = replace(
        workload,
        prompts=workload.prompts * times,
        prompt_token_ids=workload.prompt_token_ids * times,
        lengths=workload.lengths * times,
    )
    return repeated.part(0, num_requests)


def tweet_lengths(count: int, rng: random.Random) -> tuple[int, ...]:
    """New tokens of so many tweets: one of each of as many equal parts of their distribution, shuffled."""
    lengths = [tweet_length((number + rng.random()) / count) for number in range(count)]
    rng.shuffle(lengths)
    return tuple(lengths)


def tweet_length(quantile: float) -> int:
    """The whole tokens at a quantile in [0, 1) of TWEET_LENGTHS, linear between its points."""
    for (low, shorter), (high, longer) in pairwise(TWEET_LENGTHS):
        if quantile < high:
            return int(shorter + (longer - shorter) * (quantile - low) / (high - low))
    raise ValueError(f"a quantile is in [0, 1); got {quantile}")


def different_prompts(count: int, rng: random.Random, draw_length: Callable[[], int]) -> tuple[str, ...]:
    """Texts of letters, no two alike."""
    prompts: dict[str, None] = {}
    while len(prompts) < count:
        prompts["".join(rng.choices(string.ascii_letters, k=draw_length()))] = None
    return tuple(prompts)


def _letter_ids(prompts: Iterable[str]) -> tuple[tuple[int, ...], ...]:
    ids = {character: id_ for id_, character in enumerate(byte_characters())}
    return tuple(tuple(ids[character] for character in prompt) for prompt in prompts)
