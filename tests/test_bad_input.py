"""Bad input of every kind beside good requests: refused by name, at once, and nobody else notices."""

from __future__ import annotations

import asyncio
import gc
import itertools
import math
import random
import threading
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.random_requests import END_OF_TEXT, V, random_request
from support.waiting import TIMEOUT_S

from hgt_infer import Generator, HgtInferError, SamplingParams
from hgt_infer.pipeline import PipelineOptions


class Endless(Seq[Any]):
    """A sequence that lies about its length."""

    def __init__(self, item: Any) -> None:
        self.item = item

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: Any) -> Any:
        return self.item


HUGE = "a " * 5_000_001
NEVER = [math.nan, math.inf, -math.inf, -3, 10**400, -(10**400), 10**5000, 1j, object(), b"x", HUGE]
"""What no setting is."""
LISTS = [[math.nan], [""], ["\ud800"], [None], [[]], itertools.count(), Endless(math.nan), {"a": math.nan}]
TOO_MANY: dict[str, Any] = {
    "n": 10**9,
    "best_of": 10**9,
    "logprobs": 10**9,
    "prompt_logprobs": 10**9,
    "stop": ["a"] * 10_000,
    "bad_words": ["a"] * 10_000,
    "logit_bias": dict.fromkeys(range(300_000), 1),
    "stop_token_ids": range(10**9),
    "allowed_token_ids": range(10**9),
}
BEYOND: list[dict[str, Any]] = [
    {"logit_bias": {V: 1}},
    {"stop_token_ids": [V]},
    {"allowed_token_ids": [0, V]},
    {"allowed_token_ids": []},
    {"allowed_token_ids": [END_OF_TEXT], "min_tokens": 1},
    {"allowed_token_ids": [300], "stop_token_ids": [300], "min_tokens": 1},
    {"n": 0},
    {"n": 3, "best_of": 2},
    {"max_tokens": 0},
    {"max_tokens": 4, "min_tokens": 5},
    {"top_p": 0},
    {"min_p": 1.01},
    {"repetition_penalty": 0},
    {"presence_penalty": 2.01},
    {"logprobs": 21},
]
TEXTS = [None, 5, math.nan, b"a", "\ud800", "a\udfff", HUGE, object(), {"a": 1}, ["a", "\ud800"], ["a", None]]
TEXTS += [itertools.repeat("a"), Endless(5), Endless("\ud800"), ["a", HUGE]]
WRONG_PARAMS = [5, {}, "x", [SamplingParams()] * 3, [5, 5], math.nan, itertools.count(), Endless(5)]
ARGUMENTS: dict[str, list[str]] = {  # those that are no settings, texts or paths
    "generate": ["progress"],
    "generate_iterable": ["in_order", "progress"],
    "score": ["stride", "progress"],
    "__call__": list(PipelineOptions.__annotations__),
}


def bad_calls(generator: Generator, artifact: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Calls that must fail before anything runs, and what each is about."""

    def run(name: str, *given: Any, **options: Any) -> Any:
        result = getattr(generator, name)(*given, **options)
        if name == "astream":
            return asyncio.run(anext(result))
        return asyncio.run(result) if name == "agenerate" else result

    settings = [{name: value} for name, value in TOO_MANY.items()] + BEYOND
    settings += [{field.name: value} for field in fields(SamplingParams) for value in [*NEVER, *LISTS]]
    for options in settings:
        yield str([*options]), lambda options=options: run("generate", "a", SamplingParams(**options))
    ways = ["generate", "stream", "agenerate", "astream"]
    for way, text in itertools.product([*ways, "score", "__call__"], TEXTS):
        yield f"{way} text", lambda way=way, text=text: run(way, text)
    for way, params in itertools.product(ways, WRONG_PARAMS):
        yield f"{way} params", lambda way=way, params=params: run(way, ["a", "b"], params)
    for way, names in ARGUMENTS.items():
        for name, value in itertools.product(names, [*NEVER, [1]]):
            yield f"{way} {name}", lambda way=way, given={name: value}: run(way, ["a"], **given)
    for name, value in itertools.product(
        ["num_slots", "max_length", "max_queued_sequences"], [*NEVER, 10**9]
    ):
        yield name, lambda given={name: value}: Generator(artifact, device="cpu", **given)
    for name, value in itertools.product(["device", "precision"], [HUGE, 10**5000]):
        yield name, lambda given={name: value}: Generator(artifact, **{"device": "cpu", **given})
    for value in ("", None, 5, b"x", "\0", "\ud800", "a" * 10_000, HUGE):
        yield "model", lambda value=value: Generator(value, device="cpu")
    for value in ("", 5, b"x", "\0", "\ud800", "a" * 10_000, HUGE):
        yield "cache_dir", lambda value=value: Generator(artifact, device="cpu", cache_dir=value)
    for name, value in itertools.product(["device", "precision"], ["", 0, None, "\0", "\ud800"]):
        yield name, lambda given={name: value}: Generator(artifact, **{"device": "cpu", **given})


def test_bad_input_is_refused_at_once_and_harms_nobody(artifact: Path) -> None:
    """Fired twice; the second time the process must grow by less than 50 MB at any moment.

    Whoever took such a number for a size would need gigabytes; the largest text has 10 MB.
    """
    rng = random.Random(1)
    prompts, settings = zip(*(random_request(rng) for _ in range(40)), strict=True)
    with Generator(artifact, device="cpu") as generator, ThreadPoolExecutor(1) as pool:
        expected = generator.generate(prompts, settings)
        is_over = threading.Event()

        def work() -> int:
            for count in itertools.count(1):
                assert generator.generate(prompts, settings) == expected
                if is_over.is_set():
                    return count
            raise AssertionError

        working = pool.submit(work)
        process, peak, before = psutil.Process(), 0, 0
        try:
            for is_measured in (False, True):
                gc.collect()
                before = process.memory_info().rss
                for name, call in bad_calls(generator, artifact):
                    with pytest.raises(HgtInferError) as caught:
                        call()
                        pytest.fail(f"{name} was taken")
                    assert len(str(caught.value)) < 500, name
                    if is_measured:
                        peak = max(peak, process.memory_info().rss)
        finally:
            is_over.set()
        num_runs = working.result(TIMEOUT_S) + 1
        assert peak - before < 50e6
        stats = generator.stats()
        assert stats.finished == num_runs * sum(len(output.completions) for output in expected)
        assert (stats.failed, stats.cancelled, stats.running, stats.waiting) == (0, 0, 0, 0)


@pytest.mark.parametrize("method", ["__call__", "generate", "stream", "score", "generate_iterable"])
def test_an_unknown_option_is_a_type_error(generator: Generator, method: str) -> None:
    with pytest.raises(TypeError, match="num_beams"):
        getattr(generator, method)("a", num_beams=4)


def test_a_nul_is_text(generator: Generator) -> None:
    output = generator.generate("a\0b\0", SamplingParams(max_tokens=3, seed=1))[0]
    assert generator._tokenizer.decode(output.prompt_token_ids) == "a\0b\0"
    assert output.completions != generator.generate("ab", SamplingParams(max_tokens=3, seed=1))[0].completions
    assert generator.score("\0")[0].logprob < 0


def test_a_sequence_that_lies_about_its_length_is_taken_as_that_long(generator: Generator) -> None:
    params = SamplingParams(max_tokens=2, seed=1)
    assert generator.generate(Endless("a"), Endless(params)) == generator.generate(["a", "a"], params)
    assert len(generator.score(Endless("a"))) == 2
