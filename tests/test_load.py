"""Under load: many threads, any company and order; then its end, and its counts."""

from __future__ import annotations

import asyncio
import gc
import random
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.random_requests import (
    Request,
    random_request,
    text_of_length,
)
from support.waiting import ENDLESS, wait_until_idle

from hgt_infer import Delta, EngineError, GenerationOutput, Generator, SamplingParams

NUM_CALLS = 40  # of a thread
TIMEOUT_S = 120  # of what would otherwise hang for ever


def joined(deltas: Iterator[Delta]) -> list[tuple[Any, ...]]:
    """What deltas say of each sample, as `summary` does."""
    samples: dict[int, list[Delta]] = defaultdict(list)
    for delta in deltas:
        samples[delta.sample_index].append(delta)
    return [
        (
            "".join(delta.text for delta in parts),
            sum((delta.token_ids for delta in parts), ()),
            parts[-1].finish_reason,
            parts[-1].stop_reason,
            None if parts[0].logprobs is None else sum((delta.logprobs or () for delta in parts), ()),
        )
        for _, parts in sorted(samples.items())
    ]


def summary(output: GenerationOutput) -> list[tuple[Any, ...]]:
    return [(c.text, c.token_ids, c.finish_reason, c.stop_reason, c.logprobs) for c in output.completions]


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    rng = random.Random(0)
    return [random_request(rng) for _ in range(150)]


@pytest.fixture(scope="module")
def expected(generator: Generator, requests: list[Request]) -> list[GenerationOutput]:
    """What each request gets alone."""
    return [generator.generate(*request)[0] for request in requests]


def test_32_threads_get_what_one_alone_gets(
    generator: Generator, requests: list[Request], expected: list[GenerationOutput]
) -> None:
    def work(number: int) -> Counter[str]:
        rng = random.Random(number)
        ways: Counter[str] = Counter()
        with asyncio.Runner() as runner:
            for _ in range(NUM_CALLS):
                index = rng.randrange(len(requests))
                prompt, params = requests[index]
                way = rng.choice(["generate", "stream", "agenerate"])
                if way == "stream":
                    assert joined(generator.stream(prompt, params)) == summary(expected[index])
                elif way == "generate":
                    assert generator.generate(prompt, params) == [expected[index]]
                else:
                    assert runner.run(generator.agenerate(prompt, params)) == [expected[index]]
                ways[way] += 1
        return ways

    with ThreadPoolExecutor(32) as pool:
        ways = sum(pool.map(work, range(32)), Counter())
    assert ways.total() == 32 * NUM_CALLS
    assert min(ways.values()) > 300
    assert {c.finish_reason for output in expected for c in output.completions} == {"stop", "length"}


@pytest.mark.parametrize("num_slots", [1, 3, 64])
def test_a_request_gets_the_same_tokens_in_any_company_order_and_way(
    artifact: Path, requests: list[Request], expected: list[GenerationOutput], num_slots: int
) -> None:
    rng = random.Random(num_slots)
    with Generator(artifact, device="cpu", num_slots=num_slots) as generator:
        order = rng.sample(range(len(requests)), 64)
        prompts, params = zip(*(requests[index] for index in order), strict=True)
        outputs = generator.generate(prompts, params)
        assert outputs == [expected[index] for index in order]
        reporting = [replace(own, logprobs=3, prompt_logprobs=2) for own in params]
        silent = [replace(own, logprobs=None, prompt_logprobs=None) for own in params]
        for others in (reporting, silent):
            for output, index in zip(generator.generate(prompts, others), order, strict=True):
                found = [c.token_ids for c in output.completions]
                assert found == [c.token_ids for c in expected[index].completions]
        streams = [generator.stream(prompt, own) for prompt, own in zip(prompts, params, strict=True)]
        for stream, index in zip(reversed(streams), reversed(order), strict=True):
            assert joined(stream) == summary(expected[index])


# Its end.


def engine_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("hgt_infer engine")}


def test_a_closed_generator_says_so(artifact: Path) -> None:
    before = engine_threads()
    with Generator(artifact, device="cpu", num_slots=2) as generator:
        iterable = generator.generate_iterable(["a"] * 100, SamplingParams(max_tokens=5))
        next(iterable)
        stream = generator.stream(["a", "b", "c"], ENDLESS)
        assert engine_threads() > before
    generator.close()
    assert engine_threads() == before
    calls: list[Callable[[], Any]] = [
        lambda: generator("a"),
        lambda: generator.generate("a"),
        lambda: generator.stream("a"),
        lambda: generator.score("a"),
        lambda: asyncio.run(generator.agenerate("a")),
        lambda: list(generator.generate_iterable(["a"])),
        lambda: list(iterable),
        lambda: list(stream),
    ]
    for call in calls:
        with pytest.raises(EngineError, match="the generator was closed"):
            call()
    assert generator.stats().finished > 0


def test_a_generator_that_is_let_go_of_ends_its_thread(artifact: Path) -> None:
    before = engine_threads()
    generator = Generator(artifact, device="cpu", num_slots=2)
    generator.generate("a", SamplingParams(max_tokens=2))
    assert len(engine_threads() - before) == 1
    del generator
    gc.collect()
    assert engine_threads() == before


def test_a_stream_keeps_its_generator(artifact: Path) -> None:
    before = engine_threads()
    params = SamplingParams(max_tokens=20, min_tokens=20, ignore_eos=True)
    deltas = list(Generator(artifact, device="cpu", num_slots=2).stream("a", params))
    assert deltas[-1].finish_reason == "length"
    gc.collect()
    assert engine_threads() == before


ENDS = {
    "never closed": 'generator.generate("a", SamplingParams(max_tokens=2))',
    "a stream left open": 'stream = generator.stream("a", ENDLESS); next(stream)',
    "a stream never read": 'stream = generator.stream(["a"] * 9, ENDLESS)',
    "a thread that waits": """
def wait():
    with contextlib.suppress(EngineError):
        generator.generate(["a"] * 9, ENDLESS)
threading.Thread(target=wait, daemon=True).start()
while not generator.stats().running: time.sleep(0.001)
""",
    "a stream in a cycle, which the collector finds while the engine holds its lock": """
[worker] = generator._engine.workers
schedule = worker.scheduler.schedule
worker.scheduler.schedule = lambda: (gc.collect(), schedule())[1]
cycle = [generator.stream("a", ENDLESS)]
cycle.append(cycle)
del cycle
generator.generate("a", SamplingParams(max_tokens=20))
while generator.stats().running: time.sleep(0.001)
""",
}


@pytest.mark.integration
@pytest.mark.parametrize("end", ENDS)
def test_a_process_ends_by_itself(artifact: Path, end: str) -> None:
    code = f"""
import contextlib, gc, sys, threading, time
from hgt_infer import EngineError, Generator, SamplingParams
generator = Generator(sys.argv[1], device="cpu", num_slots=2)
ENDLESS = SamplingParams(max_tokens=1000, min_tokens=1000)
{ENDS[end]}
print("the end")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(artifact)], capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "the end\n", "")


# Its counts.


def test_counts_add_up(artifact: Path) -> None:
    with Generator(artifact, device="cpu", num_slots=4) as generator:
        outputs = generator.generate(
            [text_of_length(generator, 30, seed=0), text_of_length(generator, 300, seed=1)],
            SamplingParams(n=3, max_tokens=20, min_tokens=5),
        )
        num_sampled = sum(len(c.token_ids) for output in outputs for c in output.completions)
        stats = generator.stats()
        assert (stats.finished, stats.cancelled, stats.failed, stats.running, stats.waiting) == (
            6,
            0,
            0,
            0,
            0,
        )
        assert stats.prompt_tokens == 29 + 299 + 6  # what is prefilled once, and what each sample begins with
        assert stats.generated_tokens == num_sampled
        assert stats.time_to_first_token_s.count == 6
        assert stats.inter_token_s.count == num_sampled - 6
        assert num_sampled / 4 <= stats.steps <= num_sampled
        # Either the prompts are prefilled, or steps compute them: that of 300 tokens takes one step more.
        is_prefilled = generator.kernels == "onnxruntime"
        assert stats.occupancy == pytest.approx((num_sampled + (not is_prefilled)) / stats.steps / 4)
        assert (stats.prefill_s > 0) == is_prefilled
        assert stats.decode_s > 0

        generator.score(text_of_length(generator, 40, seed=2))
        stats = generator.stats()
        assert (stats.finished, stats.prompt_tokens) == (7, 334 + 39)
        assert stats.generated_tokens == num_sampled

        generator.generate("", SamplingParams(max_tokens=1))  # the prefix alone
        stream = generator.stream("", replace(ENDLESS, n=9))
        next(stream)
        stream.close()
        wait_until_idle(generator)
        with pytest.raises(ZeroDivisionError):
            generator.generate("a", SamplingParams(logits_processor=lambda ids, logits: 1 / 0))
        stats = generator.stats()
        assert (stats.finished, stats.cancelled, stats.failed) == (8, 9, 1)


def test_the_log_has_what_was_started(artifact: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level("INFO", "hgt_infer"),
        Generator(artifact, device="cpu", num_slots=32, max_length=1000) as generator,
    ):
        kernels = generator.kernels
    # 2 layers of keys and values of 128 float32 each
    cache = f"{2 * 2 * 32 * 1000 * 128 * 4 / 1e6:.0f} MB of cache"
    start = f"{artifact} on cpu in fp32, kernels of {kernels}: 32 slots of 1000 positions, {cache}"
    assert start in caplog.text
