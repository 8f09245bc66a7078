"""Streams and async calls: the same text in pieces, interleaved; slots come free when nobody listens."""

from __future__ import annotations

import asyncio
import gc
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from support.waiting import ENDLESS, wait_until_idle

from hgt_infer import (
    Delta,
    Generator,
    ParameterError,
    PromptError,
    QueueFullError,
    SamplingParams,
)

PARAMS = SamplingParams(n=2, temperature=1.5, top_k=0, max_tokens=30, seed=5)
PROMPTS = ["My dream is", "nobody knows", "a b c d e f g h i j k l m", "café 🤖"]


def join(deltas: Iterable[Delta]) -> dict[tuple[int, int], list[Delta]]:
    samples: dict[tuple[int, int], list[Delta]] = defaultdict(list)
    for delta in deltas:
        samples[delta.prompt_index, delta.sample_index].append(delta)
    return samples


def assert_equals_generate(
    generator: Generator, samples: dict[tuple[int, int], list[Delta]], params: SamplingParams
) -> None:
    outputs = generator.generate(PROMPTS, params)
    assert len(samples) == len(PROMPTS) * params.n
    for (prompt_index, index), deltas in samples.items():
        completion = outputs[prompt_index].completions[index]
        assert "".join(delta.text for delta in deltas) == completion.text
        assert sum((delta.token_ids for delta in deltas), ()) == completion.token_ids
        assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
        assert deltas[-1].finish_reason == completion.finish_reason
        assert deltas[-1].stop_reason == completion.stop_reason
        assert {delta.seed for delta in deltas} == {outputs[prompt_index].seed}


@pytest.mark.parametrize(
    "params",
    [
        PARAMS,
        replace(PARAMS, stop=["e", "qu", "\ufffd\ufffd", "zz"]),
        replace(PARAMS, stop="o", include_stop_str_in_output=True),
        replace(PARAMS, stop_token_ids=range(0, 398, 9), min_tokens=3),
        replace(PARAMS, logprobs=2),
    ],
    ids=["plain", "stop", "stop included", "stop tokens", "logprobs"],
)
def test_a_stream_gives_the_text_of_generate_in_pieces(generator: Generator, params: SamplingParams) -> None:
    samples = join(generator.stream(PROMPTS, params))
    assert_equals_generate(generator, samples, params)
    if params.logprobs is not None:
        completion = generator.generate(PROMPTS, params)[0].completions[0]
        assert sum((d.logprobs or () for d in samples[0, 0]), ()) == completion.logprobs


def test_samples_of_a_stream_come_interleaved(generator: Generator) -> None:
    params = replace(PARAMS, min_tokens=30)
    order = [delta.prompt_index for delta in generator.stream(PROMPTS, params)]
    assert set(order[: len(order) // 2]) == set(range(len(PROMPTS)))


def test_an_async_stream_gives_the_same(generator: Generator) -> None:
    async def collect() -> list[Delta]:
        return [delta async for delta in generator.astream(PROMPTS, PARAMS)]

    assert_equals_generate(generator, join(asyncio.run(collect())), PARAMS)


def test_async_calls_of_one_loop_run_at_once_and_equal_generate(generator: Generator) -> None:
    async def all_at_once() -> list[object]:
        return await asyncio.gather(*(generator.agenerate(prompt, PARAMS) for prompt in PROMPTS * 5))

    expected = [[output] for output in generator.generate(PROMPTS, PARAMS)] * 5
    assert asyncio.run(all_at_once()) == expected


def test_an_async_call_does_not_block_the_loop(generator: Generator) -> None:
    async def main() -> int:
        ticks = 0
        task = asyncio.ensure_future(generator.agenerate("a", ENDLESS))
        while not task.done():
            ticks += 1
            await asyncio.sleep(0.001)
        await task
        return ticks

    assert asyncio.run(main()) > 20


@pytest.mark.parametrize("how", ["close", "let go"])
def test_a_stream_that_is_left_frees_its_slots(generator: Generator, how: str) -> None:
    before = generator.stats().cancelled
    stream = generator.stream(["a", "b", "c"], ENDLESS)
    next(stream)
    if how == "close":
        stream.close()
    else:
        del stream
        gc.collect()
    wait_until_idle(generator)
    assert generator.stats().cancelled == before + 3


def test_a_stream_that_is_never_read_is_freed_too(generator: Generator) -> None:
    stream = generator.stream("a", ENDLESS)
    del stream
    gc.collect()
    wait_until_idle(generator)


@pytest.mark.parametrize("kind", ["agenerate", "astream"])
def test_cancelling_a_task_frees_its_slots(generator: Generator, kind: str) -> None:
    before = generator.stats().cancelled

    async def read() -> None:
        async for _ in generator.astream("a", ENDLESS):
            pass

    async def main() -> None:
        coroutine = generator.agenerate("a", ENDLESS) if kind == "agenerate" else read()
        task = asyncio.ensure_future(coroutine)
        while generator.stats().running == 0:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    wait_until_idle(generator)
    assert generator.stats().cancelled == before + 1


def test_an_async_stream_left_early_frees_its_slots(generator: Generator) -> None:
    async def main() -> None:
        stream = generator.astream("a", ENDLESS)
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined]

    asyncio.run(main())
    wait_until_idle(generator)


def test_what_does_not_fit_the_queue_is_refused_at_once(artifact: Path) -> None:
    with Generator(artifact, device="cpu", num_slots=1, max_queued_sequences=4) as generator:
        with pytest.raises(QueueFullError, match="max_queued_sequences is 4"):
            generator.stream("a", replace(ENDLESS, n=5))
        running = generator.stream("a", ENDLESS)
        next(running)
        waiting = generator.stream("a", replace(ENDLESS, n=3))
        with pytest.raises(QueueFullError, match="3 sequences wait already: no room for 2 more"):
            generator.stream("a", replace(ENDLESS, n=2))
        with pytest.raises(QueueFullError):
            asyncio.run(generator.agenerate(["a", "b"], ENDLESS))
        with pytest.raises(QueueFullError):  # before 160 million sequences are made
            asyncio.run(generator.agenerate(["a"] * 10_000, replace(ENDLESS, n=16_384)))
        waiting.close()
        running.close()
        assert len(generator.generate(["a"] * 9, SamplingParams(n=2, max_tokens=2))) == 9


def test_a_stream_starts_with_an_error_for_bad_input(generator: Generator) -> None:
    with pytest.raises(PromptError):
        generator.stream("a " * 3000)
    with pytest.raises(ParameterError, match="best_of must be n"):
        generator.stream("a", SamplingParams(best_of=2))
    with pytest.raises(PromptError):
        asyncio.run(generator.agenerate("a " * 3000))


@pytest.mark.parametrize("in_order", [True, False])
def test_an_iterable_gives_what_generate_gives(generator: Generator, in_order: bool) -> None:
    prompts = [f"{prompt} {i}" for i in range(20) for prompt in PROMPTS]
    params = SamplingParams(n=2, max_tokens=40, seed=3, temperature=2.0, top_k=0)
    outputs = list(generator.generate_iterable(iter(prompts), params, in_order=in_order))
    expected = generator.generate(prompts, params)
    if in_order:
        assert outputs == expected
    else:
        assert outputs != expected
        assert sorted(outputs, key=lambda o: prompts.index(o.prompt)) == expected


def test_an_iterable_is_read_only_a_bounded_number_ahead(artifact: Path) -> None:
    taken = 0

    def prompts() -> Iterable[str]:
        nonlocal taken
        while True:  # without end
            taken += 1
            yield f"prompt {taken}"

    with Generator(artifact, device="cpu", num_slots=2) as generator:
        outputs = generator.generate_iterable(prompts(), SamplingParams(max_tokens=3))
        for number in range(1, 30):
            assert next(outputs).prompt == f"prompt {number}"
            assert taken <= number + 4 * 2 + 1
        outputs.close()  # type: ignore[attr-defined]
        wait_until_idle(generator)


def test_a_bad_prompt_of_an_iterable_is_an_error_when_its_turn_comes(generator: Generator) -> None:
    outputs = generator.generate_iterable(iter(["a", "b", "\ud800"]), SamplingParams(max_tokens=3))
    with pytest.raises(PromptError, match="U\\+D800"):
        list(outputs)
    wait_until_idle(generator)
    with pytest.raises(ParameterError, match="prompts must be strings; got 5"):
        list(generator.generate_iterable([5]))  # type: ignore[list-item]
    with pytest.raises(ParameterError, match="prompts must be an iterable of strings"):
        generator.generate_iterable("a")
