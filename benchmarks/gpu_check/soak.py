"""Thousands of mixed requests from several threads: all are answered, and neither side's memory grows."""

from __future__ import annotations

import asyncio
import gc
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_check.report import Result, judged
from benchmarks.gpu_check.subject import Subject
from benchmarks.measure.memory import memory_bytes
from hgt_infer import Generator, SamplingParams
from hgt_infer.cuda.device import CudaDevice

NUM_THREADS = 16
NUM_ROUNDS = 10
NUM_WARM_ROUNDS = 3  # fill arenas, the pools of threads, every graph and shape
MAX_PROMPT_LENGTH, MAX_TOKENS = 96, 24
MAX_GROWTH_BYTES = 32e6


class RefusedError(Exception):
    """What a caller's own logits_processor raises."""


def refuse(token_ids: list[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
    raise RefusedError


def prefer(token_ids: list[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
    logits[len(token_ids)] += 5
    return logits


CONTROLS: dict[str, Callable[[random.Random], Any]] = {
    "logit_bias": lambda rng: {rng.randrange(200): rng.uniform(-20, 20) for _ in range(5)},
    "presence_penalty": lambda rng: rng.uniform(-2, 2),
    "frequency_penalty": lambda rng: rng.uniform(-2, 2),
    "repetition_penalty": lambda rng: rng.uniform(0.8, 1.5),
    "no_repeat_ngram_size": lambda rng: rng.randint(2, 4),
    "logits_processor": lambda rng: rng.choice([prefer, prefer, refuse]),
    "temperature": lambda rng: rng.choice([0.0, 0.7, 1.5]),
    "top_k": lambda rng: rng.choice([0, 1, 50, 300]),
    "top_p": lambda rng: rng.uniform(0.1, 1),
    "min_p": lambda rng: rng.uniform(0, 0.2),
    "typical_p": lambda rng: rng.uniform(0.2, 1),
    "stop": lambda rng: rng.sample(["\n", "e", "a b", "o", "é"], 2),
    "stop_token_ids": lambda rng: rng.sample(range(200), 5),
    "ignore_eos": lambda rng: True,
    "seed": lambda rng: rng.randrange(2**64),
    "logprobs": lambda rng: rng.randint(0, 5),
    "prompt_logprobs": lambda rng: rng.randint(0, 2),
}
"""A value of each setting; a request has each with a probability of 0.08."""


def answer(generator: Generator, number: int) -> str:
    """Make a request in one of the ways that there are, check what comes of it, and return which way."""
    rng = random.Random(number)
    num_words = int((MAX_PROMPT_LENGTH / 2) ** rng.random())
    prompt = " ".join(rng.choices("abcdefghij", k=num_words))
    controls = {name: draw(rng) for name, draw in CONTROLS.items() if rng.random() < 0.08}
    params = SamplingParams(n=rng.choice([1, 1, 1, 2, 4]), max_tokens=rng.randint(1, MAX_TOKENS), **controls)
    way = rng.choice(WAYS)
    try:
        way(generator, prompt, params, rng)
    except RefusedError:
        assert params.logits_processor is refuse
        return "refused"
    return way.__name__


def generated(generator: Generator, prompt: str, params: SamplingParams, rng: random.Random) -> None:
    [output] = generator.generate([prompt], [params])
    assert len(output.completions) == params.n
    assert all(1 <= len(c.token_ids) <= MAX_TOKENS for c in output.completions)


def streamed(generator: Generator, prompt: str, params: SamplingParams, rng: random.Random) -> None:
    ends = [delta for delta in generator.stream(prompt, params) if delta.finish_reason is not None]
    assert sorted(delta.sample_index for delta in ends) == list(range(params.n))


def closed_early(generator: Generator, prompt: str, params: SamplingParams, rng: random.Random) -> None:
    stream: Any = generator.stream(prompt, params)
    with closing(stream) as deltas:
        for _ in islice(deltas, rng.randrange(4)):
            pass


def cancelled(generator: Generator, prompt: str, params: SamplingParams, rng: random.Random) -> None:
    async def cancel_soon() -> None:
        task = asyncio.create_task(generator.agenerate(prompt, params))
        await asyncio.wait([task], timeout=rng.uniform(0, 0.01))
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    asyncio.run(cancel_soon())


def warm(generator: Generator) -> None:
    """Make the largest runs that a request can ask for, in every slot: what they allocate is kept."""
    longest = " ".join(["abcdefghij"[n % 10] for n in range(MAX_PROMPT_LENGTH // 2)])
    prompts = [f"{chr(ord('a') + n % 26)}{longest[1:]}" for n in range(generator.num_slots)]
    params = SamplingParams(max_tokens=MAX_TOKENS, logprobs=5, prompt_logprobs=2)
    generator.generate(prompts, params)
    generator.generate(prompts, SamplingParams(max_tokens=MAX_TOKENS))
    generator.score(prompts)


WAYS = (generated, generated, streamed, closed_early, cancelled)


def check_soak(subject: Subject) -> Result:
    """Mixed requests, in rounds; what both memories hold behind the first ones they hold at the end."""
    per_round = subject.scale.num_mixed // NUM_ROUNDS
    ways: Counter[str] = Counter()
    resident: list[int | None] = []
    on_device: list[int | None] = []
    with (
        subject.open_device() as device,
        subject.generator(num_slots=subject.scale.num_slots, max_length=256) as generator,
        ThreadPoolExecutor(NUM_THREADS) as pool,
    ):
        warm(generator)
        for start in range(0, per_round * NUM_ROUNDS, per_round):
            ways.update(pool.map(partial(answer, generator), range(start, start + per_round)))
            gc.collect()
            resident.append(memory_bytes()["resident"])
            on_device.append(device_bytes_used(device))
        generator.generate("a", SamplingParams(max_tokens=1))  # what was cancelled before is gone now
        stats = generator.stats()
    growth = {
        name: None if values[-1] is None else values[-1] - (values[NUM_WARM_ROUNDS - 1] or 0)
        for name, values in (("host", resident), ("device", on_device))
    }
    is_flat = all(value is None or value <= MAX_GROWTH_BYTES for value in growth.values())
    is_empty = stats.running == 0 and stats.waiting == 0
    shown = {name: "unknown" if value is None else f"{value / 1e6:+.1f} MB" for name, value in growth.items()}
    figure = ", ".join(f"{name} {value}" for name, value in shown.items())
    says = (
        f"{ways.total():,} mixed requests ({', '.join(f'{n:,} {way}' for way, n in ways.items())}); growth "
        f"behind the first {NUM_WARM_ROUNDS * per_round:,}; {stats.running} slots still in use"
    )
    return judged(
        "soak",
        is_flat and is_empty,
        figure,
        says,
        ways=ways,
        resident_bytes=resident,
        device_bytes_used=on_device,
        running=stats.running,
        waiting=stats.waiting,
    )


def device_bytes_used(device: Any) -> int | None:
    """Of the whole GPU, by all processes; None on a CPU."""
    if not isinstance(device, CudaDevice):
        return None
    free, total = device.memory()
    return total - free
