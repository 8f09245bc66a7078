"""Where a sample ends: end-of-text, stop strings and tokens, and a caller's function that fails."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.random_requests import END_OF_TEXT, PROMPTS, prefer_neighbours, text_of_length

from hgt_infer import Completion, Generator, ParameterError, SamplingParams

# Stop strings. A logits_processor that dictates the output puts any bytes behind any token's border.


def dictate(generator: Generator, prompt: str, text: str, rng: random.Random) -> tuple[Any, list[int]]:
    """A logits_processor by which the output is text, cut into tokens of one byte or as they come."""
    tokenizer = generator._tokenizer
    by_byte = {token: id_ for id_, token in enumerate(tokenizer.token_bytes) if len(token) == 1}
    token_ids: list[int] = []
    for word in text.split(" "):
        piece = word if not token_ids else " " + word
        single = [by_byte[bytes([byte])] for byte in piece.encode()]
        token_ids += rng.choice([single, tokenizer.encode(piece)])
    prompt_length = len(generator._reader.group(0, prompt, SamplingParams()).token_ids)

    def processor(ids: list[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        forced = np.full_like(logits, -np.inf)
        forced[token_ids[len(ids) - prompt_length]] = 0
        return forced

    return processor, token_ids


def first_match(
    token_bytes: list[bytes], token_ids: list[int], stops: list[str], min_tokens: int
) -> tuple[int, bytes, str | None]:
    """Tokens up to the first match, their bytes up to its end, and which it is; by brute force."""
    text = b""
    for count, token_id in enumerate(token_ids, 1):
        for byte in token_bytes[token_id]:
            text += bytes([byte])
            ending = [stop for stop in stops if text.endswith(stop.encode())]
            if ending and count >= min_tokens:
                return count, text, max(ending, key=len)
    return len(token_ids), text, None


@pytest.mark.parametrize("include", [False, True])
def test_stop_strings_cut_the_text_of_the_unstopped_run_at_the_first_match(
    generator: Generator, include: bool
) -> None:
    rng = random.Random(include)
    token_bytes = generator._tokenizer.token_bytes
    reasons: Counter[str] = Counter()
    for _ in range(60):
        text = "".join(rng.choices("abé🤖 n", k=rng.randint(3, 25)))
        processor, token_ids = dictate(generator, "a", text, rng)
        stops = ["".join(rng.choices("abé🤖 n", k=rng.randint(1, 4))) for _ in range(rng.randint(1, 5))]
        params = SamplingParams(
            max_tokens=len(token_ids),
            min_tokens=rng.choice([0, 0, 5]) if len(token_ids) >= 5 else 0,
            ignore_eos=True,
            stop=stops,
            include_stop_str_in_output=include,
            logits_processor=processor,
        )
        completion = generator.generate("a", params)[0].completions[0]
        count, data, stop = first_match(token_bytes, token_ids, stops, params.min_tokens or 0)
        assert completion.token_ids == tuple(token_ids[:count])
        assert completion.stop_reason == stop
        assert completion.finish_reason == ("length" if stop is None else "stop")
        if stop is not None and not include:
            data = data.removesuffix(stop.encode())
        assert completion.text == data.decode()
        reasons[completion.finish_reason] += 1
    assert min(reasons["stop"], reasons["length"]) > 10


def test_stopped_samples_are_beginnings_of_the_unstopped_ones(generator: Generator) -> None:
    params = SamplingParams(n=20, temperature=1.2, top_k=0, max_tokens=40, seed=6, min_tokens=0)
    stops = ["the", "7", "xe", " r"]
    whole = generator.generate(PROMPTS[:4], params)
    stopped = generator.generate(PROMPTS[:4], replace(params, stop=stops))
    found: Counter[Any] = Counter()
    for before, after in zip(whole, stopped, strict=True):
        for ours, unstopped in zip(after.completions, before.completions, strict=True):
            token_bytes = generator._tokenizer.token_bytes
            count, data, stop = first_match(token_bytes, list(unstopped.token_ids), stops, 0)
            assert ours.token_ids == unstopped.token_ids[:count]
            assert ours.stop_reason == stop
            assert ours.text == data.removesuffix((stop or "").encode()).decode(errors="replace")
            found[stop] += 1
    assert len(found) > 2
    assert found[None] > 0


def test_what_ended_a_sample_is_told(generator: Generator) -> None:
    def ended_by(**options: Any) -> tuple[Completion, str]:
        params = SamplingParams(
            **{"temperature": 0, "max_tokens": 10, "logit_bias": {END_OF_TEXT: 100}, **options}
        )
        completion = generator.generate("My dream is", params)[0].completions[0]
        return completion, generator._tokenizer.decode(completion.token_ids)

    completion, _ = ended_by(min_tokens=3)
    assert (len(completion.token_ids), completion.finish_reason, completion.stop_reason) == (4, "stop", None)
    assert completion.token_ids[-1] == END_OF_TEXT
    completion, text = ended_by(ignore_eos=True)
    assert (completion.token_ids, completion.text) == ((END_OF_TEXT,) * 10, "")
    assert (completion.finish_reason, completion.stop_reason) == ("length", None)
    for include in (False, True):
        options = {"logit_bias": {300: 100}, "stop_token_ids": [300], "include_stop_str_in_output": include}
        completion, text = ended_by(min_tokens=2, **options)
        assert (len(completion.token_ids), completion.finish_reason, completion.stop_reason) == (
            3,
            "stop",
            300,
        )
        assert text
        assert (completion.text == text) is include
    completion, _ = ended_by(logit_bias=None)
    assert (completion.finish_reason, completion.stop_reason) == ("length", None)


# A caller's logits_processor that goes wrong.


class OwnError(Exception):
    pass


class OwnExit(BaseException):
    pass


def fail(error: BaseException | type[BaseException]) -> Any:
    def processor(token_ids: list[int], logits: NDArray[np.float32]) -> Any:
        if len(token_ids) % 3 == 0:
            raise error
        return logits

    return processor


WRONG_RESULTS = {
    "NaN": lambda ids, logits: logits * np.nan,
    "shape": lambda ids, logits: logits[1:],
    "type": lambda ids, logits: logits.tolist(),
    "None": lambda ids, logits: None,
    "integers": lambda ids, logits: np.zeros(len(logits), np.int64),
    "inf": lambda ids, logits: np.where(logits > 0, np.float32(np.inf), logits),
    "no token": lambda ids, logits: logits - np.inf,
}


@pytest.fixture
def endless(generator: Generator) -> Iterator[None]:
    """Other calls, before, during and after the test's: they get what they get alone."""
    params = SamplingParams(n=3, max_tokens=20, seed=5, logits_processor=prefer_neighbours)
    expected = generator.generate(PROMPTS, params)
    results: list[Any] = []
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            results.append(generator.generate(PROMPTS, params))

    thread = threading.Thread(target=work)
    thread.start()
    yield
    done.set()
    thread.join(60)
    assert not thread.is_alive()
    assert generator.generate(PROMPTS, params) == expected
    assert all(result == expected for result in results)


def ways(generator: Generator, prompts: list[str], params: SamplingParams) -> Mapping[str, Any]:
    return {
        "generate": lambda: generator.generate(prompts, params),
        "stream": lambda: list(generator.stream(prompts, params)),
        "agenerate": lambda: asyncio.run(generator.agenerate(prompts, params)),
        "iterable": lambda: list(generator.generate_iterable(prompts, params)),
    }


@pytest.mark.parametrize("way", ["generate", "stream", "agenerate", "iterable"])
@pytest.mark.parametrize("error", [OwnError("mine"), OwnExit("mine"), SystemExit(3)], ids=repr)
@pytest.mark.usefixtures("endless")
def test_an_exception_in_a_logits_processor_reaches_its_caller_alone(
    generator: Generator, way: str, error: BaseException
) -> None:
    before = generator.stats()
    params = SamplingParams(n=2, max_tokens=9, temperature=1.0, logits_processor=fail(error))
    with pytest.raises(type(error)) as caught:
        ways(generator, ["a", "a b", "a b c"], params)[way]()
    assert caught.value is error
    assert generator.stats().failed > before.failed


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("wrong", WRONG_RESULTS)
@pytest.mark.usefixtures("endless")
def test_a_wrong_result_of_a_logits_processor_is_a_parameter_error(
    generator: Generator, wrong: str, temperature: float
) -> None:
    message = (
        "leave no token" if wrong == "no token" else "logits_processor must return a float array of shape"
    )
    params = SamplingParams(temperature=temperature, logits_processor=WRONG_RESULTS[wrong])
    for call in ways(generator, ["a", "nobody knows"], params).values():
        with pytest.raises(ParameterError, match=message) as caught:
            call()
        assert len(str(caught.value)) < 300


def test_a_sample_that_fails_in_its_last_token_counts_as_failed(artifact: Path) -> None:
    with Generator(artifact, device="cpu", num_slots=2) as generator:
        params = SamplingParams(max_tokens=1, logits_processor=fail(OwnError()))
        with pytest.raises(OwnError):
            generator.generate(text_of_length(generator, 3, seed=0), params)
        generator.generate("a", SamplingParams(max_tokens=1))
        stats = generator.stats()
    assert (stats.failed, stats.finished, stats.cancelled) == (1, 1, 0)
