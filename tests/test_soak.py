"""Many thousand requests of every shape from several threads: all are answered, and memory does not grow."""

from __future__ import annotations

import asyncio
import gc
import random
import string
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from hgt_infer import GenerationOutput, Generator, SamplingParams

NUM_THREADS = 8
MAX_PROMPT_LENGTH, MAX_SAMPLES, MAX_TOKENS = 200, 4, 32
NUM_TOKEN_IDS = 390  # of the vocabulary, without end-of-text
MAX_GROWTH_BYTES = 16e6


class RefusedError(Exception):
    """What a caller's own logits_processor raises."""


def prefer(token_ids: list[int], logits: np.ndarray) -> np.ndarray:
    logits[len(token_ids) % NUM_TOKEN_IDS] += 5
    return logits


def refuse(token_ids: list[int], logits: np.ndarray) -> np.ndarray:
    raise RefusedError


CONTROLS: dict[str, Callable[[random.Random], Any]] = {
    "logit_bias": lambda rng: {rng.randrange(NUM_TOKEN_IDS): rng.uniform(-20, 20) for _ in range(5)},
    "presence_penalty": lambda rng: rng.uniform(-2, 2),
    "frequency_penalty": lambda rng: rng.uniform(-2, 2),
    "allowed_token_ids": lambda rng: rng.sample(range(NUM_TOKEN_IDS), 100),
    "repetition_penalty": lambda rng: rng.uniform(0.8, 1.5),
    "no_repeat_ngram_size": lambda rng: rng.randint(2, 4),
    "bad_words": lambda rng: rng.sample(["a", "the kettle", "robots", "é", "of the"], 2),
    "min_tokens": lambda rng: 1,
    "logits_processor": lambda rng: rng.choice([prefer, prefer, refuse]),
    "temperature": lambda rng: rng.choice([0.0, 0.7, 1.5]),
    "top_k": lambda rng: rng.choice([0, 1, 50, 300]),
    "top_p": lambda rng: rng.uniform(0.1, 1),
    "min_p": lambda rng: rng.uniform(0, 0.2),
    "typical_p": lambda rng: rng.uniform(0.2, 1),
    "stop": lambda rng: rng.sample(["\n", "the", "a b", "o", "é"], 2),
    "stop_token_ids": lambda rng: rng.sample(range(NUM_TOKEN_IDS), 5),
    "include_stop_str_in_output": lambda rng: True,
    "ignore_eos": lambda rng: True,
    "best_of": lambda rng: MAX_SAMPLES + 1,
    "seed": lambda rng: rng.randrange(2**64),
    "logprobs": lambda rng: rng.randint(0, 5),
    "prompt_logprobs": lambda rng: rng.randint(0, 5),
}
"""A value of each setting but n and max_tokens, which every request has."""


def random_params(rng: random.Random) -> SamplingParams:
    n = rng.choices(range(1, MAX_SAMPLES + 1), weights=[6, 2, 1, 1])[0]
    controls = {name: draw(rng) for name, draw in CONTROLS.items() if rng.random() < 0.1}
    return SamplingParams(n=n, max_tokens=rng.randint(1, MAX_TOKENS), **controls)


def random_prompt(rng: random.Random) -> str:
    """1 … 200 tokens: words of a letter, each one or two tokens; short prompts more often.

    Few different words, because the tokenizer keeps up to 10,000: that is growth too, but not without end.
    """
    num_words = int((MAX_PROMPT_LENGTH / 2 + 1) ** rng.random())
    return " ".join(rng.choices(string.ascii_letters, k=num_words))


def answer(generator: Generator, number: int) -> str:
    """Make one request in one of the ways that there are, check what comes of it, and return which way."""
    rng = random.Random(number)
    prompt, params = random_prompt(rng), random_params(rng)
    way = rng.choice(WAYS)
    try:
        way(generator, prompt, params, rng)
    except RefusedError:
        assert params.logits_processor is refuse
    return way.__name__


def generated(generator: Generator, prompt: str, params: SamplingParams, rng: random.Random) -> None:
    check(generator.generate([prompt], [params]), params)


def awaited(generator: Generator, prompt: str, params: SamplingParams, rng: random.Random) -> None:
    check(asyncio.run(generator.agenerate(prompt, params)), params)


def check(outputs: list[GenerationOutput], params: SamplingParams) -> None:
    [output] = outputs
    assert len(output.completions) == params.n
    for completion in output.completions:
        assert 1 <= len(completion.token_ids) <= MAX_TOKENS
        assert completion.finish_reason in ("stop", "length")
        assert (completion.logprobs is None) == (params.logprobs is None)


def cancelled(generator: Generator, prompt: str, params: SamplingParams, rng: random.Random) -> None:
    async def cancel_soon() -> None:
        task = asyncio.create_task(generator.agenerate(prompt, params))
        await asyncio.wait([task], timeout=rng.uniform(0, 0.02))
        task.cancel()
        try:
            check(await task, params)
        except asyncio.CancelledError:
            assert task.cancelled()

    asyncio.run(cancel_soon())


def streamed(generator: Generator, prompt: str, params: SamplingParams, rng: random.Random) -> None:
    params = replace(params, best_of=None)
    ends = [delta for delta in generator.stream(prompt, params) if delta.finish_reason is not None]
    assert sorted(delta.sample_index for delta in ends) == list(range(params.n))


def closed_early(generator: Generator, prompt: str, params: SamplingParams, rng: random.Random) -> None:
    with closing(generator.stream(prompt, replace(params, best_of=None))) as deltas:
        for delta in islice(deltas, rng.randrange(4)):
            assert delta.seed == params.seed or params.seed is None


WAYS = (generated, awaited, cancelled, streamed, closed_early)


def answer_all(generator: Generator, numbers: range) -> Counter[str]:
    """How many requests went which way."""
    ways: Counter[str] = Counter()
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for start in range(0, len(numbers), 500):  # so that no list grows with their number
            ways.update(pool.map(partial(answer, generator), numbers[start : start + 500]))
    return ways


def resident_bytes() -> int:
    gc.collect()
    resident: int = psutil.Process().memory_info().rss
    return resident


@pytest.fixture
def generator(artifact: Path) -> Iterator[Generator]:
    with Generator(artifact, device="cpu", max_length=1 + MAX_PROMPT_LENGTH + MAX_TOKENS) as generator:
        yield generator


def test_mixed_requests_are_all_answered_and_leave_no_slot_in_use(generator: Generator) -> None:
    assert set(CONTROLS) | {"n", "max_tokens"} == {field.name for field in fields(SamplingParams)}
    ways = answer_all(generator, range(150))
    assert ways.total() == 150
    assert set(ways) == {way.__name__ for way in WAYS}
    generator.generate("a", SamplingParams(max_tokens=1))  # what was cancelled before is gone now
    stats = generator.stats()
    assert (stats.running, stats.waiting) == (0, 0)
    assert min(stats.finished, stats.cancelled, stats.failed) > 0


@pytest.mark.slow
def test_soak(generator: Generator, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints both sizes. The first 2,000 requests touch the cache, the arenas and every path."""
    answer_all(generator, range(2_000))
    before = resident_bytes()
    answer_all(generator, range(2_000, 20_000))
    after = resident_bytes()
    with capsys.disabled():
        print(f"\nresident: {before / 1e6:.1f} MB after 2,000 requests, {after / 1e6:.1f} MB after 20,000")
    assert after - before < MAX_GROWTH_BYTES
