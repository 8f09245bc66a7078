"""POST /v1/completions: what the library gives, in OpenAI's form, to OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from hgt_infer import Generator, SamplingParams

MODEL = "goose"

BODY = {"model": MODEL, "prompt": "My dream", "max_tokens": 8, "seed": 3, "temperature": 1.0}


@pytest.fixture(scope="module")
def official(address: str) -> Iterator[Any]:
    import openai  # which takes a second

    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as official:
        yield official


def test_texts_are_the_library_s(official: Any, generator: Generator) -> None:
    params = SamplingParams(n=2, max_tokens=8, seed=3, temperature=0.8, top_k=20, stop="e")
    expected = generator.generate(["My dream", "a"], params)
    answer = official.completions.create(
        model=MODEL, prompt=["My dream", "a"], n=2, max_tokens=8, seed=3, temperature=0.8, stop="e",
        extra_body={"top_k": 20},
    )  # fmt: skip
    samples = [sample for output in expected for sample in output.completions]
    assert [choice.text for choice in answer.choices] == [sample.text for sample in samples]
    assert [choice.finish_reason for choice in answer.choices] == [s.finish_reason for s in samples]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.id.startswith("cmpl-")
    assert (answer.object, answer.model) == ("text_completion", MODEL)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == sum(len(sample.token_ids) for sample in samples)
    assert answer.usage.prompt_tokens == sum(len(output.prompt_token_ids) for output in expected)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("echo", [False, True])
def test_a_stream_is_the_same_in_pieces(official: Any, echo: bool) -> None:
    settings: dict[str, Any] = {
        "model": MODEL, "prompt": ["My dream", "nobody"], "n": 2, "max_tokens": 12, "seed": 3, "echo": echo,
    }  # fmt: skip
    whole = official.completions.create(**settings)
    texts, reasons, usage = [""] * 4, [None] * 4, None
    with official.completions.create(
        **settings, stream=True, stream_options={"include_usage": True}
    ) as stream:
        for event in stream:
            for choice in event.choices:
                texts[choice.index] += choice.text
                reasons[choice.index] = choice.finish_reason or reasons[choice.index]  # type: ignore[call-overload]
            usage = event.usage or usage
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage


def test_a_stream_counts_its_tokens_as_they_come(official: Any) -> None:
    usages = [
        event.usage
        for event in official.completions.create(
            model=MODEL, prompt=["My dream", "nobody"], max_tokens=6, stream=True,
            stream_options={"include_usage": True, "continuous_usage_stats": True},
        )
    ]  # fmt: skip
    counts = [usage.completion_tokens for usage in usages]
    assert counts == sorted(counts)
    assert 0 < counts[0] < counts[-1]
    assert len({usage.prompt_tokens for usage in usages}) == 1


def test_logprobs_are_the_library_s(official: Any, generator: Generator) -> None:
    settings: dict[str, Any] = {"model": MODEL, "prompt": "My dream", "max_tokens": 5, "seed": 3}
    params = SamplingParams(max_tokens=5, seed=3, logprobs=2, prompt_logprobs=2)
    [output] = generator.generate("My dream", params)
    [sample] = output.completions
    assert sample.logprobs is not None
    assert output.prompt_logprobs is not None
    [choice] = official.completions.create(**settings, logprobs=2).choices
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs == pytest.approx([token.logprob for token in sample.logprobs])
    assert choice.logprobs.tokens == [generator.decode([token.token_id]) for token in sample.logprobs]
    assert choice.logprobs.text_offset is not None
    assert choice.logprobs.text_offset[0] == 0
    assert choice.logprobs.top_logprobs is not None
    assert all(1 <= len(top) <= 2 for top in choice.logprobs.top_logprobs)

    [echoed] = official.completions.create(**settings, logprobs=2, echo=True).choices
    assert echoed.text == "My dream" + sample.text
    assert echoed.logprobs is not None
    assert echoed.logprobs.token_logprobs is not None
    expected = [*output.prompt_logprobs, *sample.logprobs]
    assert echoed.logprobs.token_logprobs[0] is expected[0] is None
    assert echoed.logprobs.token_logprobs[1:] == [token and token.logprob for token in expected[1:]]

    pieces = official.completions.create(**settings, logprobs=2, stream=True)
    streamed = [p.choices[0].logprobs for p in pieces if p.choices[0].logprobs is not None]
    assert [x for piece in streamed for x in piece.token_logprobs or ()] == choice.logprobs.token_logprobs
    assert [x for piece in streamed for x in piece.text_offset or ()] == choice.logprobs.text_offset


def test_bias_and_best_of_reach_the_engine(official: Any, generator: Generator) -> None:
    answer = official.completions.create(
        model=MODEL, prompt="a", max_tokens=4, logit_bias={"5": 100}, temperature=0
    )
    assert answer.choices[0].text == generator.decode([5] * 4)
    best = official.completions.create(model=MODEL, prompt="a", max_tokens=4, best_of=4, n=2, seed=1)
    [output] = generator.generate("a", SamplingParams(n=2, best_of=4, max_tokens=4, seed=1))
    assert [choice.text for choice in best.choices] == [sample.text for sample in output.completions]


def test_sixteen_tokens_unless_told(client: httpx.Client) -> None:
    body = {"model": MODEL, "prompt": "My", "seed": 1, "ignore_eos": True}
    for more in ({}, {"max_tokens": None}):
        usage = client.post("/v1/completions", json=body | more).json()["usage"]
        assert usage["completion_tokens"] == 16


def test_models_are_listed(official: Any) -> None:
    from openai import NotFoundError

    assert [model.id for model in official.models.list()] == [MODEL]
    assert official.models.retrieve(MODEL).owned_by == "hgt_infer"
    with pytest.raises(NotFoundError) as caught:
        official.models.retrieve("other")
    assert caught.value.code == "model_not_found"


WRONG: list[tuple[dict[str, Any], str | None]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ["a"] * 257}, "prompt"),
    ({"prompt": [1, 2]}, "prompt"),
    ({"prompt": "\ud800"}, None),
    ({"prompt": "a" * 500_000}, None),
    ({"n": 0}, "n"),
    ({"n": True}, "n"),
    ({"n": "2"}, "n"),
    ({"n": 4097, "max_tokens": 16}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"logprobs": 21}, "logprobs"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": ""}, "stop"),
    ({"best_of": 1, "n": 2}, "best_of"),
    ({"best_of": 2, "stream": True}, "best_of"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "echo": True, "logprobs": 1}, "echo"),
    ({"suffix": "end"}, "suffix"),
    ({"min_tokens": 99}, "min_tokens"),
    ({"colour": "red"}, "colour"),
]


@pytest.mark.parametrize(("more", "param"), WRONG, ids=[str(more)[:40] for more, _ in WRONG])
def test_a_wrong_parameter_is_named(client: httpx.Client, more: dict[str, Any], param: str | None) -> None:
    content = json.dumps(BODY | more).encode()
    answer = client.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"] == param
    assert len(error["message"]) < 300
    assert "hgt_infer" not in error["message"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": NaN}', b"[" * 100_000, b'{"a": 1} x']
)
def test_what_is_no_json_object_is_told(client: httpx.Client, content: bytes) -> None:
    answer = client.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_other_models_routes_and_methods(client: httpx.Client) -> None:
    answers = [
        (client.post("/v1/completions", json=BODY | {"model": "other"}), 404),
        (client.get("/v1/nothing"), 404),
        (client.get("/page/../app.py"), 404),
        (client.get("/page/app.py"), 404),
        (client.get("/v1/completions"), 405),
        (client.post("/v1/completions", data={"model": MODEL}), 400),
    ]
    for answer, status in answers:
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
