"""Random texts, texts of a length, and requests that use every control, for the tiny checkpoint."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgt_infer import Generator, SamplingParams

V, END_OF_TEXT = 398, 397  # of the tiny checkpoint
PROMPTS = ["My dream is", "nobody knows", "a b c d e f g h a b c d a b", "", "I think that we should. " * 8]
Request = tuple[str, SamplingParams]


def random_text(seed: int, num_words: int) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(
        "".join(chr(97 + i) for i in rng.integers(0, 26, rng.integers(1, 6))) for _ in range(num_words)
    )


def text_of_length(generator: Generator, num_tokens: int, seed: int) -> str:
    """A text whose prompt, prefix included, has num_tokens tokens."""
    ids = generator._tokenizer.encode(random_text(seed, num_tokens))[: num_tokens - 1]
    while True:
        text = generator._tokenizer.decode(ids)
        length = len(generator._tokenizer.encode(text)) + 1  # the prefix
        if length == num_tokens:
            return text
        ids = ids[: num_tokens - 1 - max(0, length - num_tokens)] + [ids[0]] * (num_tokens - length)


def prefer_neighbours(token_ids: list[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """A logits_processor that depends on all that came before."""
    logits[(sum(token_ids) + np.arange(40)) % V] += 3
    logits[token_ids[-1]] = -np.inf
    return logits


def controls(rng: random.Random) -> dict[str, Any]:
    """A random value of every setting that changes logits before temperature, and of what ends a sample."""
    return {
        "logit_bias": {END_OF_TEXT: 4} | {rng.randrange(V): rng.uniform(-5, 5) for _ in range(20)},
        "presence_penalty": rng.uniform(-2, 2),
        "frequency_penalty": rng.uniform(-2, 2),
        "allowed_token_ids": rng.sample(range(V), 200),
        "repetition_penalty": rng.uniform(0.7, 1.5),
        "no_repeat_ngram_size": rng.randint(1, 4),
        "bad_words": rng.sample(["\t", "7", "the kettle", "7\t", "a b", "'m", "robots", "!"], 3),
        "stop_token_ids": rng.sample(range(V), 20),
        "logits_processor": prefer_neighbours,
    }


def chosen(rng: random.Random, settings: dict[str, Any], least: int, most: int) -> dict[str, Any]:
    """So many of the settings."""
    return {name: settings[name] for name in rng.sample(list(settings), rng.randint(least, most))}


def random_request(rng: random.Random) -> Request:
    settings = controls(rng) | {
        "temperature": rng.choice([0, 0.7, 1.0, 1.5]),
        "top_k": rng.choice([0, 1, 50, 300]),
        "top_p": rng.uniform(0.3, 1),
        "min_p": rng.uniform(0, 0.1),
        "typical_p": rng.uniform(0.3, 1),
        "stop": rng.sample(["a", "e", "7", " the", "\t", "xe"], 3),
        "min_tokens": rng.randint(0, 1),
        "logprobs": rng.randint(0, 3),
        "prompt_logprobs": rng.randint(0, 3),
    }
    params = SamplingParams(
        n=rng.choice([1, 1, 2, 3]),
        max_tokens=rng.randint(1, 12),
        seed=rng.randrange(2**64),
        **chosen(rng, settings, 0, 4),
    )
    # Few different prompts: some calls find theirs in the cache, some do not.
    return random_text(rng.randrange(60), rng.choice([0, 1, 2, 3, 8, 20])), params
